//! What the kernel's counters come to, by the names of listeners and clusters, and counts that are to be corrected.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use lb_common::Rung;
use lb_common::tables::{Failed, Opened, active_of_cluster};

use super::KernelSide;
use crate::active::Place;
use crate::agent::accounts::Open;
use crate::agent::ends::unknown;
use crate::desired;

/// What indices in the maps stand for.
#[derive(Default)]
pub struct Names {
    /// By service id.
    listeners: HashMap<u32, Arc<str>>,
    /// By backend index.
    clusters: HashMap<u32, Arc<str>>,
}

impl Names {
    /// Backend indices, each with its cluster.
    pub fn clusters(&self) -> impl Iterator<Item = (u32, &Arc<str>)> {
        self.clusters.iter().map(|(&index, name)| (index, name))
    }

    /// Service ids, each with its listener.
    pub fn listeners(&self) -> impl Iterator<Item = (u32, &Arc<str>)> {
        self.listeners.iter().map(|(&id, name)| (id, name))
    }

    /// The listener that a service id stands for.
    pub fn listener(&self, service: u32) -> Arc<str> {
        self.listeners.get(&service).cloned().unwrap_or_else(unknown)
    }

    /// The cluster of a backend; `None`: it was left by an earlier agent.
    pub fn cluster(&self, backend: u32) -> Option<Arc<str>> {
        self.clusters.get(&backend).cloned()
    }
}

impl KernelSide {
    /// Counts a last attempt that was not answered in time; `now`: also among those in a row.
    pub fn count_unanswered(&mut self, backend: u32, now: bool) {
        *self.unanswered.entry(backend).or_default() += 1;
        if now {
            self.kernel.count_failing(backend);
        }
    }

    /// Flows that were opened to a backend, and attempts that failed, since it has its index.
    pub fn of_backend(&self, backend: u32) -> Result<(Opened, Failed)> {
        let (opened, failed) = (self.kernel.opened(backend)?, self.failed(backend)?);
        let (before_opened, before_failed) = self.before.get(&backend).copied().unwrap_or_default();
        let opened = Opened {
            xdp: opened.xdp.saturating_sub(before_opened.xdp),
            tc: opened.tc.saturating_sub(before_opened.tc),
        };
        let failed = Failed {
            refused: failed.refused.saturating_sub(before_failed.refused),
            unanswered: failed.unanswered.saturating_sub(before_failed.unanswered),
        };
        Ok((opened, failed))
    }

    /// Attempts to reach a backend that failed.
    pub fn failed(&self, backend: u32) -> Result<Failed> {
        let counted = self.kernel.failed(backend)?;
        let unanswered = self.unanswered.get(&backend).copied().unwrap_or(0);
        Ok(Failed { unanswered: counted.unanswered + unanswered, ..counted })
    }

    /// Counts what programs and agent have counted of everything that has a name.
    pub fn count_all(&mut self) -> Result<()> {
        let mut totals = std::mem::take(&mut self.totals);
        let counted = totals.add_all(self);
        self.totals = totals;
        counted
    }

    /// SNAT ports in use towards a backend, as of the last sweep.
    pub fn snat_ports_used(&self, backend: u32) -> u64 {
        self.usage.ports(backend)
    }

    /// SNAT ports that there are towards a backend, of all its SNAT addresses.
    pub fn snat_ports_of(&self, backend: u32) -> u64 {
        let addresses = self.contents.backends.get(&backend).map_or(0, |backend| backend.snat_count);
        u64::from(addresses) * self.snat_ports.len() as u64
    }

    /// Where the open connections of a backend or, without an address, a cluster are counted.
    pub fn place(&self, cluster: &str, address: Option<SocketAddr>) -> Option<Place> {
        let index = match address {
            Some(address) => self.indices.backend(cluster, address)?,
            None => active_of_cluster(desired::window(self.cluster_index(cluster)?, false)),
        };
        Some(Place { map: Arc::clone(&self.kernel.active), index })
    }

