//! The agent: brings up proxy and kernel rungs, keeps both equal to the configuration and the node, and answers the
//! command line.

mod accounts;
pub mod admin;
mod adopt;
mod changes;
mod config_view;
mod ends;
mod events;
mod health;
pub mod interfaces;
pub mod kernel_side;
mod look;
mod membership;
mod operator;
mod ready;
mod reload;
mod start;
pub mod status;
mod stop;
mod trials;
mod view;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::access_log::{AccessLogs, check_writable};
use crate::admin_http::{AdminHttp, ViewRequest};
use crate::agent::accounts::Accounts;
use crate::agent::admin::AdminSocket;
use crate::agent::changes::ConfigChanges;
use crate::agent::ends::open_resets;
use crate::agent::events::Events;
use crate::agent::health::HealthSide;
use crate::agent::interfaces::rung_name;
use crate::agent::kernel_side::KernelSide;
use crate::agent::operator::Drained;
use crate::agent::reload::Reload;
use crate::balancer::ClusterBalancer;
use crate::config::{ConfigErrors, Loaded, Place};
use crate::connections::Connections;
use crate::discovery::Discovery;
use crate::endpoints::{Endpoints, Name, Out};
use crate::file_watch::{self, FileWatch};
use crate::model::{AccessLog, Cluster, Config, Locality, Mode};
use crate::net::{self, Changes, Finding, Resets, Snapshot, Watch};
use crate::proxy::{Balancer, Proxy, ProxyListener};

/// How often next hops are vouched for and ended flows taken out.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How often the agent reads what the programs tell of connections, and looks for those that have reached a limit.
const HEARING: Duration = Duration::from_millis(100);

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
    /// Where this runs, as endpoints say it of theirs.
    pub locality: Locality,
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
    health: HealthSide,
    /// What the operator wants drained.
    drained: Drained,
    /// Since when the node is.
    node_drained: Option<Out>,
    events: Events,
    /// Clusters of a configuration that is about to be in force.
    coming: Vec<Cluster>,
    /// By the name of their cluster.
    balancers: BTreeMap<String, Arc<ClusterBalancer>>,
    proxy: Proxy,
    connections: Arc<Connections>,
    /// What connections have carried so far.
    accounts: Accounts,
    /// `None`: not to be had.
    resets: Option<Resets>,
    kernel: Option<KernelSide>,
    /// Why there is no kernel rung.
    no_kernel: Option<String>,
    reloaded: Option<Reload>,
    changes: ConfigChanges,
    /// `None`: there is no admin port.
    admin_http: Option<AdminHttp>,
    /// When all connections were looked at last, and when they are to be next.
    last_look: Instant,
    next_look: Instant,
    /// The endpoints whose connections are to be reset, if they are older than this; and when that was found.
    cuts: BTreeMap<Name, Instant>,
    last_cuts: Instant,
    /// When the last look began that came to its end.
    last_good_look: Option<Instant>,
    /// A change of the node's network could not be followed.
    unfollowed: bool,
    /// How long the start took, once the agent serves.
    ready_after: Option<Duration>,
    /// It is on its way out.
    stopping: bool,
}

/// What the agent is told by signals.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// The logs are to be opened anew.
    reopen: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
        })
    }
}

/// Runs the agent until it is told to stop. `config_watch`: by which it learns that the configuration file has changed.
pub async fn run(loaded: Loaded, options: Options, config_watch: Option<FileWatch>) -> Result<()> {
    raise_file_limit();
    // From here on, so that one that comes during the start does not end it half-way.
    let mut signals = Signals::new()?;
    let mut watch = net::watch().await.context("watching the node's network")?;
    let network = net::snapshot().await.context("reading the node's network")?;
    check_against_host(&loaded, &network)?;

    // First, so that a second agent stops here, before it touches anything.
    let mut admin = AdminSocket::bind(&options.run_dir)?;
    let logs = AccessLogs::open(access_logs(&loaded.config))?;
    let admin_http = match loaded.config.admin {
        Some(admin) => Some(bind_admin_http(admin.address).await?),
        None => None,
    };
    let connections = Arc::new(Connections::new(logs));
    let observer: Arc<Connections> = Arc::clone(&connections);
    let drained = Drained::read(&options.run_dir);
    let discovery = Discovery::new(options.resolv_conf.clone(), Some(options.state_dir.clone()));
    let mut agent = Agent {
        config: loaded.config,
        options,
        started: Instant::now(),
        network,
        findings: Vec::new(),
        discovery,
        endpoints: Endpoints::default(),
        health: HealthSide::new(),
        drained,
        node_drained: None,
        events: Events::default(),
        coming: Vec::new(),
        balancers: BTreeMap::new(),
        proxy: Proxy::new(observer),
        connections,
        accounts: Accounts::default(),
        resets: open_resets(),
        kernel: None,
        no_kernel: None,
        reloaded: None,
        changes: ConfigChanges::new(),
        admin_http,
        last_look: Instant::now(),
        next_look: Instant::now(),
        cuts: BTreeMap::new(),
        last_cuts: Instant::now(),
        last_good_look: None,
        unfollowed: false,
        ready_after: None,
        stopping: false,
    };
    agent.changes.count(&Config::default(), &agent.config);
    agent.start().await?;
    log::info!("ready: {}", agent.summary());
    agent.serve(&mut watch, &mut admin, &mut signals, file_watch::follow(config_watch)).await?;
    agent.stop(&mut watch, admin).await
}

