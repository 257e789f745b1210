//! The rows of `headgate flows`: a connection is one row, whoever carries it.
//!
//! The kernel's tables hold two entries for each flow; [`pair_flows`] makes one row of them, and is all that knows
//! how. Ages are in seconds, byte counts are payload without retransmissions, *in* is from the client.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use lb_common::table::HALF_OPEN_LIMIT;
use lb_common::tcp;
use lb_common::{Address, Flow};
use serde::{Deserialize, Serialize};

use crate::proxy::{FlowState, ProxiedFlow};
use crate::table::{Table, bytes, duration, left, or_dash, right};

/// One connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowRow {
    pub client: SocketAddr,
    /// What the client connected to.
    pub vip: SocketAddr,
    /// Headgate's own address and port towards the backend; `None` while the proxy has not connected.
    pub snat: Option<SocketAddr>,
    pub backend: Option<SocketAddr>,
    pub state: State,
    pub rung: Carrier,
    /// Since the SYN; of a proxied connection since it was accepted.
    pub age_s: f64,
    /// Since the last packet, either way.
    pub idle_s: f64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// The proxy does not see packets.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub packets_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub packets_out: Option<u64>,
}

impl FlowRow {
    /// The backend that it keeps busy, if it does.
    pub fn open_to(&self) -> Option<SocketAddr> {
        self.backend.filter(|_| self.state != State::Closing)
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum State {
    /// The handshake is under way.
    HalfOpen,
    Established,
    /// Both ends have finished, or one has reset it.
    Closing,
}

impl State {
    /// The name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::HalfOpen => "half_open",
            Self::Established => "established",
            Self::Closing => "closing",
        }
    }
}

/// Who carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    Xdp,
    Tc,
    Proxy,
}

impl Carrier {
    /// The name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::Proxy => "proxy",
        }
    }
}

impl From<lb_common::Rung> for Carrier {
    fn from(rung: lb_common::Rung) -> Self {
        match rung {
            lb_common::Rung::Xdp => Self::Xdp,
            lb_common::Rung::Tc => Self::Tc,
        }
    }
}

/// An address and a port (network byte order) as they stand in a map.
pub(crate) fn socket<A: Into<IpAddr>>(address: A, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), u16::from_be(port))
}

/// Seconds since `then`, to the millisecond; 0 for what is to come (the programs' clock is coarser than ours).
pub(crate) fn seconds_since(then: u64, now: u64) -> f64 {
    (now.saturating_sub(then) / 1_000_000) as f64 / 1_000.0
}

/// The connections that the entries of one address family describe. `now`: nanoseconds of `CLOCK_MONOTONIC`.
///
/// What is no connection is left out: tombstones, half-open entries past their time, and reverse entries that merely
/// keep an ended flow's port at rest.
pub fn pair_flows<A: Address + Hash + Into<IpAddr>>(entries: Vec<Flow<A>>, now: u64) -> Vec<FlowRow> {
    let mut reverse = HashMap::with_capacity(entries.len() / 2);
    for flow in entries.iter().filter(|flow| !flow.is_forward()) {
        reverse.insert((flow.key, flow.generation()), flow);
    }
    let is_connection = |flow: &&Flow<A>| {
        let heeded = flow.is_established() || now.saturating_sub(flow.last_seen) <= HALF_OPEN_LIMIT;
        flow.is_forward() && !flow.is_tombstone() && heeded
    };
    let row = |forward: &Flow<A>| {
        let back = reverse.get(&(forward.out.reversed(), forward.generation()));
        let state = forward.word | back.map_or(0, |back| back.word);
        let last_seen = back.map_or(0, |back| back.last_seen).max(forward.last_seen);
        FlowRow {
            client: socket(forward.key.source, forward.key.source_port),
            vip: socket(forward.key.destination, forward.key.destination_port),
            snat: Some(socket(forward.out.source, forward.out.source_port)),
            backend: Some(socket(forward.out.destination, forward.out.destination_port)),
            state: match forward.is_established() {
                false => State::HalfOpen,
                true if tcp::is_closing(state) => State::Closing,
                true => State::Established,
            },
            rung: forward.rung().into(),
            age_s: seconds_since(forward.opened_at(), now),
            idle_s: seconds_since(last_seen, now),
            bytes_in: forward.payload_bytes(),
            bytes_out: back.map_or(0, |back| back.payload_bytes()),
            packets_in: Some(forward.packets),
            packets_out: Some(back.map_or(0, |back| back.packets)),
        }
    };
    entries.iter().filter(is_connection).map(row).collect()
}

