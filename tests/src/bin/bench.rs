//! Measurements of the loaded programs: `bench packet`. Needs root.

use anyhow::Result;
use clap::Parser;
use lb_tests::bench;

/// Measurements of Headgate's datapath
#[derive(Parser)]
enum Arguments {
    /// Nanoseconds for a packet of an established flow on the xdp rung, beside programs that only return
    Packet {
        /// How often each case is measured
        #[arg(long, default_value_t = 31)]
        rounds: u32,
        /// Packets a measurement
        #[arg(long, default_value_t = 200_000)]
        repeat: u32,
    },
}

fn main() -> Result<()> {
    match Arguments::parse() {
        Arguments::Packet { rounds, repeat } => bench::packet::run(rounds, repeat),
    }
}
