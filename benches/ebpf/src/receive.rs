//! The end of a packet's way: counts frames and drops them.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::bpf_xdp_load_bytes;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::frame::Frame;

/// What is expected, and what has come.
#[repr(C)]
struct Received {
    /// Frames as expected: IPv4 and TCP, to an address that is this one where the mask has ones, and to this port.
    right: u64,
    /// Other IPv4 frames with TCP.
    wrong: u64,
    destination: u32,
    mask: u32,
    destination_port: u32,
    zero: u32,
}

/// Frames of which the headers are kept.
const SAMPLES: u64 = 64;
/// Bytes of headers with an MSS option, and without.
const WITH_MSS: usize = 58;
const WITHOUT: usize = 54;
const IPV4: u16 = 0x0800;
const NO_OPTIONS: u8 = 0x45;
const TCP: u8 = 6;

#[btf_map]
static RECEIVED: Array<Received, 1> = Array::new();
/// Headers of the first frames that came as expected.
#[btf_map]
static SAMPLE: Array<[u8; 64], 64> = Array::new();

/// One queue, hence one run at a time.
#[xdp]
pub(crate) fn bench_receive(ctx: XdpContext) -> u32 {
    // SAFETY: the context that the kernel passed.
    let frame = unsafe { Frame::of(ctx.ctx) };
    let Some(head) = frame.head::<WITHOUT>() else { return xdp_action::XDP_DROP };
    if head.get16::<12>() != IPV4.to_be() || head.get8::<14>() != NO_OPTIONS || head.get8::<23>() != TCP {
        return xdp_action::XDP_DROP;
    }
    let Some(received) = RECEIVED.get_ptr_mut(0) else { return xdp_action::XDP_DROP };
    // SAFETY: nobody else writes meanwhile, see above.
    let received = unsafe { &mut *received };
    let astray = (head.get32::<30>() ^ received.destination) & received.mask;
    if astray != 0 || u32::from(head.get16::<36>()) != received.destination_port {
        received.wrong += 1;
        return xdp_action::XDP_DROP;
    }
    if received.right < SAMPLES
        && let Some(sample) = SAMPLE.get_ptr_mut(received.right as u32)
    {
        // SAFETY: a helper on the context that the kernel passed; the sample has room.
        unsafe {
            if bpf_xdp_load_bytes(ctx.ctx, 0, sample.cast(), WITH_MSS as u32) != 0 {
                bpf_xdp_load_bytes(ctx.ctx, 0, sample.cast(), WITHOUT as u32);
            }
        }
    }
    received.right += 1;
    xdp_action::XDP_DROP
}