    /// What open flows carry, added to `open`.
    pub(in crate::agent) fn add_open(&self, open: &mut Open) {
        for (id, listener) in self.names.listeners() {
            open.listener(listener, self.usage.of_service(id));
        }
        for (index, carried) in self.usage.by_backend() {
            if let Some(cluster) = self.names.clusters.get(&index) {
                open.cluster(cluster, carried);
            }
        }
        for rung in [Rung::Xdp, Rung::Tc] {
            open.rung(rung, self.usage.of_rung(rung));
        }
    }

    /// Corrects counts of open connections that have differed from the tables for long.
    pub(super) fn correct_counts(&mut self) {
        let mut clusters: BTreeMap<u32, u64> = BTreeMap::new();
        let mut look = |index: u32, flows: u64| {
            let by = self.drift.note(index, flows as i64 - self.kernel.active_flows(index));
            if by != 0 {
                log::debug!("the count of open connections {index} is corrected by {by}");
                self.kernel.correct_active(index, by);
            }
        };
        for (&index, backend) in &self.contents.backends {
            // Those that an earlier agent left are of no cluster that is known.
            if desired::cluster_of_window(backend.cluster) != 0 {
                let flows = self.usage.counted(index);
                look(index, flows);
                *clusters.entry(active_of_cluster(backend.cluster)).or_default() += flows;
            }
        }
        for (&index, &flows) in &clusters {
            look(index, flows);
        }
        let backends = &self.contents.backends;
        self.drift.retain(|index| backends.contains_key(&index) || clusters.contains_key(&index));
    }

    /// Flows of an earlier agent that are open count as opened now, so that the totals go with their ends.
    pub(super) fn begin_totals(&mut self) {
        if std::mem::replace(&mut self.totals_begun, true) {
            return;
        }
        for (index, cluster) in self.names.clusters() {
            self.totals.begin_cluster(cluster, self.usage.of_backend(index).flows);
        }
        for (id, listener) in self.names.listeners() {
            self.totals.begin_listener(listener, self.usage.of_service(id).flows);
        }
    }

    /// Counts what has lost its index, which others may have next.
    pub(super) fn count_released(&mut self) {
        let mut totals = std::mem::take(&mut self.totals);
        let mut backends = self.names.clusters().filter(|(index, _)| !self.indices.backends.is_taken(*index));
        let mut services = self.names.listeners().filter(|(id, _)| !self.indices.services.is_taken(*id));
        let counted = backends
            .try_for_each(|(index, cluster)| totals.add_backend(self, index, cluster))
            .and_then(|()| services.try_for_each(|(id, listener)| totals.add_service(self, id, listener)));
        self.totals = totals;
        if let Err(error) = counted {
            log::warn!("reading the counters of the datapath: {error:#}");
        }
    }

    /// What listeners and backends are called now.
    pub(super) fn name_all(&mut self) {
        let clusters: HashMap<u32, Arc<str>> =
            self.indices.clusters.iter().map(|(name, index)| (index, name.as_str().into())).collect();
        let services = self.indices.services.iter();
        self.names.listeners = services.map(|(name, id)| (id, name.as_str().into())).collect();
        let backends = self.indices.backends.iter();
        self.names.clusters =
            backends.filter_map(|(of, index)| Some((index, Arc::clone(clusters.get(&of.0)?)))).collect();
        let names = &self.names.clusters;
        self.before.retain(|index, _| names.contains_key(index));
        self.unanswered.retain(|index, _| names.contains_key(index));
        for &index in names.keys() {
            let counted = || {
                let (opened, failed) = (self.kernel.opened(index), self.kernel.failed(index));
                (opened.unwrap_or_default(), failed.unwrap_or_default())
            };
            self.before.entry(index).or_insert_with(counted);
        }
    }
}
