//! Packets that belong to no established flow: handshakes, SYNs, and what is not ours.
//!
//! A fraction of the traffic with most of the code. In the kernel it runs as functions that the verifier checks by
//! themselves; what goes in and comes out stands in [`Work`], since pointers cannot.

use crate::address::Address;
use crate::decide::{Action, Env, Output, Verdict};
use crate::established;
use crate::flow::FlowRef;
use crate::half_open::{self, Outcome};
use crate::open;
use crate::parse::Segment;
use crate::reason::Reason;
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

/// Puts the packet into the work room, has it handled, and takes the verdict.
#[inline(always)]
pub(crate) fn decide<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
) -> Verdict<'t, A> {
    let Some(work) = tables.work() else { return Verdict::pass(Reason::NO_FLOW) };
    *work.segment.get_mut() = *segment;
    *work.env.get_mut() = *env;
    let mut code = tables.handle_off_path();
    if code == OPEN {
        code = tables.open();
    }
    decode(tables, code)
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
            let Some(hop) = tables.next_hop(flow.get().hop) else { return Verdict::drop(Reason::HOP_GONE) };
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
    let stray = match tables.half_open(&segment.key) {
        Some(entry) if !half_open::is_expired(env, entry) => {
            match half_open::handle(env, segment, tables, entry) {
                Outcome::Open => return OPEN,
                Outcome::Done(Verdict { reason: reason @ (Reason::NO_FLOW | Reason::ABANDONED), .. }) => {
                    Some(reason)
                }
                Outcome::Done(verdict) => return encode(work, &verdict),
            }
        }
        _ => None,
    };
    // A flow whose route has moved. Or another CPU has promoted it since the first look-up: then its half-open entries
    // are gone, or hold what does not matter any more.
    if let Some(flow) = tables.established(&segment.key)
        && !established::is_reused(segment, flow)
    {
        tables.note(Step::FoundEstablished);
        let verdict = match established::current(tables, flow) {
            Some((sent, hop)) => established::handle(env, segment, tables, flow, sent, hop),
            None => Verdict::drop(Reason::HOP_GONE),
        };
        return encode(work, &verdict);
    }
    if let Some(reason) = stray {
        return encode(work, &Verdict::pass(reason));
    }
    tables.note(Step::FoundNothing);
    if segment.opens() { OPEN } else { encode(work, &open::not_opening(segment, tables)) }
}

/// What [`Tables::open`] does.
#[inline(always)]
pub fn open<A: Address, T: Tables<A>>(tables: &T) -> Code {
    let Some(work) = tables.work() else { return Reason::NO_FLOW.number() };
    encode(work, &open::handle(tables, work))
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
            match output {
                Output::Hop(_) => HOP,
                Output::Neighbour(_) => NEIGHBOUR,
            }
        }
    };
    verdict.reason.number() | way << 8
}
