//! The common packet in the fewest steps: a segment of an established flow, or one that is not ours.
//!
//! What is not common (tags, options, fragments, SYN, FIN, RST, next hops in trouble) is left to [`crate::parse`],
//! [`crate::off_path`] and [`crate::rewrite`], which do all of it, this too: a test holds the two to the same results.
//! Beside them this saves a second copy of the headers on the stack, bounds checks by field, and the calls.

use crate::address::{Address, V4, V6};
use crate::checksum;
use crate::decide::{Env, Rung};
use crate::flow::{FlowRef, Key, mark};
use crate::packet::{Head, Packet};
use crate::parse::{Link, Segment, TCP, Tags, ethertype};
use crate::reason::Reason;
use crate::table;
use crate::tables::{NextHop, ServiceKey, Step, Tables, hop};
use crate::tcp::{self, flags};

/// IP protocol numbers.
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Bytes of Ethernet, IP and TCP headers.
const V4_LENGTH: usize = 14 + 20 + 20;
const V6_LENGTH: usize = 14 + 40 + 20;

/// What was done.
pub enum Done<'t> {
    /// Nothing: the packet is not common.
    Nothing,
    /// A SYN of no entry to a service: it is in the work room, for [`crate::off_path::run_fresh`].
    Opens,
    /// The packet is left as it is to whoever is next on this hook.
    Passed(Reason),
    /// The packet was rewritten, and is to be sent by this next hop.
    Forwarded(Reason, &'t NextHop),
    /// The packet was half rewritten, and is to be dropped.
    Dropped(Reason),
}

/// What the headers say.
struct Headers<A> {
    key: Key<A>,
    /// Bytes of the IP packet.
    length: u32,
    /// Bytes of IP and TCP headers.
    headers: u32,
    flags: u8,
}

/// Handles an Ethernet frame if it is a common one, and says whether it is IPv6.
#[inline(always)]
pub fn handle<'t, P: Packet, T4: Tables<V4>, T6: Tables<V6>>(
    env: &Env,
    packet: &mut P,
    v4: &'t T4,
    v6: &'t T6,
) -> (Done<'t>, bool) {
    const IPV4: u16 = ethertype::IPV4.to_be();
    const IPV6: u16 = ethertype::IPV6.to_be();
    const VLAN: u16 = ethertype::VLAN.to_be();
    const QINQ: u16 = ethertype::QINQ.to_be();
    let Some(head) = packet.head(14) else { return (Done::Nothing, false) };
    if head.get::<u8, 0>() & 1 != 0 {
        return (Done::Passed(Reason::NOT_UNICAST), false);
    }
    match head.get::<u16, 12>() {
        IPV4 => (family::<V4, P, T4>(env, packet, v4), false),
        IPV6 => (family::<V6, P, T6>(env, packet, v6), true),
        VLAN | QINQ => (Done::Nothing, false),
        _ => (Done::Passed(Reason::NOT_IP), false),
    }
}

#[inline(always)]
fn family<'t, A: Address, P: Packet, T: Tables<A>>(env: &Env, packet: &mut P, tables: &'t T) -> Done<'t> {
    let frame = packet.len();
    let Some(head) = packet.head(if A::V6 { 14 + 40 } else { 14 + 20 }) else { return Done::Nothing };
    let Some(ip) = parse_ip::<A>(&head) else { return Done::Nothing };
    if ip.protocol != TCP {
        // On TC it may be an ICMP error. Of IPv6 only what is surely no extension header.
        let is_end = !A::V6 || (ip.protocol == UDP || ip.protocol == ICMPV6) && ip.length >= 40 + 4;
        let whole = 14 + ip.length <= frame || !A::V6;
        let is_xdp = env.rung as u32 == Rung::Xdp as u32;
        return if is_xdp && is_end && whole { Done::Passed(Reason::NOT_TCP) } else { Done::Nothing };
    }
    if 14 + ip.length > frame {
        return Done::Passed(Reason::TRUNCATED);
    }
    let Some(mut head) = packet.head(if A::V6 { V6_LENGTH } else { V4_LENGTH }) else { return Done::Nothing };
    let Some(headers) = parse_tcp::<A>(&head, &ip) else { return Done::Nothing };
    let Some(flow) = table::find(tables, &headers.key) else {
        return without_entry(env, &head, &headers, tables);
    };
    const FLOW: u64 = mark::ESTABLISHED | tcp::state::ALL;
    if flow.seen() & FLOW != mark::ESTABLISHED || headers.flags & (flags::SYN | flags::FIN | flags::RST) != 0
    {
        return Done::Nothing;
    }
    let Some(next) = tables.next_hop(flow.get().hop as u32) else { return Done::Nothing };
    if !is_usable(env, flow, next) {
        return Done::Nothing;
    }
    if headers.length > next.mtu && (env.gso_size == 0 || headers.headers + env.gso_size > next.mtu) {
        return Done::Nothing;
    }
    tables.note(Step::FoundEstablished);
    write::<A>(&mut head, flow, next);
    let seq = u32::from_be(if A::V6 { head.get::<u32, 58>() } else { head.get::<u32, 38>() });
    let payload = headers.length - headers.headers;
    flow.count(env.now, payload, seq.wrapping_add(payload));
    let (check, entry) = (if A::V6 { 70 } else { 50 }, flow.get());
    if packet.add_to_l4_checksum(check, entry.delta_addresses, entry.delta_ports, A::V6).is_none() {
        return Done::Dropped(Reason::REWRITE_FAILED);
    }
    // Taken out meanwhile: what was written may be of two entries.
    if !flow.is_current() {
        return Done::Dropped(Reason::FLOW_GONE);
    }
    Done::Forwarded(if flow.seen() & mark::REVERSE == 0 { Reason::FORWARD } else { Reason::REVERSE }, next)
}

