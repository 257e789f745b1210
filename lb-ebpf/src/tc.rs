//! The TC host of the datapath: an skb, whose checksums and VLAN tags may live in its metadata and are changed by
//! the kernel's helpers. Handles GSO super-packets and partial checksums.

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode,
};
use aya_ebpf::helpers::{
    bpf_ktime_get_coarse_ns, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room,
    bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_pull_data, bpf_skb_vlan_pop, bpf_skb_vlan_push,
};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use lb_common::decide::Output;
use lb_common::fast::{self, Done};
use lb_common::packet::{Head, LinkHeader, Packet, Wire};
use lb_common::parse::{self, Link, MAX_L3_OFFSET, MAX_L4_OFFSET, ethertype, parse_link};
use lb_common::rewrite::rewrite;
use lb_common::{Action, Env, Reason, Rung, Tables, V4, V6, Verdict, answer, icmp, off_path, tcp};

use crate::access;
use crate::maps::{Family, KernelTables, count};

/// `BPF_F_IPV6`, Linux 6.16: a change of IPv6 addresses leaves `CHECKSUM_COMPLETE` as it is.
const BPF_F_IPV6: u64 = 1 << 7;
/// `skb->pkt_type` of a packet to this host.
const PACKET_HOST: u32 = 0;
/// What is pulled into reach where a packet may need it: headers with all their options and extensions.
const HEADERS: usize = MAX_L4_OFFSET + 60;

#[classifier]
pub(crate) fn headgate_tc(ctx: TcContext) -> i32 {
    let context = ctx.skb.skb;
    let mut skb = Skb(context);
    let env = skb.env();
    let (v4, v6) = (KernelTables::<V4>::new(), KernelTables::<V6>::new());
    let (mut done, mut is_v6) = (Done::Nothing, false);
    // SAFETY: the context that the kernel passed.
    if unsafe { (*context).pkt_type == PACKET_HOST && (*context).vlan_present == 0 } {
        (done, is_v6) = fast::handle(&env, &mut skb, &v4, &v6);
    }
    let (reason, action) = match done {
        // SAFETY: a helper with plain arguments.
        Done::Forwarded(reason, hop) => (reason, unsafe { bpf_redirect(hop.ifindex, 0) } as i32),
        // Not `TC_ACT_OK`: programs behind this one on the hook must still run.
        Done::Passed(reason) => (reason, TC_ACT_UNSPEC),
        Done::Dropped(reason) => (reason, TC_ACT_SHOT),
        Done::Opens => slow(context, false, if is_v6 { FRESH6 } else { FRESH4 }),
        Done::Nothing => slow(context, false, parse_tc(context)),
    };
    count(Rung::Tc, reason);
    action
}

/// For devices without an Ethernet header (tun, WireGuard, IPIP).
#[classifier]
pub(crate) fn headgate_tc_l3(ctx: TcContext) -> i32 {
    let context = ctx.skb.skb;
    let (reason, action) = slow(context, true, parse_tc_l3(context));
    count(Rung::Tc, reason);
    action
}

/// What [`parse_into_work`] returns for a segment of the family, and for what is another protocol; anything else is the
/// number of the reason why it is neither.
const PARSED4: u32 = 1 << 8;
const PARSED6: u32 = 2 << 8;
const OTHER4: u32 = 3 << 8;
const OTHER6: u32 = 4 << 8;
/// The same for what [`fast::handle`] has left in the work room.
const FRESH4: u32 = 5 << 8;
const FRESH6: u32 = 6 << 8;

