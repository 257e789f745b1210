//! Where the figures come from.

use std::fmt::Write as _;

use anyhow::Result;
use procfs::Current as _;

/// The head of `benchmarks.md`: what it is, the machine, how to make it again.
pub(crate) fn preface(quick: bool) -> Result<String> {
    let uname = rustix::system::uname();
    let cpus = procfs::CpuInfo::current()?;
    let model = cpus.model_name(0).unwrap_or("CPU of an unknown model").to_owned();
    let memory = procfs::Meminfo::current()?.mem_total >> 30;
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `cargo xtask bench`. Rounds are interleaved (A B C, A B C), figures are medians, \
         and every claim is a ratio to another figure of the same run: absolute ones differ from hour to hour and \
         from machine to machine.\n",
    );
    let _ = write!(
        text,
        "\nMachine: {} x {model}, {memory} GiB, Linux {}. Headgate {}.\n",
        cpus.num_cores(),
        uname.release().to_string_lossy(),
        env!("CARGO_PKG_VERSION"),
    );
    if quick {
        text.push_str("\nA quick run (`--quick`): few and short rounds, good for a first look only.\n");
    }
    Ok(text)
}
