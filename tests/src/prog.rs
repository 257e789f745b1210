//! The loaded programs, one packet at a time, through `BPF_PROG_TEST_RUN` (Documentation/bpf/bpf_prog_run.rst).
//!
//! Nothing is attached. Interfaces are there because the kernel wants an existing one to pretend a packet came in by,
//! and because the device map holds real devices.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::PerCpuArray;
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, sys::SyscallError};
use lb_common::tables::{REASON_SLOTS, names};
use lb_common::{Reason, Rung, reason};
use lb_userspace::datapath::object;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::maps;
use crate::netns::Namespace;

/// Whether the kernel runs the program of `rung` on `frame`: it wants an Ethernet header, on TC something behind it, and
/// newer kernels there a whole IP header behind the EtherType of one (`bpf_prog_test_run_skb`).
pub fn is_runnable(rung: Rung, frame: &[u8]) -> bool {
    const ETHERNET: usize = 14;
    let enough = match (rung, frame.get(12..ETHERNET)) {
        (_, None) => return false,
        (Rung::Xdp, _) => ETHERNET,
        (Rung::Tc, Some([0x08, 0x00])) => ETHERNET + 20,
        (Rung::Tc, Some([0x86, 0xdd])) => ETHERNET + 40,
        (Rung::Tc, _) => ETHERNET + 1,
    };
    frame.len() >= enough
}

/// An interface of the bed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    pub ifindex: u32,
    pub mac: [u8; 6],
}

/// The interfaces of the bed.
#[derive(Clone, Copy, Debug)]
pub struct Devices {
    /// Where clients are.
    pub client: Device,
    /// Where backends are.
    pub backend: Device,
    /// One that is missing in the device map.
    pub unmapped: Device,
}

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `XDP_*` or `TC_ACT_*`.
    pub action: u32,
    /// The frame afterwards. TC: without the outermost tag if the program pushed it, which is in the skb's metadata.
    pub frame: Vec<u8>,
    /// Counters that moved, by how much.
    pub reasons: Vec<(Rung, Reason, u64)>,
}

/// The programs with maps of their own, and interfaces in a network namespace of their own.
#[derive(Debug)]
pub struct Bed {
    pub ebpf: Ebpf,
    pub devices: Devices,
    /// The reason counters after the last packet.
    counted: Vec<u64>,
}

impl Bed {
    /// Loads the programs with room for `max_flows` flows and runs `work` on a thread that stays in the namespace
    /// and on one CPU (round_robin and the counters have a value for each).
    pub fn run<T: Send>(max_flows: u32, work: impl FnOnce(Self) -> T + Send) -> T {
        assert!(
            rustix::process::geteuid().is_root(),
            "loading BPF programs needs root: run the tests as root (`cargo xtask test` does)"
        );
        let namespace = namespace().expect("a network namespace with three veth devices");
        namespace
            .within(|| {
                stay_on_one_cpu().expect("a CPU that this thread may run on");
                let devices = devices().expect("the devices that were made above");
                work(Self::on(devices, max_flows).expect("the kernel loads the programs"))
            })
            .expect("a thread in the namespace")
    }

    /// The programs once more, with maps of their own; on the same interfaces.
    pub fn another(&self, max_flows: u32) -> Result<Self> {
        Self::on(self.devices, max_flows)
    }

    /// The programs with maps of their own, on interfaces of the calling thread's namespace.
    pub fn on(devices: Devices, max_flows: u32) -> Result<Self> {
        let mut ebpf = object::load(max_flows, 0, None)?.ebpf;
        for device in [devices.client, devices.backend] {
            maps::add_device(&mut ebpf, device.ifindex).context("no slot in the device map")?;
        }
        Ok(Self { ebpf, devices, counted: vec![0; REASON_SLOTS as usize] })
    }

    /// Runs the program of `rung` on `frame` as if it came in by the interface `ingress`.
    pub fn packet(&mut self, rung: Rung, ingress: u32, frame: &[u8]) -> Result<Outcome> {
        self.super_packet(rung, ingress, 0, frame)
    }

    /// The same; on TC, if `gso_size` is not 0, as a super-packet that becomes segments of so many bytes of payload.
    pub fn super_packet(&mut self, rung: Rung, ingress: u32, gso_size: u32, frame: &[u8]) -> Result<Outcome> {
        let mut output = room(frame);
        let result = match rung {
            Rung::Xdp => test_run(self.xdp()?, frame, &mut output, &xdp_md(frame.len(), ingress), 1)?,
            Rung::Tc => test_run(self.tc()?, frame, &mut output, &sk_buff(ingress, gso_size), 1)?,
        };
        self.outcome(&result, output)
    }

    /// Runs the XDP program for frames of several buffers; the kernel puts what is beyond a page into further ones.
    pub fn scattered_packet(&mut self, ingress: u32, frame: &[u8]) -> Result<Outcome> {
        let mut output = room(frame);
        let program: &Xdp = self.ebpf.program(object::XDP_FRAGS_PROGRAM).context("no program")?.try_into()?;
        let result = test_run(program, frame, &mut output, &xdp_md(frame.len(), ingress), 1)?;
        self.outcome(&result, output)
    }

