//! Who is ejected.

use std::time::Instant;

use crate::model::Outlier;

use super::member::Member;
use super::{Cause, Change, Counts, ReturnedBy, Seen};

/// What does not change during a look, but for the counts.
pub(super) struct Judge<'a> {
    pub(super) now: Instant,
    pub(super) outlier: &'a Outlier,
    /// Endpoints of the cluster.
    pub(super) members: usize,
    pub(super) counts: &'a mut Counts,
    pub(super) random: &'a mut fastrand::Rng,
}

impl Judge<'_> {
    /// Looks at whether an ejection is over, or else at the failures in a row.
    pub(super) fn look<K: Clone>(&mut self, key: &K, member: &mut Member, seen: Seen) -> Option<Change<K>> {
        if let Some(until) = member.ejected_until() {
            if self.now < until {
                return None;
            }
            member.take_back(self.now);
            member.restart(seen);
            self.counts.ejections_active -= 1;
            return Some(Change::Returned { key: key.clone(), why: ReturnedBy::Time });
        }
        let failures = member.failures_in_a_row(seen);
        let threshold = self.outlier.consecutive_failures?;
        if !(1..=failures).contains(&threshold) {
            return None;
        }
        member.spend(seen);
        let cause = Cause::ConsecutiveFailures(failures);
        Some(self.detected(key, member, cause, self.outlier.enforcing_consecutive))
    }

    /// Ejects an endpoint if it may; `enforcing`: percent of the cases.
    pub(super) fn detected<K: Clone>(
        &mut self,
        key: &K,
        member: &mut Member,
        cause: Cause,
        enforcing: u32,
    ) -> Change<K> {
        let room = self.has_room();
        let tally = match cause {
            Cause::ConsecutiveFailures(_) => &mut self.counts.consecutive_local_origin_failure,
            Cause::SuccessRate { .. } => &mut self.counts.local_origin_success_rate,
            Cause::FailurePercentage { .. } => &mut self.counts.local_origin_failure_percentage,
        };
        tally.detected += 1;
        let key = key.clone();
        if !room {
            self.counts.ejections_overflow += 1;
            return Change::Overflow { key, cause };
        }
        if self.random.u32(0..100) >= enforcing {
            return Change::NotEnforced { key, cause };
        }
        tally.enforced += 1;
        self.counts.ejections_enforced_total += 1;
        self.counts.ejections_active += 1;
        let (until, times) = member.eject(self.now, self.outlier, self.random);
        Change::Ejected { key, cause, until, times }
    }

    fn has_room(&self) -> bool {
        let ejected = self.counts.ejections_active;
        let most = self.members as u64 * u64::from(self.outlier.max_ejection_percent);
        (ejected as u64 + 1) * 100 <= most || ejected == 0 && self.outlier.always_eject_one
    }
}
