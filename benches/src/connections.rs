//! Real connections through real hosts in network namespaces, Headgate beside its peers: `benches/peers`.
//!
//! The workloads and the subjects are scripts, so that a subject is a few lines of its own configuration; they write a line
//! of JSON for each subject and round, which becomes tables and figures here.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::Effort;
use crate::report::{Figure, Section, Spread, Table, Target};

/// In this order, next to what they are compared with: the machine's pace drifts. The names of scripts in
/// `benches/peers/subjects`.
const SUBJECTS: [&str; 9] =
    ["direct", "ecmp", "headgate-tc", "headgate-xdp", "nft", "envoy", "headgate-proxy", "haproxy", "nginx"];
/// For a first look.
const QUICK_SUBJECTS: [&str; 4] = ["ecmp", "headgate-tc", "envoy", "headgate-proxy"];
/// What the others are compared with: routing without any state.
const FLOOR: &str = "ecmp";
const OURS: &str = "headgate-tc";

/// A quantity of a round: its name, its unit, where it is in the JSON, and how many decimals are worth showing.
struct Quantity {
    name: &'static str,
    unit: &'static str,
    at: &'static [&'static str],
    scale: f64,
    decimals: usize,
}

const fn quantity(
    name: &'static str,
    unit: &'static str,
    at: &'static [&'static str],
    scale: f64,
    decimals: usize,
) -> Quantity {
    Quantity { name, unit, at, scale, decimals }
}

const QUANTITIES: [Quantity; 13] = [
    quantity("keep-alive requests", "thousand/s", &["ka", "rps"], 1e-3, 1),
    quantity("latency of one connection, p50", "us", &["c1", "p50_us"], 1.0, 0),
    quantity("latency of one connection, p99", "us", &["c1", "p99_us"], 1.0, 0),
    quantity("new connections", "thousand/s", &["conn", "cps"], 1e-3, 1),
    quantity("new connections, 16 clients", "thousand/s", &["connm", "cps"], 1e-3, 1),
    quantity("bulk up, 1 stream", "Gb/s", &["up1", "gbps"], 1.0, 1),
    quantity("bulk up, 4 streams", "Gb/s", &["up4", "gbps"], 1.0, 1),
    quantity("bulk down, 4 streams", "Gb/s", &["down4", "gbps"], 1.0, 1),
    quantity("CPU a million requests", "s", &["ka", "cpu_s_per_1m"], 1.0, 1),
    quantity("CPU a million connections", "s", &["conn", "cpu_s_per_1m"], 1.0, 0),
    quantity("CPU a GB down", "s", &["down4", "cpu_s_per_gb"], 1.0, 2),
    quantity("latency of 64 connections, p99", "us", &["ka", "p99_us"], 1.0, 0),
    quantity("the same while an endpoint comes and goes", "us", &["churn", "p99_us"], 1.0, 0),
];

/// Rounds of one subject.
type Rounds = Vec<Value>;

/// Measures.
pub(crate) fn run(effort: &Effort) -> Result<Section> {
    let subjects = if effort.quick { &QUICK_SUBJECTS[..] } else { &SUBJECTS[..] };
    evaluate(&measure(effort, subjects, &[])?)
}

/// Runs the scripts on these subjects, with some more variables: a line of JSON for each subject and round.
pub(crate) fn measure(effort: &Effort, subjects: &[&str], variables: &[(&str, &str)]) -> Result<String> {
    let directory = Path::new("target/bench-peers");
    std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let directory = directory.canonicalize()?;
    let mut command = Command::new("benches/peers/run.sh");
    command.args(subjects);
    command.env("STATE", directory.join("state")).env("OUT", &directory).env("QUIET_WAIT", "20");
    command.env("HEADGATE_BIN", &effort.headgate).env("ENVOY_BIN", &effort.envoy);
    if effort.quick {
        command.env("QUICK", "1").env("IDLE", "0");
    }
    command.envs(variables.iter().copied());
    let status = command.status().context("starting benches/peers/run.sh")?;
    ensure!(status.success(), "benches/peers/run.sh: {status}");
    let raw = directory.join("raw.jsonl");
    std::fs::read_to_string(&raw).with_context(|| format!("reading {}", raw.display()))
}