/// What is done with a packet that is not a common one, by what parsing it came to.
#[inline(always)]
fn slow(context: *mut __sk_buff, bare: bool, parsed: u32) -> (Reason, i32) {
    match parsed {
        PARSED4 => run::<V4>(context, off_path::run(&KernelTables::<V4>::new())),
        PARSED6 => run::<V6>(context, off_path::run(&KernelTables::<V6>::new())),
        FRESH4 => run::<V4>(context, off_path::run_fresh(&KernelTables::<V4>::new())),
        FRESH6 => run::<V6>(context, off_path::run_fresh(&KernelTables::<V6>::new())),
        OTHER4 => decode(send_icmp4(context, bare as u32, decide_icmp4(context, bare as u32))),
        OTHER6 => decode(send_icmp6(context, bare as u32, decide_icmp6(context, bare as u32))),
        reason => (Reason::from_number(reason), TC_ACT_UNSPEC),
    }
}

#[inline(always)]
fn run<A: OnTc>(context: *mut __sk_buff, code: off_path::Code) -> (Reason, i32) {
    let Some(mtu) = off_path::answer(code) else { return decode(A::send(context, code)) };
    let quoted = A::quoted_sum(context);
    if quoted > u16::MAX as u32 || A::answer(context, mtu, quoted) == 0 {
        return (answer::unanswered(mtu), TC_ACT_SHOT);
    }
    // SAFETY: the context that the kernel passed; a helper with plain arguments.
    (Reason::from_number(code & 0xff), unsafe { bpf_redirect((*context).ingress_ifindex, 0) } as i32)
}

/// Parses the packet into the work room of its family.
#[inline(always)]
fn parse_into_work(skb: &Skb, link: Result<Link, Reason>) -> u32 {
    // SAFETY: the context that the kernel passed.
    if unsafe { (*skb.0).pkt_type } != PACKET_HOST {
        return Reason::NOT_UNICAST.number();
    }
    match link {
        Ok(link) if link.ethertype == ethertype::IPV4 => parse_family::<V4>(skb, link, PARSED4, OTHER4),
        Ok(link) if link.ethertype == ethertype::IPV6 => parse_family::<V6>(skb, link, PARSED6, OTHER6),
        Ok(_) => Reason::NOT_IP.number(),
        Err(reason) => reason.number(),
    }
}

#[inline(always)]
fn parse_family<A: Family>(skb: &Skb, link: Link, parsed: u32, other: u32) -> u32 {
    skb.pull_headers::<A>(link);
    match parse::parse::<A, _>(skb, link) {
        Ok(segment) if KernelTables::<A>::new().put(&skb.env(), &segment) => parsed,
        Ok(_) => Reason::NO_FLOW.number(),
        Err(Reason::NOT_TCP) => other,
        Err(reason) => reason.number(),
    }
}

/// Exported, hence global: verified once, whatever leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_tc(context: *mut __sk_buff) -> u32 {
    let skb = Skb(context);
    let link = parse_link(&skb);
    parse_into_work(&skb, link)
}

/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_tc_l3(context: *mut __sk_buff) -> u32 {
    let skb = Skb(context);
    let link = Ok(skb.bare_link());
    parse_into_work(&skb, link)
}

/// Does with the packet in the work room what `code` says, unless that is an answer; see [`encode`].
#[inline(always)]
fn carry_out<A: Family>(context: *mut __sk_buff, code: off_path::Code) -> u32 {
    let tables = KernelTables::<A>::new();
    let Verdict { reason, action, .. } = off_path::decode(&tables, code);
    match action {
        Action::Pass => encode(reason, TC_ACT_UNSPEC),
        Action::Drop | Action::Answer => encode(reason, TC_ACT_SHOT),
        Action::Forward(flow, output) => {
            let segment = tables.segment();
            if segment.and_then(|segment| rewrite(&mut Skb(context), segment, flow.get(), output)).is_none() {
                return encode(Reason::REWRITE_FAILED, TC_ACT_SHOT);
            }
            encode(reason, send(output))
        }
    }
}

#[inline(always)]
fn send(output: Output<'_>) -> i32 {
    // SAFETY: helpers with plain arguments.
    let action = unsafe {
        match output {
            Output::Hop(hop) => bpf_redirect(hop.ifindex, 0),
            Output::Neighbour(hop) => bpf_redirect_neigh(hop.device, core::ptr::null_mut(), 0, 0),
        }
    };
    action as i32
}

