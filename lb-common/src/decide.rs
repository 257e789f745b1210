//! From a segment to a verdict.
//!
//! The order of look-ups is the order of likelihood: established flows, half-open ones, then, for a SYN alone, the
//! served addresses. Nothing is changed before it is clear that this rung will carry the packet.

use crate::address::Address;
use crate::established;
use crate::flow::FlowRef;
use crate::off_path;
use crate::parse::Segment;
use crate::reason::Reason;
use crate::tables::{Step, Tables};

/// Where the datapath runs.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rung {
    /// The driver's receive path.
    Xdp = 0,
    /// Traffic control, on the skb.
    Tc = 1,
}

impl Rung {
    /// The inverse of `as u32`.
    pub const fn from_number(number: u32) -> Self {
        if number == 0 { Self::Xdp } else { Self::Tc }
    }

    /// The name in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        }
    }
}

/// What is known of the packet besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Env {
    /// Who runs this.
    pub rung: Rung,
    /// The interface it came in by.
    pub ingress: u32,
    /// Nanoseconds of `CLOCK_MONOTONIC`, coarse.
    pub now: u64,
}

/// What to do with the packet.
pub enum Action<'t, A> {
    /// Rewrite as the entry says, and send.
    Forward(FlowRef<'t, A>, Output<'t>),
    /// Leave it as it is to whoever is next on this hook.
    Pass,
    /// Drop it.
    Drop,
}

/// How a packet leaves.
#[derive(Clone, Copy)]
pub enum Output<'t> {
    /// By this next hop, whose MAC addresses (or the entry's learned one) are good.
    Hop(&'t crate::tables::NextHop),
    /// By the kernel's own neighbour table (TC alone).
    Neighbour(&'t crate::tables::NextHop),
}

/// The decision, and why.
#[must_use]
pub struct Verdict<'t, A> {
    /// Counted, and shown.
    pub reason: Reason,
    /// What to do.
    pub action: Action<'t, A>,
}

impl<A> Verdict<'_, A> {
    /// Leave the packet as it is.
    #[inline(always)]
    pub fn pass(reason: Reason) -> Self {
        Self { reason, action: Action::Pass }
    }

    /// Drop the packet.
    #[inline(always)]
    pub fn drop(reason: Reason) -> Self {
        Self { reason, action: Action::Drop }
    }
}

/// What happens to `segment`.
#[inline(always)]
pub fn decide<'t, A: Address, T: Tables<A>>(
    env: &Env,
    segment: &Segment<A>,
    tables: &'t T,
) -> Verdict<'t, A> {
    if let Some(flow) = tables.established(&segment.key)
        && !established::is_reused(segment, flow)
    {
        tables.note(Step::FoundEstablished);
        return established::handle(env, segment, tables, flow);
    }
    off_path::decide(env, segment, tables)
}
