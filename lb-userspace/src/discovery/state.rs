//! Discovery as a pure state machine: answers and the time in, endpoints, transitions and the next wait out.
//!
//! The rules, which are Envoy's STRICT_DNS with a hold and damping on top: a failure (silence, SERVFAIL, REFUSED, what
//! cannot be understood) keeps the last good addresses for ever; NXDOMAIN and an answer without data take them away
//! after `hold_nx`; a family that fails while the other answers keeps its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::MAX_ENDPOINTS;
use super::answer::{Failure, FailureKind, Family, HostAnswer, unusable};
use super::flap::{self, FlapGuard};
use super::host::{HostState, Verdict};
use super::phase::{Phase, Transition};
use super::resolver::Families;
use super::saved::SavedCluster;
use super::schedule::{self, Outcome};
use crate::model::{DnsFamily, Endpoint, StrictDns};

/// Refused addresses that are told of, for each cluster.
const MAX_REFUSED: usize = 64;

/// What an input led to.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) transitions: Vec<Transition>,
    pub(super) endpoints_changed: bool,
    /// From now to the next refresh.
    pub(super) wait: Duration,
}

/// A host to ask for.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// Among the hosts.
    pub(super) index: usize,
    pub(super) host: String,
    pub(super) families: Families,
    pub(super) known: Option<String>,
}

/// The discovery of one cluster. Times are since any one instant.
#[derive(Debug)]
pub(super) struct State {
    settings: StrictDns,
    hosts: Vec<HostState>,
    /// Endpoints of hosts that a reload took out, kept until each host that is left was answered.
    orphans: BTreeMap<SocketAddr, u32>,
    flaps: FlapGuard,
    refused: BTreeSet<SocketAddr>,
    cut: bool,
    endpoints: Vec<Endpoint>,
    phase: Phase,
    /// What the phase was last told with.
    told: Option<FailureKind>,
    why: String,
    /// Where the saved endpoints are from.
    origin: String,
    /// Refreshes in a row in which every host failed.
    failures: u32,
    pub(super) last_answer: Option<Duration>,
    pub(super) last_failure: Option<String>,
}

impl State {
    pub(super) fn new(settings: &StrictDns) -> Self {
        Self {
            hosts: settings.hosts.iter().map(HostState::new).collect(),
            settings: settings.clone(),
            orphans: BTreeMap::new(),
            flaps: FlapGuard::default(),
            refused: BTreeSet::new(),
            cut: false,
            endpoints: Vec::new(),
            phase: Phase::Unresolved,
            told: None,
            why: "not answered yet".to_owned(),
            origin: String::new(),
            failures: 0,
            last_answer: None,
            last_failure: None,
        }
    }

    /// Begins with the endpoints of before, if there are any; and with those that need no query.
    pub(super) fn start(&mut self, now: Duration, saved: Option<&SavedCluster>) -> Step {
        if let Some(saved) = saved {
            self.origin.clone_from(&saved.origin);
            for host in self.hosts.iter_mut().filter(|host| host.literal.is_none()) {
                let addresses = saved.hosts.get(&host.host.name).into_iter().flatten().copied();
                host.restore(addresses.filter(|ip| unusable(*ip).is_none()));
            }
            self.forget_families();
        }
        self.settle(now, &BTreeMap::new())
    }

    /// Goes on with other settings. Hosts that stay keep what is known of them; nothing is lost before the hosts that
    /// are left were answered.
    pub(super) fn reconfigure(&mut self, now: Duration, settings: &StrictDns) -> Step {
        let known = |name: &str| self.hosts.iter().find(|host| host.host.name == name);
        let hosts = settings.hosts.iter().map(|host| match known(&host.name) {
            Some(old) => old.renewed(host),
            None => HostState::new(host),
        });
        self.hosts = hosts.collect();
        self.settings = settings.clone();
        self.forget_families();
        let covered: BTreeSet<SocketAddr> = self.hosts.iter().flat_map(HostState::endpoints).collect();
        let left = self.endpoints.iter().filter(|endpoint| !covered.contains(&endpoint.address));
        self.orphans = left.map(|endpoint| (endpoint.address, endpoint.weight)).collect();
        self.settle(now, &BTreeMap::new())
    }

