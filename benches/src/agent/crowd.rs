//! Ten thousand endpoints in a hundred clusters, and an agent that has nothing to do but to ask them for their health.

use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_tests::agent::Agent;
use lb_tests::netns::Namespace;
use procfs::process::Process;
use rustix::time::{ClockId, clock_gettime};

use super::configuration::Size;
use super::hosts::{Hosts, endpoint};
use crate::Effort;

const CLUSTERS: u32 = 100;
const ENDPOINTS: u32 = 100;
/// Seconds between two probes of an endpoint.
const INTERVAL: u32 = 5;

/// How the endpoints are asked: what the reports say, and the YAML.
pub(super) const CHECKS: [(&str, &str); 3] = [
    ("no health checks", ""),
    ("asked by TCP", "{ type: tcp, interval: 5s, timeout: 1s, jitter_percent: 0 }"),
    ("asked by HTTP", "{ type: istio, interval: 5s, timeout: 1s, jitter_percent: 0 }"),
];

/// What an agent needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    /// MiB: what it has, and what it had at the most.
    pub(super) memory: f64,
    pub(super) most_memory: f64,
    /// Percent of a CPU.
    pub(super) cpu: f64,
}

/// Starts an agent; how long that took, in seconds.
pub(super) fn start(effort: &Effort, hosts: &Hosts, health_check: &'static str) -> Result<(Agent, f64)> {
    let size = Size { clusters: CLUSTERS, endpoints: ENDPOINTS, lb_policy: "round_robin", health_check };
    let name = format!("lbb{}", std::process::id());
    let yaml = size.yaml();
    let begin = Instant::now();
    let agent = Agent::start_in(&effort.headgate, &name, &hosts.balancer, &yaml, &[])?;
    Ok((agent, begin.elapsed().as_secs_f64()))
}

/// Looks at one for a while, after as long a while.
pub(super) fn look(agent: &Agent, window: Duration) -> Result<Needs> {
    sleep(window);
    let process = Process::new(agent.pid().as_raw_nonzero().get())?;
    let (before, since) = (cpu_time(&process)?, Instant::now());
    sleep(window);
    let cpu = (cpu_time(&process)? - before) / since.elapsed().as_secs_f64() * 100.0;
    let status = process.status()?;
    require_all_healthy(agent)?;
    Ok(Needs { memory: mebibytes(status.vmrss)?, most_memory: mebibytes(status.vmhwm)?, cpu })
}

fn mebibytes(kibibytes: Option<u64>) -> Result<f64> {
    Ok(kibibytes.context("no such size in its status")? as f64 / 1024.0)
}

/// Seconds.
fn cpu_time(process: &Process) -> Result<f64> {
    let stat = process.stat()?;
    Ok((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}

fn require_all_healthy(agent: &Agent) -> Result<()> {
    let status = agent.status()?;
    let clusters = status["clusters"].as_array().context("no clusters in the status")?;
    let healthy: u64 = clusters.iter().filter_map(|cluster| cluster["healthy"].as_u64()).sum();
    ensure!(healthy == u64::from(CLUSTERS * ENDPOINTS), "only {healthy} endpoints are healthy");
    Ok(())
}

/// What connections alone cost, percent of a CPU: as many in a second as there are probes, each opened and closed by a
/// thread that does nothing else. What the other host does in the kernel at once is done at its expense.
pub(super) fn bare_connections(balancer: &Namespace) -> Result<f64> {
    const CONNECTIONS: u32 = 4_000;
    let busy = balancer.within(|| -> Result<f64> {
        let begin = clock_gettime(ClockId::ThreadCPUTime);
        for number in 0..CONNECTIONS {
            let address: SocketAddr = endpoint(number);
            TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
        }
        let end = clock_gettime(ClockId::ThreadCPUTime);
        Ok((end.tv_sec - begin.tv_sec) as f64 + (end.tv_nsec - begin.tv_nsec) as f64 / 1e9)
    })??;
    let a_second = f64::from(CLUSTERS * ENDPOINTS / INTERVAL);
    Ok(busy / f64::from(CONNECTIONS) * a_second * 100.0)
}
