//! The endpoints of all clusters, over their whole life: what is known of each, and which of them take new connections.
//! Pure: no clock, no map.

mod member;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub use member::{Health, Member, Out, Readiness, State};

use crate::model::{Cluster, Config, Endpoint, Locality, OnLeaving, PreferLocal};
use crate::selection::{Candidate, Rules, mix, select};

/// A connection may be on its way to an endpoint for this long after it was taken out of the tables.
const GRACE: Duration = Duration::from_secs(2);

/// Of which cluster an endpoint is. Those that an earlier agent left, and of which only the address is known, have the
/// empty name.
pub type Name = (String, SocketAddr);

/// All endpoints, in the order of cluster and address.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    clusters: BTreeMap<String, Members>,
    /// Of the next one that comes.
    next_id: u64,
}

type Members = BTreeMap<SocketAddr, Member>;

/// What a choice of endpoints came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Others take new connections than before, or with other weights.
    pub changed: bool,
    /// Levels of priority whose endpoints are used whatever their health.
    pub panic: Vec<u32>,
    /// Connections go past the first level of priority, or past the endpoints of this node.
    pub spilling: bool,
    /// Weights change next then, as long as nothing else does.
    pub again: Option<Duration>,
}

/// Endpoints of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that have not left it.
    pub members: u64,
    pub healthy: u64,
    /// Also those that have left it.
    pub draining: u64,
}

impl Endpoints {
    /// Makes `endpoints` those of a cluster. Others of it leave from `now` on, but for those that are kept while their
    /// health check passes. Those that came and went: whether they came.
    pub fn set(
        &mut self,
        cluster: &Cluster,
        endpoints: &[Endpoint],
        now: Instant,
    ) -> Vec<(SocketAddr, bool)> {
        let first = !self.clusters.contains_key(&cluster.name);
        let members = self.clusters.entry(cluster.name.clone()).or_default();
        let mut moved = Vec::new();
        let mut wanted: BTreeMap<_, _> =
            endpoints.iter().map(|endpoint| (endpoint.address, endpoint)).collect();
        for (address, member) in members.iter_mut() {
            match wanted.remove(address) {
                // As a new one, but for what the operator wants.
                Some(endpoint) if member.removed.is_some() => {
                    let drained = member.drained;
                    self.next_id += 1;
                    let new = Member::new(endpoint.clone(), self.next_id, cluster, false, now);
                    *member = Member { drained, ..new };
                    moved.push((*address, true));
                }
                Some(endpoint) => member.update(endpoint, cluster, now),
                None if member.removed.is_some() => {}
                None if cluster.keep_while_healthy
                    && cluster.health_check.is_some()
                    && member.health == Health::Passing =>
                {
                    member.leaving = true;
                }
                None => {
                    member.remove(cluster.on_removed, cluster.drain_timeout, now);
                    moved.push((*address, false));
                }
            }
        }
        for (address, endpoint) in wanted {
            self.next_id += 1;
            members.insert(address, Member::new(endpoint.clone(), self.next_id, cluster, first, now));
            moved.push((address, true));
        }
        // It has only come late: what an earlier agent left of its connections goes on.
        if let Some(left) = self.clusters.get_mut("") {
            for (address, _) in moved.iter().filter(|(_, came)| *came) {
                if let Some(out) = left.get_mut(address).and_then(|member| member.removed.as_mut()) {
                    out.cut = None;
                }
            }
        }
        moved
    }

    /// Has endpoints leave that are to, whatever their health check says: those of them that stayed for that alone.
    pub fn dismiss(
        &mut self,
        cluster: &Cluster,
        leaving: impl Iterator<Item = SocketAddr>,
        now: Instant,
    ) -> Vec<SocketAddr> {
        let Some(members) = self.clusters.get_mut(&cluster.name) else { return Vec::new() };
        let mut dismissed = Vec::new();
        for address in leaving {
            if let Some(member) = members.get_mut(&address).filter(|member| member.leaving) {
                member.remove(cluster.on_removed, cluster.drain_timeout, now);
                dismissed.push(address);
            }
        }
        dismissed
    }

    /// Has an endpoint leave that has left discovery, and whose health check does not pass any more.
    pub fn let_go(&mut self, cluster: &Cluster, address: SocketAddr, now: Instant) -> bool {
        let Some(member) = self.get_mut(&cluster.name, address) else { return false };
        let goes = member.leaving && member.health != Health::Passing;
        if goes {
            member.remove(cluster.on_removed, cluster.drain_timeout, now);
        }
        goes
    }

    /// Has the endpoints of clusters that are not in `new` leave from `now` on, by the rules that they had in `old`: each of
    /// them, with its state before.
    pub fn keep_clusters(&mut self, old: &Config, new: &Config, now: Instant) -> Vec<(Name, State)> {
        let mut left = Vec::new();
        for (name, members) in self.clusters.iter_mut().filter(|(name, _)| new.cluster(name).is_none()) {
            let (rule, timeout) = match old.cluster(name) {
                Some(cluster) => (cluster.on_removed, cluster.drain_timeout),
                // Of a configuration that was not taken, after all.
                None => (OnLeaving::Reset, Duration::ZERO),
            };
            for (address, member) in members.iter_mut().filter(|(_, member)| member.removed.is_none()) {
                left.push(((name.clone(), *address), member.state()));
                member.remove(rule, timeout, now);
                member.share = None;
            }
        }
        left
    }

