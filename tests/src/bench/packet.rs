//! What one packet of an established flow costs on the xdp rung, beside programs that do nothing: `bench packet`.
//!
//! One flow, so caches and branch predictors are as warm as can be, and there is no NIC. All cases run in the same
//! interleaved rounds on one CPU; figures of different rounds of this machine may differ more than those of one.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use lb_common::host_packets::{PacketBuilder, packet};
use lb_common::tcp::flags::SYN;
use lb_common::{Reason, Rung};

use crate::bench::driver::{Driver, returning, test_run};
use crate::maps;
use crate::packet::answer_to;
use crate::prog::{Bed, Device};
use crate::sample::{self, network, port};

const XDP_DROP: u32 = 1;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

/// Payload, bytes.
const PAYLOAD: usize = 64;
/// A TCP header without options, bytes. The last one that the datapath writes to is in it.
const TCP_HEADER: usize = 20;
const ISN: u32 = 1_000;
const BACKEND_ISN: u32 = 2_000;

/// A packet of an established flow.
struct Case {
    name: String,
    reason: Reason,
    action: u32,
    /// What the packet looks like afterwards.
    output: Vec<u8>,
    driver: Driver,
    /// The same driver in front of a program that drops.
    control: Driver,
    net: Vec<f64>,
}

/// A program that only returns.
struct Floor {
    name: &'static str,
    action: u32,
    program: OwnedFd,
    raw: Vec<f64>,
}

/// Measures and prints a table.
pub fn run(rounds: u32, repeat: u32) -> Result<()> {
    ensure!(rounds > 0 && repeat > 1, "at least one round of two packets");
    Bed::run(sample::MAX_FLOWS, |mut bed| {
        maps::fill(&mut bed.ebpf, &sample::tables(&bed.devices))?;
        let mut floors = [Floor::new("XDP_DROP alone", XDP_DROP)?, Floor::new("XDP_TX alone", XDP_TX)?];
        let mut cases = Vec::new();
        for v6 in [false, true] {
            for (way, port) in [("one interface", port::HAIRPIN), ("two interfaces", port::RANDOM)] {
                cases.extend(flow(&mut bed, v6, way, port)?);
            }
        }
        for case in &mut cases {
            case.round(&bed, repeat)?;
            case.net.clear();
        }
        for _ in 0..rounds {
            for floor in &mut floors {
                floor.round(&bed, repeat)?;
            }
            for case in &mut cases {
                case.round(&bed, repeat)?;
            }
        }
        print(&floors, &cases, rounds, repeat);
        Ok(())
    })
}

/// Opens a flow, and makes a case of each direction.
fn flow(bed: &mut Bed, v6: bool, way: &str, port: u16) -> Result<[Case; 2]> {
    let client = (sample::host(v6, network::LINK, 1), 40_000).into();
    let segment =
        packet(client, sample::vip(v6, port)).macs([0x02, 0, 0, 0, 0x30, 1], bed.devices.client.mac);
    let (near, far) =
        (bed.devices.client, if port == port::HAIRPIN { bed.devices.client } else { bed.devices.backend });

    let forwarded = step(bed, near, &segment.clone().flags(SYN).seq(ISN), Reason::NEW_FLOW)?;
    let answer = answer_to(&forwarded);
    step(bed, far, &answer.clone().flags(SYN).seq(BACKEND_ISN).ack(ISN + 1), Reason::SYN_ACK)?;
    step(bed, near, &segment.clone().seq(ISN + 1).ack(BACKEND_ISN + 1), Reason::ESTABLISHED)?;

    let data = segment.seq(ISN + 1).ack(BACKEND_ISN + 1).payload(&[0xa5; PAYLOAD]);
    let reply = answer.seq(BACKEND_ISN + 1).ack(ISN + 1).payload(&[0x5a; PAYLOAD]);
    let family = if v6 { "IPv6" } else { "IPv4" };
    let action = if near == far { XDP_TX } else { XDP_REDIRECT };
    Ok([
        Case::new(bed, format!("{family} forward, {way}"), near, &data, Reason::FORWARD, action)?,
        Case::new(bed, format!("{family} reverse, {way}"), far, &reply, Reason::REVERSE, action)?,
    ])
}

