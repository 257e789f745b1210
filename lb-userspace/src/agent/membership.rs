//! Endpoints come and go: from the configuration and from discovery to those who choose among them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Result;

use crate::agent::Agent;
use crate::balancer::ClusterBalancer;
use crate::discovery::{Event, Update};
use crate::endpoints::{Endpoints, Health, Name, Readiness, State};
use crate::model::{Cluster, Discovery as Source, Endpoint};
use crate::net;

/// No endpoint of the cluster.
pub(super) const ABSENT: &str = "absent";

impl Agent {
    /// Discovery has something to tell.
    pub(super) async fn discovered(&mut self, update: Update) {
        if !update.endpoints_changed {
            return self.note(&update, &BTreeMap::new());
        }
        let before = self.endpoints.states();
        let Some(cluster) = self.config.cluster(&update.cluster).cloned() else { return };
        self.set_endpoints(&cluster);
        self.note(&update, &before);
        if let Err(error) = self.apply_endpoints(false).await {
            log::error!("following a change of cluster {}: {error:#}", cluster.name);
        }
    }

    /// Keeps what discovery has told, after its endpoints were taken over, with the states that they had `before` that.
    pub(super) fn note(&mut self, update: &Update, before: &BTreeMap<Name, State>) {
        let (endpoints, own): (Vec<_>, Vec<_>) =
            update.events.iter().cloned().partition(|event| event.endpoint.is_some());
        let endpoints: Vec<Event> =
            endpoints.into_iter().map(|event| corrected(event, before, &self.endpoints)).collect();
        // Those of the cluster were logged.
        own.into_iter().for_each(|event| self.events.keep(event));
        self.events.add_all(&update.cluster, endpoints);
    }

    /// Takes a cluster's endpoints over from where they come from, and chooses among them.
    pub(super) fn set_endpoints(&mut self, cluster: &Cluster) {
        let now = Instant::now();
        let before: BTreeMap<SocketAddr, State> =
            self.endpoints.of(&cluster.name).map(|(address, member)| (address, member.state())).collect();
        let there = self.endpoints.of(&cluster.name).filter(|(_, member)| member.removed.is_none());
        let there: Vec<Endpoint> = there.map(|(_, member)| member.endpoint.clone()).collect();
        let mut moved = match &cluster.discovery {
            Source::Static(endpoints) => self.endpoints.set(cluster, endpoints, now),
            // Before the first answer, those of an earlier configuration are better than none.
            _ => match self.discovery.endpoints(&cluster.name) {
                // Those that are there, of the source before, are newer than what was saved of this one.
                Some(_) if self.discovery.is_saved(&cluster.name) && !there.is_empty() => {
                    self.endpoints.set(cluster, &there, now)
                }
                Some(endpoints) => self.endpoints.set(cluster, endpoints, now),
                None => Vec::new(),
            },
        };
        let leaving = self.discovery.leaving(&cluster.name);
        moved.extend(
            self.endpoints.dismiss(cluster, leaving, now).into_iter().map(|address| (address, false)),
        );
        if !moved.is_empty() {
            *self.changes.membership.entry(cluster.name.clone()).or_default() += 1;
        }
        self.drain_again(cluster);
        if matches!(cluster.discovery, Source::Static(_)) {
            let events = moved.iter().filter_map(|&(address, came)| {
                let from = before.get(&address).map_or(ABSENT, |state| state.name());
                let member = self.endpoints.get(&cluster.name, address)?;
                let why = match (came, member.health) {
                    (false, _) => "not in the configuration any more",
                    (true, Health::Pending) => "in the configuration, not probed yet",
                    (true, _) => "in the configuration",
                };
                Some(Event::now(&cluster.name, Some(address), from, member.state().name(), why))
            });
            let events = events.collect();
            self.events.add_all(&cluster.name, events);
        }
        // What the configuration says of health checks has changed.
        let others = self.endpoints.of(&cluster.name).filter(|(address, member)| {
            let was = before.get(address);
            was.is_some_and(|was| *was != member.state()) && !moved.iter().any(|(moved, _)| moved == address)
        });
        let events: Vec<Event> = others
            .map(|(address, member)| {
                let from = before.get(&address).map_or(ABSENT, |state| state.name());
                Event::now(&cluster.name, Some(address), from, member.state().name(), &member.why)
            })
            .collect();
        self.events.add_all(&cluster.name, events);
        self.watch_health(cluster);
        let choice = self.endpoints.choose(cluster, &self.options.locality, now);
        match self.balancers.get(&cluster.name) {
            Some(balancer) => balancer.update(cluster, &self.endpoints),
            None => {
                let balancer = ClusterBalancer::new(cluster, &self.endpoints);
                self.balancers.insert(cluster.name.clone(), balancer.into());
            }
        }
        self.chosen(cluster, choice);
    }

