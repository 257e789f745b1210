//! Packets that [`crate::fast`] leaves: handshakes, SYNs, the end of flows, and whatever is unusual.
//!
//! A fraction of the traffic with most of the code. In the kernel it runs as functions that the verifier checks by
//! themselves; what goes in and comes out stands in [`Work`], since pointers cannot.

use crate::address::Address;
use crate::decide::{Action, Env, Output, Verdict};
use crate::established;
use crate::event::kind;
use crate::flow::{FlowRef, mark};
use crate::half_open::{self, Outcome};
use crate::open;
use crate::parse::Segment;
use crate::reason::Reason;
use crate::table;
use crate::tables::{Step, Tables};
use crate::work::Work;

/// A verdict as a number: the reason in the low byte, [`PASS`] to [`ANSWER`] in the next one, and the MTU of an answer
/// above.
pub type Code = u32;

const PASS: u32 = 0;
const DROP: u32 = 1;
const HOP: u32 = 2;
const NEIGHBOUR: u32 = 3;
const ANSWER: u32 = 4;
/// No verdict yet: a SYN that [`Tables::open`] is for.
const OPEN: Code = u32::MAX;
/// As above: one that [`Tables::reserve_port`] and [`Tables::finish`] are for.
const CHOSEN: Code = u32::MAX - 1;

/// What happens to `segment`: puts it into the work room, has it handled, and takes the verdict.
#[inline(always)]
pub fn decide<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
) -> Verdict<'t, A> {
    let Some(work) = tables.work() else { return Verdict::pass(Reason::NO_FLOW) };
    work.put(env, segment);
    decode(tables, run(tables))
}

/// Handles the packet in the work room, one function after the other, not one from the other: their stack adds up.
#[inline(always)]
pub fn run<A: Address, T: Tables<A>>(tables: &T) -> Code {
    let code = tables.handle_off_path();
    if code == OPEN {
        return open_flow(tables, 0);
    }
    let Some(work) = tables.work() else { return code };
    match *work.tell.get() {
        0 => code,
        kinds => tell(tables, kinds, code),
    }
}

/// Tells what was asked for, see [`Work::tell`]; the verdict that `code` is becomes another one if that was too late.
#[inline(always)]
fn tell<A: Address, T: Tables<A>>(tables: &T, kinds: u32, code: Code) -> Code {
    for kind in [kind::CONNECTED, kind::ENDED, kind::REFUSED] {
        if kinds & 1 << kind != 0 {
            tables.record(kind);
        }
    }
    if kinds & 1 << kind::OVERFLOW != 0 && tables.record(kind::OVERFLOW) == 0 {
        // Another CPU was faster, and the flow is established.
        return Reason::SYN_RACED.number() | DROP << 8;
    }
    code
}

/// Handles a SYN of no entry to the service that the request in the work room has.
#[inline(always)]
pub fn run_fresh<A: Address, T: Tables<A>>(tables: &T) -> Code {
    open_flow(tables, FRESH)
}

#[inline(always)]
fn open_flow<A: Address, T: Tables<A>>(tables: &T, fresh: u32) -> Code {
    let code = tables.open(fresh);
    if code != CHOSEN {
        return code;
    }
    tables.finish(tables.reserve_port() | fresh)
}

/// Whether [`decode`] will say that the packet is answered; with what MTU.
#[inline(always)]
pub fn answer(code: Code) -> Option<u32> {
    (code >> 8 & 0xff == ANSWER).then_some(code >> 16)
}

/// The verdict that [`encode`] made `code` of.
#[inline(always)]
pub fn decode<'t, A: Address, T: Tables<A>>(tables: &'t T, code: Code) -> Verdict<'t, A> {
    let reason = Reason::from_number(code & 0xff);
    match code >> 8 & 0xff {
        PASS => Verdict::pass(reason),
        DROP => Verdict::drop(reason),
        ANSWER => Verdict::answer(reason, code >> 16),
        way => {
            let Some(work) = tables.work() else { return Verdict::drop(Reason::REWRITE_FAILED) };
            let flow = FlowRef::from_mut(work.chosen.get_mut());
            let Some(hop) = tables.next_hop(flow.get().hop as u32) else {
                return Verdict::drop(Reason::HOP_GONE);
            };
            let output = if way == HOP { Output::Hop(hop) } else { Output::Neighbour(hop) };
            Verdict::forward(reason, flow, output)
        }
    }
}

/// What [`Tables::handle_off_path`] does.
#[inline(always)]
pub fn handle<A: Address, T: Tables<A>>(tables: &T) -> Code {
    let Some(work) = tables.work() else { return Reason::NO_FLOW.number() };
    let (segment, env) = (work.segment.get(), work.env.get());
    let Some(flow) = table::look_up(tables, &segment.key) else {
        tables.note(Step::FoundNothing);
        return if segment.opens() { OPEN } else { encode(work, &open::not_opening(segment, tables)) };
    };
    if flow.seen() & mark::ESTABLISHED == 0 {
        if half_open::is_expired(env, flow) {
            tables.note(Step::FoundNothing);
            return if segment.opens() { OPEN } else { encode(work, &open::not_opening(segment, tables)) };
        }
        return match half_open::handle(env, segment, tables, flow) {
            Outcome::Open => OPEN,
            Outcome::Done(verdict) => encode(work, &verdict),
        };
    }
    if established::is_reused(segment, flow) {
        return OPEN;
    }
    // Its route has moved, or another CPU has just completed the handshake.
    tables.note(Step::FoundEstablished);
    let verdict = match established::current(tables, flow) {
        Some((sent, hop)) => established::handle(env, segment, tables, flow, sent, hop),
        None => Verdict::drop(Reason::HOP_GONE),
    };
    encode(work, &verdict)
}

/// For [`Tables::open`] and [`Tables::finish`]: there was no entry when the packet was looked at.
const FRESH: u32 = 2;

/// What [`Tables::open`] does.
#[inline(always)]
pub fn open<A: Address, T: Tables<A>>(tables: &T, fresh: u32) -> Code {
    let Some(work) = tables.work() else { return Reason::NO_FLOW.number() };
    let verdict = if fresh == 0 { open::begin(tables, work) } else { open::draw(tables, work, None) };
    match verdict {
        Some(verdict) => encode(work, &verdict),
        None => CHOSEN,
    }
}

/// What [`Tables::finish`] does. `how`: 1 if there is a port, and [`FRESH`].
#[inline(always)]
pub fn finish<A: Address, T: Tables<A>>(tables: &T, how: u32) -> Code {
    let Some(work) = tables.work() else { return Reason::NO_FLOW.number() };
    let reserved = how & 1 != 0;
    if how & FRESH == 0 {
        return encode(work, &open::finish(tables, work, reserved));
    }
    encode(work, &open::finish_fresh(tables, work, reserved))
}

/// A verdict as a number; its entry goes into the work room.
#[inline(always)]
pub fn encode<A: Address>(work: &Work<A>, verdict: &Verdict<'_, A>) -> Code {
    let way = match verdict.action {
        Action::Pass => PASS,
        Action::Drop => DROP,
        Action::Answer => ANSWER | verdict.mtu << 8,
        Action::Forward(flow, output) => {
            work.chosen.get_mut().copy_from(flow);
            // Taken out meanwhile: what was copied may be of two entries.
            if !flow.is_current() {
                return Reason::FLOW_GONE.number() | DROP << 8;
            }
            match output {
                Output::Hop(_) => HOP,
                Output::Neighbour(_) => NEIGHBOUR,
            }
        }
    };
    verdict.reason.number() | way << 8
}
