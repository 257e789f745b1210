//! ICMP errors about packets of a flow, translated by the packet that they quote.
//!
//! A router that cannot carry a packet on tells its source (RFC 792, RFC 1191; RFC 4443). That is us: our SNAT address
//! towards backends, the VIP towards clients. The quoted packet with its ends swapped has the tuple that the flow's
//! packets of the other direction arrive with; they go where the message must go. So it takes the addresses of such a
//! packet, and the quote is made what its sender sent. Routers quote at least 8 bytes of TCP: the ports, and the sequence
//! number by which the receiver tells a true message from a forged one.

use crate::address::Address;
use crate::checksum::{self, TTL_DELTA};
use crate::decide::{Env, Output, Verdict};
use crate::established;
use crate::flow::{Flow, FlowRef, Key, mark};
use crate::half_open;
use crate::open;
use crate::packet::Packet;
use crate::parse::{self, Ip, Link, MAX_L4_OFFSET, TCP};
use crate::reason::Reason;
use crate::table;
use crate::tables::{Step, Tables};

/// The IP protocol number of ICMP.
pub const V4: u8 = 1;
/// The next-header number of ICMPv6.
pub const V6: u8 = 58;

/// Types of ICMP errors, and one code.
pub mod v4 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Fragmentation needed and DF set, a code of [`UNREACHABLE`].
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// Types of ICMPv6 errors.
pub mod v6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
}

/// Whether messages of that type quote the packet that they are about.
#[inline(always)]
const fn is_error<A: Address>(kind: u8) -> bool {
    if A::V6 {
        kind >= v6::UNREACHABLE && kind <= v6::PARAMETER_PROBLEM
    } else {
        kind == v4::UNREACHABLE || kind == v4::TIME_EXCEEDED || kind == v4::PARAMETER_PROBLEM
    }
}

/// An ICMP error that quotes a TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Quote<A> {
    /// The tuple of an answer to the quoted packet.
    pub(crate) key: Key<A>,
    /// Offset of the ICMP header.
    pub(crate) icmp: usize,
    /// Offset of the quoted TCP header.
    pub(crate) l4: usize,
    /// Whether the quote reaches to the TCP checksum.
    pub(crate) has_check: bool,
    /// TTL or hop limit of the message.
    pub(crate) ttl: u8,
}

/// What happens to `packet`, which is not TCP. Changes nothing in the tables; leaves in the work room what [`rewrite`]
/// needs to know.
#[inline(always)]
pub fn decide<'t, A: Address, P: Packet, T: Tables<A>>(
    env: &Env,
    packet: &P,
    link: &Link,
    tables: &'t T,
) -> Verdict<'t, A> {
    let Some(work) = tables.work() else { return Verdict::pass(Reason::ICMP_OTHER) };
    let quote = work.quote.get_mut();
    if let Err(reason) = parse_error::<A, P>(packet, link, quote) {
        return Verdict::pass(reason);
    }
    let Some(flow) = table::look_up(tables, &quote.key) else { return Verdict::pass(Reason::ICMP_OTHER) };
    if flow.seen() & mark::ESTABLISHED == 0 {
        return unreachable(packet, quote, tables, flow);
    }
    tables.note(Step::FoundEstablished);
    let Some((flow, hop)) = established::current(tables, flow) else {
        return Verdict::drop(Reason::HOP_GONE);
    };
    let output = match established::output(env, hop, flow.get().is_learned()) {
        Ok(output) => output,
        Err(reason) => return Verdict::drop(reason),
    };
    // No error about an error (RFC 1122 section 3.2.2).
    if quote.ttl <= 1 {
        return Verdict::drop(Reason::TTL_EXPIRED);
    }
    Verdict::forward(Reason::ICMP_TRANSLATED, flow, output)
}

