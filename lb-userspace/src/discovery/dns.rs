//! Endpoints from DNS (`discovery: { type: strict_dns }`), with Envoy's STRICT_DNS semantics.
//!
//! [`Dns`] asks again and again, one refresh of a cluster at a time, and tells what changed. `state` decides (a
//! pure machine, with `host`, `flap` and `schedule`), `resolver` asks by the rules of `resolv_conf`, `saved` keeps the
//! last good answers on disk, `parked` those of clusters that were taken out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::sleep;

use super::answer::{Answer, Failure, FailureKind, HostAnswer};
use super::parked::Parked;
use super::resolver::Resolver;
use super::saved::{self, Answers, SavedCluster, Saver};
use super::state::{Question, State, Step};
use super::{ClusterDiscovery, RefreshCounts, Update, phase};
use crate::model::{self, Cluster, Endpoint, StrictDns};

/// Of DNS servers.
pub(super) const PORT: u16 = 53;

/// Hosts of a cluster that are asked for at a time.
const CONCURRENT_HOSTS: usize = 8;

/// The clusters whose endpoints come from DNS.
pub(super) struct Dns {
    resolver: Arc<Resolver>,
    state_dir: Option<PathBuf>,
    saver: Option<Saver<Answers>>,
    /// Of an earlier run, for clusters that were not watched yet in this one.
    saved: BTreeMap<String, SavedCluster>,
    /// Of this run, for clusters that are not watched any more.
    parked: Parked,
    pub(super) clusters: BTreeMap<String, Watched>,
    refreshes: JoinSet<Vec<(usize, HostAnswer)>>,
    /// Whose refresh a task is. A task that is not in here any more counts for nothing.
    pub(super) tasks: HashMap<Id, String>,
    updates: VecDeque<Update>,
    started: Instant,
}

pub(super) struct Watched {
    state: State,
    counts: RefreshCounts,
    pub(super) refresh: Option<(AbortHandle, Instant)>,
    settled: bool,
}

impl RefreshCounts {
    fn add(&mut self, answers: &[(usize, HostAnswer)], changed: bool) {
        for (_, answer) in answers {
            let families = [&answer.v4, &answer.v6].into_iter().flatten();
            let failed = families.clone().all(|of| matches!(of, Answer::Failure(_)));
            let found = families.clone().any(|of| matches!(of, Answer::Records { .. }));
            self.attempts += 1;
            self.failed += u64::from(failed);
            self.answered += u64::from(!failed);
            self.empty += u64::from(!failed && !found);
        }
        self.unchanged += u64::from(!changed);
    }
}

impl Dns {
    /// Keeps the last good answers in `state_dir`.
    pub(super) fn new(resolver: Arc<Resolver>, state_dir: Option<PathBuf>) -> Self {
        Self {
            resolver,
            saved: state_dir.as_deref().map(saved::load_dns).unwrap_or_default(),
            state_dir,
            saver: None,
            parked: Parked::default(),
            clusters: BTreeMap::new(),
            refreshes: JoinSet::new(),
            tasks: HashMap::new(),
            updates: VecDeque::new(),
            started: Instant::now(),
        }
    }

    /// See [`Discovery::apply`](super::Discovery::apply).
    ///
    /// A cluster that is new, or comes back, begins with the last good answers for its names, where there are any: its
    /// own of before, or those of another cluster, watched or taken out.
    pub(super) fn apply(&mut self, clusters: &[Cluster]) {
        let wanted: BTreeMap<&str, &StrictDns> = clusters
            .iter()
            .filter_map(|cluster| match &cluster.discovery {
                model::Discovery::StrictDns(settings) => Some((cluster.name.as_str(), settings)),
                _ => None,
            })
            .collect();
        let removed: Vec<String> =
            self.clusters.keys().filter(|name| !wanted.contains_key(name.as_str())).cloned().collect();
        for name in removed {
            self.stop_refresh(&name);
            if let Some(watched) = self.clusters.remove(&name) {
                self.parked.park(name, watched.state.to_save(), SystemTime::now());
            }
        }
        // Of all before any begins, so that their order does not matter.
        let new = wanted.iter().filter(|(name, _)| !self.clusters.contains_key(**name));
        let known: BTreeMap<&str, SavedCluster> =
            new.map(|(name, settings)| (*name, self.recall(name, settings))).collect();
        for name in known.keys() {
            self.saved.remove(*name);
            self.parked.remove(name);
        }
        for (name, settings) in wanted {
            self.watch(name, settings, known.get(name));
        }
        // The file may have been written without them.
        if known.values().any(|known| !known.hosts.is_empty()) {
            self.save();
        }
    }

