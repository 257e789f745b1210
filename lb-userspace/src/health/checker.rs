//! Asks the endpoints of all clusters again and again, and tells when their health changes. One task has the schedule, so
//! that neither many endpoints nor slow ones hold anybody else up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::machine::{Machine, Verdict};
use super::probe::{Failure, FailureKind, Prober, Target};
use crate::model::HealthCheck;

/// Probes under way at the same time.
const AT_ONCE: usize = 1024;

/// What an endpoint's probes say of it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub cluster: Arc<str>,
    pub endpoint: SocketAddr,
    pub healthy: bool,
    /// It is unhealthy by saying nothing in time.
    pub timeout: bool,
    /// For people.
    pub why: String,
    /// The last probe has succeeded, which changes nothing; see [`Checker::tell_of_successes`].
    pub is_repeated: bool,
}

/// An endpoint to ask.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// What names it.
    pub address: SocketAddr,
    /// Where it is asked.
    pub at: SocketAddr,
    /// The name to ask for, unless the probe has one.
    pub host: Option<Arc<str>>,
    /// Address to ask from; `None`: that of the route.
    pub source: Option<IpAddr>,
    /// What was known of it before.
    pub adopted: Option<bool>,
}

/// What became of a cluster's probes, with Envoy's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub attempt: u64,
    pub success: u64,
    pub failure: u64,
    /// Of these the ones that had no answer.
    pub network_failure: u64,
}

/// Asks. Dropping it ends that.
pub struct Checker {
    commands: mpsc::UnboundedSender<Command>,
    changes: mpsc::UnboundedReceiver<Change>,
    counts: Arc<Mutex<HashMap<Arc<str>, Counts>>>,
    task: AbortHandle,
}

enum Command {
    Set(Arc<Cluster>, Vec<Endpoint>),
    Forget(Arc<str>),
    TellOfSuccesses(Arc<str>, SocketAddr, bool),
}

/// What the endpoints of a cluster have in common.
struct Cluster {
    name: Arc<str>,
    check: HealthCheck,
    prober: Prober,
    /// It has had a connection.
    traffic: Arc<AtomicBool>,
}

impl Checker {
    /// One that asks nobody yet.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub fn new() -> Self {
        let (commands, received) = mpsc::unbounded_channel();
        let (tell, changes) = mpsc::unbounded_channel();
        let counts = Arc::default();
        let schedule = Schedule {
            received,
            tell,
            counts: Arc::clone(&counts),
            entries: HashMap::new(),
            ids: HashMap::new(),
            next: 0,
            due: BinaryHeap::new(),
            running: JoinSet::new(),
            random: fastrand::Rng::new(),
        };
        let task = tokio::spawn(schedule.run()).abort_handle();
        Self { commands, changes, counts, task }
    }

    /// Asks these endpoints of a cluster from now on, and no others of it. What is known of those that stay goes on, unless
    /// the check is another one.
    pub fn set(
        &self,
        cluster: &str,
        check: &HealthCheck,
        traffic: &Arc<AtomicBool>,
        endpoints: Vec<Endpoint>,
    ) -> anyhow::Result<()> {
        let cluster = Cluster {
            name: cluster.into(),
            prober: Prober::new(&check.probe)?,
            check: check.clone(),
            traffic: Arc::clone(traffic),
        };
        self.send(Command::Set(cluster.into(), endpoints));
        Ok(())
    }

    /// Asks no endpoint of a cluster any more.
    pub fn forget(&self, cluster: &str) {
        self.send(Command::Forget(cluster.into()));
    }

    /// Whether to tell of each success of an endpoint, too.
    pub fn tell_of_successes(&self, cluster: &str, endpoint: SocketAddr, tell: bool) {
        self.send(Command::TellOfSuccesses(cluster.into(), endpoint, tell));
    }

    /// The next change; for ever without one. Cancel safe.
    pub async fn changed(&mut self) -> Change {
        match self.changes.recv().await {
            Some(change) => change,
            None => std::future::pending().await,
        }
    }

    /// A change that has come already.
    pub fn try_changed(&mut self) -> Option<Change> {
        self.changes.try_recv().ok()
    }

    /// What became of a cluster's probes.
    pub fn counts(&self, cluster: &str) -> Counts {
        locked(&self.counts).get(cluster).copied().unwrap_or_default()
    }

    fn send(&self, command: Command) {
        // The task goes only with this.
        let _ = self.commands.send(command);
    }
}

