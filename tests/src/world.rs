//! Servers of bytes on every backend, and an agent with an access log and an admin port: what becomes of single
//! connections, as the client, the backend, the log and the statistics see it.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::agent::{Agent, headgate};
use crate::cmd::wait_for;
use crate::echo::{Echo, End};
use crate::netns::Namespace;
use crate::scenario::Setup;
use crate::topology::{Family, Topology};

/// Ends a test that hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a client comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Not connected: a RST in answer to the SYN.
    Refused,
    Reset,
    Closed,
}

/// The parts, in the order in which they must go.
#[derive(Debug)]
pub struct World {
    pub agent: Agent,
    /// By backend, from 1, and port.
    echoes: BTreeMap<(usize, u16), Echo>,
    pub topology: Topology,
    pub log: PathBuf,
    pub setup: Setup,
    pub family: Family,
}

impl World {
    /// Servers on these ports of every backend, and an agent with the configuration that `config` makes for an access
    /// log.
    pub fn start(setup: Setup, family: Family, ports: &[u16], config: impl FnOnce(&Path) -> String) -> Self {
        Self::start_with(setup, family, ports, config, &[])
    }

    /// The same with more arguments for `headgate run`.
    pub fn start_with(
        setup: Setup,
        family: Family,
        ports: &[u16],
        config: impl FnOnce(&Path) -> String,
        arguments: &[&str],
    ) -> Self {
        let topology = Topology::new(&setup.options()).unwrap();
        let mut echoes = BTreeMap::new();
        for (namespace, number) in topology.backends.iter().zip(1..) {
            for &port in ports {
                let address = SocketAddr::new(family.backend(number).ip(), port);
                // An IPv6 address is tentative until the kernel has noticed that its link is up.
                let echo = wait_for("a server", PATIENCE, || Echo::start(namespace, address));
                echoes.insert((number, port), echo.unwrap());
            }
        }
        let log = std::env::temp_dir().join(format!("{}-access.log", topology.name));
        let agent = Agent::start_with(&headgate().unwrap(), &topology, &config(&log), arguments).unwrap();
        Self { agent, echoes, topology, log, setup, family }
    }

