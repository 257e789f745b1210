//! What becomes of every connection, whoever carries it: counted by listener, cluster and rung, and logged.
//!
//! The proxy's tasks and the agent, for the kernel's flows, tell of connections in the same terms, those of a line of the
//! access log. What is counted here are connections that are over; what the open ones have carried so far is added by
//! who looks at the numbers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::access_log::{AccessLogs, Flags, Kind, Record, Rung, reason};
use crate::balancer::ClusterBalancer;
use crate::proxy::Observer;
use crate::stats::Histogram;

/// The numbers, and the logs.
pub struct Connections {
    pub logs: AccessLogs,
    listeners: RwLock<HashMap<Arc<str>, Arc<ListenerCounts>>>,
    clusters: RwLock<HashMap<Arc<str>, Arc<ClusterCounts>>>,
    /// Of xdp, tc and the proxy.
    rungs: [Totals; 3],
    /// As above: those that never had a backend.
    without_backend: [AtomicU64; 3],
}

/// Connections that are over.
#[derive(Default)]
pub struct Totals {
    pub connections: AtomicU64,
    /// Payload from clients.
    pub bytes_in: AtomicU64,
    /// Payload to clients.
    pub bytes_out: AtomicU64,
}

impl Totals {
    fn add(&self, record: &Record) {
        self.connections.fetch_add(1, Relaxed);
        self.bytes_in.fetch_add(record.bytes_in, Relaxed);
        self.bytes_out.fetch_add(record.bytes_out, Relaxed);
    }
}

/// What a listener's connections that are over came to.
#[derive(Default)]
pub struct ListenerCounts {
    pub over: Totals,
    /// Of these, connections of the kernel that never had a backend: its own counter does not know them.
    pub without_backend: AtomicU64,
    /// The proxy's, also those that are open.
    pub proxied: AtomicU64,
    pub no_route: AtomicU64,
    pub idle_timeout: AtomicU64,
    pub max_duration: AtomicU64,
    pub length_ms: Histogram,
}

/// What a cluster's connections that are over came to.
#[derive(Default)]
pub struct ClusterCounts {
    /// Of connections that had a backend.
    pub over: Totals,
    /// Of these, the ones that the backend was the last to end.
    pub backend_last: AtomicU64,
    /// All attempts have failed.
    pub attempts_exceeded: AtomicU64,
    pub overflow: AtomicU64,
    pub none_healthy: AtomicU64,
    pub connect_ms: Histogram,
    pub length_ms: Histogram,
}

impl Connections {
    pub fn new(logs: AccessLogs) -> Self {
        Self {
            logs,
            listeners: RwLock::default(),
            clusters: RwLock::default(),
            rungs: Default::default(),
            without_backend: Default::default(),
        }
    }

    /// The counts of a listener, which begin with the first question.
    pub fn listener(&self, name: &Arc<str>) -> Arc<ListenerCounts> {
        named(&self.listeners, name)
    }

    /// Whether a cluster has had a connection.
    pub fn has_had_any(&self, cluster: &str, balancer: &ClusterBalancer) -> bool {
        balancer.open_connections() > 0 || self.cluster(&cluster.into()).over.connections.load(Relaxed) > 0
    }

    /// The counts of a cluster, as above.
    pub fn cluster(&self, name: &Arc<str>) -> Arc<ClusterCounts> {
        named(&self.clusters, name)
    }

    /// Something of the counts of each listener.
    pub fn listeners<T>(&self, of: impl Fn(&ListenerCounts) -> T) -> HashMap<Arc<str>, T> {
        each(&self.listeners, of)
    }

    /// Something of the counts of each cluster.
    pub fn clusters<T>(&self, of: impl Fn(&ClusterCounts) -> T) -> HashMap<Arc<str>, T> {
        each(&self.clusters, of)
    }

    /// What a rung's connections that are over came to.
    pub fn rung(&self, rung: Rung) -> &Totals {
        &self.rungs[rung as usize]
    }

    /// Connections of a rung that are over and never had a backend.
    pub fn without_backend(&self, rung: Rung) -> u64 {
        self.without_backend[rung as usize].load(Relaxed)
    }

    fn count(&self, record: &Record) {
        let listener = self.listener(&record.listener);
        listener.over.add(record);
        listener.length_ms.record(record.duration.as_millis() as u64);
        self.rung(record.rung).add(record);
        if record.upstream_local.is_none() {
            self.without_backend[record.rung as usize].fetch_add(1, Relaxed);
            listener.without_backend.fetch_add((record.rung != Rung::Proxy).into(), Relaxed);
        }
        let count = |counter: &AtomicU64, happened: bool| counter.fetch_add(happened.into(), Relaxed);
        count(&listener.no_route, record.flags.contains(Flags::NR) || record.flags.contains(Flags::NC));
        count(&listener.idle_timeout, record.local_close == Some(reason::IDLE_TIMEOUT));
        count(&listener.max_duration, record.flags.contains(Flags::DT));
        let Some(name) = &record.cluster else { return };
        let cluster = self.cluster(name);
        let failed = record.flags.contains(Flags::URX);
        count(&cluster.attempts_exceeded, failed);
        count(&cluster.overflow, record.flags.contains(Flags::UO));
        count(&cluster.none_healthy, record.flags.contains(Flags::UH));
        if record.upstream_local.is_none() {
            // The proxy tells of each attempt.
            if failed && record.rung != Rung::Proxy {
                cluster.length_ms.record(record.duration.as_millis() as u64);
            }
            return;
        }
        cluster.over.add(record);
        count(&cluster.backend_last, record.backend_last);
        if let Some(connect) = record.connect {
            cluster.connect_ms.record(connect.as_millis() as u64);
            cluster.length_ms.record(record.duration.saturating_sub(connect).as_millis() as u64);
        }
    }
}

fn named<T: Default>(all: &RwLock<HashMap<Arc<str>, Arc<T>>>, name: &Arc<str>) -> Arc<T> {
    let known = all.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
    known.unwrap_or_else(|| {
        Arc::clone(all.write().unwrap_or_else(PoisonError::into_inner).entry(Arc::clone(name)).or_default())
    })
}

fn each<C, T>(all: &RwLock<HashMap<Arc<str>, Arc<C>>>, of: impl Fn(&C) -> T) -> HashMap<Arc<str>, T> {
    let all = all.read().unwrap_or_else(PoisonError::into_inner);
    all.iter().map(|(name, counts)| (Arc::clone(name), of(counts))).collect()
}

impl Observer for Connections {
    fn tell(&self, record: &Record) {
        match record.kind {
            Kind::Start if record.rung == Rung::Proxy => {
                self.listener(&record.listener).proxied.fetch_add(1, Relaxed);
            }
            Kind::End => self.count(record),
            Kind::Start | Kind::Connected | Kind::Periodic => {}
        }
        self.logs.log(record);
    }

    fn attempt_failed(&self, cluster: &Arc<str>, after: Duration) {
        self.cluster(cluster).length_ms.record(after.as_millis() as u64);
    }
}