    /// An earlier agent's: its connections live on, up to the drain timeout if there is one.
    pub fn adopt_draining(&mut self, address: SocketAddr, drain_timeout: Option<Duration>, now: Instant) {
        self.next_id += 1;
        let member = Member::left_behind(address, self.next_id, drain_timeout, now);
        self.clusters.entry(String::new()).or_default().insert(address, member);
    }

    /// Takes out those that have left and have no connection any more.
    pub fn take_drained(&mut self, now: Instant, has_flows: impl Fn(&str, SocketAddr) -> bool) -> Vec<Name> {
        let mut drained = Vec::new();
        self.clusters.retain(|cluster, members| {
            members.retain(|address, member| {
                let over =
                    member.removed.is_some_and(|out| now.saturating_duration_since(out.since) >= GRACE);
                let gone = over && !has_flows(cluster, *address);
                if gone {
                    drained.push((cluster.clone(), *address));
                }
                !gone
            });
            !members.is_empty()
        });
        drained
    }

    /// Decides which endpoints of a cluster take new connections from `now` on, and with what weights. `here`: where this
    /// runs.
    pub fn choose(&mut self, cluster: &Cluster, here: &Locality, now: Instant) -> Choice {
        let Some(members) = self.clusters.get_mut(&cluster.name) else { return Choice::default() };
        // Nothing is known of those that were not asked yet, and nothing good of those that are not ready, which is still
        // better than nothing.
        let may_take = |member: &Member| member.state() != State::Draining;
        let any_healthy = members.values().any(|member| member.state() == State::Healthy);
        let candidates: Vec<Candidate<SocketAddr>> = members
            .iter()
            .filter(|(_, member)| may_take(member) && (!member.is_last_resort() || !any_healthy))
            .map(|(address, member)| Candidate {
                key: *address,
                weight: member.endpoint.weight,
                priority: member.endpoint.priority,
                healthy: member.state() == State::Healthy,
                local: here.has(&member.endpoint, cluster.prefer_local),
                fresh: member.in_service.map(|since| now.saturating_duration_since(since)),
            })
            .collect();
        let rules = Rules {
            panic_threshold: cluster.panic_threshold,
            overprovisioning_percent: cluster.overprovisioning_percent,
            slow_start: cluster.slow_start.as_ref(),
            prefer_local: cluster.prefer_local != PreferLocal::None,
        };
        let selection = select(&candidates, &rules);
        let weights: BTreeMap<SocketAddr, u32> = mix(selection.shares).into_iter().collect();
        let mut changed = false;
        for (address, member) in members.iter_mut() {
            let weight = weights.get(address).copied();
            changed |= member.share != weight;
            member.share = weight;
        }
        Choice { changed, panic: selection.panic, spilling: selection.spilling, again: selection.again }
    }

    /// Every endpoint.
    pub fn iter(&self) -> impl Iterator<Item = (&str, SocketAddr, &Member)> {
        self.clusters.iter().flat_map(|(cluster, members)| {
            members.iter().map(|(address, member)| (cluster.as_str(), *address, member))
        })
    }

    /// Those of a cluster that take new connections, with their weights, as [`Endpoints::choose`] has decided.
    pub fn active(&self, cluster: &str) -> impl Iterator<Item = (SocketAddr, u32)> {
        self.of(cluster).filter_map(|(address, member)| Some((address, member.share?)))
    }

    /// All of a cluster.
    pub fn of(&self, cluster: &str) -> impl Iterator<Item = (SocketAddr, &Member)> {
        let members = self.clusters.get(cluster);
        members.into_iter().flatten().map(|(address, member)| (*address, member))
    }

    /// The states of all.
    pub fn states(&self) -> BTreeMap<Name, State> {
        self.iter()
            .map(|(cluster, address, member)| ((cluster.to_owned(), address), member.state()))
            .collect()
    }

    /// How many a cluster has.
    pub fn counts(&self, cluster: &str) -> Counts {
        let mut counts = Counts::default();
        for (_, member) in self.of(cluster) {
            counts.members += u64::from(member.removed.is_none());
            match member.state() {
                State::Healthy => counts.healthy += 1,
                State::Draining => counts.draining += 1,
                State::Unhealthy | State::Ejected => {}
            }
        }
        counts
    }

    /// One of them.
    pub fn get(&self, cluster: &str, address: SocketAddr) -> Option<&Member> {
        self.clusters.get(cluster)?.get(&address)
    }

    /// The same, to note what is known of it; [`Endpoints::choose`] follows.
    pub fn get_mut(&mut self, cluster: &str, address: SocketAddr) -> Option<&mut Member> {
        self.clusters.get_mut(cluster)?.get_mut(&address)
    }
}
