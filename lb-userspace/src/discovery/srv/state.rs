//! Discovery by SRV as a pure state machine: answers and the time in, a report and the next wait out.
//!
//! The rules are those of `strict_dns`: a failure keeps what was last good, of the name and of each target; NXDOMAIN
//! and an answer without data take it away after `hold_nx`. The target `.` says on purpose that there is no service, so
//! it counts at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::discovery::MAX_ENDPOINTS;
use crate::discovery::answer::{Answer, Failure, HostAnswer, Service, Services, SrvAnswer};
use crate::discovery::feed::Report;
use crate::discovery::host::{HostState, Verdict};
use crate::discovery::resolver::Families;
use crate::discovery::schedule::{self, Outcome};
use crate::model::{DnsFamily, DnsHost, Endpoint, Srv, fit_weights};

/// Records of an answer that count, in the order of priority, weight and port.
const MAX_RECORDS: usize = 1024;

/// The highest level, as in the configuration; what comes after it is in it.
const MAX_LEVEL: u32 = 128;

/// Of one refresh.
#[derive(Clone, Debug)]
pub(in crate::discovery) struct Answers {
    pub(in crate::discovery) service: SrvAnswer,
    /// By target.
    pub(in crate::discovery) hosts: BTreeMap<String, HostAnswer>,
}

/// What answers led to.
#[derive(Debug)]
pub(in crate::discovery) struct Step {
    pub(in crate::discovery) report: Report,
    /// What is not as it should be with endpoints that are reported.
    pub(in crate::discovery) note: Option<String>,
    /// From now to the next refresh.
    pub(in crate::discovery) wait: Duration,
}

/// The discovery of one service. Times are since any one instant.
#[derive(Debug)]
pub(in crate::discovery) struct State {
    settings: Srv,
    /// The absolute name that had the records last.
    name: Option<String>,
    /// Of the last records, by target.
    hosts: BTreeMap<String, HostState>,
    /// The endpoints that were last reported, with their targets.
    reported: BTreeMap<SocketAddr, String>,
    /// The name has had no records since then, without interruption.
    nothing_since: Option<Duration>,
    /// Refreshes in a row in which everything failed.
    failures: u32,
}

/// The targets whose addresses are wanted.
pub(in crate::discovery) fn targets(services: &Services) -> BTreeSet<&str> {
    usable(services).map(|record| record.target.as_str()).collect()
}

/// The records that can have endpoints.
fn usable(services: &Services) -> impl Iterator<Item = &Service> {
    let records = services.records.iter().take(MAX_RECORDS);
    records.filter(|record| record.port != 0 && record.target != ".")
}

/// An address of a target, as its records describe it.
struct Found<'r> {
    priority: u16,
    weight: u64,
    target: &'r str,
}

impl State {
    pub(in crate::discovery) fn new(settings: Srv) -> Self {
        Self {
            settings,
            name: None,
            hosts: BTreeMap::new(),
            reported: BTreeMap::new(),
            nothing_since: None,
            failures: 0,
        }
    }

    /// The name to ask for.
    pub(in crate::discovery) fn service(&self) -> &str {
        &self.settings.name
    }

