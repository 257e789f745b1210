//! Runs a program through the driver programs of `benches/ebpf/src/driver.rs`: `BPF_PROG_TEST_RUN` with the packet made
//! anew in each iteration.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod, include_bytes_aligned};
use lb_common::Rung;
use lb_tests::prog::{sk_buff, test_run, xdp_md};

use crate::tuple::Tuple;

/// The compiled programs of the benchmark.
pub(crate) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench-ebpf"));

/// Words of the headers, as the programs write them.
const WORDS: usize = 20;

/// The driver program for packets of IPv4 on XDP.
const EACH: &str = "bench_xdp4";
/// What it calls to send them.
const TRANSMIT: &str = "bench_xdp_tx";

/// `State` of the driver programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct State {
    iteration: u64,
    last: u64,
    begin: u64,
    end: u64,
    failed: u64,
    length: u64,
    next: u64,
    tuples: u64,
}

// SAFETY: integers only, no padding.
unsafe impl Pod for State {}

/// A driver for one kind of packet on one hook, and a list of tuples that it goes round in.
pub(crate) struct Driver {
    ebpf: Ebpf,
    program: &'static str,
    rung: Rung,
    ingress: u32,
    packet: Vec<u8>,
    state: Array<MapData, State>,
    tuples: Array<MapData, Tuple>,
    jump: ProgramArray<MapData>,
    /// Index of the next tuple.
    next: u64,
    count: u64,
}

/// Where the packets of a sender come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sources {
    /// From those of the tuples.
    Listed,
    /// Each from another one.
    Random,
}

/// What many runs came to.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Nanoseconds a run, the driver's own included; 0 if it was a single one.
    pub(crate) nanoseconds: f64,
    /// Of the last one: `XDP_*` or `TC_ACT_*`, the packet, and the index of its tuple.
    pub(crate) action: u32,
    pub(crate) output: Vec<u8>,
    pub(crate) tuple: usize,
}

impl Driver {
    /// A driver for `packet`, come in by the interface `ingress`; with room for so many tuples, and none yet.
    pub(crate) fn new(rung: Rung, v6: bool, packet: &[u8], ingress: u32, room: usize) -> Result<Self> {
        let program = match (rung, v6) {
            (Rung::Xdp, false) => EACH,
            (Rung::Xdp, true) => "bench_xdp6",
            (Rung::Tc, false) => "bench_tc4",
            (Rung::Tc, true) => "bench_tc6",
        };
        Self::of(program, returning(rung), rung, packet, ingress, room)
    }

    /// A driver for [`Self::send`] of IPv4 packets by an interface: of the tuples, or [`Sources::Random`] of the first one.
    pub(crate) fn sender(sources: Sources, packet: &[u8], egress: u32, room: usize) -> Result<Self> {
        let program = match sources {
            Sources::Listed => EACH,
            Sources::Random => "bench_flood4",
        };
        Self::of(program, TRANSMIT, Rung::Xdp, packet, egress, room)
    }

