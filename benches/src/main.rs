//! The benchmark: `cargo xtask bench [SECTION]... [--quick]`. Needs root.
//!
//! Every figure stands beside others of the same interleaved rounds; no figure decides anything.

mod agent;
mod connections;
mod curve;
mod driver;
mod entries;
mod established;
mod flows;
mod frames;
mod limit;
mod logging;
mod machine;
mod measure;
mod packet;
mod passed;
mod programs;
mod report;
mod scale;
mod tuple;
mod world;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};

/// Measures Headgate beside the limits of the machine and beside other load balancers
#[derive(Parser)]
struct Arguments {
    /// What to measure; nothing means everything, which is written to the reports
    #[arg(value_enum)]
    sections: Vec<Kind>,
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Where benchmarks.md, benchmarks.json and the pictures go [default: docs, of some sections target/benchmarks]
    #[arg(long)]
    out: Option<PathBuf>,
    /// The agent
    #[arg(long, default_value = "target/release/headgate")]
    headgate: PathBuf,
    /// Envoy
    #[arg(long, default_value = "target/tools/envoy/envoy/_bin/envoy")]
    envoy: PathBuf,
}

/// A section.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Nanoseconds a packet of the loaded programs
    Packet,
    /// Packets a second of one core through veth, beside the kernel's own NAT and one without state; a SYN flood
    Frames,
    /// Requests, connections and bulk through real hosts, beside other balancers
    Connections,
    /// What an access log costs a packet and a connection
    Logging,
    /// The same with up to a million flows, with many backends and services; memory, listing, sweeping
    Scale,
    /// What many endpoints cost the agent: changes, the start, memory, health checks
    Agent,
}

/// How much time to take, and with what.
pub(crate) struct Effort {
    /// Fewer and shorter rounds.
    pub(crate) quick: bool,
    /// The agent's program.
    pub(crate) headgate: PathBuf,
    /// Envoy's.
    pub(crate) envoy: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let all = arguments.sections.is_empty();
    let kinds = if all { Kind::value_variants().to_vec() } else { arguments.sections };
    let effort = Effort { quick: arguments.quick, headgate: arguments.headgate, envoy: arguments.envoy };
    let mut sections = Vec::new();
    for kind in kinds {
        let section = match kind {
            Kind::Packet => packet::run(&effort)?,
            Kind::Frames => frames::run(&effort)?,
            Kind::Connections => connections::run(&effort)?,
            Kind::Logging => logging::run(&effort)?,
            Kind::Scale => scale::run(&effort)?,
            Kind::Agent => agent::run(&effort)?,
        };
        for table in &section.tables {
            table.print();
        }
        sections.push(section);
    }
    let aimed: Vec<_> = sections.iter().flat_map(|section| &section.figures).collect();
    report::targets(&aimed.into_iter().filter(|figure| figure.target.is_some()).collect::<Vec<_>>()).print();
    let out = arguments.out.unwrap_or_else(|| if all { "docs" } else { "target/benchmarks" }.into());
    report::write(&out, &machine::preface(effort.quick)?, &sections)?;
    println!("\n{}: benchmarks.md, benchmarks.json", out.display());
    Ok(())
}
