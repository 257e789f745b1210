//! Packets a second of one core, through veth: `bench frames`.
//!
//! Live frames of `BPF_PROG_TEST_RUN` (Linux 5.18) are what a NIC's driver hands to XDP: a page, no skb, no copy. Their
//! pages come back as the last receiver left them, so the driver program makes each packet anew.

mod clock;
mod findings;
mod lane;
mod receiver;
mod siege;
mod subject;
mod traffic;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use lb_common::{Reason, Rung};
use lb_tests::netns::Namespace;
use lb_tests::prog::stay_on_one_cpu;

use self::clock::Clock;
use self::lane::Lane;
use self::siege::Siege;
use self::subject::{Stand, Subject};
use self::traffic::Traffic;
use crate::Effort;
use crate::driver::Driver;
use crate::flows::counted;
use crate::measure::Series;
use crate::report::Section;
use crate::tuple::is_of;

/// In this order in each round: next to what they are compared with, since the machine's pace drifts.
const SUBJECTS: [Subject; 7] = [
    Subject::Sender,
    Subject::Toy(Rung::Xdp),
    Subject::Headgate(Rung::Xdp),
    Subject::Toy(Rung::Tc),
    Subject::Headgate(Rung::Tc),
    Subject::Forwarding,
    Subject::Nftables,
];
/// So many of them get the traffic of few flows as well: it shows what of a look-up is waiting for memory.
const WITH_FEW: usize = 3;
/// Packets of the first round.
const FIRST: usize = 32_768;
/// SYNs of a round through nftables. Each is an entry of conntrack for two minutes, of which the kernel has room for
/// 262,144 by default; what is measured is not what happens when they are used up.
const CONNTRACK: usize = 16_384;

/// A subject under some traffic.
struct Case {
    subject: Subject,
    traffic: Traffic,
    // The programs first: they are attached to the hosts' interfaces.
    sender: Driver,
    stand: Stand,
    siege: Option<Siege>,
    lane: Lane,
    /// Packets of a round.
    packets: usize,
    series: Series,
    /// Packets that were sent and those that arrived, over all rounds.
    sent: u64,
    arrived: u64,
}

/// Measures.
pub(crate) fn run(effort: &Effort) -> Result<Section> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            stay_on_one_cpu()?;
            measure(effort, &Clock::new()?)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn measure(effort: &Effort, clock: &Clock) -> Result<Section> {
    let rounds = if effort.quick { 3 } else { 9 };
    let length = Duration::from_millis(if effort.quick { 120 } else { 400 });
    let mut cases = Vec::new();
    for traffic in [Traffic::Established, Traffic::Few, Traffic::Flood] {
        let subjects = if traffic == Traffic::Few { &SUBJECTS[..WITH_FEW] } else { &SUBJECTS };
        for &subject in subjects {
            cases.push(Case::new(cases.len(), traffic, subject).with_context(|| name(traffic, subject))?);
        }
    }
    // The first round warms up.
    for round in 0..=rounds {
        for case in &mut cases {
            let rate = case.round(clock, length).with_context(|| case.series.name.clone())?;
            if round > 0 {
                case.series.net.push(rate);
            }
        }
    }
    findings::section(rounds, &cases)
}

fn name(traffic: Traffic, subject: Subject) -> String {
    format!("{traffic}: {subject}")
}

impl Case {
    fn new(number: usize, traffic: Traffic, subject: Subject) -> Result<Self> {
        let lane = Lane::new(number)?;
        let stand = Stand::new(&lane, subject)?;
        let sender = traffic.sender(&lane, subject)?;
        let siege = match (traffic, subject) {
            (Traffic::Flood, Subject::Headgate(rung)) => Some(Siege::new(&lane, rung)?),
            _ => None,
        };
        let series = series(traffic, subject);
        Ok(Self { subject, traffic, sender, stand, siege, lane, packets: FIRST, series, sent: 0, arrived: 0 })
    }

    /// Sends the packets of a round: millions that arrive in a second of the CPU. The next round will take so much of it.
    fn round(&mut self, clock: &Clock, length: Duration) -> Result<f64> {
        let Self { stand, sender, siege, lane, packets, .. } = self;
        let Stand { receiver, headgate, .. } = stand;
        receiver.begin()?;
        let sent = *packets as u64;
        let mut pass = || {
            let time = send(lane, sender, *packets, clock)?;
            Ok((time, receiver.end(sent)?))
        };
        let (time, arrived) = match (&*headgate, siege, self.subject) {
            (Some((bed, flows)), Some(siege), _) => {
                let before = bed.reasons()?;
                let (time, arrived) = pass()?;
                siege.account(bed, &before, sent, arrived)?;
                siege.survey(lane, bed, flows, receiver, clock)?;
                (time, arrived)
            }
            (Some((bed, flows)), None, Subject::Headgate(rung)) => {
                let passed = counted(bed, rung, Reason::FORWARD, *packets, pass)?;
                for sample in receiver.samples(passed.1)? {
                    let known = flows.iter().any(|flow| is_of(&sample, &flow.reverse.reversed()));
                    ensure!(known, "a packet arrived that is of no flow");
                }
                passed
            }
            _ => pass()?,
        };
        self.sent += sent;
        self.arrived += arrived;
        let rate = arrived as f64 / (time.as_secs_f64() * 1e6);
        self.packets = match (self.traffic, self.subject) {
            (Traffic::Flood, Subject::Nftables) => CONNTRACK,
            _ => (rate * length.as_micros() as f64) as usize,
        };
        Ok(rate)
    }
}

/// Sends from the client; the time that it takes of the CPU.
fn send(lane: &Lane, sender: &mut Driver, packets: usize, clock: &Clock) -> Result<Duration> {
    lane.client.within(|| {
        let begin = clock.now()?;
        sender.send(packets)?;
        Ok(clock.now()? - begin)
    })?
}

/// Attaches a program in native mode, for as long as its object lives.
fn attach_xdp(host: &Namespace, ebpf: &mut Ebpf, name: &str, ifindex: u32) -> Result<()> {
    let program: &mut Xdp = ebpf.program_mut(name).context("no program")?.try_into()?;
    let attached = host.within(|| program.attach_to_if_index(ifindex, XdpMode::Driver))?;
    attached.with_context(|| format!("attaching {name}")).map(drop)
}

/// What a case is compared with, and how it should do.
fn series(traffic: Traffic, subject: Subject) -> Series {
    let series = Series::new(name(traffic, subject));
    match subject {
        Subject::Sender | Subject::Forwarding => series,
        Subject::Toy(_) if traffic == Traffic::Few => series,
        Subject::Nftables | Subject::Toy(_) => series.relative_to(name(traffic, Subject::Forwarding)),
        Subject::Headgate(rung) => {
            let series = series.relative_to(name(traffic, Subject::Toy(rung)));
            match (rung, traffic) {
                (Rung::Xdp, Traffic::Established) => series.at_least(0.85),
                (Rung::Xdp, Traffic::Flood) => series.at_least(0.6),
                _ => series,
            }
        }
    }
}