#[inline(always)]
fn without_entry<'t, A: Address, T: Tables<A>>(
    env: &Env,
    head: &Head<'_>,
    headers: &Headers<A>,
    tables: &'t T,
) -> Done<'t> {
    const OPENING: u8 = flags::SYN | flags::ACK | flags::RST | flags::FIN;
    tables.note(Step::FoundNothing);
    if headers.flags & OPENING != flags::SYN {
        return Done::Passed(Reason::NO_FLOW);
    }
    let Some(service) = tables.service(&ServiceKey::of(&headers.key)) else {
        tables.note(Step::NotServed);
        return Done::Passed(Reason::NO_FLOW);
    };
    tables.note(Step::Service(service.id, service.cluster));
    let Some(work) = tables.work() else { return Done::Nothing };
    let [a, b, c, d] = head.get::<u32, 6>().to_ne_bytes();
    let [e, f] = head.get::<u16, 10>().to_ne_bytes();
    let ethertype = if A::V6 { ethertype::IPV6 } else { ethertype::IPV4 };
    let link = Link { tags: Tags::default(), ethertype, l3: 14, source: [a, b, c, d, e, f] };
    let ip = if A::V6 { 40 } else { 20 };
    let segment = Segment {
        key: headers.key,
        link,
        l4: 14 + ip as usize,
        ttl: if A::V6 { head.get::<u8, 21>() } else { head.get::<u8, 22>() },
        fragment: false,
        flags: headers.flags,
        header: (headers.headers - ip) as u8,
        seq: u32::from_be(if A::V6 { head.get::<u32, 58>() } else { head.get::<u32, 38>() }),
        ack: 0,
        payload: headers.length - headers.headers,
    };
    work.put(env, &segment);
    work.ask(service);
    Done::Opens
}

/// An IP header without options.
struct Ip {
    /// Bytes of the packet.
    length: u32,
    ttl: u8,
    protocol: u8,
    fragment: bool,
}

#[inline(always)]
fn parse_ip<A: Address>(head: &Head<'_>) -> Option<Ip> {
    if A::V6 {
        if head.get::<u8, 14>() >> 4 != 6 {
            return None;
        }
        let [high, low, protocol, ttl] = head.get::<u32, 18>().to_ne_bytes();
        let length = 40 + u16::from_be_bytes([high, low]) as u32;
        return Some(Ip { length, ttl, protocol, fragment: false });
    }
    let [version, _, high, low] = head.get::<u32, 14>().to_ne_bytes();
    let length = u16::from_be_bytes([high, low]) as u32;
    if version != 0x45 || length < 20 {
        return None;
    }
    let [ttl, protocol] = head.get::<u16, 22>().to_ne_bytes();
    // More fragments, or not the first one.
    let fragment = head.get::<u16, 20>() & u16::from_be(0x3fff) != 0;
    Some(Ip { length, ttl, protocol, fragment })
}

