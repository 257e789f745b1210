//! From a frame to a [`Segment`]: Ethernet with up to two VLAN tags, IPv4 with options, IPv6 with extension
//! headers, TCP. Reads only.

use crate::address::Address;
use crate::flow::Key;
use crate::packet::Packet;
use crate::reason::Reason;
use crate::tcp;

/// EtherTypes, host order (IEEE 802 numbers).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// A VLAN tag (IEEE 802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// An outer VLAN tag (IEEE 802.1ad).
    pub const QINQ: u16 = 0x88a8;
}

/// The IP protocol number of TCP.
pub const TCP: u8 = 6;

/// Upper bound of where an IP header may begin, likewise a mask.
pub const MAX_L3_OFFSET: usize = 0x1f;
/// Upper bound of where a TCP header may begin; a power of two less one, so that it can mask an offset.
pub const MAX_L4_OFFSET: usize = 0x1ff;
/// IPv6 extension headers that are followed.
const MAX_EXTENSIONS: usize = 4;
/// Bytes of one IPv6 extension header that are followed.
const MAX_EXTENSION_LENGTH: usize = 64;

/// VLAN tags of a frame, outer first.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Tags {
    /// Tag control information (priority, DEI, VLAN id), host order; zero beyond `count`.
    pub tci: [u16; 2],
    /// 0 to 2.
    pub count: u8,
    /// How many of them stand in the frame; the outer one may be in the skb's metadata instead.
    pub in_frame: u8,
    /// EtherType of the outer tag, host order: [`ethertype::VLAN`] or [`ethertype::QINQ`]. An inner one is VLAN.
    pub outer: u16,
}

impl Tags {
    /// Whether two frames are on the same VLAN, whatever their priority bits say.
    #[inline(always)]
    pub fn same_vlan(self, other: Self) -> bool {
        self.count == other.count
            && (self.tci[0] ^ other.tci[0]) & 0xfff == 0
            && (self.tci[1] ^ other.tci[1]) & 0xfff == 0
    }
}

/// The link layer of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// VLAN tags.
    pub tags: Tags,
    /// The EtherType behind the tags, host order.
    pub ethertype: u16,
    /// Offset of the IP header: 14, 18 or 22; 0 where the device has no Ethernet header and the frame begins with it.
    pub l3: usize,
    /// The sender's MAC address.
    pub source: [u8; 6],
}

impl Link {
    /// The link layer of a frame that begins with its IP header (tun, WireGuard, IPIP), whose EtherType the device says.
    #[inline(always)]
    pub fn bare(ethertype: u16) -> Self {
        Self { tags: Tags::default(), ethertype, l3: 0, source: [0; 6] }
    }

    /// Whether the frame begins with its IP header.
    #[inline(always)]
    pub fn is_bare(&self) -> bool {
        self.l3 == 0
    }
}

/// A TCP segment in its packet, or the first fragment of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<A> {
    /// The 5-tuple as it arrives.
    pub key: Key<A>,
    /// The link layer it came in.
    pub link: Link,
    /// Offset of the TCP header, at most [`MAX_L4_OFFSET`].
    pub l4: usize,
    /// TTL or hop limit, as it arrives.
    pub ttl: u8,
    /// The first fragment of a larger packet.
    pub fragment: bool,
    /// TCP flags, see [`tcp::flags`].
    pub flags: u8,
    /// Length of the TCP header with options, bytes.
    pub header: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number; meaningless without ACK.
    pub ack: u32,
    /// Payload bytes; of a GSO super-packet all of them.
    pub payload: u32,
}

impl<A: Address> Segment<A> {
    /// Whether this segment opens a connection: SYN without ACK, RST or FIN; ECN bits do not matter.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.flags & (tcp::flags::SYN | tcp::flags::ACK | tcp::flags::RST | tcp::flags::FIN)
            == tcp::flags::SYN
    }

    /// Whether any of `flags` is set.
    #[inline(always)]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Bytes of the IP packet if it had `payload` bytes of payload.
    #[inline(always)]
    pub fn length(&self, payload: u32) -> u32 {
        (self.l4.wrapping_sub(self.link.l3) as u32).wrapping_add(self.header as u32).wrapping_add(payload)
    }
}

