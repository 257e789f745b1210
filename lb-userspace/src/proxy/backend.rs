//! Where a connection may go: the seam between the proxy and the agent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Chooses backends, by the same tables as the kernel rungs do.
pub trait Balancer: Send + Sync + 'static {
    /// The backend for attempt number `attempt` (from 0) at the connection from `client` to `local`, the
    /// address that the client connected to, also where the listener is a wildcard. `None`: there is none.
    ///
    /// Runs on a worker of the async runtime, so it must not block.
    fn pick(&self, client: SocketAddr, local: SocketAddr, attempt: u32) -> Option<Arc<Backend>>;

    /// For each attempt.
    fn connect_timeout(&self) -> Duration;

    /// Backends tried for one connection before the client is reset; 0 counts as 1.
    fn connect_attempts(&self) -> u32;
}

/// An endpoint, shared by all who choose it, so that its numbers add up.
#[derive(Debug)]
pub struct Backend {
    pub address: SocketAddr,
    pub stats: BackendStats,
}

impl Backend {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stats: BackendStats::default() }
    }
}

/// What the proxy did with one backend.
#[derive(Debug, Default)]
pub struct BackendStats {
    active: AtomicU64,
    connections: AtomicU64,
    connect_failures: AtomicU64,
}

impl BackendStats {
    /// Connections established and not ended yet.
    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }

    /// Connections established since the start.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Attempts that were refused, timed out or found no way; not those that failed for want of something on
    /// this node (descriptors, ports), which says nothing about the backend.
    pub fn connect_failures(&self) -> u64 {
        self.connect_failures.load(Relaxed)
    }

    pub(super) fn failed(&self) {
        self.connect_failures.fetch_add(1, Relaxed);
    }
}

/// An established connection to a backend, counted as active until dropped.
pub(super) struct Active(Arc<Backend>);

impl Active {
    pub(super) fn new(backend: Arc<Backend>) -> Self {
        backend.stats.active.fetch_add(1, Relaxed);
        backend.stats.connections.fetch_add(1, Relaxed);
        Self(backend)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.stats.active.fetch_sub(1, Relaxed);
    }
}