    fn outcome(&mut self, result: &TestRunResult, mut output: Vec<u8>) -> Result<Outcome> {
        output.truncate(result.data_size_out as usize);
        let after = self.reasons()?;
        let before = std::mem::replace(&mut self.counted, after);
        Ok(Outcome { action: result.return_value, frame: output, reasons: moved(&before, &self.counted) })
    }

    /// The XDP program.
    pub fn xdp(&self) -> Result<&Xdp> {
        Ok(self.ebpf.program(object::XDP_PROGRAM).context("no XDP program")?.try_into()?)
    }

    /// The TC program.
    pub fn tc(&self) -> Result<&SchedClassifier> {
        Ok(self.ebpf.program(object::TC_PROGRAM).context("no TC program")?.try_into()?)
    }

    /// All reason counters, summed over the CPUs.
    pub fn reasons(&self) -> Result<Vec<u64>> {
        let map = self.ebpf.map(names::REASONS).context("no map of reasons")?;
        let map: PerCpuArray<_, u64> = map.try_into()?;
        (0..REASON_SLOTS).map(|slot| Ok(map.get(&slot, 0)?.iter().sum())).collect()
    }
}

/// Room for what becomes of a frame: two tags more at the most, or the headers of an ICMPv6 message in front.
fn room(frame: &[u8]) -> Vec<u8> {
    vec![0; frame.len() + 8 + 48]
}

/// The counters that differ.
fn moved(before: &[u64], after: &[u64]) -> Vec<(Rung, Reason, u64)> {
    let slots = before.iter().zip(after).enumerate().filter(|(_, (before, after))| before != after);
    slots
        .map(|(slot, (before, after))| {
            let (rung, number) = (slot / reason::REASONS, slot % reason::REASONS);
            (Rung::from_number(rung as u32), Reason::from_number(number as u32), after - before)
        })
        .collect()
}

/// `BPF_PROG_TEST_RUN`, repeated where a signal interrupts it.
pub fn test_run<P>(
    program: &P,
    frame: &[u8],
    output: &mut [u8],
    context: &[u8],
    repeat: u32,
) -> Result<TestRunResult>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    loop {
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut *output),
            ctx_in: Some(context),
            repeat,
            ..TestRunOptions::new()
        };
        match program.test_run(options) {
            Err(ProgramError::SyscallError(SyscallError { io_error, .. }))
                if io_error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.with_context(|| format!("test run on {} bytes", frame.len())),
        }
    }
}

/// `struct xdp_md` of a frame that came in by the first queue of an interface.
pub fn xdp_md(length: usize, ingress: u32) -> Vec<u8> {
    let (data, data_end, data_meta, queue, egress) = (0, length as u32, 0, 0, 0);
    [data, data_end, data_meta, ingress, queue, egress].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// `struct __sk_buff` up to `gso_size`; the kernel takes what is missing for zero. The packet is to this host if its
/// destination is the MAC address of that device.
pub fn sk_buff(ingress: u32, gso_size: u32) -> Vec<u8> {
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    const GSO_SEGMENTS: usize = 164;
    const GSO_SIZE: usize = 176;
    let mut context = vec![0; GSO_SIZE + 4];
    context[GSO_SIZE..].copy_from_slice(&gso_size.to_ne_bytes());
    context[GSO_SEGMENTS..GSO_SEGMENTS + 4].copy_from_slice(&u32::from(gso_size > 0).to_ne_bytes());
    context[INGRESS_IFINDEX..IFINDEX].copy_from_slice(&ingress.to_ne_bytes());
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ingress.to_ne_bytes());
    context
}

/// `CLOCK_MONOTONIC`, nanoseconds, as coarse as the programs read it.
pub fn coarse_now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32).as_nanos() as u64
}

/// Names of the devices, and the last byte of their MAC addresses.
const DEVICES: [(&str, u8); 3] = [("client", 1), ("backend", 2), ("unmapped", 3)];

fn mac(last: u8) -> [u8; 6] {
    [0x02, 0, 0, 0, 0x10, last]
}

fn namespace() -> Result<Namespace> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let namespace = Namespace::create(&format!("hgt-{}-prog{number}", std::process::id()))?;
    for (name, last) in DEVICES {
        let [a, b, c, d, e, f] = mac(last);
        let address = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        let peer = format!("{name}-far");
        namespace.ip(&["link", "add", name, "address", &address, "type", "veth", "peer", "name", &peer])?;
        namespace.ip(&["link", "set", name, "up"])?;
    }
    Ok(namespace)
}

fn devices() -> Result<Devices> {
    // Any socket answers for the interfaces of its namespace.
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    let device = |(name, last): (&str, u8)| -> Result<Device> {
        let ifindex = rustix::net::netdevice::name_to_index(&socket, name).context(name.to_owned())?;
        Ok(Device { ifindex, mac: mac(last) })
    };
    let [client, backend, unmapped] = DEVICES.map(device);
    let devices = Devices { client: client?, backend: backend?, unmapped: unmapped? };
    ensure!(devices.client.ifindex > 1, "1 would be the loopback device, whose MAC address is another");
    Ok(devices)
}

/// Keeps the calling thread, and those that it starts, on the first CPU that it may run on.
pub fn stay_on_one_cpu() -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(first_cpu()?);
    Ok(sched_setaffinity(None, &cpu)?)
}

/// The first CPU that this thread may run on.
fn first_cpu() -> Result<usize> {
    let allowed = sched_getaffinity(None)?;
    (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).context("no CPU is allowed")
}
