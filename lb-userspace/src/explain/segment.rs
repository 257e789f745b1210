//! The segment to imagine.

use lb_common::flow::mark;
use lb_common::parse::{Link, Tags, ethertype};
use lb_common::table::HALF_OPEN_LIMIT;
use lb_common::{Address, Flow, Segment, tcp};

use super::overlay::Source;
use super::story::Question;

/// The segment that a flow of this tuple waits for, and its name; a SYN where there is none.
pub(super) fn next_segment<A: Address, S: Source<A>>(
    source: &S,
    question: &Question<'_, A>,
) -> (Segment<A>, &'static str) {
    const ACK: u8 = tcp::flags::ACK;
    const SYN: u8 = tcp::flags::SYN;
    let key = &question.key;
    let make = |flags: u8, seq: u32, ack: u32, payload: u32| Segment {
        key: *key,
        link: Link {
            tags: ingress_tags(source, question),
            ethertype: if A::V6 { ethertype::IPV6 } else { ethertype::IPV4 },
            l3: 14,
            source: [0; 6],
        },
        l4: 14 + if A::V6 { 40 } else { 20 },
        ttl: 64,
        fragment: false,
        flags,
        header: 20,
        seq,
        ack,
        payload,
    };
    if let Some(flow) = source.established(key) {
        return (make(ACK, flow.end as u32, 0, 0), "ACK");
    }
    let new = (make(SYN, 1, 0, 0), "SYN");
    let is_current = |flow: &Flow<A>| {
        !flow.is_tombstone() && question.now.saturating_sub(flow.last_seen) <= HALF_OPEN_LIMIT
    };
    let Some(flow) = source.half_open(key) else { return new };
    if flow.is_forward() {
        if !is_current(&flow) {
            return new;
        }
        if flow.word & mark::ANSWERED != 0 {
            return (make(ACK, flow.isn.wrapping_add(1), flow.peer_isn.wrapping_add(1), 0), "ACK");
        }
        return (make(SYN, flow.isn, 0, flow.syn_payload.into()), "repeated SYN");
    }
    match source.half_open(&flow.out.reversed()) {
        Some(forward) => (make(SYN | ACK, flow.isn, forward.isn.wrapping_add(1), 0), "SYN-ACK"),
        None => (make(SYN | ACK, flow.isn, 0, 0), "SYN-ACK"),
    }
}

/// VLAN tags that a packet of the question's source arrives with, if the route back has the same.
fn ingress_tags<A: Address, S: Source<A>>(source: &S, question: &Question<'_, A>) -> Tags {
    let hop = source.route(question.key.source).and_then(|hop| source.next_hop(hop));
    hop.filter(|hop| Some(hop.ifindex) == question.ingress).map(|hop| hop.tags).unwrap_or_default()
}