impl Default for Checker {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task.
struct Schedule {
    received: mpsc::UnboundedReceiver<Command>,
    tell: mpsc::UnboundedSender<Change>,
    counts: Arc<Mutex<HashMap<Arc<str>, Counts>>>,
    entries: HashMap<u64, Entry>,
    ids: HashMap<(Arc<str>, SocketAddr), u64>,
    next: u64,
    /// When each is asked next, but for those that are being asked. Those that are gone are skipped.
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    running: JoinSet<(u64, Result<(), Failure>)>,
    random: fastrand::Rng,
}

struct Entry {
    cluster: Arc<Cluster>,
    endpoint: Endpoint,
    machine: Machine,
    tell_of_successes: bool,
}

impl Schedule {
    async fn run(mut self) {
        loop {
            let next = self.due.peek().map(|Reverse((at, _))| *at);
            let may_ask = self.running.len() < AT_ONCE;
            tokio::select! {
                command = self.received.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                Some(ended) = self.running.join_next() => {
                    // One that was aborted or has panicked is asked no more, which does not happen.
                    if let Ok((id, result)) = ended {
                        self.ended(id, result);
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if may_ask && next.is_some() => self.ask(),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Set(cluster, endpoints) => self.set(&cluster, endpoints),
            Command::Forget(cluster) => {
                self.retain(&cluster, |_| false);
                locked(&self.counts).remove(&cluster);
            }
            Command::TellOfSuccesses(cluster, endpoint, tell) => {
                if let Some(entry) =
                    self.ids.get(&(cluster, endpoint)).and_then(|id| self.entries.get_mut(id))
                {
                    entry.tell_of_successes = tell;
                }
            }
        }
    }

    fn retain(&mut self, cluster: &Arc<str>, keep: impl Fn(SocketAddr) -> bool) {
        let entries = &mut self.entries;
        self.ids.retain(|(of, address), id| {
            let stays = of != cluster || keep(*address);
            if !stays {
                entries.remove(id);
            }
            stays
        });
    }

    fn set(&mut self, cluster: &Arc<Cluster>, endpoints: Vec<Endpoint>) {
        let wanted: HashMap<SocketAddr, ()> =
            endpoints.iter().map(|endpoint| (endpoint.address, ())).collect();
        self.retain(&cluster.name, |address| wanted.contains_key(&address));
        for endpoint in endpoints {
            let key = (Arc::clone(&cluster.name), endpoint.address);
            if let Some(entry) = self.ids.get(&key).and_then(|id| self.entries.get_mut(id))
                && entry.cluster.check == cluster.check
            {
                (entry.cluster, entry.endpoint) = (Arc::clone(cluster), endpoint);
                continue;
            }
            let machine = endpoint.adopted.map_or_else(Machine::new, Machine::adopted);
            let id = self.next;
            self.next += 1;
            if let Some(old) = self.ids.insert(key, id) {
                self.entries.remove(&old);
            }
            let first = Instant::now() + machine.first_wait(&cluster.check, &mut self.random);
            self.due.push(Reverse((first, id)));
            let cluster = Arc::clone(cluster);
            self.entries.insert(id, Entry { cluster, endpoint, machine, tell_of_successes: false });
        }
    }

    /// Begins the probes that are due.
    fn ask(&mut self) {
        let now = Instant::now();
        while self.running.len() < AT_ONCE
            && self.due.peek().is_some_and(|Reverse((at, _))| *at <= now)
            && let Some(Reverse((_, id))) = self.due.pop()
        {
            let Some(entry) = self.entries.get(&id) else { continue };
            let cluster = Arc::clone(&entry.cluster);
            let Endpoint { at, ref host, source, .. } = entry.endpoint;
            let target = Target { address: at, source, host: host.clone() };
            locked(&self.counts).entry(Arc::clone(&cluster.name)).or_default().attempt += 1;
            self.running.spawn(async move { (id, cluster.prober.ask(&target, cluster.check.timeout).await) });
        }
    }

    fn ended(&mut self, id: u64, result: Result<(), Failure>) {
        // It may have gone meanwhile.
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Cluster { name, check, traffic, .. } = &*entry.cluster;
        let traffic = traffic.load(Relaxed);
        let outcome = match &result {
            Ok(()) => entry.machine.success(check, traffic, &mut self.random),
            Err(failure) => entry.machine.failure(failure.immediate, check, traffic, &mut self.random),
        };
        {
            let mut counts = locked(&self.counts);
            let counts = counts.entry(Arc::clone(name)).or_default();
            match &result {
                Ok(()) => counts.success += 1,
                Err(failure) => {
                    counts.failure += 1;
                    counts.network_failure += u64::from(failure.kind != FailureKind::Answer);
                }
            }
        }
        let is_repeated = outcome.changed.is_none() && result.is_ok() && entry.tell_of_successes;
        if outcome.changed.is_some() || is_repeated && entry.machine.verdict() == Verdict::Healthy {
            let (timeout, why) = match result {
                Ok(()) => (false, "its health check passes".to_owned()),
                Err(failure) => (
                    failure.kind == FailureKind::Timeout,
                    format!("its health check fails: {}", failure.reason),
                ),
            };
            // Nobody listens when the agent ends.
            let _ = self.tell.send(Change {
                cluster: Arc::clone(name),
                endpoint: entry.endpoint.address,
                healthy: entry.machine.verdict() == Verdict::Healthy,
                timeout,
                why,
                is_repeated,
            });
        }
        self.due.push(Reverse((Instant::now() + outcome.next, id)));
    }
}
