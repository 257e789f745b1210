//! The agent: brings up proxy and kernel rungs, keeps both equal to the configuration and the node, and answers the
//! command line.

pub mod admin;
mod drain;
pub mod kernel_side;
pub mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::agent::admin::AdminSocket;
use crate::agent::kernel_side::{KernelSide, RESOLUTION};
use crate::balancer::ClusterBalancer;
use crate::config::{ConfigErrors, Loaded, Place};
use crate::datapath::object::Pins;
use crate::datapath::sweep::IdleTimeouts;
use crate::desired::service_id;
use crate::model::{Config, Mode};
use crate::net::{self, Changes, Snapshot, Watch};
use crate::proxy::{Proxy, ProxyListener};

/// How often next hops are vouched for and ended flows taken out.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Options of `headgate run`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the pins go.
    pub bpffs: PathBuf,
    /// Where the admin socket goes.
    pub run_dir: PathBuf,
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
    balancers: Vec<Arc<ClusterBalancer>>,
    proxy: Proxy,
    kernel: Option<KernelSide>,
    /// Why there is no kernel rung.
    no_kernel: Option<String>,
    draining: bool,
}

/// Runs the agent until it is told to stop.
pub async fn run(loaded: Loaded, options: Options) -> Result<()> {
    raise_file_limit();
    let mut watch = net::watch().await.context("watching the node's network")?;
    let network = net::snapshot().await.context("reading the node's network")?;
    check_against_host(&loaded, &network)?;

    // First, so that a second agent stops here, before it touches anything.
    let mut admin = AdminSocket::bind(&options.run_dir)?;
    let config = loaded.config;
    let balancers: Vec<_> = config.clusters.iter().map(|c| Arc::new(ClusterBalancer::new(c))).collect();
    let proxy = Proxy::new();
    proxy.apply(proxy_listeners(&config, &balancers))?;

    let mut agent = Agent {
        config,
        options,
        started: Instant::now(),
        network,
        balancers,
        proxy,
        kernel: None,
        no_kernel: None,
        draining: false,
    };
    agent.start_kernel().await?;
    log::info!("ready: {}", agent.summary());
    agent.serve(&mut watch, &mut admin).await?;
    agent.stop(&mut watch, admin).await
}

impl Agent {
    /// Brings up the kernel rungs; where they cannot be had, the proxy goes on alone, unless they are forced.
    async fn start_kernel(&mut self) -> Result<()> {
        let mode = self.options.mode.unwrap_or(self.config.datapath.mode);
        if mode == Mode::Proxy {
            self.no_kernel = Some("the mode is proxy".into());
            return Ok(());
        }
        match self.try_kernel(mode).await {
            Ok(kernel) => self.kernel = Some(kernel),
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
        let mut kernel = KernelSide::load(&self.config, &self.options, mode)?;
        self.bring_up(&mut kernel).await?;
        Ok(kernel)
    }

    async fn bring_up(&mut self, kernel: &mut KernelSide) -> Result<()> {
        kernel.reconcile(&self.config, &self.network).await?;
        let deadline = Instant::now() + RESOLUTION;
        while !kernel.is_resolved() && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
            self.network.neighbours = net::neighbours().await?;
            kernel.update_maps(&self.config, &self.network).await?;
        }
        kernel.attach(&self.config, &self.network).await?;
        kernel.confirm();
        Ok(())
    }

    /// The main loop, until SIGTERM or SIGINT.
    async fn serve(&mut self, watch: &mut Watch, admin: &mut AdminSocket) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut housekeeping = interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = hangup.recv() => log::warn!("reloading on SIGHUP is not supported yet; restart with --leave-datapath"),
                changes = watch.changed() => self.follow(changes?).await,
                _ = housekeeping.tick() => self.housekeep(),
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
        let topology = changes.links || changes.addresses || changes.routes;
        if topology {
            self.network = net::snapshot().await?;
        } else {
            self.network.neighbours = net::neighbours().await?;
        }
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        if topology {
            kernel.reconcile(&self.config, &self.network).await?;
            if !self.draining {
                kernel.attach(&self.config, &self.network).await?;
            }
        } else {
            kernel.update_maps(&self.config, &self.network).await?;
        }
        Ok(())
    }

    fn housekeep(&self) {
        let idle = self.idle_timeouts();
        let Some(kernel) = &self.kernel else { return };
        kernel.confirm();
        if let Err(error) = kernel.kernel.sweep(&idle) {
            log::error!("taking ended flows out: {error:#}");
        }
    }

    fn idle_timeouts(&self) -> IdleTimeouts {
        let listeners = self.config.listeners.iter().enumerate();
        listeners.map(|(index, listener)| (service_id(index), listener.idle_timeout)).collect()
    }

    fn summary(&self) -> String {
        match (&self.kernel, &self.no_kernel) {
            (Some(kernel), _) => {
                let rungs: Vec<String> = kernel
                    .interfaces
                    .iter()
                    .map(|interface| format!("{} {}", interface.name, kernel_side::rung_name(interface.rung)))
                    .collect();
                format!("{}, proxy behind", rungs.join(", "))
            }
            (None, Some(why)) => format!("proxy alone, {why}"),
            (None, None) => "proxy alone".into(),
        }
    }
}

/// What the proxy listens on.
fn proxy_listeners(config: &Config, balancers: &[Arc<ClusterBalancer>]) -> Vec<ProxyListener> {
    let of = |name: &str| {
        let at = config.clusters.iter().position(|cluster| cluster.name == name)?;
        Some(Arc::clone(&balancers[at]))
    };
    config
        .listeners
        .iter()
        .filter_map(|listener| {
            Some(ProxyListener {
                name: listener.name.clone(),
                address: listener.address,
                idle_timeout: listener.idle_timeout,
                balancer: of(&listener.cluster)?,
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