/// A reason and an action as one number: what the functions below can return.
#[inline(always)]
fn encode(reason: Reason, action: i32) -> u32 {
    reason.number() | (action as u32) << 8
}

/// The inverse of [`encode`].
#[inline(always)]
fn decode(code: u32) -> (Reason, i32) {
    (Reason::from_number(code & 0xff), code as i32 >> 8)
}

/// What is done with packets of a family that are not common, in functions that are verified once. One after the other,
/// not one from the other: their stack adds up.
trait OnTc: Family {
    /// [`carry_out`].
    fn send(context: *mut __sk_buff, code: off_path::Code) -> u32;
    /// [`answer::quoted_sum`] of the packet in the work room. A sum beyond 16 bits: there is none.
    fn quoted_sum(context: *mut __sk_buff) -> u32;
    /// [`answer::answer`] to the packet in the work room. 0: it could not.
    fn answer(context: *mut __sk_buff, mtu: u32, quoted: u32) -> u32;
}

macro_rules! on_tc {
    ($address:ty, $decide:ident, $send_icmp:ident, $send:ident, $quoted_sum:ident, $answer:ident) => {
        /// Decides on a packet that is not TCP. Exported, hence global: verified once, whatever leads to it.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $decide(context: *mut __sk_buff, bare: u32) -> off_path::Code {
            decide_icmp::<$address>(&Skb(context), bare != 0)
        }

        /// Does what the former said; see [`encode`]. As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $send_icmp(context: *mut __sk_buff, bare: u32, code: off_path::Code) -> u32 {
            send_icmp::<$address>(&mut Skb(context), bare != 0, code)
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $send(context: *mut __sk_buff, code: off_path::Code) -> u32 {
            carry_out::<$address>(context, code)
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $quoted_sum(context: *mut __sk_buff) -> u32 {
            let tables = KernelTables::<$address>::new();
            let Some(segment) = tables.segment() else { return u32::MAX };
            answer::quoted_sum(&mut Skb(context), segment.link.l3, segment.l4).unwrap_or(u32::MAX)
        }

        /// As above.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $answer(context: *mut __sk_buff, mtu: u32, quoted: u32) -> u32 {
            let tables = KernelTables::<$address>::new();
            let Some(segment) = tables.segment() else { return 0 };
            let (mut skb, mut link, l4) = (Skb(context), segment.link, segment.l4);
            // The verifier does not know what is in the work room.
            link.l3 &= MAX_L3_OFFSET;
            answer::answer::<$address, _>(&mut skb, &link, l4, mtu, quoted).is_some() as u32
        }

        impl OnTc for $address {
            #[inline(always)]
            fn send(context: *mut __sk_buff, code: off_path::Code) -> u32 {
                $send(context, code)
            }
            #[inline(always)]
            fn quoted_sum(context: *mut __sk_buff) -> u32 {
                $quoted_sum(context)
            }
            #[inline(always)]
            fn answer(context: *mut __sk_buff, mtu: u32, quoted: u32) -> u32 {
                $answer(context, mtu, quoted)
            }
        }
    };
}
on_tc!(V4, decide_icmp4, send_icmp4, send_tc4, quoted_sum4, answer4);
on_tc!(V6, decide_icmp6, send_icmp6, send_tc6, quoted_sum6, answer6);

#[inline(always)]
fn decide_icmp<A: Family>(skb: &Skb, bare: bool) -> off_path::Code {
    skb.pull(HEADERS);
    let tables = KernelTables::<A>::new();
    let Some(work) = tables.work() else { return Reason::ICMP_OTHER.number() };
    let verdict = match skb.link(bare) {
        Ok(link) => icmp::decide(&skb.env(), skb, &link, &tables),
        Err(reason) => Verdict::pass(reason),
    };
    off_path::encode(work, &verdict)
}