/// The connections that the proxy carries.
pub fn proxied_rows(flows: Vec<ProxiedFlow>) -> impl Iterator<Item = FlowRow> {
    flows.into_iter().map(|flow| FlowRow {
        client: flow.client,
        vip: flow.vip,
        snat: flow.upstream.map(|upstream| upstream.snat),
        backend: flow.upstream.map(|upstream| upstream.backend),
        state: match flow.state {
            FlowState::HalfOpen => State::HalfOpen,
            FlowState::Established => State::Established,
            FlowState::Closing => State::Closing,
        },
        rung: Carrier::Proxy,
        age_s: flow.age.as_millis() as f64 / 1_000.0,
        idle_s: flow.idle.as_millis() as f64 / 1_000.0,
        bytes_in: flow.bytes_in,
        bytes_out: flow.bytes_out,
        packets_in: None,
        packets_out: None,
    })
}

/// Which connections to show.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowFilter {
    /// Only those of clients in this network (or of this one address).
    #[arg(long, value_name = "CIDR")]
    pub client: Option<ClientNet>,
    /// Only those to this backend.
    #[arg(long, value_name = "IP:PORT")]
    pub backend: Option<SocketAddr>,
    /// Only those in this state.
    #[arg(long, value_name = "STATE")]
    pub state: Option<State>,
    /// At most so many, the ones that were active last.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

impl FlowFilter {
    /// The rows that pass, the ones that were active last first.
    pub fn apply(&self, mut rows: Vec<FlowRow>) -> Vec<FlowRow> {
        rows.retain(|row| self.shows(row));
        rows.sort_by(|a, b| {
            a.idle_s.total_cmp(&b.idle_s).then(a.age_s.total_cmp(&b.age_s)).then(a.client.cmp(&b.client))
        });
        rows.truncate(self.limit.unwrap_or(usize::MAX));
        rows
    }

    fn shows(&self, row: &FlowRow) -> bool {
        self.client.is_none_or(|ClientNet(net)| net.contains(&row.client.ip()))
            && self.backend.is_none_or(|backend| row.backend == Some(backend))
            && self.state.is_none_or(|state| row.state == state)
    }
}

/// A network of clients; written as a CIDR prefix, or as an address, which means that address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientNet(pub IpNet);

impl FromStr for ClientNet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self(address.into()));
        }
        text.parse()
            .map(Self)
            .map_err(|_| "expected an address or a prefix, such as 10.0.0.0/8 or 2001:db8::/32".to_owned())
    }
}

impl TryFrom<String> for ClientNet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ClientNet> for String {
    fn from(net: ClientNet) -> Self {
        net.0.to_string()
    }
}

/// The rows for people.
pub fn flows_table(rows: &[FlowRow]) -> String {
    let mut table = Table::new([
        left("CLIENT"),
        left("VIP"),
        left("BACKEND"),
        left("SNAT"),
        left("STATE"),
        left("RUNG"),
        right("AGE"),
        right("IDLE"),
        right("IN"),
        right("OUT"),
    ]);
    for row in rows {
        table.row([
            row.client.to_string(),
            row.vip.to_string(),
            or_dash(row.backend),
            or_dash(row.snat),
            row.state.name().into(),
            row.rung.name().into(),
            duration(row.age_s),
            duration(row.idle_s),
            bytes(row.bytes_in),
            bytes(row.bytes_out),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
#[path = "flows_tests.rs"]
mod tests;
