//! What the operator wants drained: backends, or the node as a whole. It outlives the agent, but not the node's boot: it
//! stands in a file of the run directory.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::endpoints::{Member, Name, Out, State};
use crate::model::{Cluster, OnLeaving};

/// Backends that an error lists.
const LISTED: usize = 20;

/// What is drained.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Drained {
    backends: BTreeSet<Name>,
    node: bool,
}

impl Drained {
    /// What an earlier agent was told. Without a good file: nothing.
    pub(super) fn read(run_dir: &Path) -> Self {
        let Ok(text) = std::fs::read(file(run_dir)) else { return Self::default() };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            log::warn!("{}: {error}: nothing is drained", file(run_dir).display());
            Self::default()
        })
    }

    fn write(&self, run_dir: &Path) -> Result<()> {
        let file = file(run_dir);
        if *self == Self::default() {
            return match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("removing {}", file.display()))
                }
                _ => Ok(()),
            };
        }
        let new = file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?)
            .and_then(|()| std::fs::rename(&new, &file))
            .with_context(|| format!("writing {}", file.display()))
    }

    /// Whether the node is to take no new connections.
    pub(super) fn node(&self) -> bool {
        self.node
    }
}

/// For how long, in whole seconds.
fn age(out: &Out) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(out.since.elapsed().as_secs()))
}

fn file(run_dir: &Path) -> PathBuf {
    run_dir.join("drained.json")
}

impl Agent {
    /// `headgate drain`: what was done, for people.
    pub(super) fn drain_backend(
        &mut self,
        address: SocketAddr,
        cluster: Option<&str>,
        force: bool,
    ) -> Result<String> {
        let now = Instant::now();
        let clusters = self.clusters_with(address, cluster)?;
        let mut told = Vec::new();
        for cluster in &clusters {
            if let Some(since) = self.member(cluster, address).and_then(|member| member.drained) {
                let since = age(&since);
                told.push(format!("{address} in cluster {} is drained already, since {since}", cluster.name));
            } else if !force && self.is_last_healthy(cluster, address) {
                bail!(
                    "{address} is the last healthy endpoint of cluster {}: new connections would fail; with --force it \
                     is drained all the same",
                    cluster.name
                );
            }
        }
        for cluster in clusters {
            let Some(member) = self.endpoints.get_mut(&cluster.name, address) else { continue };
            if member.drained.is_some() {
                continue;
            }
            let before = member.state();
            member.drain(cluster.drain_timeout, now);
            self.drained.backends.insert((cluster.name.clone(), address));
            let why = "drained by the operator";
            self.events.endpoint(&cluster.name, address, before.name(), State::Draining.name(), why);
            self.choose(&cluster);
            told.push(format!(
                "{address} in cluster {} takes no new connections; what is open then is reset in {}",
                cluster.name,
                humantime::format_duration(cluster.drain_timeout)
            ));
        }
        self.keep_drained(told.join("\n"))
    }

    /// `headgate undrain`, as above.
    pub(super) fn undrain_backend(&mut self, address: SocketAddr, cluster: Option<&str>) -> Result<String> {
        // Also one that is not there just now: it would come back drained.
        let absent = |of: &Name| {
            of.1 == address
                && cluster.is_none_or(|name| of.0 == name)
                && self.endpoints.get(&of.0, of.1).is_none_or(|member| member.removed.is_some())
        };
        let forgotten: Vec<Name> = self.drained.backends.iter().filter(|of| absent(of)).cloned().collect();
        let mut told = Vec::new();
        for name in &forgotten {
            self.drained.backends.remove(name);
            told.push(format!(
                "{address} in cluster {} is not there, and will not be drained when it comes",
                name.0
            ));
        }
        let clusters = match self.clusters_with(address, cluster) {
            Err(_) if !forgotten.is_empty() => Vec::new(),
            clusters => clusters?,
        };
        for cluster in clusters {
            let Some(member) = self.endpoints.get_mut(&cluster.name, address) else { continue };
            if member.drained.is_none() {
                told.push(format!("{address} in cluster {} is not drained", cluster.name));
                continue;
            }
            member.undrain(Instant::now());
            let state = member.state();
            self.drained.backends.remove(&(cluster.name.clone(), address));
            let why = "undrained by the operator";
            self.events.endpoint(&cluster.name, address, State::Draining.name(), state.name(), why);
            self.choose(&cluster);
            told.push(format!("{address} in cluster {} is {}", cluster.name, state.name()));
        }
        self.keep_drained(told.join("\n"))
    }

    /// `headgate drain --all`, as above.
    pub(super) fn drain_node(&mut self) -> Result<String> {
        if let Some(out) = self.node_drained {
            let since = age(&out);
            return Ok(format!("the node is drained already, since {since}{}", self.still_open()));
        }
        self.drained.node = true;
        self.begin_node_drain();
        self.keep_drained(format!("/ready says so: new connections should go elsewhere{}", self.still_open()))
    }

