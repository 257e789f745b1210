//! Packets of one kind that differ in addresses, ports and sequence numbers.

use aya::Pod;
use lb_common::host_packets::PacketBuilder;
use lb_common::{Address, Key, checksum};

/// `Tuple` of the driver programs: what differs from packet to packet, as it stands in it. Of IPv6 addresses the last
/// word; the others are those of the packet that the driver was made with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tuple {
    source: u32,
    destination: u32,
    ports: [u16; 2],
    sequence: u32,
    acknowledgement: u32,
    ip_checksum: u16,
    tcp_checksum: u16,
    zero: u64,
}

// SAFETY: integers only, no padding.
unsafe impl Pod for Tuple {}

/// Offsets in a frame without tags, options and extensions.
struct At {
    source: usize,
    destination: usize,
    tcp: usize,
}

const V4: At = At { source: 26, destination: 30, tcp: 34 };
const V6: At = At { source: 34, destination: 50, tcp: 54 };
const IP_CHECKSUM: usize = 24;

/// A packet whose tuples are to be made.
pub(crate) struct Pattern {
    /// The frame of the first of them.
    pub(crate) frame: Vec<u8>,
    first: Tuple,
    v6: bool,
}

impl Pattern {
    pub(crate) fn new(v6: bool, packet: &PacketBuilder) -> Self {
        let mut frame = packet.build().0;
        // As Ethernet has it, and a bit more: what the driver writes at once has to fit.
        let least = if v6 { 80 } else { 64 };
        if frame.len() < least {
            frame = packet.clone().trailer(least - frame.len()).build().0;
        }
        let first = read(v6, &frame);
        Self { frame, first, v6 }
    }

    /// Of a frame as it is; a short one has nothing that could differ.
    pub(crate) fn of_frame(v6: bool, frame: Vec<u8>) -> Self {
        let whole = frame.len() >= if v6 { V6.tcp + 20 } else { V4.tcp + 20 };
        let first = if whole { read(v6, &frame) } else { Tuple::default() };
        Self { frame, first, v6 }
    }

    /// The first tuple.
    pub(crate) fn first(&self) -> Tuple {
        self.first
    }

    /// The tuple of a packet with these addresses and ports; checksums are right.
    pub(crate) fn tuple<A: Address>(&self, key: &Key<A>, sequence: u32, acknowledgement: u32) -> Tuple {
        let last = |address: A| {
            let words = address.to_words();
            words[if A::V6 { 3 } else { 0 }]
        };
        let mut tuple = Tuple {
            source: last(key.source),
            destination: last(key.destination),
            ports: [key.source_port, key.destination_port],
            sequence: sequence.to_be(),
            acknowledgement: acknowledgement.to_be(),
            ..self.first
        };
        if !self.v6 {
            let delta = checksum::delta(self.first.addresses(), tuple.addresses());
            tuple.ip_checksum = checksum::apply(self.first.ip_checksum, delta.into());
        }
        let delta = checksum::delta(self.first.sum(), tuple.sum());
        tuple.tcp_checksum = checksum::apply(self.first.tcp_checksum, delta.into());
        tuple
    }
}

impl Tuple {
    fn addresses(&self) -> u32 {
        checksum::words(self.source) + checksum::words(self.destination)
    }

    fn sum(&self) -> u32 {
        let [source, destination] = self.ports.map(u32::from);
        let numbers = checksum::words(self.sequence) + checksum::words(self.acknowledgement);
        self.addresses() + source + destination + numbers
    }
}

fn read(v6: bool, frame: &[u8]) -> Tuple {
    let at = if v6 { V6 } else { V4 };
    let word = |at: usize| u32::from_ne_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    let half = |at: usize| u16::from_ne_bytes([frame[at], frame[at + 1]]);
    Tuple {
        source: word(at.source),
        destination: word(at.destination),
        ports: [half(at.tcp), half(at.tcp + 2)],
        sequence: word(at.tcp + 4),
        acknowledgement: word(at.tcp + 8),
        ip_checksum: if v6 { 0 } else { half(IP_CHECKSUM) },
        tcp_checksum: half(at.tcp + 16),
        zero: 0,
    }
}

/// Whether a frame has these addresses and ports.
pub(crate) fn is_of<A: Address>(frame: &[u8], key: &Key<A>) -> bool {
    let found = read(A::V6, frame);
    let last = |address: A| address.to_words()[if A::V6 { 3 } else { 0 }];
    found.source == last(key.source)
        && found.destination == last(key.destination)
        && found.ports == [key.source_port, key.destination_port]
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use lb_common::{V4, V6, address};

    use super::*;

    fn key<A: Address>(source: SocketAddr, destination: SocketAddr) -> Key<A> {
        let address = |ip: IpAddr| A::from_words(address::words(ip));
        let [from, to] = [source, destination].map(|socket| socket.port().to_be());
        Key::new(address(source.ip()), address(destination.ip()), from, to)
    }

    #[track_caller]
    fn same_as_built<A: Address>(first: [&str; 2], second: [&str; 2])
    where
        IpAddr: From<A>,
    {
        let [first, second] = [first, second].map(|pair| pair.map(|socket| socket.parse().unwrap()));
        let build = |[source, destination]: [SocketAddr; 2], sequence, acknowledgement| {
            let segment = lb_common::host_packets::packet(source, destination);
            segment.seq(sequence).ack(acknowledgement).payload(&[0xa5; 64])
        };
        let pattern = Pattern::new(A::V6, &build(first, 1, 2));
        let wanted = read(A::V6, &build(second, 0xffff_fff0, 77).build().0);
        let key = key::<A>(second[0], second[1]);
        assert_eq!(pattern.tuple(&key, 0xffff_fff0, 77), wanted);
        assert!(is_of(&build(second, 1, 2).build().0, &key));
        assert!(!is_of(&pattern.frame, &key));
    }

    #[test]
    fn a_tuple_is_that_of_the_packet_as_built() {
        same_as_built::<V4>(["198.18.0.1:1000", "10.0.0.1:80"], ["198.18.255.254:65535", "10.9.8.7:81"]);
        same_as_built::<V6>(
            ["[2001:2::1]:1000", "[2001:db8::1]:80"],
            ["[2001:2::ffff]:9", "[2001:db8::2]:81"],
        );
    }
}
