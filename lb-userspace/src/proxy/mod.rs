//! The userspace TCP proxy: carries the connections that the kernel rungs do not take.
//!
//! It listens on the same addresses as they do, behind them, so it sees only what they pass up. A connection is
//! accepted, a backend is chosen and connected to ([`Balancer`]; another one on failure, while attempts
//! remain), and bytes are moved by splice(2) without a copy through this process. What TCP says at one end is
//! said at the other: a FIN is passed on alone, the other direction goes on; a reset becomes a reset. A client
//! for whom no backend can be had is reset, and so are both ends of a connection that has been idle or open for too long, or
//! whose backend has drained for too long.
//!
//! An idle connection costs two descriptors; the two of a pipe come on top of it for a direction that is
//! moving bytes just then. The caller raises `RLIMIT_NOFILE`. It also leaves `SIGPIPE` ignored, as Rust's
//! runtime does: splice(2) has no `MSG_NOSIGNAL`.

mod accept;
mod backend;
mod bind;
mod connection;
mod flows;
mod pipe;
mod relay;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

pub use backend::{Backend, BackendStats, BackendTotals, Balancer};
pub use bind::{BindError, BindReason};
pub use flows::{FlowState, ProxiedFlow, Upstream};
pub use stats::{Counter, Counts, ListenerStats};

use crate::access_log::Record;
use accept::Listening;
use bind::bind;
use flows::FlowTable;
use pipe::PipePool;
use stats::Counters;

/// One address to listen on, and what becomes of its connections.
#[derive(Clone)]
pub struct ProxyListener {
    pub name: Arc<str>,
    /// An unspecified address means every address of the node, of that family alone.
    pub address: SocketAddr,
    /// Closes a connection on which no byte has moved, either way, for this long; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Ends a connection that is this old; `None`: never.
    pub max_connection_duration: Option<Duration>,
    /// Instead of [`Balancer::connect_attempts`].
    pub connect_attempts: Option<u32>,
    /// Clusters and their weights: a connection goes to one of them.
    pub clusters: Vec<(Arc<dyn Balancer>, u32)>,
}

/// Is told of each connection, when it begins, when a backend is connected, and when it ends. Called by the connections'
/// tasks, so it must not block.
pub trait Observer: Send + Sync + 'static {
    fn tell(&self, record: &Record);

    /// An attempt to connect to a backend of a cluster has failed, so long after it began.
    fn attempt_failed(&self, cluster: &Arc<str>, after: Duration);
}

/// Nobody wants to know.
impl Observer for () {
    fn tell(&self, _record: &Record) {}

    fn attempt_failed(&self, _cluster: &Arc<str>, _after: Duration) {}
}

impl fmt::Debug for ProxyListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyListener")
            .field("name", &self.name)
            .field("address", &self.address)
            .field("idle_timeout", &self.idle_timeout)
            .finish_non_exhaustive()
    }
}

/// The listening sockets and the open connections. Dropping it closes the former, the latter live on.
pub struct Proxy {
    shared: Arc<Shared>,
    listening: Mutex<BTreeMap<SocketAddr, Listening>>,
}

/// What all connections have in common.
struct Shared {
    observer: Arc<dyn Observer>,
    flows: FlowTable,
    pipes: PipePool,
    /// Since the start, over all listeners, also those that are gone.
    counters: Counters,
}

impl Proxy {
    /// A proxy that listens nowhere yet.
    pub fn new(observer: Arc<dyn Observer>) -> Self {
        let shared = Shared {
            observer,
            flows: FlowTable::default(),
            pipes: PipePool::default(),
            counters: Counters::default(),
        };
        Self { shared: Arc::new(shared), listening: Mutex::default() }
    }

    /// Makes the set of listening sockets equal to `listeners`.
    ///
    /// An address that stays keeps its socket, and what has changed about it applies to connections accepted
    /// from now on. Open connections are never touched, also those of an address that goes. An address need
    /// not exist on the node yet (`IP_FREEBIND`). If one cannot be had, nothing changes at all.
    ///
    /// A wildcard and an address of the same port may stand side by side, or replace each other without a gap.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub fn apply(&self, listeners: Vec<ProxyListener>) -> Result<(), BindError> {
        let mut listening = self.listening();
        let mut sockets = BTreeMap::new();
        let mut seen = BTreeMap::new();
        for listener in &listeners {
            if let Some(other) = seen.insert(listener.address, &listener.name) {
                return Err(BindError::duplicate(listener, other));
            }
            if !listening.contains_key(&listener.address) {
                let own = listening.values().map(Listening::socket).chain(sockets.values());
                let socket = bind(listener, own)?;
                sockets.insert(listener.address, socket);
            }
        }

        // Nothing can fail from here on.
        listening.retain(|address, _| seen.contains_key(address));
        for listener in listeners {
            let address = listener.address;
            match sockets.remove(&address) {
                Some(socket) => {
                    listening.insert(address, Listening::start(socket, listener, &self.shared));
                }
                None => listening.get_mut(&address).expect("kept just above").update(listener),
            }
        }
        Ok(())
    }

    /// Closes the listening sockets. Connections that are open, or established and not accepted yet, live on.
    pub fn stop_listening(&self) {
        self.listening().clear();
    }

    /// Open connections, also those whose backend is still being connected to.
    pub fn connections(&self) -> u64 {
        self.shared.flows.len()
    }

    /// Resolves once no connection is open. While it listens, there may be a new one right afterwards.
    pub async fn drained(&self) {
        self.shared.flows.drained().await;
    }

    /// The open connections, in no particular order.
    pub fn flows(&self) -> Vec<ProxiedFlow> {
        self.shared.flows.snapshot()
    }

    /// Resets both ends of the connections that were accepted before what `older_than` says of their cluster and backend.
    pub fn cut(&self, older_than: &dyn Fn(&str, SocketAddr) -> Option<Instant>) {
        self.shared.flows.cut(older_than);
    }

    /// Resets both ends of all connections; `why` is for the access log.
    pub fn cut_all(&self, why: &'static str) {
        self.shared.flows.cut_all(why);
    }

    /// The open connections as they are now, for lines of the access log in between.
    pub fn records(&self) -> Vec<Record> {
        self.shared.flows.records()
    }

    /// What has happened since the start, over all listeners.
    pub fn counts(&self) -> Counts {
        self.shared.counters.snapshot()
    }

    /// The present listeners by address, each with what has happened on it since it began to listen.
    pub fn listener_stats(&self) -> Vec<ListenerStats> {
        self.listening().values().filter_map(Listening::stats).collect()
    }

    fn listening(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Listening>> {
        self.listening.lock().expect("no holder panics")
    }
}