/// A message about the SYN of a flow that is half-open: where it says that the backend cannot be reached, it is as a refusal.
/// While attempts remain the client is not told, and its next SYN goes elsewhere.
#[inline(always)]
fn unreachable<'t, A: Address, P: Packet, T: Tables<A>>(
    packet: &P,
    quote: &Quote<A>,
    tables: &'t T,
    reverse: FlowRef<'t, A>,
) -> Verdict<'t, A> {
    let other = Verdict::pass(Reason::ICMP_OTHER);
    if reverse.seen() & (mark::REVERSE | mark::TOMBSTONE) != mark::REVERSE {
        return other;
    }
    let Some([kind, code]) = packet.read::<[u8; 2]>(quote.icmp & MAX_L4_OFFSET) else { return other };
    let is_final = if A::V6 {
        kind == v6::UNREACHABLE
    } else {
        kind == v4::UNREACHABLE && code != v4::FRAGMENTATION_NEEDED
    };
    let Some(seq) = packet.read::<u32>((quote.l4 & MAX_L4_OFFSET) + 4) else { return other };
    let client_key = reverse.peer_key();
    let Some(forward) = table::look_up(tables, &client_key) else { return other };
    // Who is not on the way does not know the sequence number.
    let is_true = forward.generation() == reverse.generation() && forward.get().isn == u32::from_be(seq);
    if !is_final
        || !is_true
        || forward.seen() & mark::ANSWERED != 0
        || !open::may_retry(tables, &client_key, forward)
    {
        return other;
    }
    half_open::fail(tables, forward);
    Verdict::drop(Reason::REFUSED_RETRY)
}

/// Fills in `quote`. `Err`: the packet is something else, with the reason.
#[inline(always)]
fn parse_error<A: Address, P: Packet>(packet: &P, link: &Link, quote: &mut Quote<A>) -> Result<(), Reason> {
    let l3 = link.l3;
    let ip = if A::V6 { ipv6(packet, l3) } else { parse::ipv4(packet, l3, V4) };
    if let Some(reason) = ip.failed {
        return Err(reason);
    }
    let icmp = ip.l4 & MAX_L4_OFFSET;
    let Some(kind) = packet.read::<u8>(icmp) else { return Err(Reason::TRUNCATED) };
    if ip.fragment || !is_error::<A>(kind) {
        return Err(Reason::ICMP_OTHER);
    }
    let quoted = icmp + 8;
    let Some(l4) = quoted_tcp::<A, P>(packet, quoted) else { return Err(Reason::ICMP_OTHER) };
    // The ports and the sequence number.
    let end = icmp + ip.length as usize;
    if l4 + 8 > end {
        return Err(Reason::ICMP_OTHER);
    }
    let addresses = if A::V6 { 8 } else { 12 };
    let Some(receiver) = packet.read::<A>(l3 + addresses + size_of::<A>()) else {
        return Err(Reason::TRUNCATED);
    };
    let Some([source, destination]) = packet.read::<[A; 2]>(quoted + addresses) else {
        return Err(Reason::TRUNCATED);
    };
    let Some([source_port, destination_port]) = packet.read::<[u16; 2]>(l4) else {
        return Err(Reason::TRUNCATED);
    };
    // Errors go to the source of the packet that they are about.
    if receiver != source {
        return Err(Reason::ICMP_OTHER);
    }
    let key = Key::new(destination, source, destination_port, source_port);
    *quote = Quote { key, icmp, l4, has_check: l4 + 18 <= end, ttl: ip.ttl };
    Ok(())
}

/// The IPv6 header at `l3` of an ICMPv6 message; one behind extension headers is left to the stack.
#[inline(always)]
fn ipv6<P: Packet>(packet: &P, l3: usize) -> Ip {
    let Some([first, second]) = packet.read::<[u32; 2]>(l3) else { return Ip::failed(Reason::TRUNCATED) };
    let [version, _, _, _] = first.to_ne_bytes();
    let [length_high, length_low, next, ttl] = second.to_ne_bytes();
    if version >> 4 != 6 || next != V6 {
        return Ip::failed(Reason::NOT_TCP);
    }
    let length = u16::from_be_bytes([length_high, length_low]) as u32;
    if l3 as u32 + 40 + length > packet.len() {
        return Ip::failed(Reason::TRUNCATED);
    }
    Ip { failed: None, l4: l3 + 40, length, ttl, fragment: false }
}

