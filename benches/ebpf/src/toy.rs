//! The toy: a full NAT of IPv4 and TCP without any state. What a balancer that looked nothing up would do.
//!
//! Every packet gets the same addresses and the same destination port and keeps its source port, so nothing could ever be
//! answered.

use aya_ebpf::bindings::{TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::checksum::apply;
use crate::frame::Frame;

/// What every packet leaves with.
#[repr(C)]
struct Constants {
    /// Destination and source MAC address.
    macs: [u32; 3],
    source: u32,
    destination: u32,
    destination_port: u32,
    /// The interface that it leaves by.
    egress: u32,
    zero: u32,
}

#[btf_map]
static TOY: Array<Constants, 1> = Array::new();

/// Ethernet, IPv4 and TCP without options of IPv4.
const HEADERS: usize = 14 + 20 + 20;
const IPV4: u16 = 0x0800;
const NO_OPTIONS: u8 = 0x45;
const TCP: u8 = 6;

#[xdp]
pub(crate) fn bench_toy_xdp(ctx: XdpContext) -> u32 {
    // SAFETY: the context that the kernel passed.
    match rewrite(unsafe { Frame::of(ctx.ctx) }) {
        // SAFETY: a helper with plain arguments.
        Some(egress) => unsafe { bpf_redirect(egress, 0) as u32 },
        None => xdp_action::XDP_PASS,
    }
}

#[classifier]
pub(crate) fn bench_toy_tc(ctx: TcContext) -> i32 {
    // SAFETY: the context that the kernel passed.
    match rewrite(unsafe { Frame::of(ctx.skb.skb) }) {
        // SAFETY: a helper with plain arguments.
        Some(egress) => unsafe { bpf_redirect(egress, 0) as i32 },
        None => TC_ACT_UNSPEC,
    }
}

/// The interface to leave by, if it is a packet for the toy.
#[inline(always)]
fn rewrite(frame: Frame) -> Option<u32> {
    let head = frame.head::<HEADERS>()?;
    if head.get16::<12>() != IPV4.to_be() || head.get8::<14>() != NO_OPTIONS || head.get8::<23>() != TCP {
        return None;
    }
    let to = TOY.get(0)?;
    let addresses = gain(head.get32::<26>(), to.source) + gain(head.get32::<30>(), to.destination);
    let port = u32::from(!head.get16::<36>()) + to.destination_port;
    head.set32::<0>(to.macs[0]);
    head.set32::<4>(to.macs[1]);
    head.set32::<8>(to.macs[2]);
    head.set16::<24>(apply(head.get16::<24>(), addresses));
    head.set32::<26>(to.source);
    head.set32::<30>(to.destination);
    head.set16::<36>(to.destination_port as u16);
    head.set16::<50>(apply(head.get16::<50>(), addresses + port));
    Some(to.egress)
}

/// By how much a sum of words grows when `from` becomes `to`.
#[inline(always)]
fn gain(from: u32, to: u32) -> u32 {
    (!from & 0xffff) + (!from >> 16) + (to & 0xffff) + (to >> 16)
}
