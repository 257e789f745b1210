//! What the programs cost the kernel to verify and to hold.

use anyhow::{Context as _, Result};
use aya::programs::{ProgramInfo, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::Rung;
use lb_tests::verifier;
use lb_userspace::datapath::object::{self, ProgramStatistics};

use crate::driver::{self, OBJECT};
use crate::report::Table;

const LIMIT: &str = "bench_limit";

/// A table of Headgate's programs, as loaded in `ebpf`, and of L.
pub(crate) fn table(ebpf: &Ebpf) -> Result<Table> {
    let stacks = verifier::stacks(object::OBJECT)?;
    let mut rows = Vec::new();
    let mut row = |name: &str, info: &ProgramInfo, stack: u32| {
        let ProgramStatistics { verified, translated, jited, .. } = ProgramStatistics::from(info);
        let numbers = [verified, translated / 8, jited, stack].map(|number| number.to_string());
        rows.push([name.to_owned()].into_iter().chain(numbers).collect());
    };
    let mut names: Vec<_> = ebpf.programs().map(|(name, _)| name).collect();
    names.sort_unstable();
    for name in names {
        let program = ebpf.program(name).context("no program")?;
        let stack = stacks.get(name).with_context(|| format!("no stack of {name}"))?;
        row(name, &program.info()?, stack.deepest);
    }
    let mut limit = EbpfLoader::new().load(OBJECT)?;
    driver::load(&mut limit, LIMIT, Rung::Xdp)?;
    let program: &Xdp = limit.program(LIMIT).context("no L")?.try_into()?;
    let stack = verifier::stacks(OBJECT)?.get(LIMIT).context("no stack of L")?.deepest;
    row("L", &program.info()?, stack);
    Ok(Table {
        title: "The programs in the kernel".to_owned(),
        columns: ["program", "verified instructions", "instructions", "JITed bytes", "stack bytes"]
            .map(str::to_owned)
            .into(),
        rows,
    })
}
