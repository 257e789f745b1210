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
    /// Its health check fails, or has not had its first answer.
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

/// Since when it takes no new connections for one reason, and what that means for those that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out {
    pub since: Instant,
    /// Connections that are older than this are reset then; `None`: never.
    pub cut: Option<Instant>,
}

impl Out {
    /// By the rule of a cluster.
    pub fn new(rule: OnLeaving, drain_timeout: Duration, now: Instant) -> Self {
        let cut = match rule {
            OnLeaving::Keep => None,
            OnLeaving::Drain => Some(now + drain_timeout),
            OnLeaving::Reset => Some(now),
        };
        Self { since: now, cut }
    }
}

/// An endpoint of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub endpoint: Endpoint,
    /// It has left discovery.
    pub removed: Option<Out>,
    /// It has left discovery, and stays for as long as its health check passes.
    pub leaving: bool,
    /// By the operator's word.
    pub drained: Option<Out>,
    pub health: Health,
    pub ejected: bool,
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
    pub(super) fn new(endpoint: Endpoint, cluster: &Cluster, first: bool, now: Instant) -> Self {
        let checked = cluster.health_check.is_some() && !endpoint.probe.skip;
        Self {
            endpoint,
            removed: None,
            leaving: false,
            drained: None,
            health: if checked { Health::Pending } else { Health::Unchecked },
            ejected: false,
            unfit: None,
            since: now,
            why: if checked { "not probed yet" } else { "discovered" }.into(),
            in_service: (!first).then_some(now),
            share: None,
        }
    }

    /// One of which an earlier agent has left connections.
    pub(super) fn left_behind(address: SocketAddr, now: Instant) -> Self {
        Self {
            endpoint: Endpoint::new(address, 1),
            removed: Some(Out { since: now, cut: None }),
            leaving: false,
            drained: None,
            health: Health::Unchecked,
            ejected: false,
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
        } else if !matches!(self.health, Health::Unchecked | Health::Passing) {
            State::Unhealthy
        } else if self.ejected {
            State::Ejected
        } else {
            State::Healthy
        }
    }

    /// Whether it may take new connections, be it in panic.
    pub(super) fn may_take(&self) -> bool {
        self.state() != State::Draining
    }

    /// Connections that are older than this are reset from then on; `None`: none are.
    pub fn cut(&self) -> Option<Instant> {
        [self.removed, self.drained, self.unfit].into_iter().flatten().filter_map(|out| out.cut).min()
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
    }

    /// It has left discovery.
    pub(super) fn remove(&mut self, rule: OnLeaving, drain_timeout: Duration, now: Instant) {
        self.leaving = false;
        self.removed = Some(Out::new(rule, drain_timeout, now));
        (self.since, self.why) = (now, "not discovered any more".into());
    }

    /// The operator wants no new connections to it.
    pub fn drain(&mut self, drain_timeout: Duration, now: Instant) {
        self.drained = Some(Out::new(OnLeaving::Drain, drain_timeout, now));
        (self.since, self.why) = (now, "drained by the operator".into());
    }

    /// The operator takes that back.
    pub fn undrain(&mut self, now: Instant) {
        self.drained = None;
        (self.since, self.why) = (now, "undrained by the operator".into());
        self.in_service = Some(now);
    }

    /// What active health checking says from `now` on. Whether the state is another one.
    pub fn set_health(&mut self, health: Health, why: &str, cluster: &Cluster, now: Instant) -> bool {
        self.change(why, cluster, now, |member| member.health = health)
    }

    /// Whether failing connections have it left out, from `now` on. Whether the state is another one.
    pub fn set_ejected(&mut self, ejected: bool, why: &str, cluster: &Cluster, now: Instant) -> bool {
        self.change(why, cluster, now, |member| member.ejected = ejected)
    }

    fn change(&mut self, why: &str, cluster: &Cluster, now: Instant, set: impl FnOnce(&mut Self)) -> bool {
        let before = self.state();
        // Before its first answer it had no connections.
        let was_pending = self.health == Health::Pending;
        set(self);
        let unfit = self.ejected || matches!(self.health, Health::Failing { .. });
        match (unfit, self.unfit) {
            (false, _) => self.unfit = None,
            (true, None) => self.unfit = Some(Out::new(cluster.on_unhealthy, cluster.drain_timeout, now)),
            (true, Some(_)) => {}
        }
        let state = self.state();
        if state == before {
            return false;
        }
        (self.since, self.why) = (now, why.into());
        if state == State::Healthy && !(was_pending && self.in_service.is_none()) {
            self.in_service = Some(now);
        }
        true
    }
}
