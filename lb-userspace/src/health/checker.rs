//! Asks the endpoints of all clusters again and again, and tells when their health changes. One task has the schedule, so
//! that neither many endpoints nor slow ones hold anybody else up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::machine::{Machine, Verdict};
use super::probe::{Failure, FailureKind, Prober, Target};
use crate::model::HealthCheck;

/// Probes under way at the same time, in all and of one cluster, so that slow ones leave room for those of others.
const AT_ONCE: usize = 1024;
const AT_ONCE_OF_ONE: usize = 512;

/// What an endpoint's probes say of it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub cluster: Arc<str>,
    pub endpoint: SocketAddr,
    /// [`Endpoint::id`], and the version of the check.
    pub id: u64,
    pub version: u64,
    pub healthy: bool,
    /// It is unhealthy by saying nothing in time.
    pub timeout: bool,
    /// For people.
    pub why: String,
}

/// An endpoint to ask.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// What names it.
    pub address: SocketAddr,
    /// Tells it from others that had its address before.
    pub id: u64,
    /// Where it is asked.
    pub at: SocketAddr,
    /// The name to ask for, unless the probe has one.
    pub host: Option<Arc<str>>,
    /// Address to ask from; `None`: that of the route.
    pub source: Option<IpAddr>,
    /// What was known of it before.
    pub adopted: Option<bool>,
    /// Whether to tell of each success, and not only of changes.
    pub tell_of_successes: bool,
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
    Set(Arc<Check>, Vec<Endpoint>),
    Forget(Arc<str>),
    TellOfSuccesses(Arc<str>, SocketAddr, bool),
}

/// How the endpoints of a cluster are asked.
pub struct Check {
    pub cluster: Arc<str>,
    /// Another one for each that the cluster has had: what is known by one says nothing by the next.
    pub version: u64,
    pub check: HealthCheck,
    pub prober: Prober,
    /// The cluster has had a connection.
    pub traffic: Arc<AtomicBool>,
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
            asked: HashMap::new(),
            rooms: HashMap::new(),
            random: fastrand::Rng::new(),
        };
        let task = tokio::spawn(schedule.run()).abort_handle();
        Self { commands, changes, counts, task }
    }

    /// Asks these endpoints of a cluster from now on, and no others of it. What is known of those that stay goes on.
    pub fn set(&self, check: &Arc<Check>, endpoints: Vec<Endpoint>) {
        self.send(Command::Set(Arc::clone(check), endpoints));
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
    running: JoinSet<Result<(), Failure>>,
    /// Whom the tasks ask.
    asked: HashMap<tokio::task::Id, (u64, Arc<str>)>,
    /// By cluster: probes under way, and those that are due and find no room, in the order in which they came.
    rooms: HashMap<Arc<str>, Room>,
    random: fastrand::Rng,
}

#[derive(Default)]
struct Room {
    running: usize,
    waiting: VecDeque<u64>,
}

