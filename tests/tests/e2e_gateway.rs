//! Envoy as the ingress gateway behind every rung: TLS, HTTP/1.1, HTTP/2 and WebSocket go through untouched, by
//! clients that know nothing of Headgate.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lb_tests::agent::Agent;
use lb_tests::app::{App, Stream, slow_bytes};
use lb_tests::envoy::{self, Envoy};
use lb_tests::https::{Clients, NAME, Version};
use lb_tests::payload::sha256_of;
use lb_tests::rung::BackendTotals;
use lb_tests::scenario::Setup;
use lb_tests::tls::{Authority, Identity};
use lb_tests::topology::{Family, Topology};
use lb_tests::websocket::{Client, EchoServer};

const HTTPS: u16 = 443;
const GATEWAYS: usize = 3;

/// One at a time: two would only share the machine's CPUs.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn gateways_on_xdp() {
    gateways(Setup::Xdp);
}

#[test]
fn gateways_on_tc() {
    gateways(Setup::Tc);
}

#[test]
fn gateways_on_proxy() {
    gateways(Setup::Proxy);
}

fn gateways(setup: Setup) {
    let _alone = alone();
    let installation = Installation::start(setup);
    for family in Family::ALL {
        installation.whole_requests(family);
        installation.streams_on_one_connection(family);
        installation.many_streams(family);
        installation.kept_alive(family);
        installation.websocket(family);
    }
}

#[test]
fn five_gibibytes_on_xdp() {
    five_gibibytes(Setup::Xdp);
}

#[test]
fn five_gibibytes_on_tc() {
    five_gibibytes(Setup::Tc);
}

#[test]
fn five_gibibytes_on_proxy() {
    five_gibibytes(Setup::Proxy);
}

