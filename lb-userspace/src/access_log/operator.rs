//! The operators, and what each writes of a record.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use super::Record;
use super::address;
use super::timestamp::TimeFormat;

/// A compiled operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    StartTime(TimeFormat),
    /// Of the rendering.
    EmitTime(TimeFormat),
    /// Milliseconds.
    Duration,
    /// Milliseconds until connected, or given up.
    ConnectDuration,
    Between {
        from: Point,
        to: Point,
        unit: Unit,
    },
    BytesIn,
    BytesOut,
    UpstreamBytesIn,
    UpstreamBytesOut,
    Address(Peer, Part),
    HostsAttempted(Part),
    Cluster,
    Attempts,
    ConnectionId,
    /// As a number, which is 0 before there is one.
    UpstreamConnectionId,
    /// As a list, which is empty before there is one.
    UpstreamConnectionIds,
    Flags,
    FlagsLong,
    Kind,
    Termination,
    Failure,
    LocalClose,
    UpstreamLocalClose,
    DownstreamClose,
    UpstreamClose,
    /// A UUID that all lines of a connection have in common.
    StreamId,
    /// A UUID that no other line has.
    UniqueId,
    Rung,
    /// A number that is zero for every TCP connection.
    Zero,
    /// A text that is empty for every TCP connection.
    Empty,
    /// What no TCP connection has, or Headgate does not know.
    Unset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Client,
    Local,
    /// The backend that was chosen.
    Backend,
    /// The backend once it is connected.
    Remote,
    UpstreamLocal,
}

/// What of an address is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    WithPort,
    WithoutPort,
    Port,
    /// The network, with so many bits.
    Network(u8),
}

/// A moment in the life of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    Start,
    ConnectStart,
    Connected,
    /// One that a TCP connection does not have, or that is not recorded.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

/// What an operator has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing, since there is no value.
    Unset,
    Number,
    Text,
}

impl Operator {
    /// Appends the value to `out`, not escaped.
    pub(super) fn write(&self, record: &Record, out: &mut Vec<u8>) -> Written {
        match self {
            Self::StartTime(format) => {
                format.write(record.start, out);
                Written::Text
            }
            Self::EmitTime(format) => {
                format.write(SystemTime::now(), out);
                Written::Text
            }
            Self::Duration => number(milliseconds(record.duration), out),
            Self::ConnectDuration => optional_number(record.connect.map(milliseconds), out),
            Self::Between { from, to, unit } => {
                let between = moment(*to, record).zip(moment(*from, record));
                let between = between.and_then(|(to, from)| to.checked_sub(from));
                optional_number(between.map(|between| unit.of(between)), out)
            }
            Self::BytesIn => number(record.bytes_in, out),
            Self::BytesOut => number(record.bytes_out, out),
            Self::UpstreamBytesIn => number(if is_connected(record) { record.bytes_out } else { 0 }, out),
            Self::UpstreamBytesOut => number(if is_connected(record) { record.bytes_in } else { 0 }, out),
            Self::Address(peer, part) => match peer.address(record) {
                Some(address) => part.write(address, out),
                None => Written::Unset,
            },
            Self::HostsAttempted(part) => hosts_attempted(record, *part, out),
            Self::Cluster => optional_text(record.cluster.as_deref(), out),
            Self::Attempts => number(record.attempts.into(), out),
            Self::ConnectionId => number(record.id, out),
            Self::UpstreamConnectionId => number(if is_connected(record) { record.id } else { 0 }, out),
            Self::UpstreamConnectionIds if is_connected(record) => {
                number(record.id, out);
                Written::Text
            }
            Self::Flags => {
                record.flags.write_short(out);
                Written::Text
            }
            Self::FlagsLong => {
                record.flags.write_long(out);
                Written::Text
            }
            Self::Kind => text(record.kind.name(), out),
            Self::Termination => optional_text(record.termination, out),
            Self::Failure => optional_text(record.failure, out),
            Self::LocalClose => optional_text(record.local_close, out),
            Self::UpstreamLocalClose if is_connected(record) => optional_text(record.local_close, out),
            Self::DownstreamClose => text(record.downstream_close.name(), out),
            Self::UpstreamClose => text(record.upstream_close.name(), out),
            Self::StreamId => uuid(stream_id(record), out),
            Self::UniqueId => uuid(fastrand::u128(..), out),
            Self::Rung => text(record.rung.name(), out),
            Self::Zero => number(0, out),
            Self::Empty => Written::Text,
            Self::UpstreamConnectionIds | Self::UpstreamLocalClose | Self::Unset => Written::Unset,
        }
    }
}