fn evaluate(raw: &str) -> Result<Section> {
    let (mut subjects, mut idle): (BTreeMap<String, Rounds>, BTreeMap<String, Value>) = Default::default();
    for line in raw.lines() {
        let value: Value = serde_json::from_str(line)?;
        let Some(subject) = value["subject"].as_str().map(str::to_owned) else { continue };
        if let Some(why) = value["failed"].as_str() {
            anyhow::bail!("{subject} failed: {why}");
        }
        if value["idle"].is_object() {
            idle.insert(subject, value["idle"].clone());
        } else {
            subjects.entry(subject).or_default().push(value);
        }
    }
    ensure!(subjects.contains_key(FLOOR) && subjects.contains_key(OURS), "not all subjects were measured");
    let order: Vec<&str> = SUBJECTS.into_iter().filter(|name| subjects.contains_key(*name)).collect();
    let mut section = Section {
        name: "connections",
        title: "Connections through real hosts",
        method: METHOD.iter().map(|paragraph| (*paragraph).to_owned()).collect(),
        obstacles: &OBSTACLES,
        ..Section::default()
    };
    for quantity in &QUANTITIES {
        section.tables.push(table(quantity, &order, &subjects));
    }
    section.tables.push(errors(&order, &subjects));
    if !idle.is_empty() {
        section.tables.push(memory(&idle));
    }
    section.figures = figures(&subjects);
    Ok(section)
}

/// The figures of all rounds.
fn series(quantity: &Quantity, rounds: &Rounds) -> Vec<f64> {
    let of = |round: &Value| quantity.at.iter().fold(round, |value, key| &value[*key]).as_f64();
    rounds.iter().filter_map(of).map(|figure| figure * quantity.scale).collect()
}

fn table(quantity: &Quantity, order: &[&str], subjects: &BTreeMap<String, Rounds>) -> Table {
    let floor = series(quantity, &subjects[FLOOR]);
    let rows = order.iter().filter_map(|subject| {
        let figures = series(quantity, &subjects[*subject]);
        if figures.is_empty() {
            return None;
        }
        let ratio = if floor.len() == figures.len() {
            format!("{:.2}", Spread::of_ratios(&figures, &floor).median)
        } else {
            "-".to_owned()
        };
        Some(vec![(*subject).to_owned(), Spread::of(&figures).show(quantity.decimals), ratio])
    });
    Table {
        title: format!("{}, {}", quantity.name, quantity.unit),
        columns: ["subject".to_owned(), quantity.unit.to_owned(), format!("x {FLOOR}")].into(),
        rows: rows.collect(),
    }
}

/// What went wrong, of all rounds; no figure of a subject with errors is worth much.
fn errors(order: &[&str], subjects: &BTreeMap<String, Rounds>) -> Table {
    let sum = |rounds: &Rounds, key: &str| {
        rounds.iter().filter_map(|round| round[key]["errors"].as_u64()).sum::<u64>().to_string()
    };
    let rows = order.iter().map(|subject| {
        let rounds = &subjects[*subject];
        let mut row = vec![(*subject).to_owned()];
        row.extend(["ka", "conn", "connm", "churn"].map(|key| sum(rounds, key)));
        row
    });
    let columns = ["subject", "keep-alive", "new connections", "16 clients", "endpoint comes and goes"];
    Table {
        title: "Requests and connections that failed".to_owned(),
        columns: columns.map(str::to_owned).into(),
        rows: rows.collect(),
    }
}

fn memory(idle: &BTreeMap<String, Value>) -> Table {
    let rows = idle.iter().map(|(subject, figures)| {
        let bytes =
            |key: &str| figures[key].as_f64().map_or_else(|| "-".to_owned(), |bytes| format!("{bytes:.0}"));
        vec![subject.clone(), bytes("lb_rss_b_per_conn"), bytes("machine_b_per_conn")]
    });
    Table {
        title: "Memory of an idle connection, bytes".to_owned(),
        columns: ["subject", "process", "whole machine, both ends' sockets included"]
            .map(str::to_owned)
            .into(),
        rows: rows.collect(),
    }
}

fn figures(subjects: &BTreeMap<String, Rounds>) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (subject, rounds) in subjects {
        for quantity in &QUANTITIES {
            let own = series(quantity, rounds);
            if own.is_empty() {
                continue;
            }
            let name = |subject: &str| format!("connections: {}, {subject}", quantity.name);
            let mut figure = Figure::new(name(subject), Spread::of(&own).median, quantity.unit);
            let floor = series(quantity, &subjects[FLOOR]);
            if subject != FLOOR && floor.len() == own.len() {
                let ratio = Spread::of_ratios(&own, &floor).median;
                figure = figure.relative_to(name(FLOOR), ratio);
            }
            if subject == OURS
                && let Some(target) = target(quantity.name)
            {
                figure = figure.target_after(own.len(), target);
            }
            figures.push(figure);
        }
    }
    let all = |name: &str, subject: &str| {
        let quantity = QUANTITIES.iter().find(|quantity| quantity.name == name);
        quantity.map_or_else(Vec::new, |quantity| series(quantity, &subjects[subject]))
    };
    if subjects.contains_key("envoy") {
        let (ours, theirs) = (all("new connections", OURS), all("new connections", "envoy"));
        if ours.len() == theirs.len() && !ours.is_empty() {
            let name = "connections: new connections, headgate-tc, beside Envoy";
            figures.push(
                Figure::new(name, Spread::of(&ours).median, "thousand/s")
                    .relative_to(
                        "connections: new connections, envoy",
                        Spread::of_ratios(&ours, &theirs).median,
                    )
                    .target_after(ours.len(), Target::AtLeast(2.5)),
            );
        }
    }
    let (ours, floor) = (all("CPU a million requests", OURS), all("CPU a million requests", FLOOR));
    let added: Vec<f64> = ours.iter().zip(&floor).map(|(ours, floor)| ours - floor).collect();
    if !added.is_empty() {
        let name = "connections: CPU a million requests added over ecmp, headgate-tc";
        figures.push(
            Figure::new(name, Spread::of(&added).median, "s").target_after(added.len(), Target::AtMost(0.5)),
        );
    }
    figures
}