    /// What is known of the names of a cluster that is not watched.
    fn recall(&self, cluster: &str, settings: &StrictDns) -> SavedCluster {
        let own = self.parked.get(cluster).or_else(|| self.saved.get(cluster));
        let mut hosts = BTreeMap::new();
        let mut origins = Vec::new();
        for host in &settings.hosts {
            let name = host.name.as_str();
            let of_own = || {
                let addresses = own?.hosts.get(name).filter(|addresses| !addresses.is_empty())?;
                Some((addresses.clone(), own?.origin.clone()))
            };
            let of_watched = || {
                self.clusters.iter().find_map(|(other, watched)| {
                    let addresses = watched.state.addresses_of(name);
                    let origin = || format!("the last known of {name} in cluster {other}");
                    (!addresses.is_empty()).then(|| (addresses, origin()))
                })
            };
            let found = of_own().or_else(of_watched).or_else(|| self.parked.find(name));
            let Some((addresses, origin)) = found else { continue };
            hosts.insert(host.name.clone(), addresses);
            if !origins.contains(&origin) {
                origins.push(origin);
            }
        }
        SavedCluster { origin: origins.join("; "), hosts }
    }

    /// `known` counts for a cluster that is not watched yet.
    fn watch(&mut self, name: &str, settings: &StrictDns, known: Option<&SavedCluster>) {
        let now = self.started.elapsed();
        let step = match self.clusters.get_mut(name) {
            Some(watched) if watched.state.settings() == settings => return,
            Some(watched) => watched.state.reconfigure(now, settings),
            None => {
                let mut state = State::new(settings);
                let step = state.start(now, known);
                self.clusters.insert(
                    name.to_owned(),
                    Watched { state, counts: RefreshCounts::default(), refresh: None, settled: false },
                );
                step
            }
        };
        self.tell(name, step, false);
        self.stop_refresh(name);
        self.schedule(name, Duration::ZERO);
    }

    fn stop_refresh(&mut self, name: &str) {
        let Some(watched) = self.clusters.get_mut(name) else { return };
        if let Some((task, _)) = watched.refresh.take() {
            self.tasks.remove(&task.id());
            task.abort();
        }
    }

    fn schedule(&mut self, name: &str, wait: Duration) {
        let Some(watched) = self.clusters.get_mut(name) else { return };
        let questions = watched.state.questions();
        if questions.is_empty() {
            watched.settled = true;
            return;
        }
        let resolver = Arc::clone(&self.resolver);
        let task = self.refreshes.spawn(async move {
            sleep(wait).await;
            ask(resolver, questions).await
        });
        self.tasks.insert(task.id(), name.to_owned());
        watched.refresh = Some((task, Instant::now() + wait));
    }

    /// See [`Discovery::changed`](super::Discovery::changed).
    pub(super) async fn changed(&mut self) -> Update {
        loop {
            if let Some(update) = self.updates.pop_front() {
                return update;
            }
            match self.refreshes.join_next_with_id().await {
                None => pending().await,
                Some(Ok((task, answers))) => self.absorb(task, Some(answers)),
                Some(Err(error)) => self.absorb(error.id(), None),
            }
        }
    }

