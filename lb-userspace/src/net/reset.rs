//! RST segments in the name of somebody else: to both ends of a connection that the kernel's flows carried and that is over.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// IP protocol number of TCP.
const TCP: u8 = 6;
/// Hops that it may go.
const TTL: u8 = 64;
/// Bytes of a TCP header without options.
const HEADER: usize = 20;

/// Sends them. Takes `CAP_NET_RAW`.
pub struct Resets {
    v4: Socket,
    /// `None`: the node has no IPv6.
    v6: Option<Socket>,
}

/// A RST. Its receiver takes it if `seq` is what it expects next (RFC 9293 section 3.10.7.4, RFC 5961 section 3.2); where
/// it is not, it asks, and the stack, which knows of no such connection, answers with what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: u32,
    /// What it acknowledges: an answer to a SYN has to, and what is wrong is worse than nothing.
    pub ack: Option<u32>,
}

impl Resets {
    /// Opens the sockets.
    pub fn new() -> Result<Self> {
        let open = |domain| {
            // With this protocol the header is the sender's own (raw(7); ipv6(7)).
            let raw = Some(Protocol::from(libc::IPPROTO_RAW));
            let socket = Socket::new(domain, Type::RAW, raw)?;
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>(socket)
        };
        Ok(Self { v4: open(Domain::IPV4).context("opening a raw socket")?, v6: open(Domain::IPV6).ok() })
    }

    /// Sends one; an error means that this node could not.
    pub fn send(&self, reset: &Reset) -> io::Result<()> {
        let packet = reset.packet();
        // The port of a raw socket's address is none.
        let to = SockAddr::from(SocketAddr::new(reset.to.ip(), 0));
        match (reset.to.ip(), &self.v6) {
            (IpAddr::V4(_), _) => self.v4.send_to(&packet, &to),
            (IpAddr::V6(_), Some(v6)) => v6.send_to(&packet, &to),
            (IpAddr::V6(_), None) => return Err(io::ErrorKind::Unsupported.into()),
        }
        .map(drop)
    }
}

impl Reset {
    /// The IP packet. The kernel fills in the checksum of an IPv4 header.
    fn packet(&self) -> Vec<u8> {
        let segment = self.segment();
        let mut packet = Vec::with_capacity(40 + HEADER);
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let [high, low] = (20 + HEADER as u16).to_be_bytes();
                // Don't fragment, no identification.
                packet.extend([0x45, 0, high, low, 0, 0, 0x40, 0, TTL, TCP, 0, 0]);
                packet.extend(from.octets());
                packet.extend(to.octets());
            }
            (from, to) => {
                packet.extend([0x60, 0, 0, 0, 0, HEADER as u8, TCP, TTL]);
                packet.extend(v6(from).octets());
                packet.extend(v6(to).octets());
            }
        }
        packet.extend(segment);
        packet
    }

    fn segment(&self) -> [u8; HEADER] {
        const RST: u8 = 0x04;
        const ACK: u8 = 0x10;
        let mut segment = [0; HEADER];
        segment[..2].copy_from_slice(&self.from.port().to_be_bytes());
        segment[2..4].copy_from_slice(&self.to.port().to_be_bytes());
        segment[4..8].copy_from_slice(&self.seq.to_be_bytes());
        segment[8..12].copy_from_slice(&self.ack.unwrap_or(0).to_be_bytes());
        segment[12] = ((HEADER / 4) << 4) as u8;
        segment[13] = if self.ack.is_some() { RST | ACK } else { RST };
        let check = self.checksum(&segment);
        segment[16..18].copy_from_slice(&check.to_be_bytes());
        segment
    }

    /// RFC 9293 section 3.1, over the pseudo-header and the segment.
    fn checksum(&self, segment: &[u8; HEADER]) -> u16 {
        let address = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let mut all = [address(self.from.ip()), address(self.to.ip())].concat();
        all.extend([0, TCP, 0, HEADER as u8]);
        all.extend(segment);
        let words = all.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum = words.fold(0, |sum, word| (sum + word) % 0xffff);
        !(sum as u16)
    }
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::to_ipv6_mapped(&ip),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of all words of a packet and its pseudo-header, which is all ones if the checksum is right.
    fn sum(bytes: &[u8]) -> u32 {
        let words = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        words.fold(0, |sum, word| (sum + word) % 0xffff)
    }

    #[test]
    fn ipv4() {
        let reset = Reset {
            from: "10.0.0.1:80".parse().unwrap(),
            to: "192.0.2.7:40000".parse().unwrap(),
            seq: 0xdead_beef,
            ack: Some(7),
        };
        let packet = reset.packet();
        assert_eq!(packet.len(), 40);
        assert_eq!(packet[12..20], [10, 0, 0, 1, 192, 0, 2, 7]);
        assert_eq!(packet[20..24], [0, 80, 0x9c, 0x40]);
        assert_eq!(packet[24..32], [0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 7]);
        assert_eq!(packet[33], 0x14);
        let checked = [&packet[12..20], &[0, 6, 0, 20], &packet[20..]].concat();
        assert_eq!(sum(&checked), 0);
    }

    #[test]
    fn ipv6() {
        let reset = Reset {
            from: "[2001:db8::1]:443".parse().unwrap(),
            to: "[2001:db8::2]:1".parse().unwrap(),
            seq: 1,
            ack: None,
        };
        let packet = reset.packet();
        assert_eq!(packet.len(), 60);
        assert_eq!(packet[53], 0x04);
        let checked = [&packet[8..40], &[0, 0, 0, 20, 0, 0, 0, 6], &packet[40..]].concat();
        assert_eq!(sum(&checked), 0);
    }
}
