//! A small XDP program that runs another one on the same packet again and again.
//!
//! `BPF_PROG_TEST_RUN` hands the same buffer to every iteration and never resets it. A program that rewrites the packet
//! sees its own output from the second iteration on, which belongs to no flow: the figure would be that of a packet that
//! is passed up. So this driver, in each iteration,
//!
//! 1. reads the clock if it is the first or the last one (the system call as a whole also waits for RCU),
//! 2. gives up if the packet has not the length it had, which it must keep,
//! 3. writes the first bytes of the packet again,
//! 4. goes on with the other program by a tail call, which does not return.
//!
//! It is written as BPF instructions (RFC 9669), since a program array only holds programs that were loaded for the
//! same kind of attachment as the one that uses it, which is set here.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{Array, Map, MapData};
use aya_obj::generated::{
    bpf_attach_type, bpf_attr__bindgen_ty_2 as MapUpdate, bpf_attr__bindgen_ty_4 as ProgramLoad,
    bpf_attr__bindgen_ty_7 as TestRun, bpf_map_type, bpf_prog_type,
};

use crate::bpf::{Instruction, bpf};
use crate::prog::xdp_md;

const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// What the driver and its caller tell each other: a map's only value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
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
}

// SAFETY: integers only, no padding.
unsafe impl Pod for State {}

/// Offsets in [`State`].
mod at {
    use super::State;
    use std::mem::offset_of;

    pub(super) const ITERATION: i16 = offset_of!(State, iteration) as i16;
    pub(super) const LAST: i16 = offset_of!(State, last) as i16;
    pub(super) const BEGIN: i16 = offset_of!(State, begin) as i16;
    pub(super) const END: i16 = offset_of!(State, end) as i16;
    pub(super) const FAILED: i16 = offset_of!(State, failed) as i16;
}

/// The driver for one packet and one program.
pub(crate) struct Driver {
    program: OwnedFd,
    state: Array<MapData, State>,
    /// The kernel empties a program array that no descriptor is left of.
    _jump: MapData,
    packet: Vec<u8>,
    ingress: u32,
}

/// What many runs came to.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Nanoseconds a run, the driver's own included.
    pub(crate) nanoseconds: f64,
    /// Of the last one: `XDP_*`, and the packet.
    pub(crate) action: u32,
    pub(crate) output: Vec<u8>,
}

impl Driver {
    /// A driver that runs `target` on `packet`, come in by the interface `ingress`, of which it writes the first
    /// `restored` bytes again each time.
    pub(crate) fn new(target: BorrowedFd<'_>, packet: &[u8], restored: usize, ingress: u32) -> Result<Self> {
        ensure!(restored <= packet.len(), "more bytes to restore than the packet has");
        let state = create(bpf_map_type::BPF_MAP_TYPE_ARRAY, "bench_state", size_of::<State>())?;
        let template =
            create(bpf_map_type::BPF_MAP_TYPE_ARRAY, "bench_packet", restored.next_multiple_of(8))?;
        let jump = create(bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY, "bench_jump", size_of::<u32>())?;
        let mut padded = packet[..restored].to_vec();
        padded.resize(restored.next_multiple_of(8), 0);
        update(&template, padded.as_ptr() as u64).context("the packet's map")?;
        let code = code(packet.len(), restored, &state, &template, &jump);
        let program = load(&code).context("the kernel does not take the driver program")?;
        let target = target.as_raw_fd();
        update(&jump, (&raw const target) as u64)
            .context("the driver cannot call the program: different attachments")?;
        let state = Map::Array(state).try_into()?;
        Ok(Self { program, state, _jump: jump, packet: packet.to_vec(), ingress })
    }

    /// So many iterations, at least 2.
    pub(crate) fn run(&mut self, iterations: u32) -> Result<Run> {
        ensure!(iterations >= 2, "it takes two iterations to measure one");
        loop {
            let state = State { last: u64::from(iterations) - 1, ..State::default() };
            self.state.set(0, state, 0)?;
            let Some((action, output, _)) =
                test_run(self.program.as_fd(), &self.packet, self.ingress, iterations)?
            else {
                continue;
            };
            let state = self.state.get(&0, 0)?;
            ensure!(
                state.failed == 0,
                "{} of {iterations} iterations found another packet length",
                state.failed
            );
            ensure!(
                state.iteration == u64::from(iterations),
                "{} iterations of {iterations}",
                state.iteration
            );
            let nanoseconds = (state.end - state.begin) as f64 / f64::from(iterations - 1);
            return Ok(Run { nanoseconds, action, output });
        }
    }
}

