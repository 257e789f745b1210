//! TCP packets for tests: built from parts, with full checksums computed the plain way (RFC 1071, word by word), so
//! that they check the datapath's arithmetic by difference. Shares no code with the parser.

use std::net::{IpAddr, SocketAddr};

use crate::host::Frame;
use crate::icmp;
use crate::parse::{TCP, ethertype};
use crate::tcp::flags;

/// IPv6 extension headers (RFC 8200 section 4), as values of "next header".
pub mod extension {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Authentication, which the datapath does not follow.
    pub const AUTHENTICATION: u8 = 51;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
}

/// A TCP packet to be. Ports, numbers and tags in host order.
#[derive(Clone, Debug)]
pub struct PacketBuilder {
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    tags: Vec<(u16, u16)>,
    source: SocketAddr,
    destination: SocketAddr,
    ttl: u8,
    ip_options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    fragment: Option<(u16, bool)>,
    flags: u8,
    seq: u32,
    ack: u32,
    tcp_options: Vec<u8>,
    payload: Vec<u8>,
    trailer: usize,
}

/// A bare segment between two addresses of one family; TTL 64, no flags, numbers zero.
pub fn packet(source: SocketAddr, destination: SocketAddr) -> PacketBuilder {
    assert_eq!(source.is_ipv4(), destination.is_ipv4(), "one family");
    PacketBuilder {
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        tags: Vec::new(),
        source,
        destination,
        ttl: 64,
        ip_options: Vec::new(),
        extensions: Vec::new(),
        fragment: None,
        flags: 0,
        seq: 0,
        ack: 0,
        tcp_options: Vec::new(),
        payload: Vec::new(),
        trailer: 0,
    }
}