    /// Brings the kernel's tables up to the endpoints. `anew`: the network is another one.
    pub(super) async fn apply_endpoints(&mut self, anew: bool) -> Result<()> {
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        kernel.explore(&self.endpoints, &self.network, anew).await;
        // The first connection to a new endpoint has just resolved its neighbour.
        self.network.neighbours = net::neighbours().await?;
        kernel.update_maps(&self.config, &self.endpoints, &self.network)?;
        self.link_counts();
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        if !self.stopping {
            kernel.attach(&self.config, &self.network).await?;
        }
        Ok(())
    }

    /// Endpoints that have left and have drained are gone, as far as the last look at the flows tells. Whether there were any.
    pub(super) fn forget_drained(&mut self) -> bool {
        let Some(looked) = self.last_good_look else { return false };
        let (kernel, balancers) = (&self.kernel, &self.balancers);
        let drained = self.endpoints.take_drained(looked, |cluster, address| {
            let proxied = balancers.get(cluster).and_then(|balancer| balancer.backend(address));
            kernel.as_ref().is_some_and(|kernel| kernel.has_open_flows(cluster, address))
                || proxied.is_some_and(|backend| backend.open.proxied() > 0)
        });
        let mut events: BTreeMap<&str, Vec<Event>> = BTreeMap::new();
        for (cluster, address) in &drained {
            let (from, why) = (State::Draining.name(), "it has no connection left");
            let event = Event::now(cluster, Some(*address), from, ABSENT, why);
            events.entry(cluster).or_default().push(event);
        }
        for (cluster, events) in events {
            self.events.add_all(cluster, events);
            match self.config.cluster(cluster) {
                Some(of) => {
                    if let Some(balancer) = self.balancers.get(cluster) {
                        balancer.update(of, &self.endpoints);
                    }
                }
                // Of a cluster that is gone, the balancer stays until its last connection ends.
                None if self.endpoints.of(cluster).next().is_none() => drop(self.balancers.remove(cluster)),
                None => {}
            }
        }
        self.forget_drains(&drained);
        !drained.is_empty()
    }
}

/// An event of discovery, which knows neither of health nor of the connections that an endpoint still has.
fn corrected(mut event: Event, before: &BTreeMap<Name, State>, endpoints: &Endpoints) -> Event {
    let Some(endpoint) = event.endpoint.filter(|_| event.from != event.to) else { return event };
    let member = endpoints.get(&event.cluster, endpoint);
    let name = (event.cluster.clone(), endpoint);
    event.from = before.get(&name).map_or(ABSENT, |state| state.name()).to_owned();
    if let Some(member) = member {
        event.to = member.state().name().to_owned();
        match member.health {
            Health::Pending if member.removed.is_none() => event.why += ", not probed yet",
            Health::Passing if member.leaving => event.why += ", but its health check passes",
            _ => {}
        }
        if member.readiness == Readiness::NotYet && member.removed.is_none() {
            event.why += ", not ready yet";
        }
        if member.drained.is_some() && member.removed.is_none() {
            event.why += ", drained by the operator";
        }
    }
    event
}
