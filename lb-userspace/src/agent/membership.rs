//! Endpoints come and go: from the configuration and from discovery to the proxy's and the kernel's tables.

use std::time::Instant;

use anyhow::Result;

use crate::agent::Agent;
use crate::balancer::ClusterBalancer;
use crate::discovery::Update;
use crate::model::{Cluster, Discovery as Source};
use crate::net;

/// State of an endpoint that takes new connections.
pub(super) const HEALTHY: &str = "healthy";
/// State of one that takes no new ones, but has some.
pub(super) const DRAINING: &str = "draining";
/// No endpoint of the cluster.
pub(super) const ABSENT: &str = "absent";

impl Agent {
    /// Discovery has something to tell.
    pub(super) async fn discovered(&mut self, update: Update) {
        self.note(&update);
        if !update.endpoints_changed {
            return;
        }
        let Some(cluster) = self.config.cluster(&update.cluster).cloned() else { return };
        self.set_endpoints(&cluster);
        if let Err(error) = self.apply_endpoints().await {
            log::error!("following a change of cluster {}: {error:#}", cluster.name);
        }
    }

    /// Keeps what discovery tells.
    pub(super) fn note(&mut self, update: &Update) {
        for event in &update.events {
            let mut event = event.clone();
            let drains = event.endpoint.is_some_and(|endpoint| {
                let mut of = self.endpoints.of(&event.cluster);
                of.any(|(address, member)| address == endpoint && member.draining.is_some())
            });
            // Discovery does not know of the connections that it still has.
            if drains && event.from == ABSENT {
                event.from = DRAINING.to_owned();
            }
            self.events.add(event);
        }
    }

    /// Takes a cluster's endpoints over from where they come from.
    pub(super) fn set_endpoints(&mut self, cluster: &Cluster) {
        let now = Instant::now();
        let mut changed = false;
        match &cluster.discovery {
            Source::Static(endpoints) => {
                let before = self.endpoints.clone();
                changed = self.endpoints.set(&cluster.name, endpoints, now);
                let is_active = |of: &crate::endpoints::Endpoints, address| {
                    of.active(&cluster.name).any(|endpoint| endpoint.address == address)
                };
                let all: Vec<_> = self.endpoints.of(&cluster.name).map(|(address, _)| address).collect();
                for address in all {
                    match (is_active(&before, address), is_active(&self.endpoints, address)) {
                        (true, false) => {
                            let why = "not in the configuration any more";
                            self.events.endpoint(&cluster.name, address, HEALTHY, DRAINING, why);
                        }
                        (false, true) => {
                            let from = if before.of(&cluster.name).any(|(of, _)| of == address) {
                                DRAINING
                            } else {
                                ABSENT
                            };
                            self.events.endpoint(
                                &cluster.name,
                                address,
                                from,
                                HEALTHY,
                                "in the configuration",
                            );
                        }
                        _ => {}
                    }
                }
            }
            Source::StrictDns(_) => {
                // Before the first answer, those of an earlier configuration are better than none.
                if let Some(endpoints) = self.discovery.endpoints(&cluster.name) {
                    changed = self.endpoints.set(&cluster.name, endpoints, now);
                }
            }
        }
        if changed {
            *self.changes.membership.entry(cluster.name.clone()).or_default() += 1;
        }
        match self.balancers.get(&cluster.name) {
            Some(balancer) => balancer.update(cluster, &self.endpoints),
            None => {
                let balancer = ClusterBalancer::new(cluster, &self.endpoints);
                self.balancers.insert(cluster.name.clone(), balancer.into());
            }
        }
    }

    /// Brings the kernel's tables up to the endpoints.
    pub(super) async fn apply_endpoints(&mut self) -> Result<()> {
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        kernel.explore(&self.endpoints, &self.network).await;
        // The first connection to a new endpoint has just resolved its neighbour.
        self.network.neighbours = net::neighbours().await?;
        kernel.update_maps(&self.config, &self.endpoints, &self.network)?;
        self.link_counts();
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        if !self.draining {
            kernel.attach(&self.config, &self.network).await?;
        }
        Ok(())
    }

    /// Endpoints that have drained are gone. Whether there were any.
    pub(super) fn forget_drained(&mut self) -> bool {
        let (kernel, balancers) = (&self.kernel, &self.balancers);
        let drained = self.endpoints.take_drained(Instant::now(), |name| {
            let proxied = balancers.get(&name.0).and_then(|balancer| balancer.backend(name.1));
            kernel.as_ref().is_some_and(|kernel| kernel.has_open_flows(name))
                || proxied.is_some_and(|backend| backend.open.proxied() > 0)
        });
        for (cluster, address) in &drained {
            self.events.endpoint(cluster, *address, DRAINING, ABSENT, "it has no connection left");
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
        !drained.is_empty()
    }
}
