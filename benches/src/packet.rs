//! What one packet costs: `bench packet`.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::EbpfLoader;
use aya::Pod;
use aya::programs::{ProgramFd, Xdp};
use lb_common::{Flow, Key, Reason, Rung, V4, V6};
use lb_tests::prog::Bed;

use crate::Effort;
use crate::driver::{self, OBJECT};
use crate::entries::Family;
use crate::established::{Case, Direction};
use crate::flows::{Costs, Handshakes, Opened, fill};
use crate::limit::Limit;
use crate::measure::{Row, Series, Subject, report};
use crate::passed::{Passed, frames};
use crate::programs;
use crate::report::Section;
use crate::world::{Way, World};

/// Flows where there are many.
const MANY: usize = 65_536;
/// Packets of a round where there is one flow, and where there are many.
const PACKETS: usize = 200_000;
const MANY_PACKETS: usize = 2 * MANY;
/// How names of rows end.
const ONE_NAME: &str = "1 flow";
const MANY_NAME: &str = "65,536 flows";
/// Names of rows that others are compared with.
const LIMIT_ONE: &str = "L, 1 flow";
const LIMIT_MANY: &str = "L, 65,536 flows";

/// What stands in the way of targets.
const OBSTACLES: [&str; 4] = [
    "Established, one flow: nothing is waited for; Headgate runs about 200 instructions and L 85. The others are \
     checks that L does without (lengths, TTL, MTU, whether the next hop is still vouched for and the entry still \
     the same) and the counts of packets and payload.",
    "Established, many flows: one miss of the TLB and of the cache for the set, in which tags and entry are \
     fetched at once; and the entry where it is not in the way that its tag names.",
    "No flow: the look-up is the same, and to find nothing takes as long as to find something. A SYN looks the \
     service up as well.",
    "New flow: L reads one entry, a new flow writes two in sets that are nowhere near each other. Two thirds of \
     the time is waiting for these.",
];

/// Measures.
pub(crate) fn run(effort: &Effort) -> Result<Section> {
    let rounds = if effort.quick { 3 } else { 15 };
    Bed::run(1024, |bed| measure(&bed, rounds))
}

fn measure(bed: &Bed, rounds: usize) -> Result<Section> {
    let world = World::default();
    let two_ways = World { way: Way::TwoInterfaces, ..world };
    let mut one = bed.another(world.max_flows)?;
    let flows4 = fill::<V4>(&mut one, world, MANY)?;
    let mut one6 = bed.another(world.max_flows)?;
    let flows6 = fill::<V6>(&mut one6, world, MANY)?;
    let mut two = bed.another(1024)?;
    let redirected4 = fill::<V4>(&mut two, two_ways, 1)?;
    let mut two6 = bed.another(1024)?;
    let redirected6 = fill::<V6>(&mut two6, two_ways, 1)?;

    let mut rows = limits(&one, &flows4)?;
    rows.extend(established(&one, &flows4)?);
    rows.extend(established(&one6, &flows6)?);
    rows.extend(redirected(&two, &redirected4)?);
    rows.extend(redirected(&two6, &redirected6)?);
    for rung in [Rung::Xdp, Rung::Tc] {
        for v6 in [false, true] {
            for (name, reason, frame) in frames(&one, &world, v6) {
                let name = format!("{name}, {}, {}", family(v6), hook(rung));
                let mut series = Series::new(format!("passed up: {name}")).relative_to(LIMIT_ONE);
                if rung == Rung::Xdp && !v6 {
                    series = series.at_most(0.8);
                }
                let measure = Box::new(Passed::new(&one, rung, v6, reason, frame, PACKETS)?);
                rows.push(Row { series, measure, subject: Subject::Ours(&one) });
            }
        }
    }

    // Next to what they are compared with, since the machine's pace drifts within a round.
    rows.sort_by_key(|row| row.series.name.ends_with(MANY_NAME));

    let mut handshakes = Vec::new();
    for (rung, v6) in [(Rung::Xdp, false), (Rung::Xdp, true), (Rung::Tc, false)] {
        let series = handshake_series(rung, v6);
        handshakes.push((v6, Handshakes::new(bed, world, rung, v6)?, series));
    }

    // The first round warms up.
    for round in 0..=rounds {
        for row in &mut rows {
            row.round()?;
        }
        for (v6, handshakes, series) in &mut handshakes {
            let Costs { syn, syn_ack, promotion } =
                if *v6 { handshakes.round::<V6>(MANY) } else { handshakes.round::<V4>(MANY) }
                    .with_context(|| series[0].name.clone())?;
            for (series, net) in series.iter_mut().zip([syn, syn_ack, promotion]) {
                series.net.push(net);
            }
        }
        if round == 0 {
            let all = rows.iter_mut().map(|row| &mut row.series);
            all.chain(handshakes.iter_mut().flat_map(|(_, _, series)| series)).for_each(|s| s.net.clear());
        }
    }
    let mut all: Vec<_> = rows.into_iter().map(|row| row.series).collect();
    all.extend(handshakes.into_iter().flat_map(|(_, _, series)| series));
    let (table, figures) = report("packet", "Nanoseconds a packet", &all)?;
    Ok(Section {
        name: "packet",
        title: "One packet",
        method: vec![
            format!(
                "The loaded programs through `BPF_PROG_TEST_RUN`, no NIC, one CPU; {rounds} rounds, of which each \
                 runs every case once. A small driver program makes the packet anew before each run, with the \
                 addresses, ports and sequence numbers of the next flow in random order, and tail-calls the program \
                 (a program that is repeated on its own output is not in its case any more). What the driver costs \
                 with a program that only drops is measured beside each case and subtracted. After each run the \
                 action, the last packet (addresses, ports, checksums) and the programs' counters are checked: all \
                 packets went the way that the case names."
            ),
            "L is the limit: full NAT of IPv4 in a few lines, without a check more than the verifier wants, by one \
             look-up of a 16-byte key in a BPF LRU hash map that holds both directions of each flow. Flows are \
             opened through the programs themselves; new flow, SYN-ACK and promotion are the packets of 65,536 \
             handshakes from as many sources, with an empty table at first."
                .to_owned(),
        ],
        tables: vec![table, programs::table(&one.ebpf)?],
        curves: Vec::new(),
        figures,
        obstacles: &OBSTACLES,
    })
}