    /// `other`: a further program of the object to be loaded.
    fn of(
        program: &'static str,
        other: &str,
        rung: Rung,
        packet: &[u8],
        ingress: u32,
        room: usize,
    ) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader.map_max_entries("BENCH_TUPLES", room.try_into()?).load(OBJECT)?;
        for name in [program, other] {
            load(&mut ebpf, name, rung)?;
        }
        let jump = match rung {
            Rung::Xdp => "BENCH_XDP",
            Rung::Tc => "BENCH_TC",
        };
        let mut take = |name: &str| ebpf.take_map(name).with_context(|| format!("no map {name}"));
        let mut head: Array<_, [u32; WORDS]> = take("BENCH_HEAD")?.try_into()?;
        head.set(0, words(packet), 0)?;
        let (state, tuples, jump) = (take("BENCH_STATE")?, take("BENCH_TUPLES")?, take(jump)?);
        Ok(Self {
            program,
            rung,
            ingress,
            packet: packet.to_vec(),
            state: state.try_into()?,
            tuples: tuples.try_into()?,
            jump: jump.try_into()?,
            ebpf,
            next: 0,
            count: 0,
        })
    }

    /// Replaces the list of tuples, and begins at its first.
    pub(crate) fn set_tuples(&mut self, tuples: &[Tuple]) -> Result<()> {
        for (index, tuple) in tuples.iter().enumerate() {
            self.tuples.set(index as u32, tuple, 0).with_context(|| format!("tuple {index}"))?;
        }
        self.next = 0;
        self.count = tuples.len() as u64;
        Ok(())
    }

    /// So many runs of `target`.
    pub(crate) fn run(&mut self, target: &ProgramFd, iterations: usize) -> Result<Run> {
        self.jump.set(0, target, 0).context("the driver cannot call the program: different attachments")?;
        self.repeat(iterations)
    }

    /// So many runs of a program that only drops: what the driver costs itself, nanoseconds.
    pub(crate) fn control(&mut self, iterations: usize) -> Result<f64> {
        let name = returning(self.rung);
        let target = self.ebpf.program(name).context("no program")?.fd()?.try_clone()?;
        let next = self.next;
        let run = self.run(&target, iterations)?;
        self.next = next;
        let drop = match self.rung {
            Rung::Xdp => XDP_DROP,
            Rung::Tc => TC_ACT_SHOT,
        };
        ensure!(run.action == drop, "the control ends with action {}", run.action);
        Ok(run.nanoseconds)
    }

    /// Sends so many packets by the driver's interface. Receiving them is done by the kernel on the same CPU, after each
    /// batch.
    pub(crate) fn send(&mut self, packets: usize) -> Result<()> {
        /// Packets at a time: as many as the receiving end takes at once, and a quarter of what its ring holds.
        const BATCH: u32 = 64;
        let transmit = self.ebpf.program(TRANSMIT).context("no program")?.fd()?.try_clone()?;
        self.jump.set(0, &transmit, 0)?;
        self.begin(packets)?;
        let program: &Xdp = self.ebpf.program(self.program).context("no driver")?.try_into()?;
        program
            .test_run(TestRunOptions {
                data_in: Some(&self.packet),
                ctx_in: Some(&xdp_md(self.packet.len(), self.ingress)),
                repeat: packets.try_into()?,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            })
            .context("sending live frames (Linux 5.18)")?;
        self.end(packets).map(drop)
    }

    fn repeat(&mut self, iterations: usize) -> Result<Run> {
        self.begin(iterations)?;
        let mut output = vec![0; self.packet.len() + 64];
        let program = self.ebpf.program(self.program).context("no driver")?;
        let repeat = iterations.try_into()?;
        let length = self.packet.len();
        let result = match self.rung {
            Rung::Xdp => {
                let program: &Xdp = program.try_into()?;
                test_run(program, &self.packet, &mut output, &xdp_md(length, self.ingress), repeat)?
            }
            Rung::Tc => {
                let program: &SchedClassifier = program.try_into()?;
                test_run(program, &self.packet, &mut output, &sk_buff(self.ingress, 0), repeat)?
            }
        };
        let nanoseconds = self.end(iterations)?;
        output.truncate(result.data_size_out as usize);
        let tuple = (self.next + self.count - 1) % self.count;
        Ok(Run { nanoseconds, action: result.return_value, output, tuple: tuple as usize })
    }

    fn begin(&mut self, iterations: usize) -> Result<()> {
        ensure!(iterations > 0 && self.count > 0, "nothing to run");
        let state = State {
            last: iterations as u64 - 1,
            length: self.packet.len() as u64,
            next: self.next,
            tuples: self.count,
            ..State::default()
        };
        Ok(self.state.set(0, state, 0)?)
    }

    /// Nanoseconds an iteration.
    fn end(&mut self, iterations: usize) -> Result<f64> {
        let state = self.state.get(&0, 0)?;
        ensure!(state.failed == 0, "{} of {iterations} iterations were not set up", state.failed);
        ensure!(state.iteration == iterations as u64, "{} iterations of {iterations}", state.iteration);
        self.next = state.next;
        Ok((state.end - state.begin) as f64 / (iterations.max(2) - 1) as f64)
    }
}

pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;
pub(crate) const XDP_REDIRECT: u32 = 4;
/// `TC_ACT_UNSPEC`, -1.
pub(crate) const TC_ACT_UNSPEC: u32 = u32::MAX;
pub(crate) const TC_ACT_SHOT: u32 = 2;
pub(crate) const TC_ACT_REDIRECT: u32 = 7;

fn returning(rung: Rung) -> &'static str {
    match rung {
        Rung::Xdp => "bench_xdp_drop",
        Rung::Tc => "bench_tc_drop",
    }
}

/// Loads a program of the benchmark's object.
pub(crate) fn load(ebpf: &mut Ebpf, name: &str, rung: Rung) -> Result<()> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    let loaded = match rung {
        Rung::Xdp => <&mut Xdp>::try_from(program)?.load(),
        Rung::Tc => <&mut SchedClassifier>::try_from(program)?.load(),
    };
    loaded.with_context(|| format!("the kernel does not take {name}"))
}

/// The headers in words: three, then two bytes, then four bytes each from 14 on; what is missing is 0.
fn words(packet: &[u8]) -> [u32; WORDS] {
    std::array::from_fn(|number| {
        let (at, length) = match number {
            0..3 => (number * 4, 4),
            3 => (12, 2),
            _ => (number * 4 - 2, 4),
        };
        let mut word = [0; 4];
        for (to, from) in word.iter_mut().zip(packet.iter().skip(at).take(length)) {
            *to = *from;
        }
        u32::from_ne_bytes(word)
    })
}
