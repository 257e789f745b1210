//! What is known of one endpoint, and what follows for its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{Cluster, Endpoint, OnLeaving};

/// What an endpoint is to new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It takes new ones.
    Healthy,
    /// Its health check fails, or has not had its first answer; or its source says that it is not ready.
    Unhealthy,
    /// Attempts to connect to it have failed, see [`crate::model::Outlier`].
    Ejected,
    /// It has left its cluster, or the operator wants it to take no new ones.
    Draining,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
        }
    }
}

/// What active health checking says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nobody asks it.
    Unchecked,
    /// It has not been asked yet.
    Pending,
    Passing,
    /// `timeout`: by saying nothing.
    Failing {
        timeout: bool,
    },
}

/// What its source says of it, see [`Endpoint::ready`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// It has not been ready yet: it may not even listen.
    NotYet,
    /// It was ready before.
    Lost,
}

/// Since when it takes no new connections for one reason, and what that means for those that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out {
    pub since: Instant,
    /// When connections are reset; `None`: never.
    pub cut: Option<Instant>,
    /// Those that are older than this.
    pub older_than: Instant,
}

impl Out {
    /// By the rule of a cluster. `for_good`: there should be no connection that is newer, and if there is, it is meant, too.
    pub fn new(rule: OnLeaving, drain_timeout: Duration, for_good: bool, now: Instant) -> Self {
        let cut = match rule {
            OnLeaving::Keep => None,
            OnLeaving::Drain => Some(now + drain_timeout),
            OnLeaving::Reset => Some(now),
        };
        // A SYN may be on its way that was sent before the tables changed.
        let older_than = if for_good { cut.unwrap_or(now) + super::GRACE } else { now };
        Self { since: now, cut, older_than }
    }

    /// The connections that are older than this are to be reset by `now`.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.cut.filter(|cut| *cut <= now).map(|_| self.older_than)
    }
}

/// An endpoint of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub endpoint: Endpoint,
    /// Tells it from others that had its address in the cluster before.
    pub id: u64,
    /// It has left discovery.
    pub removed: Option<Out>,
    /// It has left discovery, and stays for as long as its health check passes.
    pub leaving: bool,
    /// By the operator's word.
    pub drained: Option<Out>,
    pub health: Health,
    pub readiness: Readiness,
    /// Why it is ejected, if it is.
    pub ejected: Option<Arc<str>>,
    /// While it is unhealthy or ejected.
    pub unfit: Option<Out>,
    /// When its state came to be what it is, and why.
    pub since: Instant,
    pub why: Arc<str>,
    /// When it began to take connections; `None`: with its cluster.
    pub in_service: Option<Instant>,
    /// Weight among those of its cluster that take new connections; `None`: it takes none.
    pub share: Option<u32>,
}

impl Member {
    /// One that has just come; `first`: with its cluster.
    pub(super) fn new(endpoint: Endpoint, id: u64, cluster: &Cluster, first: bool, now: Instant) -> Self {
        let checked = cluster.health_check.is_some() && !endpoint.probe.skip;
        let ready = endpoint.ready;
        Self {
            endpoint,
            id,
            removed: None,
            leaving: false,
            drained: None,
            health: if checked { Health::Pending } else { Health::Unchecked },
            readiness: if ready { Readiness::Ready } else { Readiness::NotYet },
            ejected: None,
            unfit: None,
            since: now,
            why: if !ready {
                "not ready yet"
            } else if checked {
                "not probed yet"
            } else {
                "discovered"
            }
            .into(),
            // One that is not ready begins later than its cluster.
            in_service: (!first || !ready).then_some(now),
            share: None,
        }
    }

    /// One of which an earlier agent has left connections, which are reset then.
    pub(super) fn left_behind(
        address: SocketAddr,
        id: u64,
        drain_timeout: Option<Duration>,
        now: Instant,
    ) -> Self {
        let rule = if drain_timeout.is_some() { OnLeaving::Drain } else { OnLeaving::Keep };
        Self {
            endpoint: Endpoint::new(address, 1),
            id,
            removed: Some(Out::new(rule, drain_timeout.unwrap_or_default(), true, now)),
            leaving: false,
            drained: None,
            health: Health::Unchecked,
            readiness: Readiness::Ready,
            ejected: None,
            unfit: None,
            since: now,
            why: "left by an earlier agent".into(),
            in_service: None,
            share: None,
        }
    }

    pub fn state(&self) -> State {
        if self.removed.is_some() || self.drained.is_some() {
            State::Draining
        } else if !matches!(self.health, Health::Unchecked | Health::Passing)
            || self.readiness != Readiness::Ready
        {
            State::Unhealthy
        } else if self.ejected.is_some() {
            State::Ejected
        } else {
            State::Healthy
        }
    }

    /// Nobody knows yet whether it takes connections.
    fn is_pending(&self) -> bool {
        self.health == Health::Pending || self.readiness == Readiness::NotYet
    }

