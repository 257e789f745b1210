//! L, the limit: what a full NAT of IPv4 and TCP costs at the least with one look-up in a map of the kernel's.
//!
//! No checks but those that the verifier wants, no counters, no state, fixed MAC addresses, always `XDP_TX`.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::checksum::apply;
use crate::frame::Frame;

/// The 5-tuple as it arrives, 16 bytes.
#[repr(C)]
struct Key {
    source: u32,
    destination: u32,
    ports: u32,
    protocol: u32,
}

/// What the packet leaves with, and what that makes of its checksums.
#[repr(C)]
struct Nat {
    source: u32,
    destination: u32,
    ports: u32,
    ip_delta: u32,
    tcp_delta: u32,
}

/// Both directions of each flow.
#[btf_map]
static LIMIT_FLOWS: LruHashMap<Key, Nat, 1024> = LruHashMap::new();

/// Ethernet, IPv4 and TCP without options.
const HEADERS: usize = 14 + 20 + 20;
const IPV4: u16 = 0x0800;
const NO_OPTIONS: u8 = 0x45;
const TCP: u8 = 6;

#[xdp]
pub(crate) fn bench_limit(ctx: XdpContext) -> u32 {
    // SAFETY: the context that the kernel passed.
    let frame = unsafe { Frame::of(ctx.ctx) };
    let Some(head) = frame.head::<HEADERS>() else { return xdp_action::XDP_PASS };
    if head.get16::<12>() != IPV4.to_be() || head.get8::<14>() != NO_OPTIONS || head.get8::<23>() != TCP {
        return xdp_action::XDP_PASS;
    }
    let key = Key {
        source: head.get32::<26>(),
        destination: head.get32::<30>(),
        ports: head.get32::<34>(),
        protocol: TCP.into(),
    };
    let Some(nat) = LIMIT_FLOWS.get_ptr(&key) else { return xdp_action::XDP_PASS };
    // SAFETY: entries are not written to while the program runs.
    let nat = unsafe { &*nat };
    head.set32::<0>(0x0000_0002);
    head.set32::<4>(0x0002_0100);
    head.set32::<8>(0x0200_0000);
    head.set8::<22>(head.get8::<22>().wrapping_sub(1));
    head.set16::<24>(apply(head.get16::<24>(), nat.ip_delta));
    head.set32::<26>(nat.source);
    head.set32::<30>(nat.destination);
    head.set32::<34>(nat.ports);
    head.set16::<50>(apply(head.get16::<50>(), nat.tcp_delta));
    xdp_action::XDP_TX
}
