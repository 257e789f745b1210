//! The totals of listeners and clusters, over all rungs: what the kernel counts, of which indices are used again by others,
//! what is counted of connections that are over, and what the open ones have carried so far.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Result;
use lb_common::Rung as KernelRung;
use lb_common::tables::{Failed, Opened, names};

use crate::access_log::{Record, Rung};
use crate::agent::kernel_side::KernelSide;
use crate::connections::{Connections, Totals};
use crate::datapath::object::Pins;
use crate::datapath::sweep::Carried;
use crate::maps::read::PinnedMaps;

/// What the kernel has counted of clusters and listeners since the agent began.
#[derive(Default)]
pub struct KernelTotals {
    /// By name.
    opened: HashMap<Arc<str>, Opened>,
    failed: HashMap<Arc<str>, Failed>,
    served: HashMap<Arc<str>, Opened>,
    rungs: Opened,
    /// By index: what was counted there before, or is counted above.
    last: HashMap<u32, (Opened, Failed)>,
    last_served: HashMap<u32, Opened>,
}

impl KernelTotals {
    /// What an earlier agent's flows came to is not counted.
    pub(super) fn adopt(&mut self, pins: &Pins) -> Result<()> {
        let maps = PinnedMaps::open(pins)?;
        let sum = |by_cpu: &Vec<Opened>| by_cpu.iter().fold(Opened::default(), |sum, one| add(sum, *one));
        for (index, by_cpu) in maps.per_cpu::<Opened>(names::OPENED)?.iter().enumerate() {
            self.last.entry(index as u32).or_default().0 = sum(by_cpu);
        }
        for (index, by_cpu) in maps.per_cpu::<Failed>(names::FAILED)?.iter().enumerate() {
            let failed = by_cpu.iter().fold(Failed::default(), |sum, one| Failed {
                refused: sum.refused + one.refused,
                unanswered: sum.unanswered + one.unanswered,
            });
            self.last.entry(index as u32).or_default().1 = failed;
        }
        for (index, by_cpu) in maps.per_cpu::<Opened>(names::SERVED)?.iter().enumerate() {
            self.last_served.insert(index as u32, sum(by_cpu));
        }
        self.last.retain(|_, last| *last != Default::default());
        self.last_served.retain(|_, last| *last != Opened::default());
        Ok(())
    }

    /// Adds what was counted of a backend since the last time.
    pub(super) fn add_backend(&mut self, kernel: &KernelSide, index: u32, cluster: &Arc<str>) -> Result<()> {
        let now = (kernel.kernel.opened(index)?, kernel.failed(index)?);
        let (opened, failed) = self.last.insert(index, now).unwrap_or_default();
        let opened =
            Opened { xdp: now.0.xdp.saturating_sub(opened.xdp), tc: now.0.tc.saturating_sub(opened.tc) };
        let of_cluster = self.opened.entry(Arc::clone(cluster)).or_default();
        *of_cluster = add(*of_cluster, opened);
        self.rungs = add(self.rungs, opened);
        let of_cluster = self.failed.entry(Arc::clone(cluster)).or_default();
        of_cluster.refused += now.1.refused.saturating_sub(failed.refused);
        of_cluster.unanswered += now.1.unanswered.saturating_sub(failed.unanswered);
        Ok(())
    }

    /// The same of a service.
    pub(super) fn add_service(&mut self, kernel: &KernelSide, id: u32, listener: &Arc<str>) -> Result<()> {
        let now = kernel.kernel.served(id)?;
        let last = self.last_served.insert(id, now).unwrap_or_default();
        let of_listener = self.served.entry(Arc::clone(listener)).or_default();
        *of_listener = add(*of_listener, Opened { xdp: now.xdp - last.xdp, tc: now.tc - last.tc });
        Ok(())
    }

    /// The same of everything that has a name.
    pub(super) fn add_all(&mut self, kernel: &KernelSide) -> Result<()> {
        for (index, cluster) in kernel.names.clusters() {
            self.add_backend(kernel, index, cluster)?;
        }
        for (id, listener) in kernel.names.listeners() {
            self.add_service(kernel, id, listener)?;
        }
        Ok(())
    }

    /// So many flows of an earlier agent are open.
    pub(super) fn begin_cluster(&mut self, cluster: &Arc<str>, flows: u64) {
        self.opened.entry(Arc::clone(cluster)).or_default().tc += flows;
    }

    /// The same of a listener.
    pub(super) fn begin_listener(&mut self, listener: &Arc<str>, flows: u64) {
        self.served.entry(Arc::clone(listener)).or_default().tc += flows;
    }

    /// Flows opened to a cluster's backends.
    pub(super) fn opened(&self, cluster: &str) -> u64 {
        self.opened.get(cluster).map_or(0, |opened| opened.xdp + opened.tc)
    }

    /// Attempts to reach a cluster's backends that failed.
    pub(super) fn failed(&self, cluster: &str) -> Failed {
        self.failed.get(cluster).copied().unwrap_or_default()
    }

    /// Flows opened to a listener.
    pub(super) fn served(&self, listener: &str) -> u64 {
        self.served.get(listener).map_or(0, |opened| opened.xdp + opened.tc)
    }

    /// Flows opened on each rung.
    pub(super) fn rungs(&self) -> Opened {
        self.rungs
    }
}

fn add(a: Opened, b: Opened) -> Opened {
    Opened { xdp: a.xdp + b.xdp, tc: a.tc + b.tc }
}