/// A program that does nothing but return `action`.
pub(crate) fn returning(action: u32) -> Result<OwnedFd> {
    load(&[Instruction::set(0, action.cast_signed()), Instruction::EXIT])
}

/// Runs a program itself so many times on one buffer: its last action and output, and the kernel's own figure in
/// whole nanoseconds a run. `None`: a signal came in between.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    ingress: u32,
    iterations: u32,
) -> Result<Option<(u32, Vec<u8>, u32)>> {
    let context = xdp_md(packet.len(), ingress);
    let mut output = vec![0u8; packet.len() + 64];
    // SAFETY: a structure of integers.
    let mut run: TestRun = unsafe { std::mem::zeroed() };
    run.prog_fd = program.as_raw_fd().cast_unsigned();
    run.data_in = packet.as_ptr() as u64;
    run.data_size_in = packet.len().try_into()?;
    run.data_out = output.as_mut_ptr() as u64;
    run.data_size_out = output.len().try_into()?;
    run.ctx_in = context.as_ptr() as u64;
    run.ctx_size_in = context.len().try_into()?;
    run.repeat = iterations;
    match bpf(BPF_PROG_TEST_RUN, &mut run) {
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(None),
        result => result.context("BPF_PROG_TEST_RUN")?,
    };
    output.truncate(run.data_size_out as usize);
    Ok(Some((run.retval, output, run.duration)))
}

fn create(kind: bpf_map_type, name: &str, value: usize) -> Result<MapData> {
    let map = aya_obj::Map::new_from_params(kind as u32, 4, value.try_into()?, 1, 0);
    MapData::create(map, name, None).with_context(|| format!("map {name}"))
}

/// Sets the only value of a map to what is at `value`.
fn update(map: &MapData, value: u64) -> Result<()> {
    let key = 0u32;
    // SAFETY: a structure of integers.
    let mut attributes: MapUpdate = unsafe { std::mem::zeroed() };
    attributes.map_fd = map.fd().as_fd().as_raw_fd().cast_unsigned();
    attributes.key = (&raw const key) as u64;
    attributes.__bindgen_anon_1.value = value;
    bpf(BPF_MAP_UPDATE_ELEM, &mut attributes)?;
    Ok(())
}