    /// A port of a backend.
    pub fn backend(&self, number: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.family.backend(number).ip(), port)
    }

    /// From now on nobody listens there; what is open goes on.
    pub fn close(&mut self, number: usize, port: u16) {
        self.echoes.remove(&(number, port)).expect("somebody listens there");
    }

    /// Somebody does again.
    pub fn listen(&mut self, number: usize, port: u16) {
        let echo = Echo::start(&self.topology.backends[number - 1], self.backend(number, port)).unwrap();
        self.echoes.insert((number, port), echo);
    }

    /// A connection of the client, or that it was refused; anything else fails.
    pub fn connect(&self, port: u16) -> Result<TcpStream, Seen> {
        self.connect_from(&self.topology.client, port)
    }

    /// The same from any host.
    pub fn connect_from(&self, host: &Namespace, port: u16) -> Result<TcpStream, Seen> {
        let address = SocketAddr::new(self.family.vip().ip(), port);
        match host.within(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap() {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_nodelay(true).unwrap();
                Ok(stream)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err(Seen::Refused),
            // The proxy's RST may overtake connect(2).
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(Seen::Reset),
            Err(error) => panic!("connecting to {address}: {error}"),
        }
    }

    /// One that works.
    pub fn open(&self, port: u16) -> TcpStream {
        self.open_from(&self.topology.client, port)
    }

    /// The same from any host.
    pub fn open_from(&self, host: &Namespace, port: u16) -> TcpStream {
        let mut stream = self.connect_from(host, port).unwrap();
        exchange(&mut stream, b"hello");
        stream
    }

    /// One that works, to this backend.
    pub fn open_to(&self, number: usize, port: u16) -> TcpStream {
        wait_for(&format!("a connection to backend {number}"), PATIENCE, || {
            let stream = self.open(port);
            let came = self.backends_of(&[&stream])[0];
            ensure!(came == number, "it came to {came}");
            Ok(stream)
        })
        .unwrap()
    }

    /// How a connection attempt to that port ends.
    pub fn attempt(&self, port: u16) -> Seen {
        self.connect(port).map_or_else(|seen| seen, |mut stream| end(&mut stream))
    }

    /// So many connections, open at the same time: how many came to each backend.
    pub fn spread(&self, port: u16, count: usize) -> BTreeMap<usize, usize> {
        let streams: Vec<TcpStream> = (0..count).map(|_| self.open(port)).collect();
        let mut spread = BTreeMap::new();
        for number in self.backends_of(&streams.iter().collect::<Vec<_>>()) {
            *spread.entry(number).or_default() += 1;
        }
        spread
    }

    /// The backends that new connections come to, found by a few of them.
    pub fn used(&self, port: u16) -> Vec<usize> {
        self.spread(port, 6).into_keys().collect()
    }

    /// The backend of each of these connections, as `headgate flows` says it.
    pub fn backends_of(&self, streams: &[&TcpStream]) -> Vec<usize> {
        let number_of = |row: &Value| {
            let backend: SocketAddr = row["backend"].as_str()?.parse().ok()?;
            (1..=self.topology.backends.len())
                .find(|&number| self.family.backend(number).ip() == backend.ip())
        };
        self.rows_of(streams).iter().map(|row| number_of(row).unwrap_or_else(|| panic!("{row}"))).collect()
    }

    /// What `headgate flows` says of each of these connections, which are open.
    pub fn rows_of(&self, streams: &[&TcpStream]) -> Vec<Value> {
        let flows = self.agent.flows().unwrap();
        let row_of = |stream: &&TcpStream| {
            let client = stream.local_addr().unwrap().to_string();
            let row = flows.iter().find(|row| row["client"] == *client && row["state"] == "established");
            row.unwrap_or_else(|| panic!("no connection of {client} in {flows:#?}")).clone()
        };
        streams.iter().map(row_of).collect()
    }

    /// Until so many connections have ended by a RST at a backend. How others end does not matter.
    pub fn wait_reset_at(&self, number: usize, port: u16, count: usize) {
        let began = Instant::now();
        let mut resets = 0;
        while resets < count {
            let left = PATIENCE.saturating_sub(began.elapsed());
            let end = self.echoes[&(number, port)].end(left);
            let end = end.with_context(|| format!("backend {number} saw {resets} RSTs instead of {count}"));
            resets += usize::from(end.unwrap() == End::Reset);
        }
    }

    /// How a connection ends at some backend, within a few seconds for each.
    pub fn end_at_a_backend(&self) -> Option<End> {
        self.echoes.values().find_map(|echo| echo.end(Duration::from_secs(3)).ok())
    }

    /// Once there are so many lines about a listener that end one, the last of them.
    pub fn last_line(&self, port: u16, count: usize) -> Value {
        let lines = wait_for(&format!("{count} lines about port {port}"), PATIENCE, || {
            let lines = self.lines(port, "TcpConnectionEnd");
            ensure!(lines.len() >= count, "there are {lines:#?}");
            Ok(lines)
        });
        let lines = lines.unwrap();
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines.last().unwrap().clone()
    }

    /// Once there is one, the line about the end of a client's connection.
    pub fn line_of(&self, port: u16, client: SocketAddr) -> Value {
        wait_for(&format!("a line about {client}"), PATIENCE, || {
            let mut lines = self.lines(port, "TcpConnectionEnd");
            lines.retain(|line| line["client"] == *client.to_string());
            lines.pop().context("there is none")
        })
        .unwrap()
    }

    /// The lines of a kind about a listener.
    pub fn lines(&self, port: u16, kind: &str) -> Vec<Value> {
        let text = fs::read_to_string(&self.log).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let port = format!(":{port}");
        let is_of = |line: &Value| line["local"].as_str().unwrap().ends_with(&port) && line["type"] == kind;
        lines.filter(is_of).collect()
    }

    /// The statistics, once `enough` says so.
    pub fn stats(&self, enough: impl Fn(&BTreeMap<String, String>) -> bool) -> BTreeMap<String, String> {
        let mut last = BTreeMap::new();
        let stats = wait_for("the statistics", PATIENCE, || {
            last = self.stats_now();
            ensure!(enough(&last), "not yet: {last:#?}");
            Ok(last.clone())
        });
        stats.unwrap()
    }

    pub fn stats_now(&self) -> BTreeMap<String, String> {
        let text = self.page("/stats");
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// A page of the admin port.
    pub fn page(&self, path: &str) -> String {
        let url = format!("http://127.0.0.1:8001{path}");
        self.topology.lb.run("curl", &["-s", &url]).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.log);
    }
}

/// The sections of a configuration that a [`World`] takes, but for listeners and clusters; `more`: options of the
/// access log.
pub fn sections(setup: Setup, log: &Path, more: &str) -> String {
    format!(
        "datapath: {{ mode: {}, max_flows: 65536 }}\nadmin: {{}}\naccess_log:\n  path: {}\n{more}  \
         format: {{ type: '%ACCESS_LOG_TYPE%', flags: '%RESPONSE_FLAGS%', in: '%BYTES_RECEIVED%', \
         out: '%BYTES_SENT%', host: '%UPSTREAM_HOST%', cluster: '%UPSTREAM_CLUSTER%', \
         client: '%DOWNSTREAM_REMOTE_ADDRESS%', local: '%DOWNSTREAM_LOCAL_ADDRESS%', \
         why: '%DOWNSTREAM_LOCAL_CLOSE_REASON%', ms: '%DURATION%', rung: '%HEADGATE_RUNG%', \
         down: '%DOWNSTREAM_DETECTED_CLOSE_TYPE%', up: '%UPSTREAM_DETECTED_CLOSE_TYPE%' }}\n",
        setup.rung().name(),
        log.display()
    )
}

/// Sends something and gets it back.
pub fn exchange(stream: &mut TcpStream, data: &[u8]) {
    stream.write_all(data).unwrap();
    let mut back = vec![0; data.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, data);
}

/// How a connection ends by itself.
pub fn end(stream: &mut TcpStream) -> Seen {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => Seen::Closed,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Seen::Reset,
        Err(error) => panic!("reading: {error}"),
    }
}

/// A statistic.
pub fn number(stats: &BTreeMap<String, String>, name: &str) -> u64 {
    stats.get(name).unwrap_or_else(|| panic!("no {name} in {stats:#?}")).parse().unwrap()
}