    fn forget_families(&mut self) {
        let families = self.families();
        for host in &mut self.hosts {
            if !families.v4 {
                host.forget(Family::V4);
            }
            if !families.v6 {
                host.forget(Family::V6);
            }
        }
    }

    fn families(&self) -> Families {
        let family = self.settings.family;
        Families { v4: family != DnsFamily::V6, v6: family != DnsFamily::V4 }
    }

    pub(super) fn settings(&self) -> &StrictDns {
        &self.settings
    }

    /// What a refresh asks for.
    pub(super) fn questions(&self) -> Vec<Question> {
        let asked = self.hosts.iter().enumerate().filter(|(_, host)| host.literal.is_none());
        asked
            .map(|(index, host)| Question {
                index,
                host: host.host.name.clone(),
                families: self.families(),
                known: host.name.clone(),
            })
            .collect()
    }

    /// Takes the answers of one refresh, each with the index of its question; `random` is of [0, 1).
    pub(super) fn absorb(&mut self, now: Duration, answers: &[(usize, HostAnswer)], random: f64) -> Step {
        let mut gone = BTreeMap::new();
        let mut refused = Vec::new();
        let mut outcome = Outcome::default();
        for (index, answer) in answers {
            let Some(host) = self.hosts.get_mut(*index) else { continue };
            let change = host.absorb(now, self.settings.hold_nx, answer);
            host.saved &= !host.answered;
            gone.extend(change.gone);
            refused.extend(change.refused);
            outcome.add(change.failed, change.ttl);
        }
        if outcome.answered > 0 {
            self.last_answer = Some(now);
        }
        self.failures = if outcome.answered == 0 && outcome.failed > 0 { self.failures + 1 } else { 0 };
        let mut step = self.settle(now, &gone);
        step.transitions.extend(self.tell_refused(refused));
        step.wait = schedule::wait(&self.settings.refresh(), &outcome, self.failures, random);
        // Earlier where a hold ends before that.
        let ends = self.hosts.iter().filter_map(|host| match host.verdict(self.settings.hold_nx) {
            Verdict::Holding(_, end) => Some(end),
            _ => None,
        });
        if let Some(end) = ends.chain(self.flaps.next_release()).min() {
            step.wait = step.wait.min(end.saturating_sub(now)).max(schedule::MIN_WAIT);
        }
        step
    }