/// No fragment, headers that agree with each other, and a TTL that another hop may follow.
#[inline(always)]
fn parse_tcp<A: Address>(head: &Head<'_>, ip: &Ip) -> Option<Headers<A>> {
    let [data_offset, flags] =
        (if A::V6 { head.get::<u16, 66>() } else { head.get::<u16, 46>() }).to_ne_bytes();
    let ip_header = if A::V6 { 40 } else { 20 };
    let headers = ip_header + (data_offset >> 4) as u32 * 4;
    if ip.ttl <= 1 || ip.fragment || headers < ip_header + 20 || headers > ip.length {
        return None;
    }
    let (source, destination, ports) = if A::V6 {
        let words =
            [head.get::<u32, 22>(), head.get::<u32, 26>(), head.get::<u32, 30>(), head.get::<u32, 34>()];
        let others =
            [head.get::<u32, 38>(), head.get::<u32, 42>(), head.get::<u32, 46>(), head.get::<u32, 50>()];
        (A::from_words(words), A::from_words(others), head.get::<u32, 54>())
    } else {
        let first = |word| A::from_words([word, 0, 0, 0]);
        (first(head.get::<u32, 26>()), first(head.get::<u32, 30>()), head.get::<u32, 34>())
    };
    let [a, b, c, d] = ports.to_ne_bytes();
    let key = Key::new(source, destination, u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
    Some(Headers { key, length: ip.length, headers, flags })
}

/// Whether a frame can leave by `next` as it is, but for addresses: no tags, a neighbour that is known, a device that this
/// rung sends to.
#[inline(always)]
fn is_usable<A: Address>(env: &Env, flow: FlowRef<'_, A>, next: &NextHop) -> bool {
    const MASK: u32 = hop::USED | hop::RESOLVED | hop::L3 | hop::RELOOKUP;
    let learned = flow.seen() & mark::LEARNED != 0;
    let resolved = if learned { hop::RESOLVED } else { 0 };
    let tags = if learned { flow.get().tags.count } else { next.tags.count };
    let takes = env.rung as u32 != Rung::Xdp as u32
        || !env.scattered && (next.ifindex == env.ingress || next.flags & hop::XDP != 0);
    (next.flags | resolved) & MASK == hop::USED | hop::RESOLVED
        && tags == 0
        && takes
        && next.is_confirmed(env.now)
}

/// Addresses, ports, TTL, the IP checksum, and MAC addresses; all but the TCP checksum.
#[inline(always)]
fn write<A: Address>(head: &mut Head<'_>, flow: FlowRef<'_, A>, next: &NextHop) {
    let entry = flow.get();
    if flow.seen() & mark::LEARNED != 0 {
        let [a, b, c, d, e, f] = entry.mac;
        head.set::<u32, 0>(u32::from_ne_bytes([a, b, c, d]));
        head.set::<u16, 4>(u16::from_ne_bytes([e, f]));
        let [a, b, c, d, e, f] = next.source_mac;
        head.set::<u16, 6>(u16::from_ne_bytes([a, b]));
        head.set::<u32, 8>(u32::from_ne_bytes([c, d, e, f]));
    } else {
        let [a, b, c, d, e, f] = next.mac;
        head.set::<u32, 0>(u32::from_ne_bytes([a, b, c, d]));
        let [g, h, i, j, k, l] = next.source_mac;
        head.set::<u32, 4>(u32::from_ne_bytes([e, f, g, h]));
        head.set::<u32, 8>(u32::from_ne_bytes([i, j, k, l]));
    }
    let (source, destination) = (entry.out.source.to_words(), entry.out.destination.to_words());
    let [a, b] = entry.out.source_port.to_ne_bytes();
    let [c, d] = entry.out.destination_port.to_ne_bytes();
    let ports = u32::from_ne_bytes([a, b, c, d]);
    if A::V6 {
        head.set::<u8, 21>(head.get::<u8, 21>().wrapping_sub(1));
        head.set::<u32, 22>(source[0]);
        head.set::<u32, 26>(source[1]);
        head.set::<u32, 30>(source[2]);
        head.set::<u32, 34>(source[3]);
        head.set::<u32, 38>(destination[0]);
        head.set::<u32, 42>(destination[1]);
        head.set::<u32, 46>(destination[2]);
        head.set::<u32, 50>(destination[3]);
        head.set::<u32, 54>(ports);
    } else {
        head.set::<u8, 22>(head.get::<u8, 22>().wrapping_sub(1));
        head.set::<u16, 24>(checksum::apply(head.get::<u16, 24>(), entry.delta_l3 as u32));
        head.set::<u32, 26>(source[0]);
        head.set::<u32, 30>(destination[0]);
        head.set::<u32, 34>(ports);
    }
}
