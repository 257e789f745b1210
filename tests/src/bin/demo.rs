//! `cargo xtask demo`: Headgate's main job in throw-away network namespaces, shown.
//!
//! `demo --headgate PATH [--keep]` runs it, `demo --down` removes what `--keep` left. Exit code 0 when every request
//! was answered on the rung that was asked for.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::agent::{Agent, config};
use lb_tests::cmd::{line_of, wait_for};
use lb_tests::http::{Connection, sequential};
use lb_tests::rung::Rung;
use lb_tests::topology::{BACKEND_HTTP, Family, Options, Topology, remove_left};
use lb_tests::{gateway, netns};

const USAGE: &str = "usage: demo --headgate PATH [--keep] | demo --down";
/// What everything of the demo is named after.
const PREFIX: &str = "hgdemo";
/// Connections that each address family makes on each rung.
const CONNECTIONS: u64 = 300;
/// Connections of each family that are open while the flow table is shown.
const OPEN: usize = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["--headgate", path] => demo(Path::new(path), false),
        ["--headgate", path, "--keep"] | ["--keep", "--headgate", path] => demo(Path::new(path), true),
        ["--down"] => down(),
        // Not for people: what the demo starts in each backend's namespace.
        ["gateway", name] => gateway::serve(name, BACKEND_HTTP).context("gateway"),
        _ => Err(anyhow::anyhow!(USAGE)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(headgate: &Path, keep: bool) -> Result<()> {
    let headgate = headgate.canonicalize().with_context(|| headgate.display().to_string())?;
    let topology = Topology::new(&Options { prefix: PREFIX, xdp_peers: true, ..Options::default() })?;
    start_gateways(&topology)?;
    print_topology();
    let carried = [Rung::Xdp, Rung::Tc].map(|rung| on_rung(&headgate, &topology, rung));
    if !carried.iter().any(Result::is_ok) {
        println!("\nNo kernel rung is to be had here; the proxy carries everything instead.");
        on_rung(&headgate, &topology, Rung::Proxy)?;
    }
    for result in carried {
        // A rung that this kernel does not have was reported and passed over; one that carried wrongly is a fault.
        result.or_else(|error| if error.is::<Unavailable>() { Ok(()) } else { Err(error) })?;
    }
    if keep { leave(&headgate, topology) } else { Ok(()) }
}

/// The agent did not start with this rung forced.
#[derive(Debug)]
struct Unavailable;

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the rung is not available")
    }
}

/// Runs an agent with that rung forced, sends it real traffic and shows what it made of it.
fn on_rung(headgate: &Path, topology: &Topology, rung: Rung) -> Result<()> {
    println!("\n==== {} ====", rung.name());
    let agent = match Agent::start_with(headgate, topology, &config(rung.name(), topology), &[]) {
        Ok(agent) => agent,
        Err(error) => {
            println!("not available here: {error:#}");
            bail!(error.context(Unavailable));
        }
    };
    for family in Family::ALL {
        requests(&agent, topology, rung, family)?;
    }
    let open = open_connections(topology)?;
    let example = open.first().context("no connection is open")?.local()?.to_string();
    show(&agent, &format!("{} connections open", open.len()), &["flows", "--limit", "12"])?;
    let vip = Family::V4.vip().to_string();
    show(
        &agent,
        "why a packet of the first goes where it goes",
        &["explain", "--from", &example, "--to", &vip],
    )?;
    drop(open);
    println!();
    Ok(())
}

fn requests(agent: &Agent, topology: &Topology, rung: Rung, family: Family) -> Result<()> {
    let before = agent.totals()?;
    let outcome = sequential(&topology.client, family.vip(), CONNECTIONS)?;
    println!(
        "\n{family}: GET http://{}/ on {CONNECTIONS} connections, one after the other; {} failed",
        family.vip(),
        outcome.failed
    );
    outcome.require(CONNECTIONS)?;
    let after = agent.require_carried(&before, rung, CONNECTIONS)?;
    println!(
        "  {:<12} {:<24} {:>8} {:>6} {:>6} {:>6}",
        "gateway", "backend", "answers", "xdp", "tc", "proxy"
    );
    for number in 1..=topology.backends.len() {
        let (name, backend) = (gateway_name(number), family.backend(number));
        let answers = outcome.served.get(&name).copied().unwrap_or(0);
        let totals = after.of_since(backend, &before);
        println!(
            "  {name:<12} {:<24} {answers:>8} {:>6} {:>6} {:>6}",
            backend.to_string(),
            totals.xdp,
            totals.tc,
            totals.proxy
        );
    }
    Ok(())
}