    /// The absolute name that answered last.
    pub(in crate::discovery) fn known(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(in crate::discovery) fn families(&self) -> Families {
        let family = self.settings.refresh.family;
        Families { v4: family != DnsFamily::V6, v6: family != DnsFamily::V4 }
    }

    /// Takes the answers of one refresh; `random` is of [0, 1).
    pub(in crate::discovery) fn absorb(&mut self, now: Duration, answers: Answers, random: f64) -> Step {
        let mut outcome = Outcome::default();
        let name = self.settings.name.clone();
        let hold_nx = self.settings.refresh.hold_nx;
        let (report, note) = match answers.service {
            SrvAnswer::Records { services, name } => {
                (self.nothing_since, self.name) = (None, Some(name));
                outcome.add(false, Some(services.ttl));
                self.follow(now, &services, &answers.hosts, &mut outcome)
            }
            SrvAnswer::None(Answer::Failure(Failure { why, .. })) => {
                self.nothing_since = None;
                outcome.add(true, None);
                (Report::Failed(format!("{name}: {why}")), None)
            }
            SrvAnswer::None(nothing) => {
                outcome.add(false, None);
                let text = if nothing == Answer::NxDomain { "NXDOMAIN" } else { "no SRV records" };
                let since = *self.nothing_since.get_or_insert(now);
                let hold = humantime::format_duration(hold_nx);
                let report = if now.saturating_sub(since) < hold_nx {
                    Report::Failed(format!("kept for hold_nx, {hold}: {text} for {name}"))
                } else if hold_nx.is_zero() {
                    self.empty(format!("{text} for {name}"))
                } else {
                    self.empty(format!("{text} for {name} for more than hold_nx, {hold}"))
                };
                (report, None)
            }
        };
        self.failures = if outcome.answered == 0 && outcome.failed > 0 { self.failures + 1 } else { 0 };
        let mut wait = schedule::wait(&self.settings.refresh, &outcome, self.failures, random);
        // Earlier where a hold ends before that.
        let held = self.hosts.values().filter_map(|host| match host.verdict(hold_nx) {
            Verdict::Holding(_, end) => Some(end),
            _ => None,
        });
        let ends = self.nothing_since.map(|since| since + hold_nx).into_iter().chain(held);
        if let Some(end) = ends.filter(|end| *end > now).min() {
            wait = wait.min(end - now).max(schedule::MIN_WAIT);
        }
        Step { report, note, wait }
    }

    /// Forgets everything.
    fn empty(&mut self, why: String) -> Report {
        self.hosts.clear();
        let left = std::mem::take(&mut self.reported).into_keys().map(|address| (address, why.clone()));
        Report::Endpoints { endpoints: Vec::new(), left: left.collect(), why }
    }

    /// Makes the endpoints follow from records.
    fn follow(
        &mut self,
        now: Duration,
        services: &Services,
        answers: &BTreeMap<String, HostAnswer>,
        outcome: &mut Outcome,
    ) -> (Report, Option<String>) {
        let name = self.settings.name.clone();
        if services.records.iter().all(|record| record.target == ".") {
            return (self.empty(format!("{name} has the target `.`: the service is not available")), None);
        }
        let mut notes = Vec::new();
        if services.records.len() > MAX_RECORDS {
            let count = services.records.len();
            notes.push(format!("{count} records: only the first {MAX_RECORDS} are used"));
        }
        let gone = self.follow_targets(now, services, answers, outcome);
        let mut failures = Vec::new();
        let mut nothing = Vec::new();
        for (target, host) in &self.hosts {
            match host.verdict(self.settings.refresh.hold_nx) {
                Verdict::Failed(failure) => failures.push(format!("{target}: {}", failure.why)),
                Verdict::Nothing(text) | Verdict::Holding(text, _) => {
                    nothing.push(format!("{text} for {target}"))
                }
                Verdict::Unknown | Verdict::Answered => {}
            }
        }
        let mut found = self.found(services);
        if found.is_empty() {
            let why =
                |reasons: &[String]| format!("no target of {name} has an address: {}", reasons.join("; "));
            // Of a target that was not answered nothing is known.
            return match failures.is_empty() {
                true => (self.empty(why(&nothing)), None),
                false => (Report::Failed(why(&failures)), None),
            };
        }
        notes.extend(failures.into_iter().map(|failure| format!("its last addresses are kept: {failure}")));
        notes.extend(nothing);
        if let Some(first_cut) = found.keys().nth(MAX_ENDPOINTS).copied() {
            notes.push(format!("{} endpoints: only the first {MAX_ENDPOINTS} are used", found.len()));
            found.split_off(&first_cut);
        }
        let endpoints = endpoints(&found);
        let reported = found.iter().map(|(address, found)| (*address, found.target.to_owned())).collect();
        let before = std::mem::replace(&mut self.reported, reported);
        let left = before.into_iter().filter(|(address, _)| !self.reported.contains_key(address));
        let left = left.map(|(address, target)| {
            let port = address.port();
            let is_there = usable(services).any(|record| record.target == target && record.port == port);
            let why = match gone.get(&(target.as_str(), address.ip())) {
                _ if !is_there => format!("{target}:{port} is not in the SRV answer for {name} any more"),
                Some(why) => why.clone(),
                None => format!("beyond the first {MAX_ENDPOINTS} endpoints"),
            };
            (address, why)
        });
        let report = Report::Endpoints {
            endpoints,
            left: left.collect(),
            why: format!("in the SRV answer for {name}"),
        };
        (report, (!notes.is_empty()).then(|| notes.join("; ")))
    }

    /// Takes the addresses of the targets; gives those that are gone, and why.
    fn follow_targets<'r>(
        &mut self,
        now: Duration,
        services: &'r Services,
        answers: &BTreeMap<String, HostAnswer>,
        outcome: &mut Outcome,
    ) -> BTreeMap<(&'r str, IpAddr), String> {
        let mut before = std::mem::take(&mut self.hosts);
        let mut gone = BTreeMap::new();
        for target in targets(services) {
            // Its records have the ports.
            let new = || HostState::new(&DnsHost::new(target, 0, 1));
            let mut host = before.remove(target).unwrap_or_else(new);
            if let Some(answer) = answers.get(target) {
                let change = host.absorb(now, self.settings.refresh.hold_nx, answer);
                outcome.add(change.failed, change.ttl);
                gone.extend(change.gone.into_iter().map(|(address, why)| ((target, address.ip()), why)));
            }
            self.hosts.insert(target.to_owned(), host);
        }
        gone
    }