/// What Headgate on TC should be, by ECMP.
fn target(quantity: &str) -> Option<Target> {
    Some(match quantity {
        "keep-alive requests" => Target::AtLeast(0.97),
        "latency of one connection, p50" => Target::AtMost(1.05),
        "new connections" | "bulk up, 4 streams" | "bulk down, 4 streams" => Target::AtLeast(0.95),
        _ => return None,
    })
}

/// What stands in the way of targets.
const OBSTACLES: [&str; 1] = [
    "Connections: where two CPUs do all the work, rounds differ by as much as the targets leave room for (see the \
     spans, also those of ECMP), so that another run may judge otherwise. Beside plain routing a request costs a \
     run of the program and a rewrite for each of its packets, and a connection the two entries above.",
];

const METHOD: [&str; 4] = [
    "A client, the balancer and three nginx backends in network namespaces, joined by veth pairs, all on this machine's \
     CPUs: requests a second are the inverse of all CPU time that a request takes, the client's and the backends' \
     included. Every subject has fresh namespaces in every round. `direct` is plain routing to one backend, `ecmp` plain \
     routing to an address that all three have: what a balancer that cost nothing would reach. Envoy, HAProxy, nginx \
     (stream) and nftables (DNAT and masquerade) are real ones, without logs.",
    "Keep-alive: `wrk -c64 -t2`; one connection: `wrk -c1 -t1`; new connections: connect, one request, read to the end, \
     close, 64 at a time, from one client address and from 16; bulk up: iperf3; bulk down: a file of 64 MiB over four \
     connections. CPU is that of the whole machine (`/proc/stat`). A measurement that other processes disturbed is \
     repeated.",
    "XDP on veth has neither GSO nor checksum offload, so its bulk figures say nothing about XDP on a NIC; see `frames` \
     for packets.",
    "Endpoint comes and goes: keep-alive requests while a reload takes one of three backends out and another puts it back, \
     every half second.",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_become_figures() {
        let line = |subject: &str, rps: f64, cps: f64, cpu: f64| {
            format!(
                r#"{{"subject":"{subject}","ka":{{"rps":{rps},"errors":0,"cpu_s_per_1m":{cpu}}},"conn":{{"cps":{cps}}}}}"#
            )
        };
        let round = [
            r#"{"meta":{}}"#.to_owned(),
            line("ecmp", 100_000.0, 20_000.0, 20.0),
            line("envoy", 50_000.0, 8_000.0, 45.0),
            line("headgate-tc", 98_000.0, 19_000.0, 20.4),
        ]
        .join("\n");
        let one = evaluate(&round).unwrap();
        assert!(one.figures.iter().all(|figure| figure.met.is_none()), "one round is nothing to judge by");
        let raw = [round.as_str(); 3];
        let section = evaluate(&raw.join("\n")).unwrap();
        let find = |name: &str| section.figures.iter().find(|figure| figure.name == name).unwrap();
        let keep_alive = find("connections: keep-alive requests, headgate-tc");
        assert_eq!((keep_alive.value, keep_alive.ratio, keep_alive.met), (98.0, Some(0.98), Some(true)));
        let beside_envoy = find("connections: new connections, headgate-tc, beside Envoy");
        assert_eq!((beside_envoy.ratio, beside_envoy.met), (Some(2.375), Some(false)));
        let added = find("connections: CPU a million requests added over ecmp, headgate-tc");
        assert!((added.value - 0.4).abs() < 1e-9 && added.met == Some(true));
        let failed = r#"{"subject":"envoy","failed":"why"}"#;
        assert!(evaluate(failed).unwrap_err().to_string().contains("envoy failed: why"));
    }
}
