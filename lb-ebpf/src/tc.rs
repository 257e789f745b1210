//! The TC host of the datapath: an skb, whose checksums and VLAN tags may live in its metadata and are changed by
//! the kernel's helpers. Handles GSO super-packets and partial checksums.

use aya_ebpf::bindings::{__sk_buff, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{
    bpf_ktime_get_coarse_ns, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_pull_data,
    bpf_skb_vlan_pop, bpf_skb_vlan_push,
};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use lb_common::packet::{LinkHeader, Packet, Wire};
use lb_common::parse::{self, Link, MAX_L4_OFFSET, Tags, ethertype, parse_link};
use lb_common::rewrite::rewrite;
use lb_common::{Action, Env, Reason, Rung, V4, V6, Verdict, decide, decide::Output, tcp};

use crate::access;
use crate::maps::{Family, KernelTables, count};

/// `BPF_F_IPV6`, Linux 6.16: a change of IPv6 addresses leaves `CHECKSUM_COMPLETE` as it is.
const BPF_F_IPV6: u64 = 1 << 7;
/// `skb->pkt_type` of a packet to this host.
const PACKET_HOST: u32 = 0;

#[classifier]
pub(crate) fn headgate_tc(ctx: TcContext) -> i32 {
    let mut skb = Skb(ctx.skb.skb);
    // SAFETY: the context that the kernel passed.
    if unsafe { (*skb.0).pkt_type } != PACKET_HOST {
        count(Rung::Tc, Reason::NOT_UNICAST);
        return TC_ACT_UNSPEC;
    }
    let (reason, action) = match parse_link(&skb) {
        Ok(link) if link.ethertype == ethertype::IPV4 => run::<V4>(&mut skb, link),
        Ok(link) if link.ethertype == ethertype::IPV6 => run::<V6>(&mut skb, link),
        Ok(_) => (Reason::NOT_IP, TC_ACT_UNSPEC),
        Err(reason) => (reason, TC_ACT_UNSPEC),
    };
    count(Rung::Tc, reason);
    action
}

#[inline(always)]
fn run<A: Family>(skb: &mut Skb, link: Link) -> (Reason, i32) {
    skb.pull_headers::<A>(link);
    let segment = match parse::parse::<A, _>(skb, link) {
        Ok(segment) => segment,
        Err(reason) => return (reason, TC_ACT_UNSPEC),
    };
    // SAFETY: the context that the kernel passed; a helper without arguments.
    let env =
        unsafe { Env { rung: Rung::Tc, ingress: (*skb.0).ingress_ifindex, now: bpf_ktime_get_coarse_ns() } };
    let tables = KernelTables::<A>::new();
    let Verdict { reason, action } = decide(&env, &segment, &tables);
    match action {
        // Not `TC_ACT_OK`: programs behind this one on the hook must still run.
        Action::Pass => (reason, TC_ACT_UNSPEC),
        Action::Drop => (reason, TC_ACT_SHOT),
        Action::Forward(flow, output) => {
            if rewrite(skb, &segment, flow.get(), output).is_none() {
                return (Reason::REWRITE_FAILED, TC_ACT_SHOT);
            }
            // SAFETY: helpers with plain arguments.
            let action = unsafe {
                match output {
                    Output::Hop(hop) => bpf_redirect(hop.ifindex, 0),
                    Output::Neighbour(hop) => bpf_redirect_neigh(hop.device, core::ptr::null_mut(), 0, 0),
                }
            };
            (reason, action as i32)
        }
    }
}

/// A packet under TC. Pointers are taken from the context at each access: helpers may move the data.
struct Skb(*mut __sk_buff);

impl Skb {
    /// Pulls headers that lie in the pages of the skb into reach.
    #[inline(always)]
    fn pull_headers<A: Family>(&self, link: Link) {
        const HEADERS: usize = MAX_L4_OFFSET + 60;
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
        // SAFETY: the context that the kernel passed.
        let (linear, length) = unsafe { ((*self.0).data_end - (*self.0).data, (*self.0).len) };
        if (linear as usize) < needed && linear < length {
            let wanted = if length < HEADERS as u32 { length } else { HEADERS as u32 };
            // SAFETY: the context that the kernel passed. Where it fails, parsing says so.
            let _ = unsafe { bpf_skb_pull_data(self.0, wanted) };
        }
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
    fn set_link_header(&mut self, from: Tags, to: &LinkHeader) -> Option<()> {
        // Outgoing tags are the device's business to insert; equal ones stay where they are.
        if !(from.count == to.tags.count && from.tci == to.tags.tci && from.outer == to.tags.outer) {
            for _ in 0..from.count & 3 {
                // SAFETY: the context that the kernel passed.
                if unsafe { bpf_skb_vlan_pop(self.0) } != 0 {
                    return None;
                }
            }
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
}

impl Skb {
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