impl PacketBuilder {
    /// The MAC addresses.
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        (self.source_mac, self.destination_mac) = (source, destination);
        self
    }

    /// The addresses and ports, for the packet as it should leave.
    pub fn between(mut self, source: SocketAddr, destination: SocketAddr) -> Self {
        (self.source, self.destination) = (source, destination);
        self
    }

    /// A further IEEE 802.1Q tag, outer first.
    pub fn tag(mut self, tci: u16) -> Self {
        self.tags.push((ethertype::VLAN, tci));
        self
    }

    /// A further IEEE 802.1ad tag.
    pub fn service_tag(mut self, tci: u16) -> Self {
        self.tags.push((ethertype::QINQ, tci));
        self
    }

    /// No tags.
    pub fn untagged(mut self) -> Self {
        self.tags.clear();
        self
    }

    /// TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// IPv4 options, filled up to whole words.
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.ip_options = options.to_vec();
        self.ip_options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    /// A further IPv6 extension header: `body` is what follows its two bytes of type and length, filled up to whole
    /// units of 8 bytes.
    pub fn extension(mut self, kind: u8, body: &[u8]) -> Self {
        let mut body = body.to_vec();
        body.resize((body.len() + 2).next_multiple_of(8) - 2, 0);
        self.extensions.push((kind, body));
        self
    }

    /// A fragment at `offset` (units of 8 bytes), with `more` to follow: the whole TCP segment of the builder becomes
    /// its content, unless `offset` is not zero: then the payload alone. IPv6: a fragment header behind the extension
    /// headers given so far.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some((offset, more));
        self
    }

    /// Further TCP flags, see [`flags`].
    pub fn flags(mut self, flags: u8) -> Self {
        self.flags |= flags;
        self
    }

    /// Sequence number.
    pub fn seq(mut self, seq: u32) -> Self {
        self.seq = seq;
        self
    }

    /// Acknowledgement number, with the ACK flag.
    pub fn ack(mut self, ack: u32) -> Self {
        self.ack = ack;
        self.flags |= flags::ACK;
        self
    }

    /// TCP options, filled up to whole words.
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        self.tcp_options = options.to_vec();
        self.tcp_options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    /// The MSS option alone.
    pub fn mss(self, mss: u16) -> Self {
        let [high, low] = mss.to_be_bytes();
        self.tcp_options(&[2, 4, high, low])
    }

    /// The payload.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Bytes behind the IP packet, as short Ethernet frames have.
    pub fn trailer(mut self, bytes: usize) -> Self {
        self.trailer = bytes;
        self
    }

    /// The frame.
    pub fn build(&self) -> Frame {
        let mut frame = Vec::new();
        frame.extend(self.destination_mac);
        frame.extend(self.source_mac);
        for (protocol, tci) in &self.tags {
            frame.extend(protocol.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        let ethertype = if self.source.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
        frame.extend(ethertype.to_be_bytes());
        let content = match self.fragment {
            Some((offset, _)) if offset > 0 => self.payload.clone(),
            _ => self.segment(),
        };
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (offset, more) = self.fragment.unwrap_or((0, false));
                let length = 20 + self.ip_options.len();
                let mut header = vec![0x40 | (length / 4) as u8, 0];
                header.extend(((length + content.len()) as u16).to_be_bytes());
                header.extend([0x12, 0x34]);
                header.extend((offset | (more as u16) << 13).to_be_bytes());
                header.extend([self.ttl, TCP, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(&self.ip_options);
                let check = checksum(&[&header]);
                header[10..12].copy_from_slice(&check.to_be_bytes());
                frame.extend(header);
            }
            (source, destination) => {
                let mut extensions = self.extensions.clone();
                if let Some((offset, more)) = self.fragment {
                    let [high, low] = (offset << 3 | more as u16).to_be_bytes();
                    extensions.push((extension::FRAGMENT, vec![high, low, 0, 0, 0, 7]));
                }
                let total: usize = extensions.iter().map(|(_, body)| body.len() + 2).sum();
                frame.extend([0x60, 0, 0x12, 0x34]);
                frame.extend(((total + content.len()) as u16).to_be_bytes());
                frame.extend([extensions.first().map_or(TCP, |(kind, _)| *kind), self.ttl]);
                frame.extend(octets(source));
                frame.extend(octets(destination));
                for (at, (kind, body)) in extensions.iter().enumerate() {
                    let next = extensions.get(at + 1).map_or(TCP, |(kind, _)| *kind);
                    // A fragment header has a fixed length, and a reserved byte in the length's place; that of an
                    // authentication header is in units of 4 bytes, less 2 (RFC 4302 section 2.2).
                    let length = match *kind {
                        extension::FRAGMENT => 0,
                        extension::AUTHENTICATION => (body.len() + 2) / 4 - 2,
                        _ => (body.len() + 2) / 8 - 1,
                    };
                    frame.extend([next, length as u8]);
                    frame.extend(body);
                }
            }
        }
        frame.extend(content);
        frame.resize(frame.len() + self.trailer, 0xee);
        Frame(frame)
    }

    /// What an ICMP error quotes of it: the IP header with its options or extensions, and `bytes` of the TCP segment.
    pub fn quote(&self, bytes: usize) -> Vec<u8> {
        let mut frame = self.build().0;
        let content = self.segment().len() + self.trailer;
        frame.truncate(frame.len() - content + bytes);
        frame.split_off(14 + 4 * self.tags.len())
    }

    fn segment(&self) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(self.source.port().to_be_bytes());
        segment.extend(self.destination.port().to_be_bytes());
        segment.extend(self.seq.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        segment.extend([((20 + self.tcp_options.len()) / 4 * 16) as u8, self.flags]);
        segment.extend(0xfaf0u16.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(&self.tcp_options);
        segment.extend(&self.payload);
        let check = tcp_checksum(&octets(self.source.ip()), &octets(self.destination.ip()), &segment);
        segment[16..18].copy_from_slice(&check.to_be_bytes());
        segment
    }
}

/// The bytes of an address.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The Internet checksum of `parts`, each of an even length but the last (RFC 1071 section 4.1).
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]) as u64;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of a TCP segment with its pseudo-header (RFC 9293 section 3.1); 0 if the field is filled in and right.
fn tcp_checksum(source: &[u8], destination: &[u8], segment: &[u8]) -> u16 {
    pseudo_checksum(source, destination, TCP, segment)
}

