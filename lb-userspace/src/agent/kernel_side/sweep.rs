//! Looking at all flows: what has ended, what has reached a limit, and what the others still need.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::KernelSide;
use crate::datapath::connection::KernelConnection;
use crate::datapath::kernel::monotonic_now;
use crate::datapath::sweep::{Found, Moved, ServiceLimits, Usage};
use crate::desired::{self, Destination};
use crate::endpoints::{Endpoints, Name};
use crate::model::Config;
use crate::moved::route_to_client;

/// What a sweep has come to.
#[derive(Default)]
pub struct Swept {
    /// The maps have to be updated.
    pub changed: bool,
    /// There is more to take out.
    pub is_behind: bool,
    /// Open connections that were to be told of, but for their number.
    pub untold: u64,
}

impl KernelSide {
    /// Takes ended flows out, finds those that have reached a limit, and finds out what the others need. Those of
    /// `cuts` that are older end. What it has `found` is taken out also where it fails later on.
    pub fn sweep(
        &mut self,
        endpoints: &Endpoints,
        cuts: &BTreeMap<Name, Instant>,
        found: &mut Vec<(Found, KernelConnection)>,
    ) -> Result<Swept> {
        self.set_cuts(cuts);
        let now = monotonic_now();
        self.usage = {
            let route = route_to_client(&self.contents);
            let moved = Moved { hops: self.moved.hops(), route: &route };
            self.kernel.sweep(&self.limits, &moved, &mut |what, of| found.push((what, of)))?
        };
        self.limits.last = now;
        let settled = self.moved.settle(now, |hop| self.usage.is_astray(hop));
        let released = self.lingering && self.release_indices(endpoints);
        self.correct_counts();
        self.begin_totals();
        let Usage { is_behind, untold, .. } = self.usage;
        Ok(Swept { changed: settled || released || self.dirty, is_behind, untold })
    }

    /// What is gone keeps its limits for as long as it has its index.
    pub(super) fn set_limits(&mut self, config: &Config) {
        self.limits.services.retain(|&id, _| self.indices.services.is_taken(id));
        self.limits.connect_timeouts.retain(|&index, _| self.indices.backends.is_taken(index));
        for listener in &config.listeners {
            let Some(id) = self.service_id(&listener.name) else { continue };
            let of_cluster =
                config.cluster(&listener.clusters[0].name).map(|cluster| cluster.connect_attempts);
            let limits = ServiceLimits {
                idle: listener.idle_timeout,
                age: listener.max_connection_duration,
                attempts: listener.connect_attempts.or(of_cluster).unwrap_or(1),
                told_every: listener.access_logs.iter().filter_map(|log| log.flush_interval).collect(),
            };
            self.limits.services.insert(id, limits);
        }
        let timeouts: HashMap<u32, Duration> = config
            .clusters
            .iter()
            .filter_map(|cluster| Some((self.cluster_index(&cluster.name)?, cluster.connect_timeout)))
            .collect();
        for (&(cluster, _), index) in self.indices.backends.iter() {
            if let Some(&timeout) = timeouts.get(&cluster) {
                self.limits.connect_timeouts.insert(index, timeout);
            }
        }
    }

    fn set_cuts(&mut self, cuts: &BTreeMap<Name, Instant>) {
        let (now, clock) = (Instant::now(), monotonic_now());
        // It may lie ahead.
        let at =
            |of: Instant| (clock + (of - now).as_nanos() as u64).saturating_sub((now - of).as_nanos() as u64);
        let due = cuts.iter().filter_map(|((cluster, address), older_than)| {
            Some((self.indices.backend(cluster, *address)?, at(*older_than)))
        });
        self.limits.cuts = due.collect();
    }

    /// Indices of what is neither wanted nor referred to by a flow are free again. Whether there were any. What is kept for
    /// flows alone is looked at again in the next sweep.
    fn release_indices(&mut self, endpoints: &Endpoints) -> bool {
        let (usage, contents) = (&self.usage, &self.contents);
        let windows: HashSet<u32> =
            contents.slots.keys().map(|&window| desired::cluster_of_window(window)).collect();
        let services4 = contents.services4.values().map(|service| service.id);
        let served: HashSet<u32> =
            services4.chain(contents.services6.values().map(|service| service.id)).collect();
        let members: HashSet<u32> =
            endpoints.iter().filter_map(|(of, at, _)| self.indices.backend(of, at)).collect();
        let addresses: HashSet<IpAddr> = endpoints.iter().map(|(_, address, _)| address.ip()).collect();
        let routes: HashSet<u32> =
            contents.routes4.values().chain(contents.routes6.values()).copied().collect();
        let indices = &mut self.indices;
        // A cluster that is gone keeps its index for as long as something of it is left.
        let left: HashSet<&str> = endpoints.iter().map(|(cluster, ..)| cluster).collect();
        let used = indices.backends.iter().filter(|(_, index)| usage.has_backend(*index));
        let used: HashSet<u32> = used.map(|(&(cluster, _), _)| cluster).collect();
        let mut lingering = false;
        let mut keep = |wanted: bool, used: bool| {
            lingering |= !wanted && used;
            wanted || used
        };
        let clusters = indices.clusters.retain(|name, index| {
            let wanted = windows.contains(&index) || name.is_some_and(|name| left.contains(name.as_str()));
            keep(wanted, used.contains(&index))
        });
        let services = indices.services.retain(|_, id| keep(served.contains(&id), usage.has_service(id)));
        let backends =
            indices.backends.retain(|_, index| keep(members.contains(&index), usage.has_backend(index)));
        let moved = self.moved.hops();
        let hops = indices.hops.retain(|destination, index| {
            let wanted = match destination {
                Some(Destination::Backend(address)) => addresses.contains(address),
                _ => routes.contains(&index),
            };
            keep(wanted, moved.contains_key(&index) || usage.has_hop(index))
        });
        self.lingering = lingering;
        let released = clusters || services || backends || hops;
        if released {
            self.count_released();
        }
        released
    }
}
