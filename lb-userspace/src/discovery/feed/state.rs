//! What a source says of one cluster, as a pure state machine: reports in, endpoints and transitions out. A failure keeps
//! the last good endpoints for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::Report;
use crate::discovery::MAX_ENDPOINTS;
use crate::discovery::answer::unusable;
use crate::discovery::phase::{Phase, Transition};
use crate::model::Endpoint;

/// Refused addresses that are told of.
const MAX_REFUSED: usize = 64;

/// The discovery of one cluster. Times are since any one instant.
#[derive(Debug)]
pub(super) struct State {
    /// Sorted by address, each once.
    endpoints: Vec<Endpoint>,
    phase: Phase,
    why: String,
    /// What the source said with its last answer.
    said: String,
    /// Where the saved endpoints are from.
    origin: Option<String>,
    refused: BTreeSet<SocketAddr>,
    cut: bool,
    /// Of the last answer: of what it gave a reason for leaving.
    pub(super) left: BTreeSet<SocketAddr>,
    pub(super) last_answer: Option<Duration>,
    pub(super) last_failure: Option<String>,
}

/// What an input led to.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) transitions: Vec<Transition>,
    pub(super) endpoints_changed: bool,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            endpoints: Vec::new(),
            phase: Phase::Unresolved,
            why: "not answered yet".to_owned(),
            said: String::new(),
            origin: None,
            refused: BTreeSet::new(),
            cut: false,
            left: BTreeSet::new(),
            last_answer: None,
            last_failure: None,
        }
    }

    /// Begins with endpoints of before; `origin`: where they are from.
    pub(super) fn restore(&mut self, endpoints: Vec<Endpoint>, origin: String) -> Step {
        if endpoints.is_empty() {
            return Step::default();
        }
        let mut step = self.set(endpoints, &BTreeMap::new(), &origin);
        let why = format!("{origin}, until its source answers");
        self.origin = Some(origin);
        self.turn(Phase::Saved, why, true, &mut step);
        step
    }

    /// Takes what the source says at `now`.
    pub(super) fn absorb(&mut self, now: Duration, report: Report) -> Step {
        match report {
            Report::Endpoints { endpoints, left, why } => {
                (self.last_answer, self.origin) = (Some(now), None);
                let mut step = self.set(endpoints, &left, &why);
                self.left = left.into_keys().collect();
                // How many there are is no news of the cluster, unlike what else is said of them.
                let is_news = std::mem::replace(&mut self.said, why.clone()) != why;
                let count = self.endpoints.len();
                match count {
                    0 => self.turn(Phase::Empty, format!("none {why}"), is_news, &mut step),
                    _ => self.turn(Phase::Resolved, format!("{count} endpoints {why}"), is_news, &mut step),
                }
                step
            }
            Report::Failed(failure) => {
                self.last_failure = Some(failure.clone());
                let (phase, why) = match &self.origin {
                    Some(origin) => (Phase::Saved, format!("{origin}: {failure}")),
                    None if !self.endpoints.is_empty() => {
                        (Phase::Stale, format!("the last good endpoints are kept: {failure}"))
                    }
                    None if self.last_answer.is_some() => {
                        (Phase::Empty, format!("there were none, and now: {failure}"))
                    }
                    None => (Phase::Unresolved, failure),
                };
                let mut step = Step::default();
                let is_news = why != self.why;
                self.turn(phase, why, is_news, &mut step);
                step
            }
        }
    }

    /// Makes these the endpoints. `left`: why others have left; `why`: where these are.
    fn set(&mut self, endpoints: Vec<Endpoint>, left: &BTreeMap<SocketAddr, String>, why: &str) -> Step {
        let mut step = Step::default();
        let mut new = BTreeMap::new();
        for endpoint in endpoints {
            match unusable(endpoint.address.ip()) {
                None => drop(new.entry(endpoint.address).or_insert(endpoint)),
                Some(reason) if self.refused.len() < MAX_REFUSED && self.refused.insert(endpoint.address) => {
                    let why = format!("left out: {reason}");
                    step.transitions.push(Transition::of_endpoint(endpoint.address, "absent", "absent", why));
                }
                Some(_) => {}
            }
        }
        let total = new.len();
        let new: Vec<Endpoint> = new.into_values().take(MAX_ENDPOINTS).collect();
        let is_cut = total > MAX_ENDPOINTS;
        if is_cut && !self.cut {
            let why = format!("{total} endpoints {why}: only the first {MAX_ENDPOINTS} are used");
            step.transitions.push(Transition::of_cluster(self.phase, self.phase, why));
        }
        self.cut = is_cut;
        let addresses = |of: &[Endpoint]| of.iter().map(|endpoint| endpoint.address).collect::<BTreeSet<_>>();
        let (before, after) = (addresses(&self.endpoints), addresses(&new));
        for came in after.difference(&before) {
            step.transitions.push(Transition::of_endpoint(*came, "absent", "healthy", why.to_owned()));
        }
        for gone in before.difference(&after) {
            let why = left.get(gone).cloned().unwrap_or_else(|| format!("not {why} any more"));
            step.transitions.push(Transition::of_endpoint(*gone, "healthy", "draining", why));
        }
        step.endpoints_changed = new != self.endpoints;
        self.endpoints = new;
        step
    }

    /// What is told again and again alike is told once: `is_news` if it is not.
    fn turn(&mut self, phase: Phase, why: String, is_news: bool, step: &mut Step) {
        if phase != self.phase || is_news {
            step.transitions.push(Transition::of_cluster(self.phase, phase, why.clone()));
        }
        (self.phase, self.why) = (phase, why);
    }

    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    pub(super) fn phase(&self) -> (Phase, &str) {
        (self.phase, &self.why)
    }

    /// The source has answered, or there is something of before.
    pub(super) fn is_known(&self) -> bool {
        self.phase != Phase::Unresolved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8) -> Endpoint {
        Endpoint::new(SocketAddr::from(([192, 0, 2, last], 80)), 1)
    }

    fn endpoints(lasts: &[u8]) -> Report {
        let endpoints = lasts.iter().map(|last| endpoint(*last)).collect();
        Report::Endpoints { endpoints, left: BTreeMap::new(), why: "in F".into() }
    }

    fn shown(step: &Step) -> Vec<String> {
        let text = |of: &Transition| {
            let endpoint = of.endpoint.map_or_else(|| "-".to_owned(), |at| at.to_string());
            format!("{endpoint} {}>{}: {}", of.from, of.to, of.why)
        };
        step.transitions.iter().map(text).collect()
    }

    const AT: Duration = Duration::from_secs(1);

    #[test]
    fn endpoints_come_and_go() {
        let mut state = State::new();
        assert!(!state.is_known());
        assert_eq!(
            shown(&state.absorb(AT, endpoints(&[2, 1, 2]))),
            [
                "192.0.2.1:80 absent>healthy: in F",
                "192.0.2.2:80 absent>healthy: in F",
                "- unresolved>resolved: 2 endpoints in F"
            ]
        );
        let step = state.absorb(AT, endpoints(&[1, 2]));
        assert!(step.transitions.is_empty() && !step.endpoints_changed);
        let mut left = endpoints(&[3]);
        if let Report::Endpoints { left, .. } = &mut left {
            left.insert(endpoint(1).address, "terminating".into());
        }
        assert_eq!(
            shown(&state.absorb(AT, left)),
            [
                "192.0.2.3:80 absent>healthy: in F",
                "192.0.2.1:80 healthy>draining: terminating",
                "192.0.2.2:80 healthy>draining: not in F any more"
            ]
        );
        assert_eq!(
            shown(&state.absorb(AT, endpoints(&[]))),
            ["192.0.2.3:80 healthy>draining: not in F any more", "- resolved>empty: none in F"]
        );
        assert!(state.is_known() && state.endpoints().is_empty());
    }

    #[test]
    fn what_is_said_of_all_is_told_when_it_changes() {
        let mut state = State::new();
        let said = |why: &str| Report::Endpoints {
            endpoints: vec![endpoint(1)],
            left: BTreeMap::new(),
            why: why.to_owned(),
        };
        state.absorb(AT, said("in F"));
        let last_resort = "in F; none is ready, so those that end are used";
        assert_eq!(
            shown(&state.absorb(AT, said(last_resort))),
            [format!("- resolved>resolved: 1 endpoints {last_resort}")]
        );
        assert!(state.absorb(AT, said(last_resort)).transitions.is_empty());
    }

    #[test]
    fn what_is_said_of_an_endpoint_is_a_change() {
        let mut state = State::new();
        state.absorb(AT, endpoints(&[1]));
        let unready = Endpoint { ready: false, ..endpoint(1) };
        let report =
            Report::Endpoints { endpoints: vec![unready.clone()], left: BTreeMap::new(), why: "in F".into() };
        let step = state.absorb(AT, report);
        assert!(step.endpoints_changed && step.transitions.is_empty());
        assert_eq!(state.endpoints(), [unready]);
    }

    #[test]
    fn failures_keep_what_there_is_and_are_told_once() {
        let mut state = State::new();
        let failed = |why: &str| Report::Failed(why.to_owned());
        assert_eq!(shown(&state.absorb(AT, failed("away"))), ["- unresolved>unresolved: away"]);
        assert!(state.absorb(AT, failed("away")).transitions.is_empty());
        assert!(!state.is_known());
        state.absorb(AT, endpoints(&[1]));
        assert_eq!(
            shown(&state.absorb(AT, failed("away"))),
            ["- resolved>stale: the last good endpoints are kept: away"]
        );
        assert!(state.absorb(AT, failed("away")).transitions.is_empty());
        assert_eq!(shown(&state.absorb(AT, failed("forbidden"))).len(), 1);
        assert_eq!((state.endpoints().len(), state.last_answer), (1, Some(AT)));
        assert_eq!(shown(&state.absorb(AT, endpoints(&[1]))), ["- stale>resolved: 1 endpoints in F"]);
    }

    #[test]
    fn saved_endpoints_hold_until_an_answer() {
        let mut state = State::new();
        assert!(state.restore(Vec::new(), "from FILE".into()).transitions.is_empty());
        let step = state.restore(vec![endpoint(1)], "from FILE".into());
        assert!(step.endpoints_changed);
        assert_eq!(
            shown(&step),
            [
                "192.0.2.1:80 absent>healthy: from FILE",
                "- unresolved>saved: from FILE, until its source answers"
            ]
        );
        let step = state.absorb(AT, Report::Failed("away".into()));
        assert_eq!(shown(&step), ["- saved>saved: from FILE: away"]);
        assert_eq!(
            shown(&state.absorb(AT, endpoints(&[2]))),
            [
                "192.0.2.2:80 absent>healthy: in F",
                "192.0.2.1:80 healthy>draining: not in F any more",
                "- saved>resolved: 1 endpoints in F"
            ]
        );
    }

    #[test]
    fn what_no_connection_can_go_to_is_left_out() {
        let mut state = State::new();
        let report = |address: &str| Report::Endpoints {
            endpoints: vec![Endpoint::new(address.parse().unwrap(), 1), endpoint(1)],
            left: BTreeMap::new(),
            why: "in F".into(),
        };
        let step = state.absorb(AT, report("0.0.0.0:80"));
        assert_eq!(state.endpoints(), [endpoint(1)]);
        assert!(shown(&step)[0].starts_with("0.0.0.0:80 absent>absent: left out: "), "{step:?}");
        assert!(state.absorb(AT, report("0.0.0.0:80")).transitions.is_empty());
    }

    #[test]
    fn there_are_only_so_many() {
        let mut state = State::new();
        let many = (0..=MAX_ENDPOINTS as u32).map(|at| {
            let ip = std::net::Ipv4Addr::from(0x0a00_0001 + at);
            Endpoint::new(SocketAddr::from((ip, 80)), 1)
        });
        let report =
            Report::Endpoints { endpoints: many.collect(), left: BTreeMap::new(), why: "in F".into() };
        let step = state.absorb(AT, report);
        assert_eq!(state.endpoints().len(), MAX_ENDPOINTS);
        assert!(shown(&step)[0].contains("4097 endpoints in F: only the first 4096 are used"), "{step:?}");
    }
}