struct Entry {
    check: Arc<Check>,
    endpoint: Endpoint,
    machine: Machine,
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
                Some(ended) = self.running.join_next_with_id() => {
                    let (task, result) = match ended {
                        Ok(ended) => ended,
                        Err(error) => (error.id(), Err(broken_off(&error))),
                    };
                    if let Some((id, cluster)) = self.asked.remove(&task) {
                        self.ended(id, result);
                        self.make_room(&cluster);
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if may_ask && next.is_some() => self.ask(),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Set(check, endpoints) => self.set(&check, endpoints),
            Command::Forget(cluster) => {
                self.retain(&cluster, |_| false);
                locked(&self.counts).remove(&cluster);
            }
            Command::TellOfSuccesses(cluster, endpoint, tell) => {
                if let Some(entry) =
                    self.ids.get(&(cluster, endpoint)).and_then(|id| self.entries.get_mut(id))
                {
                    entry.endpoint.tell_of_successes = tell;
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

    fn set(&mut self, check: &Arc<Check>, endpoints: Vec<Endpoint>) {
        let wanted: HashSet<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        self.retain(&check.cluster, |address| wanted.contains(&address));
        for endpoint in endpoints {
            let key = (Arc::clone(&check.cluster), endpoint.address);
            if let Some(entry) = self.ids.get(&key).and_then(|id| self.entries.get_mut(id))
                && (entry.check.version, entry.endpoint.id) == (check.version, endpoint.id)
            {
                (entry.check, entry.endpoint) = (Arc::clone(check), endpoint);
                continue;
            }
            let machine = endpoint.adopted.map_or_else(Machine::new, Machine::adopted);
            let id = self.next;
            self.next += 1;
            if let Some(old) = self.ids.insert(key, id) {
                self.entries.remove(&old);
            }
            let first = Instant::now() + machine.first_wait(&check.check, &mut self.random);
            self.due.push(Reverse((first, id)));
            self.entries.insert(id, Entry { check: Arc::clone(check), endpoint, machine });
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
            let room = self.rooms.entry(Arc::clone(&entry.check.cluster)).or_default();
            if room.running < AT_ONCE_OF_ONE {
                self.begin(id);
            } else {
                room.waiting.push_back(id);
            }
        }
    }

    fn begin(&mut self, id: u64) {
        let Some(entry) = self.entries.get(&id) else { return };
        let check = Arc::clone(&entry.check);
        let Endpoint { at, ref host, source, .. } = entry.endpoint;
        let target = Target { address: at, source, host: host.clone() };
        let cluster = Arc::clone(&check.cluster);
        locked(&self.counts).entry(Arc::clone(&cluster)).or_default().attempt += 1;
        self.rooms.entry(Arc::clone(&cluster)).or_default().running += 1;
        let task = self.running.spawn(async move { check.prober.ask(&target, check.check.timeout).await });
        self.asked.insert(task.id(), (id, cluster));
    }

    /// A probe of a cluster has ended: the next one has its room.
    fn make_room(&mut self, cluster: &Arc<str>) {
        if let Some(room) = self.rooms.get_mut(cluster) {
            room.running -= 1;
        }
        // Those that have gone while they waited leave it to others.
        while let Some(room) = self.rooms.get_mut(cluster)
            && room.running < AT_ONCE_OF_ONE
            && let Some(id) = room.waiting.pop_front()
        {
            self.begin(id);
        }
        if self.rooms.get(cluster).is_some_and(|room| room.running == 0) {
            self.rooms.remove(cluster);
        }
    }

    fn ended(&mut self, id: u64, result: Result<(), Failure>) {
        // It may have gone meanwhile.
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Check { cluster, version, check, traffic, .. } = &*entry.check;
        let traffic = traffic.load(Relaxed);
        let outcome = match &result {
            Ok(()) => entry.machine.success(check, traffic, &mut self.random),
            Err(failure) => entry.machine.failure(failure.immediate, check, traffic, &mut self.random),
        };
        {
            let mut counts = locked(&self.counts);
            let counts = counts.entry(Arc::clone(cluster)).or_default();
            match &result {
                Ok(()) => counts.success += 1,
                Err(failure) => {
                    counts.failure += 1;
                    counts.network_failure += u64::from(failure.kind != FailureKind::Answer);
                }
            }
        }
        let healthy = entry.machine.verdict() == Verdict::Healthy;
        let is_repeated = result.is_ok() && healthy && entry.endpoint.tell_of_successes;
        if outcome.changed.is_some() || is_repeated {
            let (timeout, why) = match result {
                Ok(()) => (false, "its health check passes".to_owned()),
                Err(failure) => (
                    failure.kind == FailureKind::Timeout,
                    format!("its health check fails: {}", failure.reason),
                ),
            };
            // Nobody listens when the agent ends.
            let _ = self.tell.send(Change {
                cluster: Arc::clone(cluster),
                endpoint: entry.endpoint.address,
                id: entry.endpoint.id,
                version: *version,
                healthy,
                timeout,
                why,
            });
        }
        self.due.push(Reverse((Instant::now() + outcome.next, id)));
    }
}

/// A probe that has panicked: what it met there is the endpoint's doing.
fn broken_off(error: &JoinError) -> Failure {
    log::error!("a probe has broken off: {error}");
    Failure { kind: FailureKind::Network, reason: "the probe has broken off".to_owned(), immediate: false }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
