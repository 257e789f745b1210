//! Programs that run another one on a packet made anew each time.
//!
//! `BPF_PROG_TEST_RUN` hands the same buffer to every iteration and never resets it. A program that rewrites the packet
//! sees its own output from the second iteration on, which belongs to no flow: the figure would be that of a packet that
//! is passed up. So each of these, in each iteration,
//!
//! 1. reads the clock if it is the first or the last one (the system call as a whole also waits for RCU),
//! 2. gives up if the packet has not the length it had, which it must keep,
//! 3. writes the headers again, with the addresses and numbers of the next tuple of a list that is read in its order
//!    (so that the processor fetches it ahead; it is in random order),
//! 4. goes on with the other program by a tail call, which does not return.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{TC_ACT_SHOT, xdp_action};
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::checksum::apply;
use crate::frame::{Frame, Head};

/// What the driver and its caller tell each other.
#[repr(C)]
struct State {
    /// Iterations so far.
    iteration: u64,
    /// Number of the last one.
    last: u64,
    /// The clock in the first one and in the last one, nanoseconds.
    begin: u64,
    end: u64,
    /// Iterations that could not be set up.
    failed: u64,
    /// Bytes of the packet.
    length: u64,
    /// Index of the next tuple, and their number.
    next: u64,
    tuples: u64,
}

/// What differs from packet to packet, as it stands in it. Of IPv6 addresses the last word.
#[repr(C)]
struct Tuple {
    source: u32,
    destination: u32,
    /// Source port, destination port.
    ports: u32,
    sequence: u32,
    acknowledgement: u32,
    /// Of the IPv4 header.
    ip_checksum: u16,
    tcp_checksum: u16,
    zero: u64,
}

/// Bytes of headers with an MSS option: of IPv4 and TCP, of IPv6 and TCP.
const HEAD4: usize = 58;
const HEAD6: usize = 78;
/// Words of the headers: three, then two bytes, then four bytes each from 14 on.
const WORDS: usize = 20;

#[btf_map]
static BENCH_STATE: Array<State, 1> = Array::new();
#[btf_map]
static BENCH_HEAD: Array<[u32; WORDS], 1> = Array::new();
#[btf_map]
static BENCH_TUPLES: Array<Tuple, 1> = Array::new();
/// The program to run: an array for each hook, since one holds only programs of one type.
#[btf_map]
static BENCH_XDP: ProgramArray<1> = ProgramArray::new();
#[btf_map]
static BENCH_TC: ProgramArray<1> = ProgramArray::new();

#[xdp]
pub(crate) fn bench_xdp4(ctx: XdpContext) -> u32 {
    // SAFETY: the context that the kernel passed.
    drive(&ctx, unsafe { Frame::of(ctx.ctx) }, &BENCH_XDP, write4);
    xdp_action::XDP_ABORTED
}

#[xdp]
pub(crate) fn bench_xdp6(ctx: XdpContext) -> u32 {
    // SAFETY: the context that the kernel passed.
    drive(&ctx, unsafe { Frame::of(ctx.ctx) }, &BENCH_XDP, write6);
    xdp_action::XDP_ABORTED
}

/// As [`bench_xdp4`], but each packet comes from a source of its own: some address of the tuple's network of 15 bits, some
/// port from 32,768 on.
#[xdp]
pub(crate) fn bench_flood4(ctx: XdpContext) -> u32 {
    // SAFETY: the context that the kernel passed.
    drive(&ctx, unsafe { Frame::of(ctx.ctx) }, &BENCH_XDP, |frame, head, tuple| {
        write4(frame, head, &from_anywhere(tuple));
    });
    xdp_action::XDP_ABORTED
}

#[classifier]
pub(crate) fn bench_tc4(ctx: TcContext) -> i32 {
    // SAFETY: the context that the kernel passed.
    drive(&ctx, unsafe { Frame::of(ctx.skb.skb) }, &BENCH_TC, write4);
    TC_ACT_SHOT
}

#[classifier]
pub(crate) fn bench_tc6(ctx: TcContext) -> i32 {
    // SAFETY: the context that the kernel passed.
    drive(&ctx, unsafe { Frame::of(ctx.skb.skb) }, &BENCH_TC, write6);
    TC_ACT_SHOT
}