/// The link layer. `Err`: not a frame to look at further, with the reason.
#[inline(always)]
pub fn parse_link<P: Packet>(packet: &P) -> Result<Link, Reason> {
    let Some(destination) = packet.read::<u8>(0) else { return Err(Reason::TRUNCATED) };
    if destination & 1 != 0 {
        return Err(Reason::NOT_UNICAST);
    }
    let Some(source) = packet.read::<[u8; 6]>(6) else { return Err(Reason::TRUNCATED) };
    let Some(raw) = packet.read::<u16>(12) else { return Err(Reason::TRUNCATED) };
    let mut ethertype = u16::from_be(raw);
    let mut tags = Tags::default();
    if let Some((protocol, tci)) = packet.stripped_tag() {
        tags.tci[0] = tci;
        tags.outer = protocol;
        tags.count = 1;
    }
    let mut l3 = 14;
    if is_tag(ethertype) {
        let (tci, inner) = tag(packet, 14)?;
        if tags.count == 0 {
            tags.tci[0] = tci;
            tags.outer = ethertype;
        } else {
            tags.tci[1] = tci;
        }
        tags.count += 1;
        tags.in_frame = 1;
        ethertype = inner;
        l3 = 18;
        if is_tag(ethertype) && tags.count == 1 {
            let (tci, inner) = tag(packet, 18)?;
            tags.tci[1] = tci;
            tags.count = 2;
            tags.in_frame = 2;
            ethertype = inner;
            l3 = 22;
        }
    }
    Ok(Link { tags, ethertype, l3, source })
}

#[inline(always)]
fn is_tag(ethertype: u16) -> bool {
    ethertype == ethertype::VLAN || ethertype == ethertype::QINQ
}

/// The TCI and the EtherType behind it, host order.
#[inline(always)]
fn tag<P: Packet>(packet: &P, offset: usize) -> Result<(u16, u16), Reason> {
    let Some([tci, inner]) = packet.read::<[u16; 2]>(offset) else { return Err(Reason::TRUNCATED) };
    Ok((u16::from_be(tci), u16::from_be(inner)))
}

/// The TCP segment behind `link`, whose EtherType is `A`'s. `Err`: what it is instead.
#[inline(always)]
pub fn parse<A: Address, P: Packet>(packet: &P, link: Link) -> Result<Segment<A>, Reason> {
    let ip = if A::V6 { ipv6(packet, link.l3) } else { ipv4(packet, link.l3, TCP) };
    if let Some(reason) = ip.failed {
        return Err(reason);
    }
    let l4 = ip.l4 & MAX_L4_OFFSET;
    let source_at = if A::V6 { link.l3 + 8 } else { link.l3 + 12 };
    let Some([source, destination]) = packet.read::<[A; 2]>(source_at) else { return Err(Reason::TRUNCATED) };
    let Some([ports, seq, ack, word]) = packet.read::<[u32; 4]>(l4) else { return Err(Reason::TRUNCATED) };
    // The last word of the fixed header (checksum, urgent pointer) has to be there as well.
    if packet.read::<u32>(l4 + 16).is_none() {
        return Err(Reason::TRUNCATED);
    }
    let [data_offset, flags, _, _] = word.to_ne_bytes();
    let header = (data_offset >> 4) * 4;
    let fragment = ip.fragment;
    if header < 20 || (!fragment && (header as u32) > ip.length) {
        return Err(Reason::MALFORMED);
    }
    let [a, b, c, d] = ports.to_ne_bytes();
    Ok(Segment {
        key: Key::new(source, destination, u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])),
        link,
        l4,
        ttl: ip.ttl,
        fragment,
        flags,
        header,
        seq: u32::from_be(seq),
        ack: u32::from_be(ack),
        payload: ip.length.wrapping_sub(header as u32),
    })
}

/// What the IP header says of a packet. All fields have a value in any case: the compiler may spill those of a failure, and the
/// verifier minds if they have none.
pub(crate) struct Ip {
    pub(crate) failed: Option<Reason>,
    pub(crate) l4: usize,
    /// Bytes behind the IP header(s).
    pub(crate) length: u32,
    pub(crate) ttl: u8,
    pub(crate) fragment: bool,
}

impl Ip {
    #[inline(always)]
    pub(crate) fn failed(reason: Reason) -> Self {
        Self { failed: Some(reason), l4: 0, length: 0, ttl: 0, fragment: false }
    }
}