fn load(code: &[Instruction]) -> Result<OwnedFd> {
    let mut log = vec![0u8; 1 << 16];
    // SAFETY: a structure of integers.
    let mut load: ProgramLoad = unsafe { std::mem::zeroed() };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
    load.expected_attach_type = bpf_attach_type::BPF_XDP as u32;
    load.insns = code.as_ptr() as u64;
    load.insn_cnt = code.len().try_into()?;
    load.license = c"GPL".as_ptr() as u64;
    load.log_level = 1;
    load.log_buf = log.as_mut_ptr() as u64;
    load.log_size = log.len().try_into()?;
    let fd = bpf(BPF_PROG_LOAD, &mut load).with_context(|| String::from_utf8_lossy(&log).into_owned())?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The instructions of the driver. r6: the context, r7: begin of the packet, r8: its end, r9: the state.
fn code(
    length: usize,
    restored: usize,
    state: &MapData,
    template: &MapData,
    jump: &MapData,
) -> Vec<Instruction> {
    const KTIME_GET_NS: i32 = 5;
    const TAIL_CALL: i32 = 12;
    const XDP_MD_DATA: i16 = 0;
    const XDP_MD_DATA_END: i16 = 4;
    const XDP_ABORTED: i32 = 0;

    let mut code = Vec::new();
    code.push(Instruction::copy(6, 1));
    code.extend(Instruction::map_value(9, state));
    code.push(Instruction::load(8, 1, 9, at::ITERATION));
    code.push(Instruction::load(8, 2, 9, at::LAST));
    code.push(Instruction::copy(3, 1));
    code.push(Instruction::add(3, 1));
    code.push(Instruction::store_sized(8, 9, at::ITERATION, 3));
    code.push(Instruction::skip_unless_zero(1, 3));
    code.push(Instruction::call(KTIME_GET_NS));
    code.push(Instruction::store_sized(8, 9, at::BEGIN, 0));
    code.push(Instruction::skip(3));
    code.push(Instruction::skip_unless_equal(1, 2, 2));
    code.push(Instruction::call(KTIME_GET_NS));
    code.push(Instruction::store_sized(8, 9, at::END, 0));

    code.push(Instruction::load(4, 7, 6, XDP_MD_DATA));
    code.push(Instruction::load(4, 8, 6, XDP_MD_DATA_END));
    code.push(Instruction::copy(2, 8));
    code.push(Instruction::subtract(2, 7));
    code.push(Instruction::add(2, -i32::try_from(length).expect("a packet")));
    let other_length = code.len();
    code.push(Instruction::skip_unless_zero(2, 0));
    code.push(Instruction::copy(1, 7));
    code.push(Instruction::add(1, i32::try_from(restored).expect("a packet")));
    let too_short = code.len();
    code.push(Instruction::skip_if_greater(1, 8, 0));

    code.extend(Instruction::map_value(2, template));
    let mut offset = 0;
    while offset < restored {
        let size = [8, 4, 2, 1].into_iter().find(|size| offset + size <= restored).expect("1 fits");
        code.push(Instruction::load(size, 1, 2, offset as i16));
        code.push(Instruction::store_sized(size, 7, offset as i16, 1));
        offset += size;
    }

    code.push(Instruction::copy(1, 6));
    code.extend(Instruction::map(2, jump));
    code.push(Instruction::set(3, 0));
    code.push(Instruction::call(TAIL_CALL));

    // Where a tail call ends that was not made, and what was not set up.
    for jump in [other_length, too_short] {
        code[jump].offset = (code.len() - jump - 1) as i16;
    }
    code.push(Instruction::load(8, 1, 9, at::FAILED));
    code.push(Instruction::add(1, 1));
    code.push(Instruction::store_sized(8, 9, at::FAILED, 1));
    code.push(Instruction::set(0, XDP_ABORTED));
    code.push(Instruction::EXIT);
    code
}

/// The instructions that the driver is made of. 64-bit arithmetic throughout.
impl Instruction {
    const fn new(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers: from << 4 | to, offset, immediate }
    }

    /// The size bits of a load or store of so many bytes.
    fn size(bytes: usize) -> u8 {
        match bytes {
            1 => 0x10,
            2 => 0x08,
            4 => 0x00,
            8 => 0x18,
            _ => unreachable!("no instruction moves {bytes} bytes"),
        }
    }

    /// r`to` = *(r`base` + offset)
    fn load(bytes: usize, to: u8, base: u8, offset: i16) -> Self {
        Self::new(0x61 | Self::size(bytes), to, base, offset, 0)
    }

    /// *(r`base` + offset) = r`from`
    fn store_sized(bytes: usize, base: u8, offset: i16, from: u8) -> Self {
        Self::new(0x63 | Self::size(bytes), base, from, offset, 0)
    }

    /// r`to` += immediate
    const fn add(to: u8, immediate: i32) -> Self {
        Self::new(0x07, to, 0, 0, immediate)
    }

    /// r`to` -= r`from`
    const fn subtract(to: u8, from: u8) -> Self {
        Self::new(0x1f, to, from, 0, 0)
    }

    /// skip `count` instructions
    const fn skip(count: i16) -> Self {
        Self::new(0x05, 0, 0, count, 0)
    }

    /// if (r`register` != 0) skip `count` instructions
    const fn skip_unless_zero(register: u8, count: i16) -> Self {
        Self::new(0x55, register, 0, count, 0)
    }

    /// if (r`a` != r`b`) skip `count` instructions
    const fn skip_unless_equal(a: u8, b: u8, count: i16) -> Self {
        Self::new(0x5d, a, b, count, 0)
    }

    /// if (r`a` > r`b`) skip `count` instructions
    const fn skip_if_greater(a: u8, b: u8, count: i16) -> Self {
        Self::new(0x2d, a, b, count, 0)
    }

    /// r0 = a helper
    const fn call(helper: i32) -> Self {
        Self::new(0x85, 0, 0, 0, helper)
    }

    /// r`to` = a map (two instructions)
    fn map(to: u8, map: &MapData) -> [Self; 2] {
        const PSEUDO_MAP_FD: u8 = 1;
        [Self::new(0x18, to, PSEUDO_MAP_FD, 0, map.fd().as_fd().as_raw_fd()), Self::new(0, 0, 0, 0, 0)]
    }

    /// r`to` = address of an array's first value (two instructions)
    fn map_value(to: u8, map: &MapData) -> [Self; 2] {
        const PSEUDO_MAP_VALUE: u8 = 2;
        [Self::new(0x18, to, PSEUDO_MAP_VALUE, 0, map.fd().as_fd().as_raw_fd()), Self::new(0, 0, 0, 0, 0)]
    }
}