    /// The addresses of all targets. One that several records lead to is in the lowest of their priorities, with the
    /// sum of the weights there: so often would a client of RFC 2782 choose it.
    fn found<'r>(&self, services: &'r Services) -> BTreeMap<SocketAddr, Found<'r>> {
        let mut found: BTreeMap<SocketAddr, Found<'_>> = BTreeMap::new();
        for record in usable(services) {
            let Some(host) = self.hosts.get(&record.target) else { continue };
            let (priority, weight) = (record.priority, u64::from(record.weight));
            for address in host.addresses() {
                let of = found.entry(SocketAddr::new(address, record.port)).or_insert(Found {
                    priority,
                    weight: 0,
                    target: &record.target,
                });
                // The records are in the order of priority.
                if of.priority == priority {
                    of.weight += weight;
                }
            }
        }
        found
    }
}

/// With priorities as levels from 0, and the weights of each level in Headgate's range.
fn endpoints(found: &BTreeMap<SocketAddr, Found<'_>>) -> Vec<Endpoint> {
    let mut levels: BTreeMap<u16, Vec<(SocketAddr, u64)>> = BTreeMap::new();
    for (address, Found { priority, weight, .. }) in found {
        levels.entry(*priority).or_default().push((*address, *weight));
    }
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(found.len());
    for (level, members) in (0..).zip(levels.into_values()) {
        let weights = fitted(members.iter().map(|(_, weight)| *weight).collect());
        endpoints.extend(members.iter().zip(weights).map(|((address, _), weight)| Endpoint {
            priority: MAX_LEVEL.min(level),
            ..Endpoint::new(*address, weight)
        }));
    }
    endpoints.sort();
    endpoints
}

/// Beside others, a weight of 0 is for the least share that there is.
fn fitted(mut weights: Vec<u64>) -> Vec<u32> {
    if weights.contains(&0) && weights.iter().any(|weight| *weight > 0) {
        // As good as nothing beside the least of the others.
        weights.iter_mut().for_each(|weight| *weight = (*weight << 16).max(1));
    }
    fit_weights(&weights).0
}