/// L with one flow and with all of these, and a program that does nothing.
fn limits<'b>(bed: &Bed, flows: &[Opened<V4>]) -> Result<Vec<Row<'b>>> {
    let mut rows = Vec::new();
    let tx = transmit()?;
    for (_, reason, frame) in frames(bed, &World::default(), false).into_iter().take(1) {
        let measure = Box::new(Passed::new(bed, Rung::Xdp, false, reason, frame, PACKETS)?);
        let series = Series::new("XDP_TX alone").relative_to(LIMIT_ONE);
        rows.push(Row { series, measure, subject: Subject::Other(tx.try_clone()?) });
    }
    for (name, flows, packets) in [(LIMIT_ONE, &flows[..1], PACKETS), (LIMIT_MANY, flows, MANY_PACKETS)] {
        let case = Case::new(bed, Rung::Xdp, Way::OneInterface, Direction::Forward, flows, packets)?;
        let program = Limit::new(flows)?.program()?;
        let series = Series::new(name);
        rows.push(Row { series, measure: Box::new(case), subject: Subject::Other(program) });
    }
    Ok(rows)
}

/// The program that does nothing but `XDP_TX`.
fn transmit() -> Result<ProgramFd> {
    const NAME: &str = "bench_xdp_tx";
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    driver::load(&mut ebpf, NAME, Rung::Xdp)?;
    let program: &Xdp = ebpf.program(NAME).context("no program")?.try_into()?;
    Ok(program.fd()?.try_clone()?)
}

/// Rows of flows by one interface, on both hooks and in both directions.
fn established<'b, A: Family>(bed: &'b Bed, flows: &[Opened<A>]) -> Result<Vec<Row<'b>>>
where
    Key<A>: Pod,
    Flow<A>: Pod,
    IpAddr: From<A>,
{
    let mut rows = Vec::new();
    for (rung, direction, count) in [
        (Rung::Xdp, Direction::Forward, 1),
        (Rung::Xdp, Direction::Reverse, 1),
        (Rung::Xdp, Direction::Forward, MANY),
        (Rung::Xdp, Direction::Reverse, MANY),
        (Rung::Tc, Direction::Forward, 1),
        (Rung::Tc, Direction::Reverse, 1),
        (Rung::Tc, Direction::Forward, MANY),
    ] {
        let name = |v6| established_name(v6, rung, direction, count);
        let limit = if count == 1 { LIMIT_ONE } else { LIMIT_MANY };
        let bound = if count == 1 { 0.7 } else { 0.65 };
        let mut series =
            Series::new(name(A::V6)).relative_to(if A::V6 { name(false) } else { limit.to_owned() });
        if A::V6 || rung == Rung::Xdp {
            series = series.at_most(if A::V6 { 1.3 } else { bound });
        }
        let packets = if count == 1 { PACKETS } else { MANY_PACKETS };
        let flows = flows.get(..count).context("not all flows found room")?;
        let case = Case::new(bed, rung, Way::OneInterface, direction, flows, packets)?;
        rows.push(Row { series, measure: Box::new(case), subject: Subject::Ours(bed) });
    }
    Ok(rows)
}

fn established_name(v6: bool, rung: Rung, direction: Direction, count: usize) -> String {
    let direction = if direction == Direction::Forward { "forward" } else { "reverse" };
    let count = if count == 1 { ONE_NAME } else { MANY_NAME };
    format!("established: {}, {}, {direction}, {count}", family(v6), hook(rung))
}

/// Rows of a flow by two interfaces.
fn redirected<'b, A: Family>(bed: &'b Bed, flows: &[Opened<A>]) -> Result<Vec<Row<'b>>>
where
    Key<A>: Pod,
    Flow<A>: Pod,
    IpAddr: From<A>,
{
    let mut rows = Vec::new();
    for direction in [Direction::Forward, Direction::Reverse] {
        let name = established_name(A::V6, Rung::Xdp, direction, 1);
        let series = Series::new(format!("{name}, redirected")).relative_to(name);
        let case = Case::new(bed, Rung::Xdp, Way::TwoInterfaces, direction, flows, PACKETS)?;
        rows.push(Row { series, measure: Box::new(case), subject: Subject::Ours(bed) });
    }
    Ok(rows)
}

fn handshake_series(rung: Rung, v6: bool) -> [Series; 3] {
    [Reason::NEW_FLOW, Reason::SYN_ACK, Reason::ESTABLISHED].map(|reason| {
        let what = match reason {
            Reason::NEW_FLOW => "new flow",
            Reason::SYN_ACK => "SYN-ACK",
            _ => "promotion",
        };
        let series = Series::new(format!("{what}: {}, {}, 65,536 sources", family(v6), hook(rung)));
        let series = series.relative_to(LIMIT_MANY);
        if reason == Reason::NEW_FLOW && rung == Rung::Xdp && !v6 { series.at_most(0.75) } else { series }
    })
}

fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

fn hook(rung: Rung) -> &'static str {
    match rung {
        Rung::Xdp => "xdp",
        Rung::Tc => "tc",
    }
}
