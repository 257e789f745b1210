//! Two balancers that serve one address at the same time: FRR announces it from both, with the files of `deploy/frr`, and a
//! router spreads the connections over them.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lb_tests::cmd::{line_of, wait_for};
use lb_tests::frr::Frr;
use lb_tests::load::{Clients, Ended, Load};
use lb_tests::pair::{BACKEND_SIDE, BALANCERS, CLIENT_SIDE, Pair, address, router};
use lb_tests::scenario::Setup;
use lb_tests::timeline::{INDENT, Printout, ms};
use lb_tests::topology::{Family, HTTP};
use serde_json::Value;

const CLIENTS: Clients = Clients { held: 6, keep_alive: 0, one_shot: 3 };
/// Between two requests of a client: ports are not to come again while a balancer remembers the connection that had them.
const REST: Duration = Duration::from_millis(30);
/// How long the load goes on after a change before the next one.
const A_WHILE: Duration = Duration::from_secs(2);
/// Far above what a change takes.
const SOON: Duration = Duration::from_secs(20);
/// Within it the router has left a node that died.
const FAILOVER: Duration = Duration::from_secs(2);

#[test]
fn two_nodes_share_an_address_on_xdp() {
    two_nodes_share_an_address(Setup::Xdp);
}

#[test]
fn two_nodes_share_an_address_on_tc() {
    two_nodes_share_an_address(Setup::Tc);
}

fn two_nodes_share_an_address(setup: Setup) {
    let site = Site::start(setup);
    let mut printout = Printout::default();
    printout.begin("both nodes announce the address");
    site.require_alike();
    let load = site.load(Ended::Fails);
    site.go_on(&printout, &load);
    let before = site.carried();
    site.go_on(&printout, &load);
    let after = site.carried();
    println!("{INDENT}connections of the nodes so far: {after:?}");
    assert!(after[0] > before[0] && after[1] > before[1], "both nodes carry connections");

    printout.begin("the first node is drained");
    site.pair.agents[0].headgate(&["drain", "--all"]).unwrap();
    site.wait_ways(&[1]);
    let before = site.carried();
    site.go_on(&printout, &load);
    let after = site.carried();
    assert_eq!(after[0], before[0], "no new connections of a drained node");
    assert!(after[1] > before[1]);
    load.record().require_no_failure(printout.began).unwrap();

    printout.begin("the first node is drained no more");
    site.pair.agents[0].headgate(&["undrain", "--all"]).unwrap();
    site.wait_ways(&[0, 1]);
    let before = site.carried();
    site.go_on(&printout, &load);
    assert!(site.carried()[0] > before[0], "it has new connections again");
    load.record().require_no_failure(printout.began).unwrap();

    printout.begin("both nodes are drained: connections come all the same");
    for agent in &site.pair.agents {
        agent.headgate(&["drain", "--all"]).unwrap();
    }
    std::thread::sleep(2 * A_WHILE);
    site.wait_ways(&[0, 1]);
    for agent in &site.pair.agents {
        agent.headgate(&["undrain", "--all"]).unwrap();
    }
    load.stop().unwrap().require_no_failure(printout.began).unwrap();

    let load = site.load(Ended::IsRetried);
    site.go_on(&printout, &load);
    printout.begin("the first node dies");
    let died = Instant::now();
    for device in [CLIENT_SIDE, BACKEND_SIDE] {
        site.pair.lan[BALANCERS[0]].ip(&["link", "set", device, "down"]).unwrap();
    }
    site.wait_ways(&[1]);
    println!("{INDENT}the router has left it after {}", ms(died.elapsed()));
    assert!(died.elapsed() < FAILOVER);
    // The other node counts on it for three seconds before it resets its flows.
    std::thread::sleep(2 * A_WHILE);
    site.go_on(&printout, &load);
    let failures = load.take_failures();
    let late = failures.iter().filter(|failure| failure.began > died + FAILOVER).count();
    assert_eq!(late, 0, "{failures:#?}");
    load.stop().unwrap();
}

/// An address that is in none of the networks.
fn vip() -> SocketAddr {
    SocketAddr::new(Family::V4.address(9, 100), HTTP)
}

/// The parts, in the order in which they must go.
struct Site {
    _announcers: Vec<Announcer>,
    _frr: Vec<Frr>,
    pair: Pair,
}