    /// Not to be tried, panic or not, as long as another one is healthy.
    pub fn is_last_resort(&self) -> bool {
        self.health == Health::Pending || self.readiness != Readiness::Ready
    }

    /// The connections that are older than this are to be reset by `now`.
    pub fn cut_due(&self, now: Instant) -> Option<Instant> {
        // By far the most, several times a second.
        if self.removed.is_none() && self.drained.is_none() && self.unfit.is_none() {
            return None;
        }
        self.outs().filter_map(|out| out.due(now)).max()
    }

    /// When connections are reset next, or were.
    pub fn cut(&self) -> Option<Instant> {
        self.outs().filter_map(|out| out.cut).min()
    }

    fn outs(&self) -> impl Iterator<Item = Out> {
        [self.removed, self.drained, self.unfit].into_iter().flatten()
    }

    /// Discovery or the configuration say something else of it, or of its health check.
    pub(super) fn update(&mut self, endpoint: &Endpoint, cluster: &Cluster, now: Instant) {
        self.leaving = false;
        self.endpoint.clone_from(endpoint);
        let checked = cluster.health_check.is_some() && !endpoint.probe.skip;
        match (checked, self.health) {
            // It was good enough so far.
            (true, Health::Unchecked) => self.health = Health::Passing,
            (false, health) if health != Health::Unchecked => {
                self.set_health(Health::Unchecked, "not probed any more", cluster, now);
            }
            _ => {}
        }
        let (readiness, why) = match (endpoint.ready, self.readiness) {
            (true, Readiness::NotYet | Readiness::Lost) => (Readiness::Ready, "ready"),
            (false, Readiness::Ready) => (Readiness::Lost, "not ready any more"),
            _ => return,
        };
        self.change(why, cluster, now, |member| member.readiness = readiness);
        if readiness == Readiness::Ready && self.state() == State::Unhealthy {
            (self.since, self.why) = (now, "ready, but its health check does not pass".into());
        }
    }

    /// It has left discovery.
    pub(super) fn remove(&mut self, rule: OnLeaving, drain_timeout: Duration, now: Instant) {
        self.leaving = false;
        self.removed = Some(Out::new(rule, drain_timeout, true, now));
        (self.since, self.why) = (now, "not discovered any more".into());
    }

    /// The operator wants no new connections to it.
    pub fn drain(&mut self, drain_timeout: Duration, now: Instant) {
        self.drained = Some(Out::new(OnLeaving::Drain, drain_timeout, true, now));
        (self.since, self.why) = (now, "drained by the operator".into());
    }

    /// The operator takes that back.
    pub fn undrain(&mut self, now: Instant) {
        self.drained = None;
        (self.since, self.why) = (now, "undrained by the operator".into());
        self.in_service = Some(now);
    }

    /// What active health checking says from `now` on. Whether there is something to tell: another state, or the reason of
    /// the one that it has had without an answer.
    pub fn set_health(&mut self, health: Health, why: &str, cluster: &Cluster, now: Instant) -> bool {
        self.change(why, cluster, now, |member| member.health = health)
    }

    /// Whether, and why, failing connections have it left out, from `now` on. Whether the state is another one.
    pub fn set_ejected(&mut self, ejected: bool, why: &str, cluster: &Cluster, now: Instant) -> bool {
        self.change(why, cluster, now, |member| member.ejected = ejected.then(|| why.into()))
    }

    fn change(&mut self, why: &str, cluster: &Cluster, now: Instant, set: impl FnOnce(&mut Self)) -> bool {
        let (before, was_pending) = (self.state(), self.is_pending());
        set(self);
        let is_failing = matches!(self.health, Health::Failing { .. }) || self.readiness == Readiness::Lost;
        // One that has never passed has no connections, or those of an earlier agent, which knew better.
        let turns_unfit = self.ejected.is_some() || is_failing && !was_pending;
        if self.ejected.is_none() && !is_failing {
            self.unfit = None;
        } else if turns_unfit && self.unfit.is_none() {
            self.unfit = Some(Out::new(cluster.on_unhealthy, cluster.drain_timeout, false, now));
        }
        let state = self.state();
        // What its health check says is no reason while another one stands.
        let why = match self.readiness {
            Readiness::NotYet if !is_failing => "not ready yet",
            Readiness::Lost if !matches!(self.health, Health::Failing { .. }) => "not ready any more",
            _ => why,
        };
        if state == before && (state != State::Unhealthy || !was_pending || *self.why == *why) {
            return false;
        }
        // What ended the one state is not why it has the other.
        let ejected = self.ejected.clone().filter(|_| state == State::Ejected);
        (self.since, self.why) = (now, ejected.unwrap_or_else(|| why.into()));
        if state == State::Healthy && !(was_pending && self.in_service.is_none()) {
            self.in_service = Some(now);
        }
        true
    }
}
