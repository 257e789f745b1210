//! The same with the agent itself: from the answer of an endpoint to its probe to the kernel's tables.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lb_common::address::words;
use lb_common::tables::{Backend, Window, backend, names};
use lb_tests::agent::Agent;
use lb_userspace::datapath::mapped::Mapped;
use lb_userspace::datapath::object::Pins;
use lb_userspace::maps::read::PinnedMaps;

use super::change::Cost;
use super::configuration::Size;
use super::hosts::{Hosts, endpoint};
use crate::Effort;

const HEALTH_CHECK: &str = "{ type: istio, interval: 2s, timeout: 1s, unhealthy: 1, healthy: 1 }";
/// How long a change may take, the wait for the next probe included.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_micros(100);

/// What endpoints cost that fail, and that pass again.
pub(super) fn measure(
    effort: &Effort,
    hosts: &Hosts,
    lb_policy: &'static str,
    samples: u32,
) -> Result<[Vec<Cost>; 2]> {
    let size = Size { clusters: 1, endpoints: 1_000, lb_policy, health_check: HEALTH_CHECK };
    let name = format!("lbb{}", std::process::id());
    let agent = Agent::start_in(&effort.headgate, &name, &hosts.balancer, &size.yaml(), &[])?;
    let pins = Pins::new(agent.bpffs());
    let tables = Tables::open(&pins)?;
    let mut costs = [const { Vec::new() }; 2];
    for sample in 0..samples {
        let address = endpoint(100 + sample * 37);
        let index = tables.find(words(address.ip())).with_context(|| format!("no backend {address}"))?;
        tables.wait_for(index, false, |slots| slots > 0)?;
        let all = tables.slots_of(index);
        for (ready, costs) in [false, true].into_iter().zip(&mut costs) {
            let stores = map_writes(&agent)?;
            hosts.set_ready(address.ip(), ready);
            let wanted = if ready { all } else { 0 };
            let seen = tables.wait_for(index, !ready, |slots| slots == wanted)?;
            let said = hosts.said().context("the endpoint was not asked")?;
            let stores = map_writes(&agent)? - stores;
            costs.push(Cost { time: seen.saturating_duration_since(said), stores });
        }
    }
    Ok(costs)
}

fn map_writes(agent: &Agent) -> Result<u64> {
    agent.status()?["map_writes"].as_u64().context("no map_writes in the status")
}

/// What the programs read.
struct Tables {
    backends: Mapped<Backend>,
    clusters: Mapped<Window>,
    slots: Mapped<u32>,
}

impl Tables {
    fn open(pins: &Pins) -> Result<Self> {
        let maps = PinnedMaps::open(pins)?;
        Ok(Self {
            backends: maps.mapped(names::BACKENDS)?,
            clusters: maps.mapped(names::CLUSTERS)?,
            slots: maps.mapped(names::SLOTS)?,
        })
    }

    fn find(&self, address: [u32; 4]) -> Option<u32> {
        (1..self.backends.len()).find(|&index| self.backends.get(index).address == address)
    }

    /// Slots that a backend has in its cluster's window.
    fn slots_of(&self, index: u32) -> usize {
        let window = self.clusters.get(self.backends.get(index).cluster);
        (window.first..window.first + window.count).filter(|&slot| self.slots.get(slot) == index).count()
    }

    /// Waits until a backend is `out` or not, and has as many slots as is `enough`; when that was seen.
    fn wait_for(&self, index: u32, out: bool, enough: impl Fn(usize) -> bool) -> Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let is_out = self.backends.get(index).flags & backend::OUT != 0;
            if is_out == out && enough(self.slots_of(index)) {
                return Ok(Instant::now());
            }
            if Instant::now() >= deadline {
                bail!("backend {index} is not as it should be within {PATIENCE:?}");
            }
            std::thread::sleep(POLL);
        }
    }
}
