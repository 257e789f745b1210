//! What an access log costs: `bench logging`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use lb_common::{Rung, V4};
use lb_tests::prog::Bed;
use serde_json::Value;

use crate::Effort;
use crate::connections;
use crate::established::{Case, Direction};
use crate::flows::{Handshakes, SLICE, fill};
use crate::measure::{Quantity, Row, Series, Subject, report, report_of};
use crate::report::Section;
use crate::world::{Way, World};

/// Packets of a round.
const PACKETS: usize = 200_000;
/// Slices of flows after which the ring of events is full: each flow is one of 216 bytes.
const FILLING: u32 = 3;

/// Each with the subject that it is compared with.
const SUBJECTS: [(&str, Option<&str>); 6] = [
    ("headgate-tc", None),
    ("headgate-tc-log", Some("headgate-tc")),
    ("headgate-tc-blocked", Some("headgate-tc")),
    ("headgate-proxy", None),
    ("headgate-proxy-log", Some("headgate-proxy")),
    ("headgate-proxy-blocked", Some("headgate-proxy")),
];

/// Measures.
pub(crate) fn run(effort: &Effort) -> Result<Section> {
    let rounds = if effort.quick { 3 } else { 15 };
    let packets = Bed::run(1024, |bed| packets(&bed, rounds))?;
    let (packet_table, mut figures) = report("logging", "Nanoseconds a packet", &packets)?;
    let names: Vec<&str> = SUBJECTS.iter().map(|(name, _)| *name).collect();
    let raw = connections::measure(effort, &names, &[("ONLY", "conn"), ("IDLE", "0")])?;
    let quantity = Quantity { column: "thousand/s", unit: "thousand/s", decimals: 1 };
    let (connection_table, more) =
        report_of(&quantity, "logging", "New connections a second", &connection_series(&raw)?)?;
    figures.extend(more);
    Ok(Section {
        name: "logging",
        title: "The access log",
        method: METHOD.iter().map(|paragraph| (*paragraph).to_owned()).collect(),
        tables: vec![packet_table, connection_table],
        figures,
        ..Section::default()
    })
}

/// Established packets and handshakes with and without events.
fn packets(bed: &Bed, rounds: usize) -> Result<Vec<Series>> {
    let quiet = World::default();
    let telling = World { tells_connected: true, ..quiet };
    let (mut without, mut with) = (bed.another(quiet.max_flows)?, bed.another(telling.max_flows)?);
    let (flows, flows_with) = (fill::<V4>(&mut without, quiet, 1)?, fill::<V4>(&mut with, telling, 1)?);
    const OFF: &str = "established, no log";
    let mut rows = Vec::new();
    for (name, bed, flows) in [(OFF, &without, &flows), ("established, log", &with, &flows_with)] {
        let mut series = Series::new(name);
        if name != OFF {
            series = series.relative_to(OFF).at_most(1.05);
        }
        let case = Case::new(bed, Rung::Xdp, Way::OneInterface, Direction::Forward, flows, PACKETS)?;
        rows.push(Row { series, measure: Box::new(case), subject: Subject::Ours(bed) });
    }
    const NONE: &str = "end of a handshake, not told of";
    let mut none = (Handshakes::new(bed, quiet, Rung::Xdp, false)?, Series::new(NONE));
    let told = Series::new("end of a handshake, told of").relative_to(NONE);
    let lost = Series::new("end of a handshake, the ring is full").relative_to(NONE);
    let mut telling = Handshakes::new(bed, telling, Rung::Xdp, false)?;
    let mut series = [told, lost];
    // The first round warms up.
    for round in 0..=rounds {
        for row in &mut rows {
            row.round()?;
        }
        let slice = SLICE as u32;
        none.1.net.push(none.0.round::<V4>(SLICE)?.promotion);
        series[0].net.push(telling.round::<V4>(SLICE)?.promotion);
        for further in 1..FILLING {
            telling.further::<V4>(further * slice)?;
        }
        series[1].net.push(telling.further::<V4>(FILLING * slice)?.promotion);
        if round == 0 {
            let rows = rows.iter_mut().map(|row| &mut row.series);
            rows.chain(&mut series).chain([&mut none.1]).for_each(|series| series.net.clear());
        }
    }
    let mut all: Vec<Series> = rows.into_iter().map(|row| row.series).collect();
    all.push(none.1);
    all.extend(series);
    Ok(all)
}

fn connection_series(raw: &str) -> Result<Vec<Series>> {
    let mut rates: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for line in raw.lines() {
        let value: Value = serde_json::from_str(line)?;
        let Some(subject) = value["subject"].as_str() else { continue };
        if let Some(why) = value["failed"].as_str() {
            anyhow::bail!("{subject} failed: {why}");
        }
        let rate = value["conn"]["cps"].as_f64().with_context(|| format!("no rate in {line}"))?;
        rates.entry(subject.to_owned()).or_default().push(rate / 1e3);
    }
    SUBJECTS
        .into_iter()
        .map(|(name, other)| {
            let mut series = Series::new(name);
            series.net = rates.remove(name).with_context(|| format!("{name} was not measured"))?;
            if let Some(other) = other {
                series = series.relative_to(other);
            }
            Ok(series)
        })
        .collect()
}

const METHOD: [&str; 2] = [
    "Packets: as in `packet`. The programs tell the agent of each connection that ends, with an access log or without \
     (the statistics want to know, too); with a log that has lines for begun connections also of each handshake. So an \
     established packet never differs, which the first two rows check; the others are the client's ACK that completes a \
     handshake, with an event for the ring and with one that the ring has no room for.",
    "Connections: as in `connections`, with Envoy's default format to a file in the file system of the machine, and to a \
     pipe that nobody reads: lines that it does not take are dropped and counted.",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_become_series() {
        let line = |subject: &str, cps: f64| format!(r#"{{"subject":"{subject}","conn":{{"cps":{cps}}}}}"#);
        let lines: Vec<String> = SUBJECTS.iter().map(|(name, _)| line(name, 2_000.0)).collect();
        let series = connection_series(&format!("{{\"meta\":{{}}}}\n{}", lines.join("\n"))).unwrap();
        assert_eq!(series.len(), SUBJECTS.len());
        assert!(series.iter().all(|series| series.net == [2.0]));
        assert!(connection_series(&lines[0]).unwrap_err().to_string().contains("was not measured"));
    }
}
