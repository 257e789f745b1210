//! Where a connection may go: the seam between the proxy and the agent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::active::ActiveCount;

/// A cluster: chooses its backends, by the same tables as the kernel rungs do.
pub trait Balancer: Send + Sync + 'static {
    /// The cluster's name.
    fn name(&self) -> Arc<str>;

    /// Its open connections, and how many there may be.
    fn open(&self) -> &ActiveCount;

    /// The backend for the next attempt at the connection from `client` to `local`, the address that the client connected
    /// to, also where the listener is a wildcard: none of those that were `tried` before, as far as there are others. `None`:
    /// there is none.
    ///
    /// Runs on a worker of the async runtime, so it must not block.
    fn pick(&self, client: SocketAddr, local: SocketAddr, tried: &[SocketAddr]) -> Option<Arc<Backend>>;

    /// For each attempt.
    fn connect_timeout(&self) -> Duration;

    /// Backends tried for one connection before the client is reset, unless its listener says otherwise; 0 counts as 1.
    fn connect_attempts(&self) -> u32;
}

/// An endpoint, shared by all who choose it, so that its numbers add up.
#[derive(Debug)]
pub struct Backend {
    pub address: SocketAddr,
    pub stats: BackendStats,
    /// Connections that are open to it.
    pub open: ActiveCount,
}

/// The sums of one backend's, or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendTotals {
    pub connections: u64,
    pub connect_failures: u64,
    pub connect_timeouts: u64,
    pub connecting: u64,
}

impl BackendTotals {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            connect_failures: self.connect_failures + other.connect_failures,
            connect_timeouts: self.connect_timeouts + other.connect_timeouts,
            connecting: self.connecting + other.connecting,
        }
    }
}

impl Backend {
    /// Its numbers.
    pub fn totals(&self) -> BackendTotals {
        BackendTotals {
            connections: self.stats.connections(),
            connect_failures: self.stats.connect_failures(),
            connect_timeouts: self.stats.connect_timeouts(),
            connecting: self.stats.connecting(),
        }
    }

    pub fn new(address: SocketAddr) -> Self {
        Self { address, stats: BackendStats::default(), open: ActiveCount::default() }
    }
}

/// What the proxy did with one backend.
#[derive(Debug, Default)]
pub struct BackendStats {
    connections: AtomicU64,
    connect_failures: AtomicU64,
    connect_timeouts: AtomicU64,
    connecting: AtomicU64,
}

impl BackendStats {
    /// Connections established since the start.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Attempts that were refused, timed out or found no way; not those that failed for want of something on
    /// this node (descriptors, ports), which says nothing about the backend.
    pub fn connect_failures(&self) -> u64 {
        self.connect_failures.load(Relaxed)
    }

    /// Of these the ones that timed out.
    pub fn connect_timeouts(&self) -> u64 {
        self.connect_timeouts.load(Relaxed)
    }

    /// Being connected to.
    pub fn connecting(&self) -> u64 {
        self.connecting.load(Relaxed)
    }

    pub(super) fn failed(&self, timed_out: bool) {
        self.connect_failures.fetch_add(1, Relaxed);
        self.connect_timeouts.fetch_add(timed_out.into(), Relaxed);
    }
}

/// An established connection to a backend, counted as open until dropped.
pub(super) struct Connected(Arc<Backend>);

impl Connected {
    pub(super) fn new(backend: Arc<Backend>) -> Self {
        // A backend has no limit.
        let _ = backend.open.enter();
        backend.stats.connections.fetch_add(1, Relaxed);
        Self(backend)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.open.leave();
    }
}

/// An attempt to connect, until dropped.
pub(super) struct Connecting<'b>(&'b Backend);

impl<'b> Connecting<'b> {
    pub(super) fn new(backend: &'b Backend) -> Self {
        backend.stats.connecting.fetch_add(1, Relaxed);
        Self(backend)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.stats.connecting.fetch_sub(1, Relaxed);
    }
}

/// A connection that a cluster has room for, until dropped.
pub(super) struct Admitted(Arc<dyn Balancer>);

impl Admitted {
    /// `None`: the cluster has as many as it may have.
    pub(super) fn new(cluster: &Arc<dyn Balancer>) -> Option<Self> {
        cluster.open().enter().then(|| Self(Arc::clone(cluster)))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.open().leave();
    }
}
