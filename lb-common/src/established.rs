//! A packet of an established flow.

use crate::address::Address;
use crate::decide::{Action, Env, Output, Rung, Verdict};
use crate::flow::{FlowRef, flags};
use crate::parse::Segment;
use crate::reason::Reason;
use crate::tables::{NextHop, Tables, hop};
use crate::tcp;

/// Whether `segment` opens a new connection on the tuple of one that has ended.
#[inline(always)]
pub(crate) fn is_reused<A: Address>(segment: &Segment<A>, flow: FlowRef<'_, A>) -> bool {
    segment.opens() && flow.get().is_forward() && tcp::is_closing(flow.state())
}

#[inline(always)]
pub(crate) fn handle<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
    flow: FlowRef<'t, A>,
) -> Verdict<'t, A> {
    let from_client = flow.get().is_forward();
    let reason = if from_client { Reason::FORWARD } else { Reason::REVERSE };
    let verdict = relay(env, segment, tables, flow, reason);
    if let Action::Forward(..) = verdict.action {
        let state = flow.state();
        if state != 0 || segment.has(tcp::flags::FIN | tcp::flags::RST) {
            update_state(segment, tables, flow, state);
        }
        flow.count(env.now, segment.payload, segment.seq.wrapping_add(segment.payload));
    }
    verdict
}

/// Sends a packet of a flow on, if its next hop and its TTL allow; changes nothing.
#[inline(always)]
pub(crate) fn relay<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
    flow: FlowRef<'t, A>,
    reason: Reason,
) -> Verdict<'t, A> {
    let Some(hop) = tables.next_hop(flow.get().hop) else { return Verdict::drop(Reason::HOP_GONE) };
    let output = match output(env, hop, flow.get().flags & flags::LEARNED != 0) {
        Ok(output) => output,
        Err(Reason::TO_TC) => return Verdict::pass(Reason::TO_TC),
        Err(reason) => return Verdict::drop(reason),
    };
    if segment.fragment {
        return Verdict::drop(Reason::FRAGMENT);
    }
    if segment.ttl <= 1 {
        return Verdict::drop(Reason::TTL_EXPIRED);
    }
    Verdict { reason, action: Action::Forward(flow, output) }
}

/// How this rung sends by `hop`; `Err(ToTc)`: it cannot, but TC can.
#[inline(always)]
pub(crate) fn output<'t>(env: &Env, hop: &'t NextHop, learned: bool) -> Result<Output<'t>, Reason> {
    if hop.flags & hop::USED == 0 {
        return Err(Reason::HOP_GONE);
    }
    let known = learned || hop.flags & hop::RESOLVED != 0;
    let good = known && hop.is_confirmed(env.now);
    match env.rung {
        Rung::Xdp => {
            // A frame goes back out of its own interface without the device's redirect support.
            if good && (hop.flags & hop::XDP != 0 || hop.ifindex == env.ingress) {
                Ok(Output::Hop(hop))
            } else {
                Err(Reason::TO_TC)
            }
        }
        Rung::Tc => Ok(if good { Output::Hop(hop) } else { Output::Neighbour(hop) }),
    }
}

/// Both entries keep the whole state: each direction must know whether the flow has ended.
#[inline(always)]
fn update_state<A: Address, T: Tables<A>>(
    segment: &Segment<A>,
    tables: &T,
    flow: FlowRef<'_, A>,
    state: u64,
) {
    let entry = flow.get();
    let (set, clear) = tcp::transition(
        state,
        entry.is_forward(),
        segment.flags,
        segment.seq,
        entry.seq_end,
        segment.payload,
    );
    if set & !state == 0 && clear == 0 {
        return;
    }
    flow.update_state(set, clear);
    if let Some(peer) = tables.established(&flow.peer_key())
        && peer.get().generation == entry.generation
    {
        peer.update_state(set, clear);
    }
}