#[inline(always)]
fn send_icmp<A: Family>(skb: &mut Skb, bare: bool, code: off_path::Code) -> u32 {
    let tables = KernelTables::<A>::new();
    let Verdict { reason, action, .. } = off_path::decode(&tables, code);
    let Action::Forward(flow, output) = action else {
        let dropped = matches!(action, Action::Drop);
        return encode(reason, if dropped { TC_ACT_SHOT } else { TC_ACT_UNSPEC });
    };
    let Ok(link) = skb.link(bare) else { return encode(Reason::REWRITE_FAILED, TC_ACT_SHOT) };
    if icmp::rewrite(skb, &link, &tables, flow.get(), output).is_none() {
        return encode(Reason::REWRITE_FAILED, TC_ACT_SHOT);
    }
    encode(reason, send(output))
}

/// A packet under TC. Pointers are taken from the context at each access: helpers may move the data.
struct Skb(*mut __sk_buff);

impl Skb {
    /// Pulls headers that lie in the pages of the skb into reach.
    #[inline(always)]
    fn pull_headers<A: Family>(&self, link: Link) {
        let needed = if A::V6 {
            match self.read::<u8>(link.l3 + 6) {
                Some(parse::TCP) => link.l3 + 40 + 20,
                _ => HEADERS,
            }
        } else {
            match self.read::<u8>(link.l3) {
                Some(version) => link.l3 + ((version & 0xf) as usize) * 4 + 20,
                None => HEADERS,
            }
        };
        self.pull(needed);
    }

    /// Pulls in more of the headers if `needed` bytes are not within reach.
    #[inline(always)]
    fn pull(&self, needed: usize) {
        // SAFETY: the context that the kernel passed.
        let (linear, length) = unsafe { ((*self.0).data_end - (*self.0).data, (*self.0).len) };
        if (linear as usize) < needed && linear < length {
            let wanted = if length < HEADERS as u32 { length } else { HEADERS as u32 };
            // SAFETY: the context that the kernel passed. Where it fails, parsing says so.
            let _ = unsafe { bpf_skb_pull_data(self.0, wanted) };
        }
    }

    #[inline(always)]
    fn env(&self) -> Env {
        // SAFETY: the context that the kernel passed; a helper without arguments.
        unsafe {
            let mut env = Env::new(Rung::Tc, (*self.0).ingress_ifindex, bpf_ktime_get_coarse_ns());
            env.gso_size = (*self.0).gso_size;
            env
        }
    }

    /// The link layer of a packet.
    #[inline(always)]
    fn link(&self, bare: bool) -> Result<Link, Reason> {
        if bare { Ok(self.bare_link()) } else { parse_link(self) }
    }

