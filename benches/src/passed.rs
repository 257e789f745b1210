//! Packets that a program leaves as they are.

use anyhow::{Result, ensure};
use aya::programs::ProgramFd;
use lb_common::host_packets::packet;
use lb_common::tcp::flags::SYN;
use lb_common::{Reason, Rung};
use lb_tests::prog::Bed;

use crate::driver::{Driver, Run, TC_ACT_UNSPEC, XDP_PASS, XDP_TX};
use crate::flows::{counted, target};
use crate::measure::Measure;
use crate::tuple::Pattern;
use crate::world::{NEIGHBOUR, World, client};

/// A packet for which nothing is done.
pub(crate) struct Passed {
    driver: Driver,
    rung: Rung,
    reason: Reason,
    frame: Vec<u8>,
    iterations: usize,
}

/// Offsets of the protocol, and of the EtherType.
const PROTOCOL4: usize = 23;
const PROTOCOL6: usize = 20;
const ETHERTYPE: usize = 12;
const UDP: u8 = 17;
const ARP: [u8; 2] = [0x08, 0x06];
/// Ethernet, IPv4, and half of a TCP header.
const CUT: usize = 14 + 20 + 10;
/// A client that never opens a flow.
const STRANGER: u32 = 1 << 24;
/// A port at which nothing is served.
const NOT_SERVED: u16 = 9;

/// The frames, what each is, and how it counts.
pub(crate) fn frames(bed: &Bed, world: &World, v6: bool) -> Vec<(&'static str, Reason, Vec<u8>)> {
    let mut elsewhere = world.vip(v6, 0);
    elsewhere.set_port(NOT_SERVED);
    let mac = bed.devices.client.mac;
    let segment =
        packet(client(v6, STRANGER), world.vip(v6, 0)).macs(NEIGHBOUR, mac).seq(1).ack(1).payload(&[0; 64]);
    let syn =
        packet(client(v6, STRANGER), elsewhere).macs(NEIGHBOUR, mac).flags(SYN).seq(1).payload(&[0; 64]);
    let mut frames = vec![
        ("TCP of no flow", Reason::NO_FLOW, segment.build().0),
        ("SYN to what is not served", Reason::NO_FLOW, syn.build().0),
    ];
    let mut datagram = segment.build().0;
    datagram[if v6 { PROTOCOL6 } else { PROTOCOL4 }] = UDP;
    frames.push(("UDP", Reason::NOT_TCP, datagram));
    if !v6 {
        let mut arp = segment.build().0;
        arp.truncate(60);
        arp[ETHERTYPE..ETHERTYPE + 2].copy_from_slice(&ARP);
        frames.push(("ARP", Reason::NOT_IP, arp));
        let mut cut = segment.build().0;
        cut.truncate(CUT);
        frames.push(("truncated", Reason::TRUNCATED, cut));
    }
    frames
}

impl Passed {
    pub(crate) fn new(
        bed: &Bed,
        rung: Rung,
        v6: bool,
        reason: Reason,
        frame: Vec<u8>,
        iterations: usize,
    ) -> Result<Self> {
        let pattern = Pattern::of_frame(v6, frame);
        let mut driver = Driver::new(rung, v6, &pattern.frame, bed.devices.client.ifindex, 1)?;
        driver.set_tuples(&[pattern.first()])?;
        Ok(Self { driver, rung, reason, frame: pattern.frame, iterations })
    }

    fn check(&self, run: &Run, action: u32) -> Result<()> {
        ensure!(run.action == action, "the last action is {}, not {action}", run.action);
        ensure!(run.output == self.frame, "the packet has changed");
        Ok(())
    }
}

impl Measure for Passed {
    fn control(&mut self) -> Result<f64> {
        self.driver.control(self.iterations)
    }

    fn ours(&mut self, bed: &Bed) -> Result<f64> {
        let (iterations, target) = (self.iterations, target(bed, self.rung)?);
        let run = counted(bed, self.rung, self.reason, iterations, || self.driver.run(&target, iterations))?;
        let action = match self.rung {
            Rung::Xdp => XDP_PASS,
            Rung::Tc => TC_ACT_UNSPEC,
        };
        self.check(&run, action)?;
        Ok(run.nanoseconds)
    }

    /// A program that sends the packet back as it is.
    fn other(&mut self, program: &ProgramFd) -> Result<f64> {
        let run = self.driver.run(program, self.iterations)?;
        self.check(&run, XDP_TX)?;
        Ok(run.nanoseconds)
    }
}