    /// `None`: the refresh came to no end.
    fn absorb(&mut self, task: Id, answers: Option<Vec<(usize, HostAnswer)>>) {
        let Some(name) = self.tasks.remove(&task) else { return };
        let Some(watched) = self.clusters.get_mut(&name) else { return };
        let answers = answers.unwrap_or_else(|| watched.state.questions().iter().map(unanswered).collect());
        let step = watched.state.absorb(self.started.elapsed(), &answers, fastrand::f64());
        let first = !std::mem::replace(&mut watched.settled, true);
        watched.counts.add(&answers, step.endpoints_changed);
        let (wait, save) = (step.wait, step.endpoints_changed);
        self.tell(&name, step, first);
        if save {
            self.save();
        }
        self.schedule(&name, wait);
    }

    fn tell(&mut self, cluster: &str, step: Step, first: bool) {
        if step.transitions.is_empty() && !step.endpoints_changed && !first {
            return;
        }
        let events = phase::events(cluster, step.transitions);
        let update =
            Update { cluster: cluster.to_owned(), endpoints_changed: step.endpoints_changed, events };
        self.updates.push_back(update);
    }

    fn save(&mut self) {
        let Some(dir) = &self.state_dir else { return };
        let saver = self.saver.get_or_insert_with(|| Saver::of_dns(dir.clone()));
        let clusters = self.clusters.iter();
        saver.save(clusters.map(|(name, watched)| (name.clone(), watched.state.to_save())).collect());
    }

    /// The endpoints of a cluster now, sorted, each once, with the greatest weight of its hosts. `None`: DNS was not
    /// asked for it, or has not answered and nothing was saved.
    pub(super) fn endpoints(&self, cluster: &str) -> Option<&[Endpoint]> {
        let state = &self.clusters.get(cluster)?.state;
        state.is_known().then(|| state.endpoints())
    }

    /// How the discovery of a cluster stands; `None` if its endpoints are not from DNS.
    pub(super) fn status(&self, cluster: &str) -> Option<ClusterDiscovery> {
        let Watched { state, refresh, .. } = self.clusters.get(cluster)?;
        let now = self.started.elapsed();
        let (phase, why) = state.phase();
        Some(ClusterDiscovery {
            state: phase.as_str(),
            why: why.to_owned(),
            last_answer_age_s: state.last_answer.map(|at| now.saturating_sub(at).as_secs()),
            next_refresh_s: refresh
                .as_ref()
                .map(|(_, at)| at.saturating_duration_since(Instant::now()).as_secs()),
            last_failure: state.last_failure.clone(),
        })
    }

    /// The refreshes of a cluster so far; `None` if its endpoints are not from DNS.
    pub(super) fn counts(&self, cluster: &str) -> Option<RefreshCounts> {
        Some(self.clusters.get(cluster)?.counts)
    }

    /// Clusters whose first result is outstanding.
    pub(super) fn unsettled(&self) -> usize {
        self.clusters.values().filter(|watched| !watched.settled).count()
    }
}

/// One refresh.
pub(super) async fn ask(resolver: Arc<Resolver>, questions: Vec<Question>) -> Vec<(usize, HostAnswer)> {
    let mut answers = Vec::with_capacity(questions.len());
    let mut questions = questions.into_iter();
    let mut lookups = JoinSet::new();
    loop {
        while lookups.len() < CONCURRENT_HOSTS
            && let Some(question) = questions.next()
        {
            let resolver = Arc::clone(&resolver);
            lookups.spawn(async move {
                let Question { index, host, families, known } = question;
                (index, resolver.lookup(&host, families, known.as_deref()).await)
            });
        }
        match lookups.join_next().await {
            None => return answers,
            Some(Ok(answer)) => answers.push(answer),
            // Without a panic the runtime is ending.
            Some(Err(error)) => {
                if let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}

/// The answer where a refresh broke off.
fn unanswered(question: &Question) -> (usize, HostAnswer) {
    let failure =
        Failure { kind: FailureKind::Malformed, why: "the query broke off by an error of its own".into() };
    let of = |asked: bool| asked.then(|| Answer::Failure(failure.clone()));
    (question.index, HostAnswer { v4: of(question.families.v4), v6: of(question.families.v6), name: None })
}