    /// Makes endpoints and phase follow from the hosts.
    fn settle(&mut self, now: Duration, gone: &BTreeMap<SocketAddr, String>) -> Step {
        let mut step = Step { wait: Duration::ZERO, ..Step::default() };
        if self.hosts.iter().all(|host| host.literal.is_some() || host.is_answered_now()) {
            self.orphans.clear();
        }
        let mut answered: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        for host in &self.hosts {
            for endpoint in host.endpoints() {
                let weight = answered.entry(endpoint).or_insert(0);
                *weight = host.host.weight.max(*weight);
            }
        }
        for (endpoint, weight) in &self.orphans {
            answered.entry(*endpoint).or_insert(*weight);
        }
        let total = answered.len();
        if let Some(first_cut) = answered.keys().nth(MAX_ENDPOINTS).copied() {
            answered.split_off(&first_cut);
        }
        for (endpoint, times) in self.flaps.update(now, &answered) {
            let why = format!(
                "held: came and went {times} times in {}, so it stays for {} after each answer without it",
                humantime::format_duration(flap::WINDOW),
                humantime::format_duration(flap::HOLD)
            );
            step.transitions.push(Transition::of_endpoint(endpoint, "healthy", "healthy", why));
        }
        let has_answers = !answered.is_empty();
        let mut set = answered;
        for (endpoint, weight) in self.flaps.held() {
            set.entry(endpoint).or_insert(weight);
        }
        if self.settings.logical {
            // The one that there is stays as long as it may, so that connections do not wander with the order of answers.
            let present = self.endpoints.iter().map(|endpoint| endpoint.address);
            let kept = present.into_iter().find(|address| set.contains_key(address));
            let kept = kept.or_else(|| set.keys().next().copied());
            set.retain(|address, _| Some(*address) == kept);
        }
        let new: Vec<Endpoint> =
            set.iter().map(|(address, weight)| self.endpoint(*address, *weight)).collect();
        self.compare(&new, gone, &mut step.transitions);
        step.endpoints_changed = new != self.endpoints;
        self.endpoints = new;

        if total > MAX_ENDPOINTS && !self.cut {
            let why = format!("the answers have {total} endpoints: only the first {MAX_ENDPOINTS} are used");
            step.transitions.push(Transition::of_cluster(self.phase, self.phase, why));
        }
        self.cut = total > MAX_ENDPOINTS;
        let (phase, kind, why) = self.judge(has_answers);
        if phase != self.phase || kind != self.told {
            step.transitions.push(Transition::of_cluster(self.phase, phase, why.clone()));
        }
        (self.phase, self.told, self.why) = (phase, kind, why);
        step
    }

    /// An endpoint as its hosts describe it: where there are several, the first of those that are to be used first.
    fn endpoint(&self, address: SocketAddr, weight: u32) -> Endpoint {
        let hosts = self.hosts.iter().filter(|host| host.endpoints().any(|of| of == address));
        match hosts.min_by_key(|host| host.host.priority) {
            Some(HostState { host, .. }) => Endpoint {
                priority: host.priority,
                probe: host.probe.clone(),
                ..Endpoint::new(address, weight)
            },
            None => {
                let before = self.endpoints.iter().find(|endpoint| endpoint.address == address).cloned();
                Endpoint { weight, ..before.unwrap_or_else(|| Endpoint::new(address, weight)) }
            }
        }
    }

    fn compare(
        &self,
        new: &[Endpoint],
        gone: &BTreeMap<SocketAddr, String>,
        transitions: &mut Vec<Transition>,
    ) {
        let set = |endpoints: &[Endpoint]| endpoints.iter().map(|endpoint| endpoint.address).collect();
        let (before, after): (BTreeSet<SocketAddr>, BTreeSet<SocketAddr>) = (set(&self.endpoints), set(new));
        for endpoint in after.difference(&before) {
            let host = self.hosts.iter().find(|host| host.endpoints().any(|one| one == *endpoint));
            let why = match host {
                Some(host) if host.literal.is_some() => "in the configuration".to_owned(),
                Some(host) if host.saved => self.origin.clone(),
                Some(host) => format!("in the answer for {}", host.host.name),
                None => "held".to_owned(),
            };
            transitions.push(Transition::of_endpoint(*endpoint, "absent", "healthy", why));
        }
        for endpoint in before.difference(&after) {
            let why = match gone.get(endpoint) {
                Some(why) => why.clone(),
                None if self.hosts.iter().any(|host| host.endpoints().any(|one| one == *endpoint)) => {
                    format!("beyond the first {MAX_ENDPOINTS} endpoints")
                }
                None => "not in the answers or the configuration any more".to_owned(),
            };
            transitions.push(Transition::of_endpoint(*endpoint, "healthy", "draining", why));
        }
    }

