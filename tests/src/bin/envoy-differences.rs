//! Compares what `tests/envoy/compare/by-hand.sh` left of an Envoy and of a Headgate.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use lb_tests::envoy_pages::{Pages, Run, compare, judge};
use lb_tests::rung::Rung;

const USAGE: &str = "usage: envoy-differences ENVOY-DIRECTORY xdp|tc|proxy=HEADGATE-DIRECTORY...";
const RUNGS: [Rung; 3] = [Rung::Xdp, Rung::Tc, Rung::Proxy];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match differences(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

/// Prints those that are not accepted, and says whether there are none.
fn differences(arguments: &[String]) -> Result<bool> {
    let Some((envoy, others)) = arguments.split_first().filter(|(_, others)| !others.is_empty()) else {
        bail!(USAGE)
    };
    let envoy = Pages::read(Path::new(envoy))?;
    let mut runs = Vec::new();
    for other in others {
        let (rung, directory) = other.split_once('=').context(USAGE)?;
        let rung = RUNGS.into_iter().find(|one| one.name() == rung).context(USAGE)?;
        let differences = compare(&envoy, &Pages::read(Path::new(directory))?)?;
        println!("{rung}: {} differences", differences.len());
        runs.push(Run { rung, differences });
    }
    let mut report = judge(&runs);
    if !RUNGS.iter().all(|rung| runs.iter().any(|run| run.rung == *rung)) {
        // It may be in use on the rungs that are not here.
        report.unused.clear();
    }
    print!("{report}");
    Ok(report.is_clean())
}
