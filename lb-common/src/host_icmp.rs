//! ICMP errors for tests, built like the packets of [`crate::host_packets`]: from parts, checksums computed in full.

use std::net::IpAddr;

use crate::host::Frame;
use crate::host_packets::{checksum, octets, pseudo_checksum};
use crate::icmp::{V4, V6};
use crate::parse::ethertype;

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// Larger than this MTU, bytes.
    TooBig(u16),
    /// TTL or hop limit used up.
    Expired,
    /// No such host.
    Unreachable,
    /// Another type of message with what looks like a quote: an echo request.
    Echo,
}

impl Complaint {
    /// Type, code and the word behind the checksum.
    fn fields(self, v6: bool) -> ([u8; 2], u32) {
        match (self, v6) {
            (Self::TooBig(mtu), false) => ([3, 4], mtu.into()),
            (Self::TooBig(mtu), true) => ([2, 0], mtu.into()),
            (Self::Expired, false) => ([11, 0], 0),
            (Self::Expired, true) => ([3, 0], 0),
            (Self::Unreachable, false) => ([3, 1], 0),
            (Self::Unreachable, true) => ([1, 3], 0),
            (Self::Echo, false) => ([8, 0], 7),
            (Self::Echo, true) => ([128, 0], 7),
        }
    }
}

/// An ICMP error to be.
#[derive(Clone, Debug)]
pub struct IcmpBuilder {
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    tags: Vec<(u16, u16)>,
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    options: Vec<u8>,
    complaint: Complaint,
    quote: Vec<u8>,
}

/// An error from `source` to `destination` about the packet that begins with the bytes `quote`; TTL 64.
pub fn icmp_error(source: IpAddr, destination: IpAddr, complaint: Complaint, quote: Vec<u8>) -> IcmpBuilder {
    IcmpBuilder {
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        tags: Vec::new(),
        source,
        destination,
        ttl: 64,
        options: Vec::new(),
        complaint,
        quote,
    }
}

impl IcmpBuilder {
    /// The MAC addresses.
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        (self.source_mac, self.destination_mac) = (source, destination);
        self
    }

    /// A further tag, outer first: its EtherType and tag control information.
    pub fn tag(mut self, ethertype: u16, tci: u16) -> Self {
        self.tags.push((ethertype, tci));
        self
    }

    /// TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// IPv4 options, filled up to whole words.
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self.options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    /// The frame.
    pub fn build(&self) -> Frame {
        let v6 = self.source.is_ipv6();
        let (source, destination) = (octets(self.source), octets(self.destination));
        let ([kind, code], word) = self.complaint.fields(v6);
        let mut message = vec![kind, code, 0, 0];
        message.extend(word.to_be_bytes());
        message.extend(&self.quote);
        let check =
            if v6 { pseudo_checksum(&source, &destination, V6, &message) } else { checksum(&[&message]) };
        message[2..4].copy_from_slice(&check.to_be_bytes());

        let mut frame = Vec::new();
        frame.extend(self.destination_mac);
        frame.extend(self.source_mac);
        for (protocol, tci) in &self.tags {
            frame.extend(protocol.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        frame.extend((if v6 { ethertype::IPV6 } else { ethertype::IPV4 }).to_be_bytes());
        if v6 {
            frame.extend([0x60, 0, 0, 0]);
            frame.extend((message.len() as u16).to_be_bytes());
            frame.extend([V6, self.ttl]);
            frame.extend(source);
            frame.extend(destination);
        } else {
            let length = 20 + self.options.len();
            let mut header = vec![0x40 | (length / 4) as u8, 0xc0];
            header.extend(((length + message.len()) as u16).to_be_bytes());
            header.extend([0, 0, 0x40, 0, self.ttl, V4, 0, 0]);
            header.extend(source);
            header.extend(destination);
            header.extend(&self.options);
            let check = checksum(&[&header]);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            frame.extend(header);
        }
        frame.extend(message);
        Frame(frame)
    }
}