/// One packet that has to be forwarded for that reason; how it leaves.
fn step(bed: &mut Bed, ingress: Device, segment: &PacketBuilder, reason: Reason) -> Result<Vec<u8>> {
    let outcome = bed.packet(Rung::Xdp, ingress.ifindex, &segment.build().0)?;
    ensure!(outcome.reasons == [(Rung::Xdp, reason, 1)], "{} was to come, not {outcome:?}", reason.name());
    Ok(outcome.frame)
}

impl Case {
    fn new(
        bed: &mut Bed,
        name: String,
        ingress: Device,
        segment: &PacketBuilder,
        reason: Reason,
        action: u32,
    ) -> Result<Self> {
        let output = step(bed, ingress, segment, reason).with_context(|| name.clone())?;
        let packet = segment.build().0;
        // All headers, so all that the program may write to.
        let restored = packet.len() - PAYLOAD;
        ensure!(restored >= 14 + 20 + TCP_HEADER, "{name}: {restored} bytes of headers");
        let driver = Driver::new(bed.xdp()?.fd()?.as_fd(), &packet, restored, ingress.ifindex)?;
        let control = Driver::new(returning(XDP_DROP)?.as_fd(), &packet, restored, ingress.ifindex)?;
        Ok(Self { name, reason, action, output, driver, control, net: Vec::new() })
    }

    /// Measures once. All packets have to go the way that the case is about.
    fn round(&mut self, bed: &Bed, repeat: u32) -> Result<()> {
        let name = &self.name;
        let control = self.control.run(repeat)?;
        ensure!(control.action == XDP_DROP, "{name}: the control ends with action {}", control.action);
        let before = bed.reasons()?;
        let run = self.driver.run(repeat)?;
        let after = bed.reasons()?;
        ensure!(run.action == self.action, "{name}: the last action is {}, not {}", run.action, self.action);
        ensure!(run.output == self.output, "{name}: the last packet is not like the first");
        let counted: Vec<_> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
        let slot = lb_common::tables::reason_index(Rung::Xdp, self.reason) as usize;
        ensure!(
            counted[slot] >= u64::from(repeat) && counted.iter().sum::<u64>() == counted[slot],
            "{name}: not all packets count as {}: {counted:?}",
            self.reason.name()
        );
        self.net.push(run.nanoseconds - control.nanoseconds);
        Ok(())
    }
}

impl Floor {
    fn new(name: &'static str, action: u32) -> Result<Self> {
        Ok(Self { name, action, program: returning(action)?, raw: Vec::new() })
    }

    fn round(&mut self, bed: &Bed, repeat: u32) -> Result<()> {
        loop {
            let packet = [0; 14 + 20 + TCP_HEADER + PAYLOAD];
            let run = test_run(self.program.as_fd(), &packet, bed.devices.client.ifindex, repeat)?;
            let Some((action, _, nanoseconds)) = run else { continue };
            ensure!(action == self.action, "{} ends with action {action}", self.name);
            self.raw.push(f64::from(nanoseconds));
            return Ok(());
        }
    }
}

/// Least, middle and greatest.
fn spread(figures: &[f64]) -> [f64; 3] {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    };
    [sorted[0], median, sorted[sorted.len() - 1]]
}

fn print(floors: &[Floor; 2], cases: &[Case], rounds: u32, repeat: u32) {
    let [_, unit, _] = spread(&floors[1].raw);
    println!(
        "ns a packet of an established flow, {rounds} rounds of {repeat} packets, {PAYLOAD} bytes of payload"
    );
    println!("(the last column: how many times the median of XDP_TX alone)");
    println!("{:<32} {:>8} {:>8} {:>8} {:>9}", "program", "min", "median", "max", "x XDP_TX");
    let row = |name: &str, figures: &[f64]| {
        let [least, median, greatest] = spread(figures);
        println!("{name:<32} {least:>8.1} {median:>8.1} {greatest:>8.1} {:>9.1}", median / unit);
    };
    for floor in floors {
        row(floor.name, &floor.raw);
    }
    for case in cases {
        row(&case.name, &case.net);
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), [1.0, 2.0, 3.0]);
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), [1.0, 2.5, 4.0]);
    }
}