/// More than 32 bits can count, in one response through TLS.
fn five_gibibytes(setup: Setup) {
    const MIB: u64 = 5 << 10;
    static SHA256: LazyLock<String> = LazyLock::new(|| sha256_of(Stream::new(MIB)).unwrap().1);
    let _alone = alone();
    let sent = &*SHA256;
    let installation = Installation::start(setup);
    let before = installation.agent.totals().unwrap();
    let began = Instant::now();
    let clients = installation.clients(Family::V4);
    let (bytes, received) = clients.download(Version::Http2, &format!("/stream/{MIB}")).unwrap();
    println!("{setup:?}: {bytes} bytes in {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(bytes, MIB << 20);
    assert_eq!(received, *sent, "what arrived is not what was sent");
    installation.require_carried(&before, 1);
}

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The parts, in the order in which they must go.
struct Installation {
    setup: Setup,
    agent: Agent,
    _envoys: Vec<Envoy>,
    _servers: Vec<(App, EchoServer)>,
    /// Those of the gateways, each with its own.
    identities: BTreeMap<String, Identity>,
    authority: Authority,
    topology: Topology,
}

impl Installation {
    fn start(setup: Setup) -> Self {
        let topology = Topology::new(&setup.options()).unwrap();
        let authority = Authority::new(&topology.name).unwrap();
        let mut identities = BTreeMap::new();
        let (mut envoys, mut servers) = (Vec::new(), Vec::new());
        for (namespace, number) in topology.backends.iter().zip(1..) {
            let name = format!("b{number}");
            servers.push((App::start(namespace, &name).unwrap(), EchoServer::start(namespace).unwrap()));
            let identity = authority.issue(vec![NAME.to_owned()]).unwrap();
            envoys.push(Envoy::start(namespace, &identity).unwrap());
            identities.insert(name, identity);
        }
        let agent = Agent::start(&topology, &config(setup)).unwrap();
        Self { setup, agent, _envoys: envoys, _servers: servers, identities, authority, topology }
    }

    fn clients(&self, family: Family) -> Clients<'_> {
        Clients { host: &self.topology.client, vip: vip(family), authority: self.authority.file() }
    }

    /// Exactly so many connections since, all on the rung under test.
    fn require_carried(&self, before: &BackendTotals, count: u64) {
        self.agent.require_carried(before, self.setup.rung(), count).unwrap();
    }

    /// curl by both versions of HTTP: the certificate it sees is that of the gateway whose application answers.
    fn whole_requests(&self, family: Family) {
        const EACH: u64 = 9;
        let before = self.agent.totals().unwrap();
        let clients = self.clients(family);
        let mut served = BTreeMap::<String, u64>::new();
        for version in [Version::Http1, Version::Http2] {
            for _ in 0..EACH {
                let answer = clients.get(version).unwrap();
                let identity = &self.identities[&answer.body];
                assert!(
                    identity.is_first_of(&answer.certificates).unwrap(),
                    "not {}'s certificate",
                    answer.body
                );
                *served.entry(answer.body).or_default() += 1;
            }
        }
        assert_eq!(served.len(), GATEWAYS, "{served:?}");
        self.require_carried(&before, 2 * EACH);
    }

    /// Streams of one connection beside each other: a slow one, held open for seconds, big ones and small ones.
    fn streams_on_one_connection(&self, family: Family) {
        const SIPS: u64 = 25;
        let before = self.agent.totals().unwrap();
        let paths = [
            format!("/slow/{SIPS}"),
            "/stream/16".into(),
            "/stream/17".into(),
            "/stream/18".into(),
            "/".into(),
        ];
        let streams = self.clients(family).nghttp(&paths).unwrap();
        assert!(streams.iter().all(|stream| stream.status == 200), "{streams:#?}");
        let (slow, others): (Vec<_>, Vec<_>) =
            streams.iter().partition(|stream| stream.path.starts_with("/slow"));
        assert_eq!(slow[0].size, format!("{}K", slow_bytes(SIPS) / 1024), "{slow:?}");
        assert!(slow[0].ended > Duration::from_secs(2), "{slow:?}");
        assert!(others.iter().all(|other| other.began < slow[0].ended), "none waited: {streams:#?}");
        for mib in 16..=18 {
            let big = others.iter().find(|stream| stream.path == format!("/stream/{mib}")).unwrap();
            assert_eq!(big.size, format!("{mib}M"));
        }
        self.require_carried(&before, 1);
    }

    /// h2load: many short streams, then big ones.
    fn many_streams(&self, family: Family) {
        let before = self.agent.totals().unwrap();
        self.clients(family).h2load("/", 3000, 6, 20).unwrap();
        self.clients(family).h2load("/stream/4", 36, 6, 6).unwrap();
        self.require_carried(&before, 12);
    }

    /// wrk: HTTP/1.1 connections that are kept. It makes one more, to see whether it can connect.
    fn kept_alive(&self, family: Family) {
        const CONNECTIONS: u32 = 30;
        let before = self.agent.totals().unwrap();
        let requests = self.clients(family).wrk(CONNECTIONS, Duration::from_secs(2)).unwrap();
        println!("{:?} {family}: {requests} requests by wrk", self.setup);
        assert!(requests > u64::from(CONNECTIONS), "{requests}");
        self.require_carried(&before, u64::from(CONNECTIONS) + 1);
    }

    /// The upgrade, then mebibytes both ways in messages of different sizes, and the closing handshake.
    fn websocket(&self, family: Family) {
        let before = self.agent.totals().unwrap();
        let config = self.authority.client().unwrap();
        let mut client = Client::open(&self.topology.client, vip(family), NAME, config).unwrap();
        for (length, number) in [1, 125, 126, 65_535, 65_536, 1 << 20, 4 << 20, 7].into_iter().zip(0u8..) {
            client
                .echo((0..length).map(|at: u32| number ^ at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect())
                .unwrap();
        }
        client.close().unwrap();
        self.require_carried(&before, 1);
    }
}

fn vip(family: Family) -> SocketAddr {
    SocketAddr::new(family.lb(0), HTTPS)
}

fn config(setup: Setup) -> String {
    let hosts = |family: Family| {
        let hosts = (1..=GATEWAYS)
            .map(|number| format!("\"{}\"", SocketAddr::new(family.backend(number).ip(), envoy::PORT)));
        hosts.collect::<Vec<_>>().join(", ")
    };
    format!(
        r#"datapath: {{ mode: {}, interfaces: auto, max_flows: 65536 }}
listeners:
  - {{ name: https4, address: "0.0.0.0:{HTTPS}", cluster: gateways4 }}
  - {{ name: https6, address: "[::]:{HTTPS}", cluster: gateways6 }}
clusters:
  - name: gateways4
    discovery: {{ type: static, hosts: [{}] }}
    lb_policy: round_robin
  - name: gateways6
    discovery: {{ type: static, hosts: [{}] }}
    lb_policy: round_robin
"#,
        setup.rung().name(),
        hosts(Family::V4),
        hosts(Family::V6),
    )
}