    /// The phase, what tells it from another of the same name, and why. Notes the failure, if there is one.
    fn judge(&mut self, has_answers: bool) -> (Phase, Option<FailureKind>, String) {
        let hold_nx = self.settings.hold_nx;
        let verdicts = || self.hosts.iter().map(|host| (host.host.name.as_str(), host.verdict(hold_nx)));
        let failed = verdicts().find_map(|(name, verdict)| match verdict {
            Verdict::Failed(Failure { kind, why }) => Some((kind, format!("{name}: {why}"))),
            _ => None,
        });
        if let Some((_, why)) = &failed {
            self.last_failure = Some(why.clone());
        }
        let kind = failed.as_ref().map(|(kind, _)| *kind);
        let failure = failed.map(|(_, why)| why);
        let unknown = verdicts().any(|(_, verdict)| verdict == Verdict::Unknown);
        let nothing: Vec<String> = verdicts()
            .filter_map(|(name, verdict)| match verdict {
                Verdict::Nothing(text) | Verdict::Holding(text, _) => Some(format!("{text} for {name}")),
                _ => None,
            })
            .collect();
        let holding = verdicts().any(|(_, verdict)| matches!(verdict, Verdict::Holding(..)));
        let (phase, why) = if self.endpoints.is_empty() {
            match failure {
                Some(why) if self.hosts.iter().all(|host| host.answered) => {
                    (Phase::Empty, format!("DNS said that there is nothing, and now does not answer: {why}"))
                }
                Some(why) => (Phase::Unresolved, why),
                None if unknown => (Phase::Unresolved, "not answered yet".to_owned()),
                None => (Phase::Empty, nothing.join(", ")),
            }
        } else if self.hosts.iter().any(|host| host.saved) {
            let why = match failure {
                Some(why) => format!("{}, DNS does not answer: {why}", self.origin),
                None => format!("{}, until DNS answers", self.origin),
            };
            (Phase::Saved, why)
        } else if let Some(why) = failure {
            (Phase::Stale, format!("the last good answer is kept: {why}"))
        } else if holding {
            let hold = humantime::format_duration(hold_nx);
            (Phase::Stale, format!("kept for hold_nx, {hold}: {}", nothing.join(", ")))
        } else if !has_answers {
            (Phase::Stale, format!("endpoints that came and went are held: {}", nothing.join(", ")))
        } else if unknown {
            (Phase::Stale, "hosts of the configuration are not answered yet".to_owned())
        } else {
            let count = self.endpoints.len();
            let some = if nothing.is_empty() { String::new() } else { format!("; {}", nothing.join(", ")) };
            (Phase::Resolved, format!("{count} endpoints{some}"))
        };
        (phase, kind, why)
    }

    fn tell_refused(&mut self, refused: Vec<SocketAddr>) -> Vec<Transition> {
        let mut transitions = Vec::new();
        for endpoint in refused {
            if self.refused.len() < MAX_REFUSED && self.refused.insert(endpoint) {
                let reason = unusable(endpoint.ip()).unwrap_or("not usable");
                let why = format!("left out of the answer: {reason}");
                transitions.push(Transition::of_endpoint(endpoint, "absent", "absent", why));
            }
        }
        transitions
    }

    /// Sorted, each once.
    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    pub(super) fn phase(&self) -> (Phase, &str) {
        (self.phase, &self.why)
    }

    /// DNS has answered, or there is something of before.
    pub(super) fn is_known(&self) -> bool {
        self.phase != Phase::Unresolved
    }

    /// What to save: the addresses of each host that DNS has answered for.
    pub(super) fn to_save(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let asked = self.hosts.iter().filter(|host| host.literal.is_none());
        asked.map(|host| (host.host.name.clone(), self.addresses_of(&host.host.name))).collect()
    }

    /// The addresses that are kept of a name, sorted; none if it needs no query.
    pub(super) fn addresses_of(&self, name: &str) -> Vec<IpAddr> {
        // A name may be there with several ports.
        let hosts = self.hosts.iter().filter(|host| host.literal.is_none() && host.host.name == name);
        let addresses: BTreeSet<IpAddr> = hosts.flat_map(HostState::addresses).collect();
        addresses.into_iter().collect()
    }
}
