//! The XDP host of the datapath: the frame between two pointers, sent by `XDP_TX` or through the device map.

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_xdp_adjust_head, bpf_xdp_get_buff_len};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::decide::Output;
use lb_common::fast::{self, Done};
use lb_common::packet::{Head, LinkHeader, Packet, Wire};
use lb_common::parse::{self, Link, ethertype, parse_link};
use lb_common::rewrite::rewrite;
use lb_common::tables::NextHop;
use lb_common::{Action, Env, Reason, Rung, V4, V6, Verdict, checksum, off_path, tcp};

use crate::access;
use crate::maps::{DEVICES, Family, KernelTables, count};

#[xdp]
pub(crate) fn headgate_xdp(ctx: XdpContext) -> u32 {
    handle::<false>(ctx.ctx)
}

/// For interfaces whose MTU needs frames of several buffers (Linux 5.18): the headers are in the first one.
#[xdp(frags)]
pub(crate) fn headgate_xdp_frags(ctx: XdpContext) -> u32 {
    handle::<true>(ctx.ctx)
}

#[inline(always)]
fn handle<const FRAGS: bool>(context: *mut xdp_md) -> u32 {
    // A frame that goes on in further buffers is not a common one: here the first is all there is.
    let mut frame = Frame::<false>(context);
    let env = frame.env();
    let (v4, v6) = (KernelTables::<V4>::new(), KernelTables::<V6>::new());
    let (mut done, is_v6) = fast::handle(&env, &mut frame, &v4, &v6);
    // What is missing may be in a further buffer.
    if FRAGS && matches!(done, Done::Passed(Reason::TRUNCATED)) {
        done = Done::Nothing;
    }
    let (reason, action) = match done {
        Done::Forwarded(reason, hop) => send(reason, hop, env.ingress),
        Done::Passed(reason) => (reason, xdp_action::XDP_PASS),
        Done::Dropped(reason) => (reason, xdp_action::XDP_DROP),
        Done::Nothing | Done::Opens => {
            let parsed = match done {
                Done::Opens if is_v6 => FRESH6,
                Done::Opens => FRESH4,
                _ if FRAGS => parse_xdp_frags(context),
                _ => parse_xdp(context),
            };
            match parsed {
                PARSED4 => unpack(send_xdp4(context, off_path::run(&v4))),
                PARSED6 => unpack(send_xdp6(context, off_path::run(&v6))),
                FRESH4 => unpack(send_xdp4(context, off_path::run_fresh(&v4))),
                FRESH6 => unpack(send_xdp6(context, off_path::run_fresh(&v6))),
                reason => (Reason::from_number(reason), xdp_action::XDP_PASS),
            }
        }
    };
    count(Rung::Xdp, reason);
    action
}

#[inline(always)]
fn send(reason: Reason, hop: &NextHop, ingress: u32) -> (Reason, u32) {
    if hop.ifindex == ingress {
        return (reason, xdp_action::XDP_TX);
    }
    match DEVICES.redirect(hop.ifindex, xdp_action::XDP_DROP as u64) {
        Ok(action) => (reason, action),
        Err(action) => (Reason::HOP_GONE, action),
    }
}

/// What [`parse_into_work`] returns for a segment of the family; anything else is the number of the reason why there is
/// none.
const PARSED4: u32 = 1 << 8;
const PARSED6: u32 = 2 << 8;
/// The same for what [`fast::handle`] has left in the work room.
const FRESH4: u32 = 3 << 8;
const FRESH6: u32 = 4 << 8;

/// Parses the frame into the work room of its family.
#[inline(always)]
fn parse_into_work<const FRAGS: bool>(frame: &Frame<FRAGS>) -> u32 {
    let mut env = frame.env();
    env.scattered = FRAGS && frame.len() > frame.linear();
    match parse_link(frame) {
        Ok(link) if link.ethertype == ethertype::IPV4 => {
            parse_family::<V4, FRAGS>(frame, link, &env, PARSED4)
        }
        Ok(link) if link.ethertype == ethertype::IPV6 => {
            parse_family::<V6, FRAGS>(frame, link, &env, PARSED6)
        }
        Ok(_) => Reason::NOT_IP.number(),
        Err(reason) => reason.number(),
    }
}

#[inline(always)]
fn parse_family<A: Family, const FRAGS: bool>(
    frame: &Frame<FRAGS>,
    link: Link,
    env: &Env,
    parsed: u32,
) -> u32 {
    match parse::parse::<A, _>(frame, link) {
        Ok(segment) if KernelTables::<A>::new().put(env, &segment) => parsed,
        Ok(_) => Reason::NO_FLOW.number(),
        Err(reason) => reason.number(),
    }
}

/// Exported, hence global: verified once, whatever leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_xdp(context: *mut xdp_md) -> u32 {
    parse_into_work(&Frame::<false>(context))
}

/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_xdp_frags(context: *mut xdp_md) -> u32 {
    parse_into_work(&Frame::<true>(context))
}

/// Does with the packet in the work room what `code` says. A reason, and an action in the next byte.
#[inline(always)]
fn carry_out<A: Family>(context: *mut xdp_md, code: off_path::Code) -> u32 {
    let mut frame = Frame::<false>(context);
    let pack = |(reason, action): (Reason, u32)| reason.number() | action << 8;
    let tables = KernelTables::<A>::new();
    let Verdict { reason, action, .. } = off_path::decode(&tables, code);
    match action {
        Action::Pass => pack((reason, xdp_action::XDP_PASS)),
        // Answers are TC's affair.
        Action::Answer => pack((Reason::REWRITE_FAILED, xdp_action::XDP_DROP)),
        Action::Drop => pack((reason, xdp_action::XDP_DROP)),
        Action::Forward(flow, output) => {
            let (Output::Hop(hop) | Output::Neighbour(hop)) = output;
            let segment = tables.segment();
            if segment.and_then(|segment| rewrite(&mut frame, segment, flow.get(), output)).is_none() {
                return pack((Reason::REWRITE_FAILED, xdp_action::XDP_DROP));
            }
            pack(send(reason, hop, frame.env().ingress))
        }
    }
}

#[inline(always)]
fn unpack(packed: u32) -> (Reason, u32) {
    (Reason::from_number(packed & 0xff), packed >> 8)
}

/// Exported, hence global: verified once, whatever leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_xdp4(context: *mut xdp_md, code: off_path::Code) -> u32 {
    carry_out::<V4>(context, code)
}

/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_xdp6(context: *mut xdp_md, code: off_path::Code) -> u32 {
    carry_out::<V6>(context, code)
}

/// A frame under XDP. Pointers are taken from the context at each access: the verifier wants every one compared
/// with the end, and a change of the head moves both. With `FRAGS`, more of it may lie in further buffers, out of reach.
struct Frame<const FRAGS: bool>(*mut xdp_md);

impl<const FRAGS: bool> Frame<FRAGS> {
    #[inline(always)]
    fn env(&self) -> Env {
        // SAFETY: the context that the kernel passed; a helper without arguments.
        unsafe { Env::new(Rung::Xdp, (*self.0).ingress_ifindex, bpf_ktime_get_coarse_ns()) }
    }

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
    fn head(&mut self, length: usize) -> Option<Head<'_>> {
        // SAFETY: the context that the kernel passed, and nothing moves the frame while the head is borrowed.
        unsafe { access::head(self.0, length) }
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
