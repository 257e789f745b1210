//! Applies an entry to a frame: addresses, ports, checksums, TTL, MSS, link layer. Checksums go by difference.

use crate::address::Address;
use crate::checksum;
use crate::decide::Output;
use crate::flow::Flow;
use crate::packet::{LinkHeader, Packet};
use crate::parse::{MAX_L3_OFFSET, MAX_L4_OFFSET, Segment, Tags};
use crate::tables::hop;
use crate::tcp;

/// Rewrites `packet`, which `segment` was parsed from, so that it can leave by `output`.
///
/// `None`: the frame could not be written to; it is then half rewritten and must not go anywhere.
#[inline(always)]
#[must_use]
pub fn rewrite<A: Address, P: Packet>(
    packet: &mut P,
    segment: &Segment<A>,
    flow: &Flow<A>,
    output: Output<'_>,
) -> Option<()> {
    let l4 = segment.l4 & MAX_L4_OFFSET;
    let mut rest = flow.delta_ports;
    if segment.has(tcp::flags::SYN)
        && let Some((at, old, new)) = clamped_mss(packet, segment, flow.mss)
    {
        packet.write::<u16>(at, new)?;
        let mut delta = checksum::delta(old as u32, new as u32);
        // A word at an odd distance adds to the sum with its bytes swapped (RFC 1071 section 2 (B)).
        if (at ^ l4) & 1 != 0 {
            delta = delta.swap_bytes();
        }
        rest = checksum::fold(rest as u32 + delta as u32);
    }
    packet.add_to_l4_checksum(l4 + 16, flow.delta_addresses, rest, A::V6)?;
    packet.write::<[u16; 2]>(l4, [flow.out.source_port, flow.out.destination_port])?;
    let l3 = segment.link.l3 & MAX_L3_OFFSET;
    let ttl = segment.ttl.wrapping_sub(1);
    if A::V6 {
        packet.write::<u8>(l3 + 7, ttl)?;
        packet.write::<[A; 2]>(l3 + 8, [flow.out.source, flow.out.destination])?;
    } else {
        packet.write::<u8>(l3 + 8, ttl)?;
        let check = packet.read::<u16>(l3 + 10)?;
        packet.write::<u16>(l3 + 10, checksum::apply(check, flow.delta_l3 as u32))?;
        packet.write::<[A; 2]>(l3 + 12, [flow.out.source, flow.out.destination])?;
    }
    let header = link_header(segment.link.ethertype, flow, output);
    packet.set_link_header(&segment.link, &header)
}

/// The Ethernet header that the packet leaves with. Towards the kernel's neighbour code an untagged one, whose
/// addresses that code fills in.
#[inline(always)]
pub(crate) fn link_header<A: Address>(ethertype: u16, flow: &Flow<A>, output: Output<'_>) -> LinkHeader {
    match output {
        Output::Hop(hop) => {
            let learned = flow.is_learned();
            LinkHeader {
                destination: if learned { flow.mac } else { hop.mac },
                source: hop.source_mac,
                tags: if learned { flow.tags } else { hop.tags },
                ethertype,
                bare: hop.flags & hop::L3 != 0,
            }
        }
        Output::Neighbour(hop) => {
            let tags = Tags::default();
            LinkHeader { destination: hop.mac, source: hop.source_mac, tags, ethertype, bare: false }
        }
    }
}

/// Where the MSS option's value stands, and the value as it is and as it should be (network byte order), if it
/// exceeds `limit` (RFC 9293 section 3.7.1).
#[inline(always)]
fn clamped_mss<A: Address, P: Packet>(
    packet: &P,
    segment: &Segment<A>,
    limit: u16,
) -> Option<(usize, u16, u16)> {
    let start = (segment.l4 & MAX_L4_OFFSET) + 20;
    let found = packet.find_mss(start, (segment.header as usize).saturating_sub(20)) as usize;
    if found == 0 {
        return None;
    }
    let at = found & 0x3ff;
    let value = packet.read::<u16>(at)?;
    (u16::from_be(value) > limit).then_some((at, value, limit.to_be()))
}
