//! What size costs: `bench scale`.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use lb_common::{Flow, Key, Rung, V4, V6};
use lb_tests::prog::Bed;

use crate::Effort;
use crate::curve::{Curve, Line};
use crate::entries::{self, Family};
use crate::established::{Case, Direction};
use crate::flows::{Handshakes, Opened, SLICE, fill};
use crate::limit::Limit;
use crate::measure::{Measure, Series, report};
use crate::report::{Figure, Section, Spread, Table, Target};
use crate::world::{Way, World};

/// Flows, and packets of a round.
const COUNTS: [usize; 5] = [10, 1_000, 65_536, 100_000, 1_000_000];
const PACKETS: usize = 200_000;
/// Backends and services.
const SIZES: [(u32, u32); 4] = [(10, 1), (1_000, 1), (10, 100), (1_000, 100)];

/// What a table of so many flows costs.
struct Point {
    flows: usize,
    placed: usize,
    /// Kernel memory, bytes, of the maps made for so many flows.
    memory: u64,
    ours: Vec<f64>,
    v6: Vec<f64>,
    limit: Vec<f64>,
    listing: Vec<f64>,
    sweep: Vec<f64>,
}

/// What stands in the way of targets.
const OBSTACLES: [&str; 1] =
    ["Listing: two look-ups for each row in a table of 256 MB, and 240 MB of JSON, by one CPU."];

/// Measures.
pub(crate) fn run(effort: &Effort) -> Result<Section> {
    let (rounds, v6, listings) = if effort.quick { (3, false, 1) } else { (7, true, 2) };
    Bed::run(1024, |bed| {
        let mut points = Vec::new();
        for count in COUNTS {
            points.push(point(&bed, count, rounds, listings, v6).with_context(|| format!("{count} flows"))?);
        }
        let new_flows = new_flows(&bed, rounds)?;
        section(&points, &new_flows, rounds)
    })
}

fn point(bed: &Bed, count: usize, rounds: usize, listings: usize, v6: bool) -> Result<Point> {
    let world = World { max_flows: count as u32, ..World::default() };
    let (four, flows, mut case) = established::<V4>(bed, world, count)?;
    let limit = Limit::new(&flows)?;
    let mut six = if v6 { Some(established::<V6>(bed, world, count)?) } else { None };
    let mut point = Point {
        flows: count,
        placed: flows.len(),
        memory: entries::memory::<V4>(&four.ebpf)?,
        ours: Vec::new(),
        v6: Vec::new(),
        limit: Vec::new(),
        listing: Vec::new(),
        sweep: Vec::new(),
    };
    // The first round warms up.
    for round in 0..=rounds {
        let control = case.control()?;
        let (ours, limit) = (case.ours(&four)? - control, case.other(&limit.program()?)? - control);
        let ours6 = match &mut six {
            Some((bed, _, case)) => Some(-case.control()? + case.ours(bed)?),
            None => None,
        };
        if round > 0 {
            point.ours.push(ours);
            point.limit.push(limit);
            point.v6.extend(ours6);
        }
    }
    for _ in 0..listings {
        let (time, rows) = entries::list(&four.ebpf)?;
        // Flows that lost one of their entries to others count as half-open for a while.
        ensure!((flows.len()..=count).contains(&rows), "{rows} rows of {} flows", flows.len());
        point.listing.push(time.as_secs_f64() * 1e3);
    }
    drop((case, limit, flows, six));
    point.sweep = entries::sweeps(four, listings)?.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    Ok(point)
}

/// Programs with maps of their own for so many flows, those that found room, and their packets in random order.
fn established<A: Family>(bed: &Bed, world: World, count: usize) -> Result<(Bed, Vec<Opened<A>>, Case<A>)>
where
    Key<A>: Pod,
    Flow<A>: Pod,
    IpAddr: From<A>,
{
    let mut bed = bed.another(world.max_flows)?;
    let flows = fill::<A>(&mut bed, world, count)?;
    let packets = PACKETS.max(count);
    let case = Case::new(&bed, Rung::Xdp, Way::OneInterface, Direction::Forward, &flows, packets)?;
    Ok((bed, flows, case))
}

/// New flows with few and many backends and services.
fn new_flows(bed: &Bed, rounds: usize) -> Result<Vec<Series>> {
    let mut rows = Vec::new();
    for (backends, services) in SIZES {
        let world = World { max_flows: 1 << 15, backends, services, ..World::default() };
        let name = format!("new flow: {backends} backends, {services} services");
        let mut series = Series::new(name);
        if let Some((_, _, first)) = rows.first() {
            let first: &Series = first;
            series = series.relative_to(first.name.clone());
        }
        rows.push((world, Handshakes::new(bed, world, Rung::Xdp, false)?, series));
    }
    for round in 0..=rounds {
        for (_, handshakes, series) in &mut rows {
            let costs = handshakes.round::<V4>(SLICE).with_context(|| series.name.clone())?;
            if round > 0 {
                series.net.push(costs.syn);
            }
        }
    }
    Ok(rows.into_iter().map(|(_, _, series)| series).collect())
}

