//! A packet of an established flow.

use crate::address::Address;
use crate::decide::{Action, Env, Output, Rung, Verdict};
use crate::event;
use crate::flow::{FlowRef, mark};
use crate::parse::Segment;
use crate::reason::Reason;
use crate::table;
use crate::tables::{NextHop, Step, Tables, hop};
use crate::tcp;

/// Whether `segment` opens a new connection on the tuple of one that has ended.
#[inline(always)]
pub(crate) fn is_reused<A: Address>(segment: &Segment<A>, flow: FlowRef<'_, A>) -> bool {
    segment.opens() && flow.seen() & mark::REVERSE == 0 && tcp::is_closing(flow.seen())
}

/// Handles a packet of `flow` that leaves by `hop` and is rewritten by `sent`: the entry itself or, where its route
/// has moved, what [`current`] made of it.
#[inline(always)]
pub(crate) fn handle<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
    flow: FlowRef<'t, A>,
    sent: FlowRef<'t, A>,
    hop: &'t NextHop,
) -> Verdict<'t, A> {
    let from_client = flow.seen() & mark::REVERSE == 0;
    let reason = if from_client { Reason::FORWARD } else { Reason::REVERSE };
    let verdict = relay_by(env, segment, sent, hop, reason);
    if let Action::Forward(..) = verdict.action {
        let mut ended = false;
        if flow.seen() & tcp::state::ALL != 0 || segment.has(tcp::flags::FIN | tcp::flags::RST) {
            ended = update_state(segment, tables, flow);
        }
        let counts = segment.payload | segment.has(tcp::flags::FIN) as u32;
        flow.count(env.now, counts, segment.seq.wrapping_add(segment.payload));
        if ended {
            tables.ask_to_tell(event::kind::ENDED);
        }
    }
    verdict
}

/// By what entry and next hop packets of `flow` leave now: by its own or, where the route that its next hop stands
/// for has moved, by a copy of it in the work room with the next hop that is looked up. `None`: there is none.
#[inline(always)]
pub(crate) fn current<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    flow: FlowRef<'t, A>,
) -> Option<(FlowRef<'t, A>, &'t NextHop)> {
    let hop = tables.next_hop(flow.get().hop as u32)?;
    if hop.flags & hop::RELOOKUP == 0 {
        return Some((flow, hop));
    }
    let work = tables.work()?;
    let copy = work.chosen.get_mut();
    copy.copy_from(flow);
    // Taken out meanwhile, and what was copied of two entries.
    if !flow.is_current() {
        return None;
    }
    let index = tables.route(copy.out.destination).unwrap_or(0);
    tables.note(Step::Rerouted(index));
    copy.hop = index as u16;
    // What was learned is a neighbour on the old link.
    copy.word &= !mark::LEARNED;
    Some((FlowRef::from_mut(copy), tables.next_hop(index)?))
}

/// Sends a packet of a flow from its client on, if its next hop and its TTL allow; changes nothing.
#[inline(always)]
pub(crate) fn relay<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
    flow: FlowRef<'t, A>,
    reason: Reason,
) -> Verdict<'t, A> {
    let Some(hop) = tables.next_hop(flow.get().hop as u32) else { return Verdict::drop(Reason::HOP_GONE) };
    relay_by(env, segment, flow, hop, reason)
}

/// Sends a packet on by `hop`, if that and its TTL allow; changes nothing.
#[inline(always)]
pub(crate) fn relay_by<'t, A: Address>(
    env: &Env,
    segment: &Segment<A>,
    flow: FlowRef<'t, A>,
    hop: &'t NextHop,
    reason: Reason,
) -> Verdict<'t, A> {
    let output = match output(env, hop, flow.seen() & mark::LEARNED != 0) {
        Ok(output) => output,
        Err(Reason::TO_TC) => return Verdict::pass(Reason::TO_TC),
        Err(reason) => return Verdict::drop(reason),
    };
    if segment.fragment {
        return Verdict::drop(Reason::FRAGMENT);
    }
    if segment.ttl <= 1 {
        return expired(env);
    }
    if segment.length(segment.payload) > hop.mtu
        && (env.gso_size == 0 || segment.length(env.gso_size) > hop.mtu)
    {
        return too_big(env, hop.mtu);
    }
    Verdict::forward(reason, flow, output)
}

/// A packet whose TTL or hop limit is used up. XDP leaves it to TC, which can answer.
#[inline(always)]
pub(crate) fn expired<'t, A>(env: &Env) -> Verdict<'t, A> {
    match env.rung {
        Rung::Xdp => Verdict::pass(Reason::TO_TC),
        Rung::Tc => Verdict::answer(Reason::TTL_ANSWERED, 0),
    }
}

/// A packet of more than `mtu` bytes, which are what its next hop takes. As above.
#[inline(always)]
fn too_big<'t, A>(env: &Env, mtu: u32) -> Verdict<'t, A> {
    match env.rung {
        Rung::Xdp => Verdict::pass(Reason::TO_TC),
        Rung::Tc => {
            let mtu = if mtu > u16::MAX as u32 { u16::MAX as u32 } else { mtu };
            Verdict::answer(Reason::TOO_BIG, mtu)
        }
    }
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
            let takes = hop.flags & hop::XDP != 0 || hop.ifindex == env.ingress;
            let whole = !env.scattered || hop.flags & hop::XDP_SG != 0;
            if good && takes && whole { Ok(Output::Hop(hop)) } else { Err(Reason::TO_TC) }
        }
        // Behind a device without an Ethernet header there are no neighbours to ask for.
        Rung::Tc if good || hop.flags & hop::L3 != 0 => Ok(Output::Hop(hop)),
        Rung::Tc => Ok(Output::Neighbour(hop)),
    }
}

/// Both entries keep the whole state: each direction must know whether the flow has ended. Whether it has by this segment,
/// or by one that another CPU handles at the same time.
#[inline(always)]
fn update_state<A: Address, T: Tables<A>>(segment: &Segment<A>, tables: &T, flow: FlowRef<'_, A>) -> bool {
    let entry = flow.get();
    let state = flow.seen() & tcp::state::ALL;
    let (set, clear) = tcp::transition(
        state,
        flow.seen() & mark::REVERSE == 0,
        segment.flags,
        segment.seq,
        entry.end as u32,
        segment.payload,
    );
    if set & !state == 0 && clear == 0 {
        return false;
    }
    // Of a RST that its receiver may not accept nobody knows yet whether it ends anything: the agent sees, by the silence.
    let surely = segment.flags & tcp::flags::RST == 0 || tcp::is_next(segment.seq, entry.end as u32);
    let (key, generation) = (flow.peer_key(), flow.generation());
    let peer = table::look_up(tables, &key).filter(|peer| peer.generation() == generation);
    let (word, peer_word) = (flow.seen(), if let Some(peer) = peer { peer.seen() } else { 0 });
    // One that it accepts is the end for good: data that follows was on its way before.
    let clear = if (word | peer_word) & mark::ENDED != 0 { 0 } else { clear };
    let mut ended = changed(flow, set, clear);
    if let Some(peer) = peer {
        ended |= changed(peer, set, clear);
    }
    ended && surely
}

/// Changes the state of an entry; whether it is closing now.
#[inline(always)]
fn changed<A: Address>(flow: FlowRef<'_, A>, set: u64, clear: u64) -> bool {
    flow.update(set, clear).is_some_and(|before| tcp::is_closing((before | set) & !clear))
}
