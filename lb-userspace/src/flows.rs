//! The rows of `headgate flows`: a connection is one row, whoever carries it.
//!
//! The kernel's tables hold two entries for each flow; [`FlowRow::of`] makes one row of them, and is all that knows
//! how. Ages are in seconds, byte counts are payload without retransmissions, *in* is from the client.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use lb_common::table::HALF_OPEN_LIMIT;
use lb_common::tcp;
use lb_common::{Address, Flow};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};

use crate::proxy::{FlowState, ProxiedFlow};
use crate::table::{Table, bytes, duration, left, or_dash, right};

/// One connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowRow {
    #[serde(serialize_with = "as_text")]
    pub client: SocketAddr,
    /// What the client connected to.
    #[serde(serialize_with = "as_text")]
    pub vip: SocketAddr,
    /// Headgate's own address and port towards the backend; `None` while the proxy has not connected.
    #[serde(serialize_with = "as_text_if_any")]
    pub snat: Option<SocketAddr>,
    #[serde(serialize_with = "as_text_if_any")]
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
    /// The connection that an entry from the client and, if there is one, that of the other direction describe. `now`:
    /// nanoseconds of `CLOCK_MONOTONIC`.
    ///
    /// `None`: it is no connection, but a tombstone, a reverse entry, or half-open past its time.
    pub fn of<A: Address + Into<IpAddr>>(
        forward: &Flow<A>,
        back: Option<&Flow<A>>,
        now: u64,
    ) -> Option<Self> {
        let heeded = forward.is_established() || now.saturating_sub(forward.last_seen) <= HALF_OPEN_LIMIT;
        if !forward.is_forward() || forward.is_tombstone() || !heeded {
            return None;
        }
        let state = forward.word | back.map_or(0, |back| back.word);
        let last_seen = back.map_or(0, |back| back.last_seen).max(forward.last_seen);
        Some(Self {
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
        })
    }

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

/// As serde does it, but an IPv4 address in a third of the time: a row has four, and there may be a million rows.
fn as_text<S: Serializer>(address: &SocketAddr, serializer: S) -> Result<S::Ok, S::Error> {
    let SocketAddr::V4(v4) = address else { return address.serialize(serializer) };
    let (mut text, mut length) = ([0; "255.255.255.255:65535".len()], 0);
    let mut add = |number: u16, end: &str| {
        for part in [itoa::Buffer::new().format(number).as_bytes(), end.as_bytes()] {
            text[length..][..part.len()].copy_from_slice(part);
            length += part.len();
        }
    };
    for (octet, end) in v4.ip().octets().into_iter().zip([".", ".", ".", ":"]) {
        add(octet.into(), end);
    }
    add(v4.port(), "");
    serializer.serialize_str(str::from_utf8(&text[..length]).map_err(S::Error::custom)?)
}

fn as_text_if_any<S: Serializer>(address: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
    match address {
        Some(address) => as_text(address, serializer),
        None => serializer.serialize_none(),
    }
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
    /// Whether a row passes, but for the limit.
    pub fn shows(&self, row: &FlowRow) -> bool {
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
