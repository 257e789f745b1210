//! The agent: brings up proxy and kernel rungs, keeps both equal to the configuration and the node, and answers the
//! command line.

pub mod admin;
mod adopt;
mod drain;
mod events;
pub mod interfaces;
pub mod kernel_side;
mod membership;
mod reload;
pub mod status;
mod trials;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout_at};

use crate::agent::admin::AdminSocket;
use crate::agent::events::Events;
use crate::agent::interfaces::rung_name;
use crate::agent::kernel_side::{KernelSide, RESOLUTION};
use crate::agent::reload::Reload;
use crate::balancer::ClusterBalancer;
use crate::config::{ConfigErrors, Loaded, Place};
use crate::datapath::object::Pins;
use crate::discovery::Discovery;
use crate::endpoints::Endpoints;
use crate::model::{Config, Mode};
use crate::net::{self, Changes, Finding, Snapshot, Watch};
use crate::proxy::{Proxy, ProxyListener};

/// How often next hops are vouched for and ended flows taken out.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How long a start or a reload waits for the first answers of discovery.
const SETTLING: Duration = Duration::from_secs(3);

/// Programs that go on without an agent take connections to backends that may be gone long since.
const LEFT_ALONE: &str = "an earlier agent has left its datapath, which nobody would look after: start with a mode that goes \
                          on with it, or end its flows with `headgate unload`";

/// Options of `headgate run`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file, for reloads.
    pub config: PathBuf,
    /// Where the pins go.
    pub bpffs: PathBuf,
    /// Where the admin socket goes.
    pub run_dir: PathBuf,
    /// Where the last good endpoints are kept over a restart.
    pub state_dir: PathBuf,
    /// Where the name servers stand.
    pub resolv_conf: PathBuf,
    /// Overrides `datapath.mode`.
    pub mode: Option<Mode>,
    /// On SIGTERM, leave the kernel's flows to the next agent.
    pub leave_datapath: bool,
}

/// A running agent.
pub struct Agent {
    config: Config,
    options: Options,
    started: Instant,
    network: Snapshot,
    /// What about the node can hurt.
    findings: Vec<Finding>,
    discovery: Discovery,
    endpoints: Endpoints,
    events: Events,
    /// By the name of their cluster.
    balancers: BTreeMap<String, Arc<ClusterBalancer>>,
    proxy: Proxy,
    kernel: Option<KernelSide>,
    /// Why there is no kernel rung.
    no_kernel: Option<String>,
    reloaded: Option<Reload>,
    draining: bool,
}

/// What the agent is told by signals.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Runs the agent until it is told to stop.
pub async fn run(loaded: Loaded, options: Options) -> Result<()> {
    raise_file_limit();
    // From here on, so that one that comes during the start does not end it half-way.
    let mut signals = Signals::new()?;
    let mut watch = net::watch().await.context("watching the node's network")?;
    let network = net::snapshot().await.context("reading the node's network")?;
    check_against_host(&loaded, &network)?;

    // First, so that a second agent stops here, before it touches anything.
    let mut admin = AdminSocket::bind(&options.run_dir)?;
    let discovery = Discovery::new(options.resolv_conf.clone(), Some(options.state_dir.clone()));
    let mut agent = Agent {
        config: loaded.config,
        options,
        started: Instant::now(),
        network,
        findings: Vec::new(),
        discovery,
        endpoints: Endpoints::default(),
        events: Events::default(),
        balancers: BTreeMap::new(),
        proxy: Proxy::new(),
        kernel: None,
        no_kernel: None,
        reloaded: None,
        draining: false,
    };
    agent.find_endpoints().await;
    agent.proxy.apply(proxy_listeners(&agent.config, &agent.balancers))?;
    agent.start_kernel().await?;
    agent.look_at_host();
    log::info!("ready: {}", agent.summary());
    agent.serve(&mut watch, &mut admin, &mut signals).await?;
    agent.stop(&mut watch, admin).await
}

impl Agent {
    /// The mode that a configuration asks for, unless the command line does.
    fn mode_of(&self, config: &Config) -> Mode {
        self.options.mode.unwrap_or(config.datapath.mode)
    }

