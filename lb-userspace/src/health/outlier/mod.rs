//! Outlier detection of a cluster: Envoy's, for failures of local origin (attempts to connect).
//!
//! An endpoint that is ejected gets no new connections until its time is over. An ejection takes
//! `base_ejection_time` times the ejections in a row, `max_ejection_time` at most, and
//! `max_ejection_time_jitter`; what happens to attempts meanwhile counts for nothing.

mod change;
mod judge;
mod member;
mod rates;

pub use change::{Cause, Change, Counts, ReturnedBy, Seen, Tally};

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::mem;
use std::time::Instant;

use crate::model::Outlier;

use judge::Judge;
use member::Member;
use rates::Rated;

/// Finds outliers among the endpoints of a cluster, which `K` is the key of.
#[derive(Debug)]
pub struct Detector<K> {
    members: BTreeMap<K, Member>,
    counts: Counts,
    interval_began: Option<Instant>,
    /// As of the last look no endpoint is ejected, and of none there is anything to remember of failures in a row.
    at_rest: bool,
}

impl<K: Ord + Clone> Detector<K> {
    /// Without endpoints.
    pub fn new() -> Self {
        Self { members: BTreeMap::new(), counts: Counts::default(), interval_began: None, at_rest: false }
    }

    /// Sets the endpoints. Those that leave are forgotten, with their ejections; of those that are new counts
    /// what happens after the next look.
    pub fn set(&mut self, endpoints: impl Iterator<Item = K>) {
        self.at_rest = false;
        let mut before = mem::take(&mut self.members);
        for key in endpoints {
            if let Entry::Vacant(vacant) = self.members.entry(key) {
                let member = before.remove(vacant.key()).unwrap_or_default();
                vacant.insert(member);
            }
        }
        self.counts.ejections_active = self.ejected().count();
    }

    /// Whether a look would find nothing as long as no attempt fails.
    pub fn is_at_rest(&self, now: Instant, outlier: &Outlier) -> bool {
        let goes_on = |began| now.saturating_duration_since(began) < outlier.interval;
        self.at_rest && self.interval_began.is_some_and(goes_on)
    }

    /// Looks at the endpoints' counters, to be called about ten times a second: ends ejections and looks at the
    /// failures in a row each time, at the rates every `interval`.
    pub fn look(
        &mut self,
        now: Instant,
        outlier: &Outlier,
        seen: impl Fn(&K) -> Seen,
        random: &mut fastrand::Rng,
    ) -> Vec<Change<K>> {
        let Self { members, counts, interval_began, at_rest } = self;
        let mut judge = Judge { now, outlier, members: members.len(), counts, random };
        let mut changes = Vec::new();
        *at_rest = true;
        for (key, member) in members.iter_mut() {
            changes.extend(judge.look(key, member, seen(key)));
            *at_rest &= member.is_at_rest();
        }
        let began = *interval_began.get_or_insert(now);
        if now.saturating_duration_since(began) < outlier.interval {
            return changes;
        }
        *interval_began = Some(now);
        let mut rated: Vec<_> =
            members.iter_mut().filter_map(|(key, member)| Rated::new(key, member, seen(key))).collect();
        rates::judge(&mut rated, &mut judge, &mut changes);
        // It may have ejected some.
        *at_rest &= changes.is_empty();
        for member in members.values_mut() {
            member.calm_down(now, outlier.interval);
        }
        changes
    }

    /// An active check of an endpoint succeeded that is healthy by active checks: ends its ejection, with
    /// `successful_active_health_check_uneject_host`.
    pub fn probe_succeeded(&mut self, key: &K, now: Instant, outlier: &Outlier) -> Option<Change<K>> {
        let member = self.members.get_mut(key).filter(|member| member.ejected_until().is_some())?;
        if !outlier.uneject_by_probe {
            return None;
        }
        member.take_back(now);
        self.counts.ejections_active -= 1;
        Some(Change::Returned { key: key.clone(), why: ReturnedBy::Probe })
    }

    /// Attempts up to the next look count for no rate: the numbers begin anew.
    pub fn restart_rates(&mut self) {
        self.at_rest = false;
        self.members.values_mut().for_each(Member::restart_rates);
    }

    /// Outlier detection is off from now on: all return, and nothing of what was counts if it is on again.
    pub fn clear(&mut self) -> Vec<Change<K>> {
        let returned = self
            .ejected()
            .map(|(key, _)| Change::Returned { key: key.clone(), why: ReturnedBy::TurnedOff })
            .collect();
        self.members.values_mut().for_each(|member| *member = Member::default());
        self.at_rest = false;
        self.counts.ejections_active = 0;
        returned
    }

    /// Whether it gets no new connections.
    #[cfg(test)]
    fn is_ejected(&self, key: &K) -> bool {
        self.members.get(key).is_some_and(|member| member.ejected_until().is_some())
    }

    /// Those that get no new connections, and until when.
    pub fn ejected(&self) -> impl Iterator<Item = (&K, Instant)> {
        self.members.iter().filter_map(|(key, member)| Some((key, member.ejected_until()?)))
    }

    /// For statistics.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

impl<K: Ord + Clone> Default for Detector<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
