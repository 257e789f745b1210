//! The orders of slots alone.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use lb_common::address::words;
use lb_common::maglev::{self, Candidate};

use super::hosts::endpoint;
use crate::measure::{Quantity, Series, report_of};
use crate::report::{Figure, Table};

const BACKENDS: u32 = 1_000;

/// Measures.
pub(super) fn run(runs: usize) -> Result<(Table, Vec<Figure>)> {
    let equal = candidates(|_| 1);
    let mixed = candidates(|number| 1 + number * 7 % 256);
    let kinds: [(&str, &dyn Fn() -> Vec<u32>); 4] = [
        ("Maglev, 65,537 slots, equal weights", &|| maglev::table(&equal)),
        ("Maglev, 65,537 slots, weights of 1 to 256", &|| maglev::table(&mixed)),
        ("round robin, equal weights", &|| maglev::order(&equal)),
        ("round robin, weights of 1 to 256", &|| maglev::order(&mixed)),
    ];
    let mut all: Vec<Series> = kinds.iter().map(|(name, _)| Series::new(*name)).collect();
    // The first run warms up.
    for run in 0..=runs {
        for ((_, make), series) in kinds.iter().zip(&mut all) {
            let begin = Instant::now();
            black_box(make());
            if run > 0 {
                series.net.push(begin.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    for maglev in &mut all[..2] {
        *maglev = maglev.clone().at_most(10.0);
    }
    let quantity = Quantity { column: "ms", unit: "ms", decimals: 3 };
    report_of(&quantity, "agent", "Slots of 1,000 backends", &all)
}

fn candidates(weight: impl Fn(u32) -> u32) -> Vec<Candidate> {
    let candidate = |number| {
        let address = endpoint(number);
        let identity = maglev::identity(words(address.ip()), address.port());
        Candidate { index: number + 1, identity, weight: weight(number) }
    };
    (0..BACKENDS).map(candidate).collect()
}