    /// The first endpoints of all clusters. Waits for discovery, but not for ever: what comes later is not lost.
    async fn find_endpoints(&mut self) {
        self.discovery.apply(&self.config.clusters);
        self.wait_for_discovery().await;
        for cluster in self.config.clusters.clone() {
            self.set_endpoints(&cluster);
        }
    }

    /// Waits until discovery has come to a first result for each cluster, but not for long.
    async fn wait_for_discovery(&mut self) {
        let deadline = tokio::time::Instant::now() + SETTLING;
        while !self.discovery.settled() {
            match timeout_at(deadline, self.discovery.changed()).await {
                Ok(update) => self.note(&update),
                Err(_late) => break,
            }
        }
    }

    /// Brings up the kernel rungs; where they cannot be had, the proxy goes on alone, unless they are forced.
    async fn start_kernel(&mut self) -> Result<()> {
        let mode = self.mode_of(&self.config);
        let left = Pins::new(&self.options.bpffs).exist();
        if mode == Mode::Proxy {
            if left {
                bail!(LEFT_ALONE);
            }
            self.no_kernel = Some("the mode is proxy".into());
            return Ok(());
        }
        match self.try_kernel(mode).await {
            Ok(kernel) => {
                self.kernel = Some(kernel);
                self.no_kernel = None;
            }
            Err(error) if left => return Err(error.context(LEFT_ALONE)),
            Err(error) if mode == Mode::Auto => {
                log::warn!("no kernel datapath, the proxy carries everything: {error:#}");
                self.no_kernel = Some(format!("{error:#}"));
            }
            Err(error) => return Err(error.context("the datapath that was asked for is not to be had")),
        }
        Ok(())
    }

    async fn try_kernel(&mut self, mode: Mode) -> Result<KernelSide> {
        let pins = Pins::new(&self.options.bpffs);
        let adopted = pins.exist();
        let result = self.load_and_bring_up(mode).await;
        if result.is_err() && !adopted {
            // Half a datapath is none. An earlier agent's goes on for its flows, though.
            let _ = kernel_side::unload(&pins, &self.network);
        }
        result
    }

    async fn load_and_bring_up(&mut self, mode: Mode) -> Result<KernelSide> {
        let mut kernel =
            KernelSide::load(&self.config, &self.options, mode, &mut self.endpoints, &self.network)?;
        kernel.explore(&self.endpoints, &self.network).await;
        let deadline = Instant::now() + RESOLUTION;
        kernel.await_trials(RESOLUTION).await;
        loop {
            self.network.neighbours = net::neighbours().await?;
            kernel.update_maps(&self.config, &self.endpoints, &self.network)?;
            if kernel.is_resolved() || Instant::now() >= deadline {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        kernel.attach(&self.config, &self.network).await?;
        kernel.confirm();
        Ok(kernel)
    }

    /// The main loop, until SIGTERM or SIGINT.
    async fn serve(
        &mut self,
        watch: &mut Watch,
        admin: &mut AdminSocket,
        signals: &mut Signals,
    ) -> Result<()> {
        let mut housekeeping = interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.interrupt.recv() => return Ok(()),
                _ = signals.hangup.recv() => self.reload().await,
                changes = watch.changed() => self.follow(changes?).await,
                update = self.discovery.changed() => self.discovered(update).await,
                () = known(&mut self.kernel) => self.update_maps("what is known of a backend"),
                _ = housekeeping.tick() => self.housekeep().await,
                Some(query) = admin.next() => query.answer(|question| self.answer(question)),
            }
        }
    }

    /// The node changed.
    async fn follow(&mut self, changes: Changes) {
        if let Err(error) = self.try_follow(changes).await {
            log::error!("following a change of the node's network: {error:#}");
        }
    }

    async fn try_follow(&mut self, changes: Changes) -> Result<()> {
        if changes.links || changes.addresses || changes.routes {
            self.network = net::snapshot().await?;
            let result = self.apply_endpoints().await;
            self.look_at_host();
            return result;
        }
        self.network.neighbours = net::neighbours().await?;
        match &mut self.kernel {
            Some(kernel) => kernel.update_maps(&self.config, &self.endpoints, &self.network),
            None => Ok(()),
        }
    }