fn section(points: &[Point], new_flows: &[Series], rounds: usize) -> Result<Section> {
    let (new_flow_table, mut figures) = report("scale", "New flows, IPv4, xdp", new_flows)?;
    let mut rows = Vec::new();
    for point in points {
        let count = grouped(point.flows);
        let (ours, limit) = (Spread::of(&point.ours), Spread::of(&point.limit));
        let ratio = Spread::of_ratios(&point.ours, &point.limit);
        let limit_name = format!("scale: L, {count} flows");
        figures.push(Figure::new(limit_name.clone(), limit.median, "ns"));
        let name = format!("scale: established IPv4, xdp, {count} flows");
        let mut figure = Figure::new(name.clone(), ours.median, "ns").relative_to(limit_name, ratio.median);
        figure = match point.flows {
            65_536 => figure.target(Target::AtMost(0.65)),
            1_000_000 => figure.target(Target::AtMost(0.9)),
            _ => figure,
        };
        figures.push(figure);
        let v6 = (!point.v6.is_empty()).then(|| Spread::of(&point.v6));
        if let Some(v6) = v6 {
            let ratio = Spread::of_ratios(&point.v6, &point.ours).median;
            let figure = Figure::new(format!("scale: established IPv6, xdp, {count} flows"), v6.median, "ns");
            figures.push(figure.relative_to(name, ratio).target(Target::AtMost(1.3)));
        }
        // Whole bytes: what the kernel wants for a map as such, some hundred bytes, is no flow's.
        let bytes = (point.memory as f64 / point.flows as f64).round();
        let placed = point.placed as f64 / point.flows as f64 * 100.0;
        let (listing, sweep) = (Spread::of(&point.listing).median, Spread::of(&point.sweep).median);
        for (what, value, unit, target) in [
            ("kernel memory a flow, IPv4", bytes, "bytes", Target::AtMost(256.0)),
            ("flows that found room", placed, "%", Target::AtLeast(99.9)),
            ("listing", listing, "ms", Target::AtMost(500.0)),
            ("idle sweep", sweep, "ms", Target::AtMost(500.0)),
        ] {
            let figure = Figure::new(format!("scale: {what}, {count} flows"), value, unit);
            figures.push(if point.flows == 1_000_000 { figure.target(target) } else { figure });
        }
        rows.push(vec![
            count,
            ours.show(0),
            limit.show(0),
            ratio.show(2),
            v6.map_or_else(|| "-".to_owned(), |v6| v6.show(0)),
            format!("{bytes:.0}"),
            format!("{placed:.2} %"),
            format!("{listing:.1}"),
            format!("{sweep:.1}"),
        ]);
    }
    let columns = [
        "flows",
        "IPv4, ns",
        "L, ns",
        "ratio",
        "IPv6, ns",
        "bytes a flow",
        "placed",
        "listing, ms",
        "sweep, ms",
    ];
    let table = Table {
        title: "Established flows, xdp, random order".to_owned(),
        columns: columns.map(str::to_owned).into(),
        rows,
    };
    Ok(Section {
        name: "scale",
        title: "Size",
        method: vec![format!(
            "As in the section on packets, {rounds} rounds, each packet of another flow in random order. Each number \
             of flows has maps of its own, made for just as many (`max_flows`), and that many flows are opened: \
             *placed* is how many found room. *Bytes a flow* is what the kernel accounts for the map of the IPv4 flows \
             (`memlock` of `/proc/PID/fdinfo`), divided by `max_flows`. *Listing* is what makes the \
             output of `headgate flows --json`, run in this process; *sweep* is a pass of the agent's idle sweep over the \
             tables of both families, none of whose flows is idle."
        )],
        tables: vec![table, new_flow_table],
        curves: curves(points),
        figures,
        obstacles: &OBSTACLES,
    })
}

fn curves(points: &[Point]) -> Vec<Curve> {
    let line = |name: &str, value: &dyn Fn(&Point) -> Option<f64>| Line {
        name: name.to_owned(),
        points: points.iter().filter_map(|point| Some((point.flows as f64, value(point)?))).collect(),
    };
    let median = |figures: &[f64]| (!figures.is_empty()).then(|| Spread::of(figures).median);
    let mut packets = vec![
        line("Headgate, IPv4", &|point| median(&point.ours)),
        line("Headgate, IPv6", &|point| median(&point.v6)),
        line("L: one look-up in an LRU map", &|point| median(&point.limit)),
    ];
    packets.retain(|line| !line.points.is_empty());
    // Below, what is there whatever the number of flows drowns the rest.
    let memory = |point: &Point| (point.flows >= 65_536).then(|| point.memory as f64 / point.flows as f64);
    vec![
        Curve {
            name: "packets",
            title: "A packet of an established flow, random order".to_owned(),
            x: "flows",
            y: "ns a packet",
            lines: packets,
        },
        Curve {
            name: "memory",
            title: "Kernel memory of the flow maps".to_owned(),
            x: "flows (max_flows)",
            y: "bytes a flow",
            lines: vec![line("IPv4", &memory)],
        },
    ]
}

/// With a comma before each three digits.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
