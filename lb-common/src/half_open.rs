//! A packet of a tuple whose handshake is under way, or whose SYN went up to the proxy.
//!
//! The backend is settled by its first answer: a SYN-ACK marks the forward entry as answered by compare-and-set, a
//! repeated SYN may only be sent elsewhere by the same compare-and-set, so one of the two wins. The client's
//! acknowledgement of the backend's initial sequence number, which nobody off the path can guess, promotes the
//! flow. Whatever does not belong to the handshake passes up untouched: a spoofed SYN on the tuple of a connection
//! that the proxy carries must not capture its packets.

use crate::address::Address;
use crate::decide::{Action, Env, Verdict};
use crate::established;
use crate::event;
use crate::flow::{FlowRef, mark};
use crate::open;
use crate::parse::Segment;
use crate::reason::Reason;
use crate::table::{self, HALF_OPEN_LIMIT};
use crate::tables::{Step, Tables, settings};
use crate::tcp::{flags, state};

/// How far beyond the first byte a segment of the client may lie and still complete the handshake: an initial
/// window of segments, the first of which was lost (RFC 6928, with jumbo frames or offloading).
const FIRST_FLIGHT: u32 = 1 << 20;

pub(crate) enum Outcome<'t, A> {
    Done(Verdict<'t, A>),
    /// A SYN that deserves a new attempt.
    Open,
}

/// Whether no SYN has come for so long that the entry counts no more. A reverse entry is as good as its forward one,
/// which alone sees repeated SYNs.
#[inline(always)]
pub(crate) fn is_expired<A: Address>(env: &Env, entry: FlowRef<'_, A>) -> bool {
    entry.seen() & mark::REVERSE == 0
        && env.now.wrapping_sub(entry.get().last_seen) as i64 > HALF_OPEN_LIMIT as i64
}

#[inline(always)]
pub(crate) fn handle<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
    entry: FlowRef<'t, A>,
) -> Outcome<'t, A> {
    if entry.seen() & mark::TOMBSTONE != 0 {
        tables.note(Step::FoundTombstone);
        if segment.opens() {
            entry.count(env.now, 0, 0);
        }
        return Outcome::Done(Verdict::pass(Reason::TOMBSTONE));
    }
    tables.note(Step::FoundHalfOpen);
    if entry.seen() & mark::REVERSE != 0 {
        return Outcome::Done(from_backend(env, segment, tables, entry));
    }
    if segment.opens() {
        return repeated_syn(env, segment, tables, entry);
    }
    Outcome::Done(from_client(env, segment, tables, entry))
}

#[inline(always)]
fn repeated_syn<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
    entry: FlowRef<'t, A>,
) -> Outcome<'t, A> {
    let flow = entry.get();
    if segment.seq != flow.isn {
        return Outcome::Open;
    }
    if entry.seen() & (mark::ANSWERED | state::CHALLENGED) == 0
        && open::may_retry(tables, &segment.key, entry)
    {
        return Outcome::Open;
    }
    Outcome::Done(again(env, segment, tables, entry))
}

/// Sends a repeated SYN to the backend of the last one, which may not have got that, or may have refused it.
#[inline(always)]
pub(crate) fn again<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
    entry: FlowRef<'t, A>,
) -> Verdict<'t, A> {
    let verdict = established::relay(env, segment, tables, entry, Reason::SYN_REPEATED);
    if let Action::Forward(..) = verdict.action {
        entry.count(env.now, 0, 0);
        if entry.seen() & mark::ENDED != 0 {
            let _ = entry.update(0, mark::ENDED);
        }
    }
    verdict
}

#[inline(always)]
fn from_client<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
    entry: FlowRef<'t, A>,
) -> Verdict<'t, A> {
    let flow = entry.get();
    let offset = segment.seq.wrapping_sub(flow.isn.wrapping_add(1));
    if segment.has(flags::RST) {
        // The client's answer to a TIME_WAIT socket's ACK, or its giving up.
        let to_challenge = entry.seen() & state::CHALLENGED != 0 && segment.seq == flow.peer_isn;
        if to_challenge || offset < FIRST_FLIGHT {
            return established::relay(env, segment, tables, entry, Reason::HALF_OPEN_RESET);
        }
        return Verdict::pass(Reason::NO_FLOW);
    }
    if entry.seen() & mark::ANSWERED == 0 || !segment.has(flags::ACK) {
        return Verdict::pass(Reason::NO_FLOW);
    }
    let acknowledged = segment.ack.wrapping_sub(flow.peer_isn.wrapping_add(1));
    if acknowledged >= FIRST_FLIGHT || offset >= FIRST_FLIGHT {
        return Verdict::pass(Reason::NO_FLOW);
    }
    promote(env, segment, tables, entry)
}