impl Site {
    /// With both nodes announcing the address.
    fn start(setup: Setup) -> Self {
        let pair = Pair::start_behind_router(setup).unwrap();
        pair.lan["router"].sysctl("net.ipv4.fib_multipath_hash_policy", "1").unwrap();
        let mut frr = vec![Frr::start(&pair.lan["router"], &configuration("router.conf", 0)).unwrap()];
        let mut announcers = Vec::new();
        for (number, host) in BALANCERS.into_iter().enumerate() {
            let rules = std::env::temp_dir().join(format!("{}-{host}-handover.nft", pair.lan.name));
            fs::write(&rules, with_addresses(&deployed("keepalived/handover.nft"), 0)).unwrap();
            let prepare = path("keepalived/headgate-prepare");
            let vip = vip().ip().to_string();
            pair.lan[host]
                .run(prepare.to_str().unwrap(), &[rules.to_str().unwrap(), CLIENT_SIDE, &vip])
                .unwrap();
            fs::remove_file(rules).unwrap();
            frr.push(Frr::start(&pair.lan[host], &configuration("frr.conf", number)).unwrap());
            announcers.push(Announcer::start(&pair, number, frr.last().unwrap()));
        }
        let site = Self { _announcers: announcers, _frr: frr, pair };
        site.wait_ways(&[0, 1]);
        site
    }

    fn load(&self, ended: Ended) -> Load {
        Load::start_paced(&self.pair.lan["client"], vip(), CLIENTS, ended, REST).unwrap()
    }

    fn go_on(&self, printout: &Printout, load: &Load) {
        std::thread::sleep(A_WHILE);
        printout.load(load);
    }

    /// Until the router sends connections by just these nodes.
    fn wait_ways(&self, numbers: &[usize]) {
        let began = Instant::now();
        wait_for(&format!("the router goes by {numbers:?}"), SOON, || {
            let route = self.pair.lan["router"].ip(&["route", "show", &vip().ip().to_string()])?;
            let ways =
                (0..BALANCERS.len()).filter(|number| route.contains(&format!("via {} ", address(*number))));
            ensure!(ways.eq(numbers.iter().copied()), "{route}");
            Ok(())
        })
        .unwrap();
        println!("{INDENT}the router goes by {numbers:?} after {}", ms(began.elapsed()));
    }

    /// Connections that each node has carried.
    fn carried(&self) -> [u64; 2] {
        [0, 1].map(|number| self.pair.agents[number].totals().unwrap().sum().sum())
    }

    /// Whichever node a connection comes to, the same backend gets it.
    fn require_alike(&self) {
        let mut answers = BTreeMap::new();
        for port in 40_000..40_040 {
            let from = SocketAddr::new(Family::V4.address(3, 2), port);
            let chosen = [0, 1].map(|number| self.chosen(number, from));
            assert_eq!(chosen[0], chosen[1], "of {from}");
            let answered = self.pair.lan["client"].within(|| ask_from(from)).unwrap().unwrap();
            *answers.entry((answered, chosen[0].clone())).or_insert(0) += 1;
        }
        println!("{INDENT}who answered, the choice of both nodes, and how often: {answers:?}");
        assert_eq!(answers.len(), 2, "each backend is one choice: {answers:?}");
    }

    /// The backend that a node would choose for a connection of this client.
    fn chosen(&self, number: usize, from: SocketAddr) -> String {
        let (from, to) = (from.to_string(), vip().to_string());
        let text =
            self.pair.agents[number].headgate(&["explain", "--from", &from, "--to", &to, "--json"]).unwrap();
        let story: Value = serde_json::from_str(&text).unwrap();
        story["backend"].as_str().unwrap_or_else(|| panic!("no backend in {text}")).to_owned()
    }
}

/// A request from this very address; who answered.
fn ask_from(from: SocketAddr) -> anyhow::Result<String> {
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &from)?;
    rustix::net::connect(&socket, &vip())?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: headgate\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.lines().last().map(str::to_owned).context("no answer")
}

/// `headgate-announce` beside a node's agent. Dropping it ends it.
struct Announcer(Child);

impl Announcer {
    fn start(pair: &Pair, number: usize, frr: &Frr) -> Self {
        let mut command: Command =
            pair.lan[BALANCERS[number]].command(path("frr/headgate-announce").to_str().unwrap());
        command
            .env("READY", line_of(&pair.agents[number].command_inside(&["ready"])))
            .env("VTYSH", frr.vtysh_line())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file of `deploy/frr` for a node or the router.
fn configuration(name: &str, number: usize) -> String {
    with_addresses(&deployed(&format!("frr/{name}")), number)
}

/// The addresses of the test in the place of the examples'; `number`: the node that is at home.
fn with_addresses(text: &str, number: usize) -> String {
    let (own, other) = (address(number).to_string(), address(1 - number).to_string());
    // The longest first: one is the beginning of another.
    text.replace("192.0.2.254", &router().to_string())
        .replace("192.0.2.2", &own)
        .replace("192.0.2.3", &other)
        .replace("198.51.100.10", &vip().ip().to_string())
        .replace("192.0.2.10", &vip().ip().to_string())
}

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

fn deployed(file: &str) -> String {
    let path = path(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