/// What the driver runs to find out what it costs itself.
#[xdp]
pub(crate) fn bench_xdp_drop(_: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// As above.
#[xdp]
pub(crate) fn bench_xdp_tx(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// For interfaces that take frames from XDP only with a program.
#[xdp]
pub(crate) fn bench_xdp_pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// As [`bench_xdp_drop`].
#[classifier]
pub(crate) fn bench_tc_drop(_: TcContext) -> i32 {
    TC_ACT_SHOT
}

#[inline(always)]
fn drive<C: EbpfContext>(
    ctx: &C,
    frame: Frame,
    target: &ProgramArray<1>,
    write: impl Fn(Frame, &[u32; WORDS], &Tuple),
) {
    let Some(state) = BENCH_STATE.get_ptr_mut(0) else { return };
    // SAFETY: one program at a time runs on this map.
    let state = unsafe { &mut *state };
    let number = state.iteration;
    state.iteration = number + 1;
    if number == 0 || number == state.last {
        // SAFETY: no arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        if number == 0 {
            state.begin = now;
        }
        state.end = now;
    }
    if frame.len() == state.length {
        let index = state.next;
        state.next = if index + 1 < state.tuples { index + 1 } else { 0 };
        let (Some(head), Some(tuple)) = (BENCH_HEAD.get(0), BENCH_TUPLES.get(index as u32)) else { return };
        write(frame, head, tuple);
        // SAFETY: the context that the kernel passed.
        unsafe { target.tail_call(ctx, 0) };
    }
    state.failed += 1;
}

/// The tuple with a random source. 17 bits of the address and 15 bits of the port are 0 in it, all other bits stay.
#[inline(always)]
fn from_anywhere(tuple: &Tuple) -> Tuple {
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let (high, low, port) = ((random >> 16) & 1, random & 0xffff, random >> 17);
    // Words as they stand in the packet; where bits were 0, the sum grows by what they become.
    let [high, low, port] = [high, low, port].map(|word| u32::from((word as u16).to_be()));
    Tuple {
        source: tuple.source | high | low << 16,
        destination: tuple.destination,
        ports: tuple.ports | port,
        sequence: tuple.sequence,
        acknowledgement: tuple.acknowledgement,
        ip_checksum: apply(tuple.ip_checksum, high + low),
        tcp_checksum: apply(tuple.tcp_checksum, high + low + port),
        zero: 0,
    }
}

/// Shorter packets are left alone: no program writes to them. Field by field, as programs read them: a load that spans two
/// stores would have to wait until both are in the cache, as no packet of a NIC makes it wait.
#[inline(always)]
fn write4(frame: Frame, head: &[u32; WORDS], tuple: &Tuple) {
    let Some(to) = frame.head::<HEAD4>() else { return };
    write_link(to, head);
    to.set32::<14>(head[4]);
    to.set32::<18>(head[5]);
    to.set16::<22>(head[6] as u16);
    to.set16::<24>(tuple.ip_checksum);
    to.set32::<26>(tuple.source);
    to.set32::<30>(tuple.destination);
    to.set32::<34>(tuple.ports);
    to.set32::<38>(tuple.sequence);
    to.set32::<42>(tuple.acknowledgement);
    to.set32::<46>(head[12]);
    to.set16::<50>(tuple.tcp_checksum);
    to.set32::<54>(head[14]);
}

#[inline(always)]
fn write6(frame: Frame, head: &[u32; WORDS], tuple: &Tuple) {
    let Some(to) = frame.head::<HEAD6>() else { return };
    write_link(to, head);
    to.set32::<14>(head[4]);
    to.set32::<18>(head[5]);
    to.set32::<22>(head[6]);
    to.set32::<26>(head[7]);
    to.set32::<30>(head[8]);
    to.set32::<34>(tuple.source);
    to.set32::<38>(head[10]);
    to.set32::<42>(head[11]);
    to.set32::<46>(head[12]);
    to.set32::<50>(tuple.destination);
    to.set32::<54>(tuple.ports);
    to.set32::<58>(tuple.sequence);
    to.set32::<62>(tuple.acknowledgement);
    to.set32::<66>(head[17]);
    to.set16::<70>(tuple.tcp_checksum);
    to.set32::<74>(head[19]);
}

#[inline(always)]
fn write_link<const N: usize>(to: Head<N>, head: &[u32; WORDS]) {
    to.set32::<0>(head[0]);
    to.set32::<4>(head[1]);
    to.set32::<8>(head[2]);
    to.set16::<12>(head[3] as u16);
}
