//! ICMP errors of our own: a packet that cannot be sent on becomes the message that tells its sender.
//!
//! A redirect checks neither MTU nor TTL, and the packets of a flow have no stack to do it for them. IPv4: destination
//! unreachable, fragmentation needed, with the next hop's MTU (RFC 792, RFC 1191), and time exceeded; IPv6: packet too
//! big and time exceeded (RFC 4443). They are sent in the name of whom the packet was addressed to, back to where it came
//! from. The MTU is told for IPv4 packets that allow fragmentation, too: nothing here fragments.

use crate::address::Address;
use crate::checksum::{self, fold, words};
use crate::icmp;
use crate::packet::{LinkHeader, Packet};
use crate::parse::{Link, MAX_L4_OFFSET};
use crate::reason::Reason;

/// Bytes of the TCP segment that are quoted: its fixed header. With fewer (8 would do) a checksum that the device
/// completes would lie outside of the packet.
const QUOTED: usize = 20;
/// Offset of the checksum in the TCP header.
const TCP_CHECK: usize = 16;
/// TTL or hop limit of the messages.
const TTL: u8 = 64;
/// Type of service of the messages: internetwork control (RFC 1812 section 4.3.2.5).
const CONTROL: u8 = 0xc0;

/// Why a packet is dropped that was to be answered, as [`answer`] is told by `mtu`, and could not be.
#[inline(always)]
pub fn unanswered(mtu: u32) -> Reason {
    if mtu == 0 { Reason::TTL_EXPIRED } else { Reason::REWRITE_FAILED }
}

/// The folded sum of what is to be quoted of a packet whose IP header is at `l3`, whose TCP header is at `l4`.
#[inline(always)]
pub fn quoted_sum<P: Packet>(packet: &mut P, l3: usize, l4: usize) -> Option<u32> {
    let l4 = l4 & MAX_L4_OFFSET;
    let headers = checksum::sum(packet, l3, l4.wrapping_sub(l3) / 4);
    let check = packet.read::<u16>(l4 + TCP_CHECK)?;
    // The device will yet add the segment's sum to the field and complement it, behind our back: the sum of the header
    // is then the complement of what is in the field now.
    let segment = if packet.has_partial_checksum(l4 + TCP_CHECK)? {
        !check as u32
    } else {
        checksum::sum(packet, l4, QUOTED / 4)
    };
    Some(fold(headers + segment) as u32)
}

/// Turns `packet`, a whole TCP segment behind `link` whose TCP header is at `l4`, into an ICMP error that is to leave
/// by the interface that it came in by. `mtu`: what the packet may not exceed, bytes, at most 65,535; 0: its TTL is used
/// up. `quoted`: see [`quoted_sum`].
///
/// `None`: its sender is nobody to answer, or the frame could not be changed; it must not go anywhere.
#[inline(always)]
#[must_use]
pub fn answer<A: Address, P: Packet>(
    packet: &mut P,
    link: &Link,
    l4: usize,
    mtu: u32,
    quoted: u32,
) -> Option<()> {
    let l4 = l4 & MAX_L4_OFFSET;
    let headers = l4.wrapping_sub(link.l3) & MAX_L4_OFFSET;
    let [sender, receiver] = packet.read::<[A; 2]>(if A::V6 { link.l3 + 8 } else { link.l3 + 12 })?;
    if !sender.is_unicast() {
        return None;
    }
    let mut back = LinkHeader {
        destination: link.source,
        source: [0; 6],
        tags: link.tags,
        ethertype: link.ethertype,
        bare: link.is_bare(),
    };
    let mut untagged = Link::bare(link.ethertype);
    if !link.is_bare() {
        back.source = packet.read::<[u8; 6]>(0)?;
        untagged.l3 = 14;
    }
    let room = if A::V6 { 40 + 8 } else { 20 + 8 };
    packet.make_room(link, (l4 + QUOTED) as u32, room)?;
    let length = (headers + QUOTED) as u32 + 8;
    let l3 = untagged.l3;
    if A::V6 {
        let [high, low] = (length as u16).to_be_bytes();
        packet.write::<[u8; 8]>(l3, [0x60, 0, 0, 0, high, low, icmp::V6, TTL])?;
        packet.write::<[A; 2]>(l3 + 8, [receiver, sender])?;
    } else {
        let [high, low] = (length as u16 + 20).to_be_bytes();
        // Identification 0 and "don't fragment": RFC 6864.
        let first = u32::from_ne_bytes([0x45, CONTROL, high, low]);
        let second = u32::from_ne_bytes([0, 0, 0x40, 0]);
        let third = u32::from_ne_bytes([TTL, icmp::V4, 0, 0]);
        let sum = words(first) + words(second) + words(third) + sender.sum() + receiver.sum();
        let [a, b] = (!fold(sum)).to_ne_bytes();
        packet.write::<[u32; 3]>(l3, [first, second, u32::from_ne_bytes([TTL, icmp::V4, a, b])])?;
        packet.write::<[A; 2]>(l3 + 12, [receiver, sender])?;
    }
    let (kind, code) = match (A::V6, mtu) {
        (false, 0) => (icmp::v4::TIME_EXCEEDED, 0),
        (false, _) => (icmp::v4::UNREACHABLE, icmp::v4::FRAGMENTATION_NEEDED),
        (true, 0) => (icmp::v6::TIME_EXCEEDED, 0),
        (true, _) => (icmp::v6::TOO_BIG, 0),
    };
    // IPv4 has the MTU in the lower half of a word whose upper half is zero, IPv6 in the whole word.
    let second = mtu.to_be();
    let mut sum = words(u32::from_ne_bytes([kind, code, 0, 0])) + words(second) + quoted;
    if A::V6 {
        let pseudo = words(length.to_be()) + words(u32::from_ne_bytes([0, 0, 0, icmp::V6]));
        sum += fold(sender.sum() + receiver.sum()) as u32 + pseudo;
    }
    let [a, b] = (!fold(sum)).to_ne_bytes();
    let at = l3 + room as usize - 8;
    packet.write::<[u32; 2]>(at, [u32::from_ne_bytes([kind, code, a, b]), second])?;
    packet.set_link_header(&untagged, &back)
}