/// The reverse entry first: where the forward one says that the flow is established, both do.
#[inline(always)]
fn promote<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
    entry: FlowRef<'t, A>,
) -> Verdict<'t, A> {
    // Hand over to TC, drop an expired TTL, before anything changes.
    let verdict = established::relay(env, segment, tables, entry, Reason::ESTABLISHED);
    if !matches!(verdict.action, Action::Forward(..)) {
        return verdict;
    }
    let (backend, service) = (entry.get().backend as u32, entry.get().service as u32);
    if let Some(backend) = tables.backend(backend)
        && tables.is_full(backend)
    {
        tables.ask_to_tell(event::kind::OVERFLOW);
        return Verdict::pass(Reason::OVERFLOW);
    }
    let Some(reverse) = table::look_up(tables, &entry.peer_key()) else {
        return Verdict::pass(Reason::ABANDONED);
    };
    if reverse.generation() != entry.generation() || reverse.update(mark::ESTABLISHED, 0).is_none() {
        return Verdict::pass(Reason::ABANDONED);
    }
    tables.between();
    match entry.update(mark::ESTABLISHED, mark::ENDED) {
        // Of several CPUs one counts it.
        Some(before) if before & mark::ESTABLISHED == 0 => {
            tables.count_opened(backend, service, env.rung);
            if let Some(settings) = tables.settings()
                && settings.flags & settings::TELL_CONNECTED != 0
            {
                tables.ask_to_tell(event::kind::CONNECTED);
            }
        }
        Some(_) => {}
        None => return Verdict::pass(Reason::ABANDONED),
    }
    let Some(hop) = tables.next_hop(entry.get().hop as u32) else { return Verdict::drop(Reason::HOP_GONE) };
    let verdict = established::handle(env, segment, tables, entry, entry, hop);
    match verdict.action {
        Action::Forward(..) => Verdict { reason: Reason::ESTABLISHED, ..verdict },
        Action::Answer | Action::Pass | Action::Drop => verdict,
    }
}

#[inline(always)]
fn from_backend<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
    reverse: FlowRef<'t, A>,
) -> Verdict<'t, A> {
    let Some(forward) = table::look_up(tables, &reverse.peer_key()) else {
        return Verdict::pass(Reason::ABANDONED);
    };
    if forward.generation() != reverse.generation() || is_expired(env, forward) {
        // The stack knows nothing of it and answers with the RST that the backend should get.
        return Verdict::pass(Reason::ABANDONED);
    }
    let flow = forward.get();
    let answers_syn = segment.has(flags::ACK)
        && segment.ack.wrapping_sub(flow.isn.wrapping_add(1)) <= flow.syn_payload as u32;
    let Some((sent, hop)) = established::current(tables, reverse) else {
        return Verdict::drop(Reason::HOP_GONE);
    };
    if segment.has(flags::RST) {
        if let Some(verdict) = refused(tables, forward, reverse, answers_syn) {
            return verdict;
        }
        let answered = forward.seen() & mark::ANSWERED != 0;
        let verdict = established::relay_by(env, segment, sent, hop, Reason::HALF_OPEN_RESET);
        if matches!(verdict.action, Action::Forward(..)) && !answered {
            tables.ask_to_tell(event::kind::REFUSED);
        }
        return verdict;
    }
    if answers_syn && segment.has(flags::SYN) {
        let verdict = established::relay_by(env, segment, sent, hop, Reason::SYN_ACK);
        if !matches!(verdict.action, Action::Forward(..)) {
            return verdict;
        }
        if forward.update(mark::ANSWERED, mark::ENDED).is_none() {
            return Verdict::pass(Reason::ABANDONED);
        }
        forward.set_peer_isn(segment.seq);
        reverse.set_isn(segment.seq);
        let passed = tables.precise_now().saturating_sub(reverse.get().opened_at());
        reverse.set_peer_isn((passed / 1_000) as u32);
        reverse.count(env.now, 0, 0);
        return verdict;
    }
    if segment.has(flags::ACK) {
        let verdict = established::relay_by(env, segment, sent, hop, Reason::CHALLENGE);
        if matches!(verdict.action, Action::Forward(..)) && forward.seen() & mark::ANSWERED == 0 {
            forward.set_peer_isn(segment.ack);
            let _ = forward.update(state::CHALLENGED, 0);
        }
        return verdict;
    }
    Verdict::pass(Reason::NO_FLOW)
}

/// A backend that answers with RST: what becomes of that if it is not for the client. While attempts remain the client
/// is not told: its next SYN goes elsewhere.
#[inline(always)]
fn refused<'t, A: Address, T: Tables<A>>(
    tables: &'t T,
    forward: FlowRef<'t, A>,
    reverse: FlowRef<'t, A>,
    answers_syn: bool,
) -> Option<Verdict<'t, A>> {
    let answered = forward.seen() & mark::ANSWERED != 0;
    if !answers_syn && !answered {
        return Some(Verdict::pass(Reason::NO_FLOW));
    }
    if !answered && open::may_retry(tables, &reverse.peer_key(), forward) {
        fail(tables, forward);
        return Some(Verdict::drop(Reason::REFUSED_RETRY));
    }
    None
}

/// Marks an attempt that is over, while others remain.
#[inline(always)]
pub(crate) fn fail<A: Address, T: Tables<A>>(tables: &T, forward: FlowRef<'_, A>) {
    let backend = forward.get().backend as u32;
    if let Some(before) = forward.update(mark::ENDED, 0)
        && before & mark::ENDED == 0
    {
        tables.count_failed(backend, false);
    }
}
