//! One endpoint of a thousand changes: from the event to the last store into the kernel's tables, by the agent's own
//! functions in this process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_tests::netns::Namespace;
use lb_userspace::agent::Options;
use lb_userspace::agent::kernel_side::{KernelSide, RESOLUTION};
use lb_userspace::balancer::ClusterBalancer;
use lb_userspace::config;
use lb_userspace::datapath::object::Pins;
use lb_userspace::endpoints::{Endpoints, Health};
use lb_userspace::model::{Config, Discovery, Endpoint, Locality, Mode};
use lb_userspace::net::{self, Snapshot};

use super::configuration::Size;
use super::hosts::endpoint;

/// Endpoints of the cluster.
const ENDPOINTS: u32 = 1_000;
/// The one that fails.
const FAILING: u32 = 500;

/// What becomes of an endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Fails,
    Passes,
    Comes,
    Leaves,
}

impl Event {
    pub(super) const ALL: [Self; 4] = [Self::Fails, Self::Passes, Self::Comes, Self::Leaves];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fails => "its health check fails",
            Self::Passes => "its health check passes again",
            Self::Comes => "it is discovered",
            Self::Leaves => "it is not discovered any more",
        }
    }
}

/// What an event cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) time: Duration,
    /// Stores into maps.
    pub(super) stores: u64,
}

/// All events with a policy, `rounds` times: the costs of each.
pub(super) fn measure(
    balancer: &Namespace,
    lb_policy: &'static str,
    rounds: usize,
) -> Result<[Vec<Cost>; 4]> {
    balancer.within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut agent = Agent::new(lb_policy).await?;
            let mut costs = [const { Vec::new() }; 4];
            // The first round warms up.
            for round in 0..=rounds {
                for event in Event::ALL {
                    let cost = agent.follow(event, round as u32).await?;
                    if round > 0 {
                        costs[event as usize].push(cost);
                    }
                }
            }
            Ok(costs)
        })
    })?
}

/// What of the agent is between an event and the tables.
struct Agent {
    config: Config,
    endpoints: Endpoints,
    network: Snapshot,
    balancer: ClusterBalancer,
    kernel: KernelSide,
    _pins: OwnPins,
}

/// Taken away in any case.
struct OwnPins(Pins);

impl Drop for OwnPins {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            eprintln!("{} stays behind: {error:#}", self.0.root().display());
        }
    }
}

impl Agent {
    async fn new(lb_policy: &'static str) -> Result<Self> {
        let size = Size { clusters: 1, endpoints: ENDPOINTS, lb_policy, health_check: "" };
        let name = format!("lbb{}-{lb_policy}", std::process::id());
        let file = std::env::temp_dir().join(format!("{name}.yaml"));
        std::fs::write(&file, size.yaml())?;
        let loaded = config::load(&file);
        std::fs::remove_file(&file)?;
        let config = loaded?.config;
        let bpffs = PathBuf::from("/sys/fs/bpf").join(&name);
        let options = Options {
            config: file,
            bpffs: bpffs.clone(),
            run_dir: PathBuf::new(),
            state_dir: PathBuf::new(),
            resolv_conf: PathBuf::new(),
            mode: None,
            locality: Locality::default(),
            leave_datapath: false,
        };
        let pins = OwnPins(Pins::new(&bpffs));
        let network = net::snapshot().await?;
        let mut endpoints = Endpoints::default();
        let kernel = KernelSide::load(&config, &options, Mode::Tc, &mut endpoints, &network)?;
        let balancer = ClusterBalancer::new(&config.clusters[0], &endpoints);
        let mut agent = Self { config, endpoints, network, balancer, kernel, _pins: pins };
        let Discovery::Static(all) = agent.config.clusters[0].discovery.clone() else {
            unreachable!("written so above")
        };
        agent.set_endpoints(&all);
        agent.apply_endpoints(true).await?;
        agent.kernel.await_trials(RESOLUTION).await;
        agent.kernel.update_maps(&agent.config, &agent.endpoints, &agent.network)?;
        ensure!(agent.kernel.is_resolved(), "the neighbour does not answer");
        Ok(agent)
    }

    /// Has the tables follow an event.
    async fn follow(&mut self, event: Event, round: u32) -> Result<Cost> {
        // Those that have left are gone by the next round, and no address comes twice.
        self.endpoints.take_drained(Instant::now() + Duration::from_secs(60), |_, _| false);
        let comes = endpoint(ENDPOINTS + round);
        let stores = self.kernel.kernel.writes;
        let begin = Instant::now();
        match event {
            Event::Fails => self.set_health(Health::Failing { timeout: false })?,
            Event::Passes => self.set_health(Health::Passing)?,
            Event::Comes => {
                self.set_endpoints(&self.wanted(Some(comes)));
                self.apply_endpoints(false).await?;
            }
            Event::Leaves => {
                self.set_endpoints(&self.wanted(None));
                self.apply_endpoints(false).await?;
            }
        }
        let time = begin.elapsed();
        let active = self.endpoints.active(&self.config.clusters[0].name).count() as u32;
        let expected = match event {
            Event::Fails => ENDPOINTS - 1,
            Event::Passes | Event::Leaves => ENDPOINTS,
            Event::Comes => ENDPOINTS + 1,
        };
        ensure!(active == expected, "{active} endpoints take connections after: {}", event.name());
        let stores = self.kernel.kernel.writes - stores;
        ensure!(stores > 0, "nothing was stored after: {}", event.name());
        Ok(Cost { time, stores })
    }

    fn wanted(&self, further: Option<SocketAddr>) -> Vec<Endpoint> {
        let addresses = (0..ENDPOINTS).map(endpoint).chain(further);
        addresses.map(|address| Endpoint::new(address, 1)).collect()
    }

    /// As the agent does after a probe.
    fn set_health(&mut self, health: Health) -> Result<()> {
        let cluster = &self.config.clusters[0];
        let member = self.endpoints.get_mut(&cluster.name, endpoint(FAILING)).context("no such endpoint")?;
        member.set_health(health, "", cluster, Instant::now());
        self.endpoints.choose(cluster, &Locality::default(), Instant::now());
        self.kernel.update_choice(&self.config, cluster, &self.endpoints, &self.network)
    }

    /// As the agent does after news of discovery: the proxy's table first,
    fn set_endpoints(&mut self, all: &[Endpoint]) {
        let cluster = &self.config.clusters[0];
        self.endpoints.set(cluster, all, Instant::now());
        self.endpoints.choose(cluster, &Locality::default(), Instant::now());
        self.balancer.update(cluster, &self.endpoints);
    }

    /// then the kernel's.
    async fn apply_endpoints(&mut self, anew: bool) -> Result<()> {
        self.kernel.explore(&self.endpoints, &self.network, anew).await;
        self.network.neighbours = net::neighbours().await?;
        self.kernel.update_maps(&self.config, &self.endpoints, &self.network)
    }
}
