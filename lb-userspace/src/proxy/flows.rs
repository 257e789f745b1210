//! The table of open connections, in the terms of `headgate flows`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use super::{ProxyListener, Shared};
use crate::access_log::{Close, Flags, Kind, Record, Rung, reason};

/// An open connection at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxiedFlow {
    pub client: SocketAddr,
    /// What the client connected to.
    pub vip: SocketAddr,
    /// The proxy's own address towards the backend, and the backend; `None` while half-open.
    pub upstream: Option<Upstream>,
    pub state: FlowState,
    pub age: Duration,
    /// Since a byte has moved, either way.
    pub idle: Duration,
    /// Payload from the client to the backend.
    pub bytes_in: u64,
    /// Payload from the backend to the client.
    pub bytes_out: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub snat: SocketAddr,
    pub backend: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// A backend is being connected to.
    HalfOpen,
    Established,
    /// One end has sent its FIN.
    Closing,
}

/// What the table keeps of a connection while it is open.
pub(super) struct Flow {
    pub(super) client: SocketAddr,
    pub(super) vip: SocketAddr,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    id: u64,
    listener: Arc<ProxyListener>,
    /// By the node's clock.
    began: SystemTime,
    started: Instant,
    /// The cluster, once it is chosen.
    cluster: OnceLock<Arc<str>>,
    /// Backends that were tried so far.
    tried: Mutex<Vec<SocketAddr>>,
    /// Why the last attempt failed, if one has; there need not be a word for it.
    failure: Mutex<Option<Option<&'static str>>>,
    /// When a backend was connected, or the last attempt given up.
    settled: OnceLock<Duration>,
    upstream: OnceLock<Upstream>,
    closing: AtomicBool,
    /// The agent wants it to end, and why.
    cut: Notify,
    cut_why: OnceLock<&'static str>,
    /// When a byte last moved, in nanoseconds since `started`.
    moved: AtomicU64,
}

impl Flow {
    /// `counter` is one of this flow's two.
    pub(super) fn add(&self, counter: &AtomicU64, bytes: usize) {
        counter.fetch_add(bytes as u64, Relaxed);
        self.moved.store(self.started.elapsed().as_nanos() as u64, Relaxed);
    }

    /// It goes to that cluster.
    pub(super) fn routed(&self, cluster: Arc<str>) {
        self.cluster.get_or_init(|| cluster);
    }

    /// That backend is being connected to.
    pub(super) fn trying(&self, backend: SocketAddr) {
        self.tried().push(backend);
    }

    /// The attempt has failed.
    pub(super) fn failed(&self, why: Option<&'static str>) {
        *self.failure.lock().expect("no holder panics") = Some(why);
    }

    /// No more attempts.
    pub(super) fn settled(&self) {
        self.settled.get_or_init(|| self.started.elapsed());
    }

    /// The backends that were tried.
    pub(super) fn tried_so_far(&self) -> Vec<SocketAddr> {
        self.tried().clone()
    }

    fn tried(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.tried.lock().expect("no holder panics")
    }

    /// From now on it is established, and idle for as long as no byte moves.
    pub(super) fn established(&self, upstream: Upstream) {
        self.settled();
        self.moved.store(self.started.elapsed().as_nanos() as u64, Relaxed);
        self.upstream.get_or_init(|| upstream);
    }

    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// What is known of it now; the caller says how it ended.
    pub(super) fn record(&self, kind: Kind) -> Record {
        let mut earlier = self.tried().clone();
        let last = earlier.pop();
        let failure = *self.failure.lock().expect("no holder panics");
        Record {
            kind,
            id: self.id,
            start: self.began,
            duration: self.started.elapsed(),
            connect: self.settled.get().copied(),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            client: self.client,
            local: self.vip,
            upstream_local: self.upstream.get().map(|upstream| upstream.snat),
            upstream: last,
            attempts: earlier.len() as u32 + u32::from(last.is_some()),
            earlier,
            listener: Arc::clone(&self.listener.name),
            cluster: self.cluster.get().cloned(),
            // As in Envoy, also where a later attempt has succeeded.
            flags: if failure.is_some() { Flags::UF } else { Flags::NONE },
            termination: None,
            failure: failure.flatten(),
            local_close: self.cut_why.get().copied().filter(|_| kind == Kind::End),
            backend_last: false,
            downstream_close: Close::default(),
            upstream_close: Close::default(),
            rung: Rung::Proxy,
        }
    }

