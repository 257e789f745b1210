//! What a packet's circumstances are, and what is decided on it.

use crate::flow::FlowRef;
use crate::reason::Reason;

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
    /// TC: payload bytes of each segment that a GSO super-packet becomes; 0: it is one segment.
    pub gso_size: u32,
    /// XDP: the frame lies in several buffers, which not every driver sends.
    pub scattered: bool,
}

impl Env {
    /// A packet that is one segment in one buffer.
    #[inline(always)]
    pub const fn new(rung: Rung, ingress: u32, now: u64) -> Self {
        Self { rung, ingress, now, gso_size: 0, scattered: false }
    }
}

/// What to do with the packet.
pub enum Action<'t, A> {
    /// Rewrite as the entry says, and send.
    Forward(FlowRef<'t, A>, Output<'t>),
    /// Turn it into an ICMP error to its sender (TC alone), see [`crate::answer`].
    Answer,
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
    /// What an answer says: the next hop's MTU, at most 65,535 bytes, to a packet that is too big, 0 to one whose TTL is
    /// used up. Not part of the action: where a number and a pointer share a place, the verifier minds.
    pub mtu: u32,
}

impl<'t, A> Verdict<'t, A> {
    /// Send the packet on.
    #[inline(always)]
    pub fn forward(reason: Reason, flow: FlowRef<'t, A>, output: Output<'t>) -> Self {
        Self { reason, action: Action::Forward(flow, output), mtu: 0 }
    }

    /// Answer the packet.
    #[inline(always)]
    pub fn answer(reason: Reason, mtu: u32) -> Self {
        Self { reason, action: Action::Answer, mtu }
    }

    /// Leave the packet as it is.
    #[inline(always)]
    pub fn pass(reason: Reason) -> Self {
        Self { reason, action: Action::Pass, mtu: 0 }
    }

    /// Drop the packet.
    #[inline(always)]
    pub fn drop(reason: Reason) -> Self {
        Self { reason, action: Action::Drop, mtu: 0 }
    }
}