    /// The link layer of a packet on a device without an Ethernet header.
    #[inline(always)]
    fn bare_link(&self) -> Link {
        // SAFETY: the context that the kernel passed.
        Link::bare(u16::from_be(unsafe { (*self.0).protocol } as u16))
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context that the kernel passed.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn stripped_tag(&self) -> Option<(u16, u16)> {
        // SAFETY: the context that the kernel passed.
        let skb = unsafe { &*self.0 };
        (skb.vlan_present != 0).then_some((u16::from_be(skb.vlan_proto as u16), skb.vlan_tci as u16))
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
        // SAFETY: the context that the kernel passed, and no helper is called while the head is borrowed.
        unsafe { access::head(self.0, length) }
    }

    #[inline(always)]
    fn add_to_l4_checksum(&mut self, offset: usize, addresses: u16, rest: u16, v6: bool) -> Option<()> {
        let (at, pseudo) = (offset as u32, BPF_F_PSEUDO_HDR as u64);
        // SAFETY: helpers on the context that the kernel passed; `from` 0 and size 0 mean a difference.
        let failed = unsafe {
            let mut result = -1;
            if v6 {
                result = bpf_l4_csum_replace(self.0, at, 0, addresses as u64, pseudo | BPF_F_IPV6);
            }
            // A kernel that does not know the flag says so and has changed nothing.
            if result != 0 {
                result = bpf_l4_csum_replace(self.0, at, 0, addresses as u64, pseudo);
            }
            result != 0 || bpf_l4_csum_replace(self.0, at, 0, rest as u64, 0) != 0
        };
        if failed { None } else { Some(()) }
    }

    #[inline(always)]
    fn skip_extensions(&self, l3: usize, next: u8) -> u32 {
        skip_extensions_tc(self.0, l3 as u32, next as u32)
    }

    #[inline(always)]
    fn find_mss(&self, start: usize, length: usize) -> u32 {
        find_mss_tc(self.0, start as u32, length as u32)
    }

    #[inline(always)]
    fn set_link_header(&mut self, link: &Link, to: &LinkHeader) -> Option<()> {
        if link.is_bare() {
            if to.bare {
                return Some(());
            }
            // SAFETY: the context that the kernel passed.
            if unsafe { bpf_skb_change_head(self.0, 14, 0) } != 0 {
                return None;
            }
            self.write(12, to.ethertype.to_be())?;
        }
        let from = link.tags;
        // Outgoing tags are the device's business to insert; equal ones stay where they are.
        if !(from.count == to.tags.count && from.tci == to.tags.tci && from.outer == to.tags.outer) {
            self.pop_tags(from.count)?;
            if to.tags.count > 1 {
                self.push(ethertype::VLAN, to.tags.tci[1])?;
            }
            if to.tags.count > 0 {
                self.push(to.tags.outer, to.tags.tci[0])?;
            }
        }
        self.write(0, to.destination)?;
        self.write(6, to.source)
    }

    #[inline(always)]
    fn has_partial_checksum(&mut self, offset: usize) -> Option<bool> {
        let before = self.read::<u16>(offset)?;
        // A change outside of the pseudo-header: the kernel makes it in a complete checksum alone.
        // SAFETY: the context that the kernel passed.
        if unsafe { bpf_l4_csum_replace(self.0, offset as u32, 0, 1, 0) } != 0 {
            return None;
        }
        let partial = self.read::<u16>(offset)? == before;
        self.write(offset, before)?;
        Some(partial)
    }

    #[inline(always)]
    fn make_room(&mut self, from: &Link, keep: u32, room: u32) -> Option<()> {
        const MODE: u32 = bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
        // SAFETY: helpers on the context that the kernel passed.
        unsafe {
            if bpf_skb_change_tail(self.0, keep, 0) != 0 {
                return None;
            }
            self.pop_tags(from.tags.count)?;
            // The packet stays of the same family, and what is said of its checksums does not matter any more.
            if bpf_skb_adjust_room(self.0, room as i32, MODE, BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64) != 0 {
                return None;
            }
        }
        Some(())
    }
}

impl Skb {
    /// No loop: the verifier of Linux 6.1 would run it until it gives up, since it does not know the count.
    #[inline(always)]
    fn pop_tags(&self, count: u8) -> Option<()> {
        // SAFETY: the context that the kernel passed.
        let failed = unsafe {
            (count > 0 && bpf_skb_vlan_pop(self.0) != 0) || (count > 1 && bpf_skb_vlan_pop(self.0) != 0)
        };
        if failed { None } else { Some(()) }
    }

    #[inline(always)]
    fn push(&self, protocol: u16, tci: u16) -> Option<()> {
        // SAFETY: the context that the kernel passed.
        let result = unsafe { bpf_skb_vlan_push(self.0, protocol.to_be(), tci) };
        if result == 0 { Some(()) } else { None }
    }
}

/// Exported, hence global: verified once, whatever leads to it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn skip_extensions_tc(context: *mut __sk_buff, l3: u32, next: u32) -> u32 {
    parse::skip_extensions(&Skb(context), l3 as usize, next as u8)
}

/// As above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_mss_tc(context: *mut __sk_buff, start: u32, length: u32) -> u32 {
    tcp::find_mss(&Skb(context), start as usize, length as usize)
}