    /// Says what about the node can hurt, each thing once.
    fn look_at_host(&mut self) {
        let links: Vec<_> = match &self.kernel {
            Some(kernel) => {
                let indices = kernel.interfaces.list().iter().map(|interface| interface.index);
                indices.filter_map(|index| self.network.link_by_index(index)).cloned().collect()
            }
            None => self.network.candidate_interfaces().into_iter().cloned().collect(),
        };
        let findings = net::findings(&links);
        for finding in findings.iter().filter(|finding| !self.findings.contains(finding)) {
            log::warn!("{finding}");
        }
        self.findings = findings;
    }

    async fn housekeep(&mut self) {
        let mut changed = false;
        if let Some(kernel) = &mut self.kernel {
            match kernel.housekeep(&self.config, &self.endpoints, &self.network).await {
                Ok(Some(wanted)) => changed = wanted,
                Ok(None) => return,
                Err(error) => log::error!("taking ended flows out: {error:#}"),
            }
        }
        changed |= self.forget_drained();
        if changed {
            self.update_maps("the end of flows");
        }
    }

    /// Updates the kernel's tables after a change of `what`.
    fn update_maps(&mut self, what: &str) {
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = kernel.update_maps(&self.config, &self.endpoints, &self.network)
        {
            log::error!("following {what}: {error:#}");
        }
    }

    fn summary(&self) -> String {
        match (&self.kernel, &self.no_kernel) {
            (Some(kernel), _) => {
                let rungs: Vec<String> = kernel
                    .interfaces
                    .list()
                    .iter()
                    .map(|interface| format!("{} {}", interface.name, rung_name(interface.rung)))
                    .collect();
                format!("{}, proxy behind", rungs.join(", "))
            }
            (None, Some(why)) => format!("proxy alone, {why}"),
            (None, None) => "proxy alone".into(),
        }
    }
}

/// Waits until more is known of an endpoint.
async fn known(kernel: &mut Option<KernelSide>) {
    match kernel {
        Some(kernel) => kernel.endpoint_known().await,
        None => std::future::pending().await,
    }
}

/// What the proxy listens on.
fn proxy_listeners(
    config: &Config,
    balancers: &BTreeMap<String, Arc<ClusterBalancer>>,
) -> Vec<ProxyListener> {
    config
        .listeners
        .iter()
        .filter_map(|listener| {
            let balancer: Arc<ClusterBalancer> = Arc::clone(balancers.get(&listener.cluster)?);
            Some(ProxyListener {
                name: listener.name.clone(),
                address: listener.address,
                idle_timeout: listener.idle_timeout,
                balancer,
            })
        })
        .collect()
}

/// What the file alone cannot tell: named interfaces have to be there, and SNAT ports must not be those that the
/// host's own connections leave from, or answers to these would be taken for a client's.
fn check_against_host(loaded: &Loaded, network: &Snapshot) -> Result<()> {
    let datapath = &loaded.config.datapath;
    let mut errors = Vec::new();
    for name in datapath.interfaces.iter().flatten() {
        if network.link_by_name(name).is_none() {
            let have: Vec<&str> =
                network.links.iter().filter(|link| !link.loopback).map(|link| link.name.as_str()).collect();
            errors.push(loaded.error_at(
                loaded.places.interface(name).unwrap_or(Place::START),
                "datapath.interfaces",
                format!("no interface `{name}` on this host; there are: {}", have.join(", ")),
            ));
        }
    }
    let (first, last) = net::local_port_range()?;
    if let Some(ports) = &datapath.snat_ports
        && *ports.start() <= last
        && first <= *ports.end()
    {
        errors.push(loaded.error_at(
            loaded.places.snat_ports().unwrap_or(Place::START),
            "datapath.snat_ports",
            format!(
                "{}-{} overlaps net.ipv4.ip_local_port_range, {first}-{last}, which this host's own connections \
                 leave from; take another range, or move that one with sysctl",
                ports.start(),
                ports.end()
            ),
        ));
    }
    if errors.is_empty() { Ok(()) } else { bail!(ConfigErrors::from(errors)) }
}

/// As many descriptors as the hard limit allows: the proxy needs two for each connection.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if setrlimit(Resource::Nofile, wanted).is_err() {
        log::warn!("could not raise the limit of open files beyond {:?}", limit.current);
    }
}