impl Agent {
    /// The mode that a configuration asks for, unless the command line does.
    fn mode_of(&self, config: &Config) -> Mode {
        self.options.mode.unwrap_or(config.datapath.mode)
    }

    /// The main loop, until SIGTERM or SIGINT.
    async fn serve(
        &mut self,
        watch: &mut Watch,
        admin: &mut AdminSocket,
        signals: &mut Signals,
        mut edited: mpsc::Receiver<()>,
    ) -> Result<()> {
        let mut housekeeping = interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut hearing = interval(HEARING);
        hearing.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.interrupt.recv() => return Ok(()),
                _ = signals.hangup.recv() => self.reload().await,
                Some(()) = edited.recv() => self.reload().await,
                _ = signals.reopen.recv() => self.connections.logs.reopen(),
                Some(request) = asked(&mut self.admin_http) => {
                    let view = self.view(request.only_server());
                    request.answer(view);
                }
                changes = watch.changed() => self.follow(changes?).await,
                update = self.discovery.changed() => self.discovered(update).await,
                change = self.health.checker.changed() => self.health_changed(change),
                () = known(&mut self.kernel) => self.update_maps("what is known of a backend"),
                _ = housekeeping.tick() => self.housekeep().await,
                _ = hearing.tick() => {
                    self.look_after_flows();
                    self.judge();
                }
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
        self.unfollowed |= changes.links || changes.addresses || changes.routes;
        if self.unfollowed {
            self.network = net::snapshot().await?;
            let result = self.apply_endpoints(true).await;
            self.look_at_host();
            // Else it is tried again.
            self.unfollowed = result.is_err();
            return result;
        }
        let neighbours = net::neighbours().await?;
        // Most notices are of an entry that was vouched for again.
        if neighbours == self.network.neighbours {
            return Ok(());
        }
        self.network.neighbours = neighbours;
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
        if let Some(kernel) = &mut self.kernel {
            kernel.housekeep(&self.endpoints, &self.network).await;
        }
        if self.forget_drained() {
            self.update_maps("the end of flows");
        }
        if self.unfollowed {
            self.follow(Changes::default()).await;
        }
    }

    /// Has connections of the proxy counted by themselves again: the map is another agent's, or goes.
    fn unlink_counts(&self) {
        for balancer in self.balancers.values() {
            balancer.move_to(None, |_| None);
        }
    }

    /// Has connections of the proxy counted beside those of the kernel.
    fn link_counts(&self) {
        // The next agent may have the map by then.
        if self.stopping {
            return;
        }
        for (cluster, balancer) in &self.balancers {
            let place = |address| self.kernel.as_ref()?.place(cluster, address);
            balancer.move_to(place(None), |address| place(Some(address)));
        }
    }

    /// Updates the kernel's tables after a change of `what`.
    fn update_maps(&mut self, what: &str) {
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = kernel.update_maps(&self.config, &self.endpoints, &self.network)
        {
            log::error!("following {what}: {error:#}");
        }
        self.link_counts();
    }

    fn summary(&self) -> String {
        match &self.kernel {
            Some(kernel) => {
                let rungs: Vec<String> = kernel
                    .interfaces
                    .list()
                    .iter()
                    .map(|interface| format!("{} {}", interface.name, rung_name(interface.rung)))
                    .collect();
                format!("{}, proxy behind", rungs.join(", "))
            }
            // Why was said when it turned out.
            None => "proxy alone".into(),
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

/// Listens on the admin port. An agent that is on its way out leaves it when it sees another one.
async fn bind_admin_http(address: SocketAddr) -> Result<AdminHttp> {
    const SUCCESSION: Duration = Duration::from_secs(2);
    let deadline = Instant::now() + SUCCESSION;
    loop {
        match AdminHttp::bind(address) {
            Err(error) if Instant::now() < deadline && is_in_use(&error) => sleep(HEARING).await,
            result => return result,
        }
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    kind == Some(std::io::ErrorKind::AddrInUse)
}

/// The next request of the admin port, if there is one.
async fn asked(admin: &mut Option<AdminHttp>) -> Option<ViewRequest> {
    match admin {
        Some(admin) => admin.next().await,
        None => std::future::pending().await,
    }
}

/// Whether the access logs of a configuration can be written; creates none.
pub fn check_logs(loaded: &Loaded) -> Result<()> {
    for log in loaded.config.listeners.iter().flat_map(|listener| &listener.access_logs) {
        check_writable(&log.path)?;
    }
    Ok(())
}

/// The access logs of all listeners.
fn access_logs(config: &Config) -> impl Iterator<Item = (&str, &[AccessLog])> {
    config.listeners.iter().map(|listener| (listener.name.as_str(), &listener.access_logs[..]))
}

/// What the proxy listens on.
fn proxy_listeners(
    config: &Config,
    balancers: &BTreeMap<String, Arc<ClusterBalancer>>,
) -> Vec<ProxyListener> {
    config
        .listeners
        .iter()
        .map(|listener| {
            let clusters = listener.clusters.iter().map(|share| {
                let balancer: Arc<ClusterBalancer> = Arc::clone(balancers.get(&share.name)?);
                Some((balancer as Arc<dyn Balancer>, share.weight))
            });
            ProxyListener {
                name: listener.name.as_str().into(),
                address: listener.address,
                idle_timeout: listener.idle_timeout,
                max_connection_duration: listener.max_connection_duration,
                connect_attempts: listener.connect_attempts,
                clusters: clusters.flatten().collect(),
            }
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