/// What connections have carried, open ones included.
#[derive(Default)]
pub(super) struct Accounts {
    listeners: HashMap<Arc<str>, Carried>,
    clusters: HashMap<Arc<str>, Carried>,
    rungs: [Carried; 3],
}

/// Sums of what open connections have carried so far, by listener, cluster and rung.
#[derive(Default)]
pub(super) struct Open {
    listeners: HashMap<Arc<str>, Carried>,
    clusters: HashMap<Arc<str>, Carried>,
    rungs: [Carried; 3],
}

impl Open {
    pub(super) fn listener(&mut self, name: &Arc<str>, carried: Carried) {
        join(self.listeners.entry(Arc::clone(name)).or_default(), carried);
    }

    pub(super) fn cluster(&mut self, name: &Arc<str>, carried: Carried) {
        join(self.clusters.entry(Arc::clone(name)).or_default(), carried);
    }

    pub(super) fn rung(&mut self, rung: KernelRung, carried: Carried) {
        join(&mut self.rungs[rung_of(rung) as usize], carried);
    }

    /// A connection of the proxy.
    pub(super) fn proxied(&mut self, record: &Record) {
        let carried = Carried { flows: 1, bytes_in: record.bytes_in, bytes_out: record.bytes_out };
        self.listener(&record.listener, carried);
        if let Some(cluster) = record.cluster.as_ref().filter(|_| record.upstream_local.is_some()) {
            self.cluster(cluster, carried);
        }
        join(&mut self.rungs[Rung::Proxy as usize], carried);
    }
}

/// The rung in the terms of the access log.
pub(super) fn rung_of(rung: KernelRung) -> Rung {
    match rung {
        KernelRung::Xdp => Rung::Xdp,
        KernelRung::Tc => Rung::Tc,
    }
}

fn join(to: &mut Carried, other: Carried) {
    to.flows += other.flows;
    to.bytes_in += other.bytes_in;
    to.bytes_out += other.bytes_out;
}

/// What is over, at the moment before the open connections are looked at: one that ends in between is in neither, and
/// counts the next time. The other way round it would count twice.
pub(super) struct Over {
    listeners: HashMap<Arc<str>, Carried>,
    clusters: HashMap<Arc<str>, Carried>,
    rungs: [Carried; 3],
}

impl Over {
    pub(super) fn now(connections: &Connections) -> Self {
        Self {
            listeners: connections.listeners(|of| carried(&of.over)),
            clusters: connections.clusters(|of| carried(&of.over)),
            rungs: [Rung::Xdp, Rung::Tc, Rung::Proxy].map(|rung| carried(connections.rung(rung))),
        }
    }
}

fn carried(of: &Totals) -> Carried {
    Carried { flows: 0, bytes_in: of.bytes_in.load(Relaxed), bytes_out: of.bytes_out.load(Relaxed) }
}

impl Accounts {
    /// Brings the sums up to date. They never go down.
    pub(super) fn update(&mut self, over: Over, open: Open) {
        settle(&mut self.listeners, over.listeners, open.listeners);
        settle(&mut self.clusters, over.clusters, open.clusters);
        for ((sum, over), open) in self.rungs.iter_mut().zip(over.rungs).zip(open.rungs) {
            raise(sum, over, open);
        }
    }

    /// `flows`: that are open.
    pub(super) fn listener(&self, name: &str) -> Carried {
        self.listeners.get(name).copied().unwrap_or_default()
    }

    pub(super) fn cluster(&self, name: &str) -> Carried {
        self.clusters.get(name).copied().unwrap_or_default()
    }

    pub(super) fn rung(&self, rung: Rung) -> Carried {
        self.rungs[rung as usize]
    }
}

fn settle(
    sums: &mut HashMap<Arc<str>, Carried>,
    mut over: HashMap<Arc<str>, Carried>,
    mut open: HashMap<Arc<str>, Carried>,
) {
    for name in over.keys().chain(open.keys()).chain(sums.keys()).cloned().collect::<HashSet<_>>() {
        let (over, open) = (over.remove(&name).unwrap_or_default(), open.remove(&name).unwrap_or_default());
        if over != Carried::default() || open != Carried::default() || sums.contains_key(&name) {
            raise(sums.entry(name).or_default(), over, open);
        }
    }
}

fn raise(sum: &mut Carried, over: Carried, open: Carried) {
    sum.flows = open.flows;
    sum.bytes_in = sum.bytes_in.max(over.bytes_in + open.bytes_in);
    sum.bytes_out = sum.bytes_out.max(over.bytes_out + open.bytes_out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(bytes_in: u64) -> Carried {
        Carried { flows: 1, bytes_in, bytes_out: 0 }
    }

    fn over(bytes_in: u64) -> Over {
        let listeners = HashMap::from([(Arc::from("a"), bytes(bytes_in))]);
        Over { listeners, clusters: HashMap::new(), rungs: Default::default() }
    }

    #[test]
    fn sums_are_of_open_and_ended_connections_and_never_go_down() {
        let mut accounts = Accounts::default();
        let open = |carried: u64| {
            let mut open = Open::default();
            open.listener(&"a".into(), bytes(carried));
            open
        };
        accounts.update(over(0), open(10));
        assert_eq!(accounts.listener("a"), bytes(10));
        // It ended between the two looks.
        accounts.update(over(0), Open::default());
        assert_eq!(accounts.listener("a"), Carried { flows: 0, ..bytes(10) });
        accounts.update(over(12), open(3));
        assert_eq!(accounts.listener("a"), bytes(15));
        assert_eq!(accounts.listener("b"), Carried::default());
    }
}
