//! The XDP host of the datapath: the frame between two pointers, sent by `XDP_TX` or through the device map.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_xdp_adjust_head, bpf_xdp_get_buff_len};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::packet::{LinkHeader, Packet, Wire};
use lb_common::parse::{self, Link, ethertype, parse_link};
use lb_common::rewrite::rewrite;
use lb_common::{Action, Env, Reason, Rung, V4, V6, Verdict, checksum, decide, decide::Output, tcp};

use crate::access;
use crate::maps::{DEVICES, Family, KernelTables, count};

#[xdp]
pub(crate) fn headgate_xdp(ctx: XdpContext) -> u32 {
    handle(Frame::<false>(ctx.ctx))
}

/// For interfaces whose MTU needs frames of several buffers (Linux 5.18): the headers are in the first one.
#[xdp(frags)]
pub(crate) fn headgate_xdp_frags(ctx: XdpContext) -> u32 {
    handle(Frame::<true>(ctx.ctx))
}

#[inline(always)]
fn handle<const FRAGS: bool>(mut frame: Frame<FRAGS>) -> u32 {
    let (reason, action) = match parse_link(&frame) {
        Ok(link) if link.ethertype == ethertype::IPV4 => run::<V4, FRAGS>(&mut frame, link),
        Ok(link) if link.ethertype == ethertype::IPV6 => run::<V6, FRAGS>(&mut frame, link),
        Ok(_) => (Reason::NOT_IP, xdp_action::XDP_PASS),
        Err(reason) => (reason, xdp_action::XDP_PASS),
    };
    count(Rung::Xdp, reason);
    action
}

#[inline(always)]
fn run<A: Family, const FRAGS: bool>(frame: &mut Frame<FRAGS>, link: Link) -> (Reason, u32) {
    let segment = match parse::parse::<A, _>(frame, link) {
        Ok(segment) => segment,
        Err(reason) => return (reason, xdp_action::XDP_PASS),
    };
    // SAFETY: `frame.0` is the context that the kernel passed.
    let ingress = unsafe { (*frame.0).ingress_ifindex };
    // SAFETY: no arguments.
    let mut env = Env::new(Rung::Xdp, ingress, unsafe { bpf_ktime_get_coarse_ns() });
    env.scattered = FRAGS && frame.len() > frame.linear();
    let tables = KernelTables::<A>::new();
    let Verdict { reason, action, .. } = decide(&env, &segment, &tables);
    match action {
        Action::Pass => (reason, xdp_action::XDP_PASS),
        // Answers are TC's affair.
        Action::Answer => (Reason::REWRITE_FAILED, xdp_action::XDP_DROP),
        Action::Drop => (reason, xdp_action::XDP_DROP),
        Action::Forward(flow, output) => {
            let (Output::Hop(hop) | Output::Neighbour(hop)) = output;
            if rewrite(frame, &segment, flow.get(), output).is_none() {
                return (Reason::REWRITE_FAILED, xdp_action::XDP_DROP);
            }
            if hop.ifindex == ingress {
                return (reason, xdp_action::XDP_TX);
            }
            match DEVICES.redirect(hop.ifindex, xdp_action::XDP_DROP as u64) {
                Ok(action) => (reason, action),
                Err(action) => (Reason::HOP_GONE, action),
            }
        }
    }
}

/// A frame under XDP. Pointers are taken from the context at each access: the verifier wants every one compared
/// with the end, and a change of the head moves both. With `FRAGS`, more of it may lie in further buffers, out of reach.
struct Frame<const FRAGS: bool>(*mut xdp_md);

impl<const FRAGS: bool> Frame<FRAGS> {
    /// Bytes of the first buffer.
    #[inline(always)]
    fn linear(&self) -> u32 {
        // SAFETY: the context that the kernel passed.
        unsafe { (*self.0).data_end - (*self.0).data }
    }
}

impl<const FRAGS: bool> Packet for Frame<FRAGS> {
    #[inline(always)]
    fn len(&self) -> u32 {
        if FRAGS {
            // SAFETY: the context that the kernel passed.
            unsafe { bpf_xdp_get_buff_len(self.0) as u32 }
        } else {
            self.linear()
        }
    }

    #[inline(always)]
    fn stripped_tag(&self) -> Option<(u16, u16)> {
        None
    }

    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        // SAFETY: the context that the kernel passed.
        unsafe { access::read(self.0, offset) }
    }

    #[inline(always)]
    fn write<T: Wire>(&mut self, offset: usize, value: T) -> Option<()> {
        // SAFETY: the context that the kernel passed.
        unsafe { access::write(self.0, offset, value) }
    }

    #[inline(always)]
    fn add_to_l4_checksum(&mut self, offset: usize, addresses: u16, rest: u16, _v6: bool) -> Option<()> {
        let check = self.read::<u16>(offset)?;
        self.write(offset, checksum::apply(check, addresses as u32 + rest as u32))
    }

    #[inline(always)]
    fn skip_extensions(&self, l3: usize, next: u8) -> u32 {
        skip_extensions_xdp(self.0, l3 as u32, next as u32)
    }

    #[inline(always)]
    fn find_mss(&self, start: usize, length: usize) -> u32 {
        find_mss_xdp(self.0, start as u32, length as u32)
    }

    #[inline(always)]
    fn set_link_header(&mut self, from: &Link, to: &LinkHeader) -> Option<()> {
        let from = from.tags;
        if from.in_frame == 0 && to.tags.count == 0 {
            self.write(0, to.destination)?;
            return self.write(6, to.source);
        }
        let grow = (to.tags.count as i32 - from.in_frame as i32) * 4;
        // SAFETY: the context that the kernel passed.
        if grow != 0 && unsafe { bpf_xdp_adjust_head(self.0, -grow) } != 0 {
            return None;
        }
        self.write(0, to.destination)?;
        self.write(6, to.source)?;
        let [outer, inner] = to.tags.tci.map(u16::to_be);
        let ethertype = to.ethertype.to_be();
        match to.tags.count {
            0 => self.write(12, ethertype),
            1 => self.write(12, [to.tags.outer.to_be(), outer, ethertype]),
            _ => self.write(12, [to.tags.outer.to_be(), outer, ethertype::VLAN.to_be(), inner, ethertype]),
        }
    }

    #[inline(always)]
    fn has_partial_checksum(&mut self, _offset: usize) -> Option<bool> {
        Some(false)
    }

    #[inline(always)]
    fn make_room(&mut self, _from: &Link, _keep: u32, _room: u32) -> Option<()> {
        None
    }
}

/// Exported, hence global: verified once, whatever leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn skip_extensions_xdp(context: *mut xdp_md, l3: u32, next: u32) -> u32 {
    parse::skip_extensions(&Frame::<false>(context), l3 as usize, next as u8)
}

/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_mss_xdp(context: *mut xdp_md, start: u32, length: u32) -> u32 {
    tcp::find_mss(&Frame::<false>(context), start as usize, length as usize)
}
