//! What the rounds came to, for people and for scripts.

use anyhow::{Context as _, Result};

use super::subject::{FLOWS, Subject};
use super::traffic::FEW;
use super::{CONNTRACK, Case};
use crate::measure::{Quantity, report_of};
use crate::report::{Figure, Section, Spread, Table, Target};

const MPPS: Quantity = Quantity { column: "million packets a second", unit: "Mpps", decimals: 2 };

/// What stands in the way of targets.
const OBSTACLES: [&str; 1] = [
    "Live frames: the row of few flows shows what is left when nothing waits for memory; the rest is waiting for \
     the entries of 4,096 flows. The flood is new flows alone.",
];

/// The section of these cases.
pub(crate) fn section(rounds: usize, cases: &[Case]) -> Result<Section> {
    let all: Vec<_> = cases.iter().map(|case| case.series.clone()).collect();
    let (table, mut figures) = report_of(&MPPS, "frames", "One core, live frames", &all)?;
    for case in cases {
        if let Some(siege) = &case.siege {
            let name = format!("frames: established flows lost under the {}", case.series.name);
            figures.push(Figure::new(name, siege.lost as f64, "flows").target(Target::AtMost(0.0)));
        }
    }
    Ok(Section {
        name: "frames",
        title: "Packets a second",
        method: method(rounds),
        tables: vec![table, costs(cases)?, fates(cases)],
        curves: Vec::new(),
        figures,
        obstacles: &OBSTACLES,
    })
}

/// What a packet takes of the core, and how much of that is the sender's.
fn costs(cases: &[Case]) -> Result<Table> {
    let mut rows = Vec::new();
    for case in cases {
        let is_sender = |other: &&Case| other.subject == Subject::Sender && other.traffic == case.traffic;
        let sender = &cases.iter().find(is_sender).context("no sender alone")?.series.net;
        let whole: Vec<f64> = case.series.net.iter().map(|rate| 1e3 / rate).collect();
        let net: Vec<f64> = whole.iter().zip(sender).map(|(whole, sender)| whole - 1e3 / sender).collect();
        let net = if case.subject == Subject::Sender { "-".to_owned() } else { Spread::of(&net).show(0) };
        let lost = case.sent - case.arrived;
        rows.push(vec![
            case.series.name.clone(),
            Spread::of(&whole).show(0),
            net,
            case.sent.to_string(),
            lost.to_string(),
        ]);
    }
    Ok(Table {
        title: "What a packet costs".to_owned(),
        columns: ["case", "ns a packet", "without the sender", "sent", "did not arrive"]
            .map(str::to_owned)
            .into(),
        rows,
    })
}

/// Where the SYNs of the flood went.
fn fates(cases: &[Case]) -> Table {
    let mut rows = Vec::new();
    for (case, siege) in cases.iter().filter_map(|case| Some((case, case.siege.as_ref()?))) {
        for (reason, count) in &siege.went {
            let share = 100.0 * *count as f64 / siege.sent as f64;
            rows.push(vec![
                format!("{}, {reason}", case.series.name),
                count.to_string(),
                format!("{share:.4}"),
            ]);
        }
        rows.push(vec![
            format!("{}, all that were sent", case.series.name),
            siege.sent.to_string(),
            "100".to_owned(),
        ]);
        rows.push(vec![
            format!("{}, established flows lost of {FLOWS}", case.series.name),
            siege.lost.to_string(),
            "-".to_owned(),
        ]);
    }
    Table {
        title: "Where the SYNs of the flood went".to_owned(),
        columns: ["reason", "SYNs", "%"].map(str::to_owned).into(),
        rows,
    }
}

fn method(rounds: usize) -> Vec<String> {
    vec![
        format!(
            "A client, a balancer and a backend in network namespaces, joined by veth pairs, all on one CPU; {rounds} \
             rounds, of which each runs every case once. The client sends live frames (`BPF_PROG_TEST_RUN` with \
             `BPF_F_TEST_XDP_LIVE_FRAMES`, 64 at a time): what a NIC's driver hands to XDP, without skb and copy. A \
             program makes each packet anew. Another counts at the backend's interface and drops; figures are packets \
             that arrive there, as they should look (addresses and port of each, checksums of the first 64 of a round), \
             in a second of CPU time of the sending thread, in which the kernel also receives, and of ksoftirqd. The \
             sender's part of that is in every figure: the sender alone is the same with the counting program at the \
             balancer's ingress."
        ),
        format!(
            "Established: segments without payload of {FLOWS} flows, in random order; few: of {FEW} of these flows, \
             which leaves out what a look-up waits for memory. SYN flood: each SYN from a random source of 2^32 (address \
             and port). The toy rewrites MAC addresses, IP addresses and port to constants, keeps the checksums right, \
             looks nothing up, and redirects. Where nothing runs on XDP, a program that returns `XDP_PASS` is on the \
             balancer's ingress, since veth takes live frames only there; the kernel makes an skb of each then. nftables \
             (DNAT to 64 backends in turn, masquerade) gets {CONNTRACK} SYNs a round: with more the limit of conntrack \
             is measured."
        ),
        format!(
            "Under the flood the table holds {FLOWS} established flows. After each round every SYN must be accounted \
             for by the programs' counters (opened a flow, repeated, or left to the proxy for want of a port or of \
             room), those sent on must have arrived, and each established flow must be in the table and carry a packet \
             to its backend; one that does not counts as lost."
        ),
    ]
}