/// The same for another protocol.
pub(crate) fn pseudo_checksum(source: &[u8], destination: &[u8], protocol: u8, content: &[u8]) -> u16 {
    let length = (content.len() as u32).to_be_bytes();
    checksum(&[source, destination, &length, &[0, protocol], content])
}

/// Whether the checksums in a frame with one whole TCP or ICMP packet are right; `Err` says which is not, or why there is none.
pub fn verify_checksums(frame: &[u8]) -> Result<(), String> {
    let short = || "too short".to_string();
    let half = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let mut at = 12;
    while matches!(half(at), Some(ethertype::VLAN | ethertype::QINQ)) {
        at += 4;
    }
    let ip = at + 2;
    let (source, destination, protocol, start, end) = match half(at).ok_or_else(short)? {
        ethertype::IPV4 => {
            let header = (*frame.get(ip).ok_or_else(short)? & 0xf) as usize * 4;
            let total = half(ip + 2).ok_or_else(short)? as usize;
            if checksum(&[frame.get(ip..ip + header).ok_or_else(short)?]) != 0 {
                return Err("the IPv4 header checksum is wrong".into());
            }
            if half(ip + 6).ok_or_else(short)? & 0x3fff != 0 {
                return Err("a fragment".into());
            }
            (ip + 12..ip + 16, ip + 16..ip + 20, frame[ip + 9], ip + header, ip + total)
        }
        ethertype::IPV6 => {
            let end = ip + 40 + half(ip + 4).ok_or_else(short)? as usize;
            let mut next = *frame.get(ip + 6).ok_or_else(short)?;
            let mut at = ip + 40;
            while next != TCP && next != icmp::V6 {
                let [following, units, high, low] =
                    frame.get(at..at + 4).ok_or_else(short)?.try_into().map_err(|_| short())?;
                at += match next {
                    extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {
                        units as usize * 8 + 8
                    }
                    extension::FRAGMENT if u16::from_be_bytes([high, low]) & 0xfff9 == 0 => 8,
                    other => return Err(format!("next header {other}")),
                };
                next = following;
            }
            (ip + 8..ip + 24, ip + 24..ip + 40, next, at, end)
        }
        other => return Err(format!("EtherType {other:04x}")),
    };
    let part = |range: std::ops::Range<usize>| frame.get(range).ok_or_else(short);
    let (source, destination, segment) = (part(source)?, part(destination)?, part(start..end)?);
    if segment.len() < 8 || (protocol == TCP && segment.len() < 20) {
        return Err(short());
    }
    let off = match protocol {
        icmp::V4 => checksum(&[segment]),
        _ => pseudo_checksum(source, destination, protocol, segment),
    };
    match off {
        0 => Ok(()),
        off => Err(format!("the checksum of protocol {protocol} is wrong by {off:04x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_packets_verify() {
        // A header whose checksum, b1e6, is known from elsewhere.
        let header = [
            0x45, 0x00, 0x00, 0x3c, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x06, 0xb1, 0xe6, 0xac, 0x10, 0x0a, 0x63,
            0xac, 0x10, 0x0a, 0x0c,
        ];
        assert_eq!(checksum(&[&header]), 0);
        for (source, destination) in [("10.0.0.1:1", "10.0.0.2:2"), ("[2001:db8::1]:1", "[2001:db8::2]:2")] {
            let builder = packet(source.parse().unwrap(), destination.parse().unwrap())
                .ip_options(&[1, 1])
                .extension(extension::HOP_BY_HOP, &[1, 0])
                .tag(7)
                .mss(1460)
                .payload(b"odd")
                .trailer(3);
            let mut frame = builder.build();
            verify_checksums(&frame.0).unwrap();
            let last = frame.0.len() - 4;
            frame.0[last] ^= 1;
            verify_checksums(&frame.0).unwrap_err();
        }
    }
}