impl Peer {
    fn address(self, record: &Record) -> Option<SocketAddr> {
        match self {
            Self::Client => Some(record.client),
            Self::Local => Some(record.local),
            Self::Backend => record.upstream,
            Self::Remote => record.upstream.filter(|_| is_connected(record)),
            Self::UpstreamLocal => record.upstream_local,
        }
    }
}

impl Part {
    fn write(self, address: SocketAddr, out: &mut Vec<u8>) -> Written {
        match self {
            Self::WithPort => address::write(address, out),
            Self::WithoutPort => address::write_ip(address.ip(), out),
            Self::Port => return number(address.port().into(), out),
            Self::Network(bits) => {
                let (network, bits) = network(address.ip(), bits);
                address::write_ip(network, out);
                out.push(b'/');
                number(bits.into(), out);
            }
        }
        Written::Text
    }
}

impl Unit {
    fn of(self, duration: Duration) -> u64 {
        let value = match self {
            Self::Milliseconds => duration.as_millis(),
            Self::Microseconds => duration.as_micros(),
            Self::Nanoseconds => duration.as_nanos(),
        };
        u64::try_from(value).unwrap_or(u64::MAX)
    }
}

fn is_connected(record: &Record) -> bool {
    record.upstream_local.is_some()
}

/// Time since the start of the connection. The first attempt to connect begins with it; when a later one began is not
/// recorded.
fn moment(point: Point, record: &Record) -> Option<Duration> {
    match point {
        Point::Start => Some(Duration::ZERO),
        Point::ConnectStart => (record.attempts == 1).then_some(Duration::ZERO),
        Point::Connected => record.connect.filter(|_| is_connected(record)),
        Point::Unknown => None,
    }
}

/// The network of `bits` bits that an address is in; more bits than the address has count as all.
fn network(address: IpAddr, bits: u8) -> (IpAddr, u8) {
    match address {
        IpAddr::V4(address) => {
            let bits = bits.min(32);
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            (IpAddr::V4((address.to_bits() & mask).into()), bits)
        }
        IpAddr::V6(address) => {
            let bits = bits.min(128);
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            (IpAddr::V6((address.to_bits() & mask).into()), bits)
        }
    }
}

fn hosts_attempted(record: &Record, part: Part, out: &mut Vec<u8>) -> Written {
    let mut written = Written::Unset;
    for address in record.earlier.iter().copied().chain(record.upstream) {
        if written != Written::Unset {
            out.push(b',');
        }
        written = part.write(address, out);
    }
    written
}

/// Derived from what tells connections apart, so that it is the same in each line, also of an agent that has taken
/// over the connection.
fn stream_id(record: &Record) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, record.id, record.client, record.local, &record.listener).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// 128 bits in the form of a random UUID (RFC 9562, version 4), of which six bits are fixed.
fn uuid(bits: u128, out: &mut Vec<u8>) -> Written {
    let version = bits & !(0xf << 76) | 0x4 << 76;
    let bits = version & !(0b11 << 62) | 0b10 << 62;
    for nibble in (0..32_u32).rev() {
        out.push(b"0123456789abcdef"[(bits >> (4 * nibble)) as usize & 0xf]);
        if [24, 20, 16, 12].contains(&nibble) {
            out.push(b'-');
        }
    }
    Written::Text
}

fn milliseconds(duration: Duration) -> u64 {
    Unit::Milliseconds.of(duration)
}

fn number(value: u64, out: &mut Vec<u8>) -> Written {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    Written::Number
}

fn optional_number(value: Option<u64>, out: &mut Vec<u8>) -> Written {
    value.map_or(Written::Unset, |value| number(value, out))
}

fn text(value: &str, out: &mut Vec<u8>) -> Written {
    out.extend_from_slice(value.as_bytes());
    Written::Text
}

fn optional_text(value: Option<&str>, out: &mut Vec<u8>) -> Written {
    value.map_or(Written::Unset, |value| text(value, out))
}