    /// Resolves once it is to be reset, see [`super::Proxy::cut`].
    pub(super) async fn is_cut(&self) {
        self.cut.notified().await;
    }

    fn cut(&self, why: &'static str) {
        self.cut_why.get_or_init(|| why);
        self.cut.notify_one();
    }

    pub(super) fn closing(&self) {
        self.closing.store(true, Relaxed);
    }

    pub(super) fn idle(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_nanos(self.moved.load(Relaxed)))
    }

    fn snapshot(&self) -> ProxiedFlow {
        let upstream = self.upstream.get().copied();
        let state = match upstream {
            None => FlowState::HalfOpen,
            Some(_) if self.closing.load(Relaxed) => FlowState::Closing,
            Some(_) => FlowState::Established,
        };
        ProxiedFlow {
            client: self.client,
            vip: self.vip,
            upstream,
            state,
            age: self.started.elapsed(),
            idle: self.idle(),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
        }
    }
}

#[derive(Default)]
pub(super) struct FlowTable {
    open: Mutex<Slots>,
    emptied: Notify,
}

#[derive(Default)]
struct Slots {
    flows: HashMap<u64, Arc<Flow>>,
    next: u64,
}

impl FlowTable {
    /// Enters a connection; it is open until the result is dropped.
    pub(super) fn open(
        &self,
        client: SocketAddr,
        vip: SocketAddr,
        listener: &Arc<ProxyListener>,
        shared: &Arc<Shared>,
    ) -> OpenFlow {
        let mut slots = self.slots();
        let id = slots.next;
        slots.next += 1;
        let flow = Arc::new(Flow {
            client,
            vip,
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            id,
            listener: Arc::clone(listener),
            began: SystemTime::now(),
            started: Instant::now(),
            cluster: OnceLock::new(),
            tried: Mutex::default(),
            failure: Mutex::default(),
            settled: OnceLock::new(),
            upstream: OnceLock::new(),
            closing: AtomicBool::new(false),
            cut: Notify::new(),
            cut_why: OnceLock::new(),
            moved: AtomicU64::new(0),
        });
        slots.flows.insert(id, Arc::clone(&flow));
        OpenFlow { flow, id, shared: Arc::clone(shared) }
    }

    pub(super) fn len(&self) -> u64 {
        self.slots().flows.len() as u64
    }

    pub(super) fn snapshot(&self) -> Vec<ProxiedFlow> {
        self.slots().flows.values().map(|flow| flow.snapshot()).collect()
    }

    /// Has the connections end that are older than what is said of their cluster and backend.
    pub(super) fn cut(&self, older_than: &dyn Fn(&str, SocketAddr) -> Option<Instant>) {
        for flow in self.slots().flows.values() {
            let (Some(cluster), Some(upstream)) = (flow.cluster.get(), flow.upstream.get()) else { continue };
            if older_than(cluster, upstream.backend).is_some_and(|than| flow.started < than) {
                flow.cut(reason::DRAINED);
            }
        }
    }

    /// Has all connections end that have a backend.
    pub(super) fn cut_all(&self, why: &'static str) {
        for flow in self.slots().flows.values().filter(|flow| flow.upstream.get().is_some()) {
            flow.cut(why);
        }
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.slots().flows.values().map(|flow| flow.record(Kind::Periodic)).collect()
    }

    pub(super) async fn drained(&self) {
        loop {
            // Registered as waiting before the look, or a last flow that ends in between would go unnoticed.
            let mut emptied = std::pin::pin!(self.emptied.notified());
            emptied.as_mut().enable();
            if self.len() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn close(&self, id: u64) {
        let mut slots = self.slots();
        slots.flows.remove(&id);
        if slots.flows.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.open.lock().expect("no holder panics")
    }
}

/// A connection's place in the table.
pub(super) struct OpenFlow {
    flow: Arc<Flow>,
    id: u64,
    shared: Arc<Shared>,
}

impl Deref for OpenFlow {
    type Target = Flow;

    fn deref(&self) -> &Flow {
        &self.flow
    }
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        self.shared.flows.close(self.id);
    }
}