fn open_connections(topology: &Topology) -> Result<Vec<Connection>> {
    let addresses: Vec<SocketAddr> = Family::ALL.iter().flat_map(|family| [family.vip(); OPEN]).collect();
    addresses
        .into_iter()
        .map(|address| {
            let mut connection = Connection::open_in(&topology.client, address)?;
            connection.get()?;
            Ok(connection)
        })
        .collect()
}

/// Prints a command of headgate and its output.
fn show(agent: &Agent, what: &str, arguments: &[&str]) -> Result<()> {
    println!("\n{what}:\n$ headgate {}", arguments.join(" "));
    for line in agent.headgate(arguments)?.lines() {
        println!("  {line}");
    }
    Ok(())
}

fn start_gateways(topology: &Topology) -> Result<()> {
    let own = std::env::current_exe()?;
    for (namespace, number) in topology.backends.iter().zip(1..) {
        // It ends with its namespace.
        let mut command = namespace.command(&own.to_string_lossy());
        command.args(["gateway", &gateway_name(number)]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot start a gateway")?;
    }
    for number in 1..=topology.backends.len() {
        let backend = Family::V6.backend(number);
        wait_for(&format!("{} answers", gateway_name(number)), Duration::from_secs(10), || {
            let name = Connection::open_in(&topology.lb, backend)?.get_last()?;
            ensure!(name == gateway_name(number), "{name} answers there");
            Ok(())
        })?;
    }
    Ok(())
}

fn gateway_name(number: usize) -> String {
    format!("gateway-{number}")
}

fn print_topology() {
    let (v4, v6) = (Family::V4, Family::V6);
    println!("Headgate between a client and three gateways, each host in a network namespace of its own.");
    println!("Gateways have no route to the client: what answers has come by the balancer's own address.\n");
    let middle = format!("  client {0} ─── {1}:80 lb ", v4.peer(0), v4.lb(0));
    let below = format!("         {0}   [{1}]:80", v6.peer(0), v6.lb(0));
    println!("{:<43}┌── gateway-1  {}  {}", "", v4.backend(1), v6.backend(1));
    println!("{middle:─<43}┼── gateway-2  {}  {}", v4.backend(2), v6.backend(2));
    println!("{below:<43}└── gateway-3  {}  {}", v4.backend(3), v6.backend(3));
}

/// Starts an agent as one would by default, leaves everything and says how to use it.
fn leave(headgate: &Path, topology: Topology) -> Result<()> {
    let agent = Agent::start_with(headgate, &topology, &config("auto", &topology), &[])?;
    println!("\n==== left running, mode auto ====\n\nAs the client:");
    for family in Family::ALL {
        println!("  {}", line_of(topology.client.command("curl").arg(format!("http://{}/", family.vip()))));
    }
    println!("\nLook inside:");
    for arguments in [&["status"][..], &["backends"], &["flows"], &["maps", "list"]] {
        println!("  {}", line_of(&agent.command(arguments)));
    }
    println!("\nA shell on the balancer:\n  {}", line_of(&topology.lb.command("bash")));
    let own: PathBuf = std::env::current_exe()?;
    println!("\nTake it down:\n  {}", line_of(Command::new(own).arg("--down")));
    agent.leave();
    std::mem::forget(topology);
    Ok(())
}

/// Removes what earlier runs with `--keep` left, and what a killed run left.
fn down() -> Result<()> {
    for name in netns::list(PREFIX)? {
        println!("{name}");
        netns::delete(&name)?;
    }
    remove_left(PREFIX)
}