/// The IPv4 header at `l3` of a packet of protocol `wanted`.
#[inline(always)]
pub(crate) fn ipv4<P: Packet>(packet: &P, l3: usize, wanted: u8) -> Ip {
    let Some([first, second, third]) = packet.read::<[u32; 3]>(l3) else {
        return Ip::failed(Reason::TRUNCATED);
    };
    let [version, _, length_high, length_low] = first.to_ne_bytes();
    let header = ((version & 0xf) as usize) * 4;
    let total = u16::from_be_bytes([length_high, length_low]) as u32;
    let [_, _, fragment_high, fragment_low] = second.to_ne_bytes();
    let fragment = u16::from_be_bytes([fragment_high, fragment_low]);
    let [ttl, protocol, _, _] = third.to_ne_bytes();
    if version >> 4 != 4 || header < 20 || total < header as u32 {
        return Ip::failed(Reason::MALFORMED);
    }
    if protocol != wanted {
        return Ip::failed(Reason::NOT_TCP);
    }
    if l3 as u32 + total > packet.len() {
        return Ip::failed(Reason::TRUNCATED);
    }
    // Behind the first fragment there are no ports to see.
    if fragment & 0x1fff != 0 {
        return Ip::failed(Reason::LATER_FRAGMENT);
    }
    Ip { failed: None, l4: l3 + header, length: total - header as u32, ttl, fragment: fragment & 0x2000 != 0 }
}

#[inline(always)]
fn ipv6<P: Packet>(packet: &P, l3: usize) -> Ip {
    let Some([first, second]) = packet.read::<[u32; 2]>(l3) else { return Ip::failed(Reason::TRUNCATED) };
    let [version, _, _, _] = first.to_ne_bytes();
    if version >> 4 != 6 {
        return Ip::failed(Reason::MALFORMED);
    }
    let [length_high, length_low, next, ttl] = second.to_ne_bytes();
    let total = u16::from_be_bytes([length_high, length_low]) as u32;
    if l3 as u32 + 40 + total > packet.len() {
        return Ip::failed(Reason::TRUNCATED);
    }
    let mut headers = 0;
    let mut fragment = false;
    if next != TCP {
        let found = packet.skip_extensions(l3, next);
        if found & extensions::FAILED != 0 {
            return Ip::failed(Reason::from_number(found & 0xff));
        }
        headers = found & extensions::LENGTH;
        fragment = found & extensions::FRAGMENT != 0;
    }
    if total < headers {
        return Ip::failed(Reason::MALFORMED);
    }
    Ip { failed: None, l4: l3 + 40 + headers as usize, length: total - headers, ttl, fragment }
}

/// The result of [`skip_extensions`], as a number.
pub mod extensions {
    /// No TCP header was reached; the reason's number is in the low byte.
    pub const FAILED: u32 = 1 << 31;
    /// The first fragment of a larger packet.
    pub const FRAGMENT: u32 = 1 << 30;
    /// Bytes of extension headers in front of the TCP header.
    pub const LENGTH: u32 = 0x1ff;
}

/// Steps over hop-by-hop, destination options, routing and fragment headers (RFC 8200 section 4) of the IPv6 header
/// at `l3`, whose next header is `next`. See [`extensions`].
#[inline(always)]
pub fn skip_extensions<P: Packet>(packet: &P, l3: usize, next: u8) -> u32 {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    let failed = |reason: Reason| extensions::FAILED | reason.number();

    let start = (l3 & MAX_L3_OFFSET) + 40;
    let mut next = next;
    let mut length = 0usize;
    let mut fragment = 0;
    let mut count = 0;
    while count < MAX_EXTENSIONS {
        let at = start + (length & extensions::LENGTH as usize);
        let Some([following, units, high, low]) = packet.read::<[u8; 4]>(at) else {
            return failed(Reason::TRUNCATED);
        };
        let bytes = match next {
            HOP_BY_HOP | DESTINATION => (units as usize + 1) * 8,
            // A source route that is not yet used up names another destination than the header's.
            ROUTING if low == 0 => (units as usize + 1) * 8,
            FRAGMENT => {
                let field = u16::from_be_bytes([high, low]);
                if field & 0xfff8 != 0 {
                    return failed(Reason::LATER_FRAGMENT);
                }
                // Offset 0 and no more fragments: an atomic fragment, a whole packet (RFC 6946).
                if field & 1 != 0 {
                    fragment = extensions::FRAGMENT;
                }
                8
            }
            _ => return failed(Reason::NOT_TCP),
        };
        if bytes > MAX_EXTENSION_LENGTH {
            return failed(Reason::NOT_TCP);
        }
        length += bytes;
        next = following;
        if next == TCP {
            return length as u32 & extensions::LENGTH | fragment;
        }
        count += 1;
    }
    failed(Reason::NOT_TCP)
}