    /// `headgate undrain --all`, as above.
    pub(super) fn undrain_node(&mut self) -> Result<String> {
        if self.node_drained.take().is_none() {
            return Ok("the node is not drained".to_owned());
        }
        self.drained.node = false;
        log::info!("the node is not drained any more");
        self.set_kernel_drain(false);
        self.keep_drained("the node takes new connections again".to_owned())
    }

    /// From here on `/ready` says that others should have the connections. What comes all the same is the proxy's, since it
    /// would fail else.
    pub(super) fn begin_node_drain(&mut self) {
        let timeout =
            self.config.clusters.iter().map(|cluster| cluster.drain_timeout).max().unwrap_or_default();
        log::info!(
            "the node is drained: what is open then is reset in {}",
            humantime::format_duration(timeout)
        );
        // What comes later is served.
        self.node_drained = Some(Out::new(OnLeaving::Drain, timeout, false, Instant::now()));
        self.set_kernel_drain(true);
    }

    pub(super) fn set_kernel_drain(&mut self, draining: bool) {
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = kernel.set_draining(draining, &self.config, &self.endpoints, &self.network)
        {
            log::error!("draining: {error:#}");
        }
    }

    /// Has endpoints of a cluster drain that are to, also those that have just come.
    pub(super) fn drain_again(&mut self, cluster: &Cluster) {
        for (of, address) in &self.drained.backends {
            if *of == cluster.name
                && let Some(member) = self.endpoints.get_mut(of, *address)
                && member.drained.is_none()
            {
                member.drain(cluster.drain_timeout, Instant::now());
            }
        }
    }

    /// Endpoints are gone for good: others may come under their addresses.
    pub(super) fn forget_drains(&mut self, gone: &[Name]) {
        let mut changed = false;
        for name in gone {
            changed |= self.drained.backends.remove(name);
        }
        // The next agent may have the file by then.
        if changed
            && !self.stopping
            && let Err(error) = self.drained.write(&self.options.run_dir)
        {
            log::warn!("{error:#}");
        }
    }

    /// Keeps what is drained over a restart; what was `done` is so in any case.
    fn keep_drained(&self, done: String) -> Result<String> {
        match self.drained.write(&self.options.run_dir) {
            Ok(()) => Ok(done),
            Err(error) => Err(error.context(format!("{done}; but only until the agent's next start"))),
        }
    }

    fn member(&self, cluster: &Cluster, address: SocketAddr) -> Option<&Member> {
        self.endpoints.get(&cluster.name, address)
    }

    /// The clusters that a backend is of, of all or of one.
    fn clusters_with(&self, address: SocketAddr, only: Option<&str>) -> Result<Vec<Cluster>> {
        if let Some(name) = only
            && self.config.cluster(name).is_none()
        {
            let names: Vec<_> =
                self.config.clusters.iter().take(LISTED).map(|cluster| cluster.name.as_str()).collect();
            bail!("no cluster `{name}`; the clusters: {}", names.join(", "));
        }
        let clusters = self.config.clusters.iter().filter(|of| only.is_none_or(|name| of.name == name));
        let is_member =
            |of: &&Cluster| self.member(of, address).is_some_and(|member| member.removed.is_none());
        let found: Vec<Cluster> = clusters.clone().filter(is_member).cloned().collect();
        if found.is_empty() {
            let known: BTreeSet<SocketAddr> = clusters
                .flat_map(|of| self.endpoints.of(&of.name))
                .filter(|(_, member)| member.removed.is_none())
                .map(|(address, _)| address)
                .collect();
            let more = if known.len() > LISTED { ", ..." } else { "" };
            let known: Vec<_> = known.iter().take(LISTED).map(SocketAddr::to_string).collect();
            let of = only.map(|name| format!(" of cluster {name}")).unwrap_or_default();
            bail!("no backend {address}; the backends{of}: {}{more}", known.join(", "));
        }
        Ok(found)
    }

    /// Whether nothing would be left to take connections well without it.
    fn is_last_healthy(&self, cluster: &Cluster, address: SocketAddr) -> bool {
        let others = self.endpoints.of(&cluster.name).filter(|(of, _)| *of != address);
        let others: Vec<State> = others.map(|(_, member)| member.state()).collect();
        let is_healthy = self.member(cluster, address).is_some_and(|member| member.state() == State::Healthy);
        if is_healthy {
            !others.contains(&State::Healthy)
        } else {
            others.iter().all(|state| *state == State::Draining)
        }
    }

    fn still_open(&self) -> String {
        let open: u64 = self.balancers.values().map(|balancer| balancer.open_connections()).sum();
        format!("; {open} connections are open")
    }
}