/// Offset of the TCP header behind the quoted IP header at `l3`; `None`: there is none, or it is behind IPv6 extension
/// headers.
#[inline(always)]
fn quoted_tcp<A: Address, P: Packet>(packet: &P, l3: usize) -> Option<usize> {
    let [first, second, third] = packet.read::<[u32; 3]>(l3)?;
    let version = first.to_ne_bytes()[0];
    if A::V6 {
        let next = second.to_ne_bytes()[2];
        return (version >> 4 == 6 && next == TCP).then_some(l3 + 40);
    }
    let [_, _, fragment_high, fragment_low] = second.to_ne_bytes();
    let later = u16::from_be_bytes([fragment_high, fragment_low]) & 0x1fff != 0;
    let header = ((version & 0xf) as usize) * 4;
    let is_tcp = version >> 4 == 4 && header >= 20 && third.to_ne_bytes()[1] == TCP && !later;
    is_tcp.then_some((l3 + header) & MAX_L4_OFFSET)
}

/// Rewrites the message that [`decide`] has just seen so that it can leave by `output`, to where packets of `flow` go.
/// `None`: as with [`crate::rewrite::rewrite`].
///
/// The checksum of the message sees the quote change. An IPv4 header's own checksum makes up for its addresses; ICMPv6
/// counts all addresses, those of the pseudo-header too.
#[inline(always)]
#[must_use]
pub fn rewrite<A: Address, P: Packet, T: Tables<A>>(
    packet: &mut P,
    link: &Link,
    tables: &T,
    flow: &Flow<A>,
    output: Output<'_>,
) -> Option<()> {
    let quote = tables.work()?.quote.get();
    let icmp = quote.icmp & MAX_L4_OFFSET;
    let l4 = quote.l4 & MAX_L4_OFFSET;
    let (l3, quoted) = (link.l3, icmp + 8);
    let mut message = flow.delta_ports as u32;
    if quote.has_check {
        let old = packet.read::<u16>(l4 + 16)?;
        let new = checksum::apply(old, flow.delta_addresses as u32 + flow.delta_ports as u32);
        packet.write::<u16>(l4 + 16, new)?;
        message += checksum::delta(old as u32, new as u32) as u32;
    }
    packet.write::<[u16; 2]>(l4, [flow.out.destination_port, flow.out.source_port])?;
    let ttl = quote.ttl.wrapping_sub(1);
    // One address after the other: the stack has no room for more.
    let (at, quoted_at) = if A::V6 { (l3 + 8, quoted + 8) } else { (l3 + 12, quoted + 12) };
    let second = size_of::<A>();
    packet.write::<A>(quoted_at, flow.out.destination)?;
    packet.write::<A>(quoted_at + second, flow.out.source)?;
    let mut old = packet.read::<A>(at)?.sum();
    old += packet.read::<A>(at + second)?.sum();
    packet.write::<A>(at, flow.out.source)?;
    packet.write::<A>(at + second, flow.out.destination)?;
    let outer = checksum::delta(old, flow.out.source.sum() + flow.out.destination.sum()) as u32;
    if A::V6 {
        message += flow.delta_addresses as u32 + outer;
        packet.write::<u8>(l3 + 7, ttl)?;
    } else {
        let check = packet.read::<u16>(quoted + 10)?;
        packet.write::<u16>(quoted + 10, checksum::apply(check, flow.delta_addresses as u32))?;
        let check = packet.read::<u16>(l3 + 10)?;
        packet.write::<u16>(l3 + 10, checksum::apply(check, outer + TTL_DELTA as u32))?;
        packet.write::<u8>(l3 + 8, ttl)?;
    }
    let check = packet.read::<u16>(icmp + 2)?;
    packet.write::<u16>(icmp + 2, checksum::apply(check, message))?;
    let header = crate::rewrite::link_header(link.ethertype, flow, output);
    packet.set_link_header(link, &header)
}
