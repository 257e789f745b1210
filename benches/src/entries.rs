//! The flow maps as they are: all that the benchmark knows of how flows are kept.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Map, MapData};
use aya::{Ebpf, Pod};
use lb_common::tables::names;
use lb_common::{Address, V4, V6};
use lb_tests::maps;
use lb_tests::prog::Bed;
use lb_userspace::datapath::kernel::Kernel;
use lb_userspace::datapath::object::Loaded;
use lb_userspace::datapath::sweep::{Limits, Moved};
use lb_userspace::flows::FlowFilter;
use lb_userspace::listing::{Listing, Tables};
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd as _, AsRawFd as _};

use crate::flows::Opened;

/// An address family's flow table.
pub(crate) trait Family: Address + Pod + std::hash::Hash + std::fmt::Debug + Into<IpAddr> {
    const FLOWS: &'static str;
}

impl Family for V4 {
    const FLOWS: &'static str = names::FLOWS4;
}

impl Family for V6 {
    const FLOWS: &'static str = names::FLOWS6;
}

/// The flows that are half-open now.
pub(crate) fn half_open<A: Family>(ebpf: &Ebpf) -> Result<Vec<Opened<A>>> {
    forward_entries(ebpf, false)
}

/// The flows that are established now.
pub(crate) fn established<A: Family>(ebpf: &Ebpf) -> Result<Vec<Opened<A>>> {
    forward_entries(ebpf, true)
}

fn forward_entries<A: Family>(ebpf: &Ebpf, established: bool) -> Result<Vec<Opened<A>>> {
    let mut flows = Vec::new();
    maps::flow_table::<A>(ebpf, A::FLOWS)?.for_each(|flow| {
        if flow.is_forward() && !flow.is_tombstone() && flow.is_established() == established {
            flows.push(Opened { forward: flow.key, reverse: flow.out.reversed() });
        }
    })?;
    Ok(flows)
}

/// Bytes of kernel memory that the flow table of a family takes, as the kernel accounts for it.
pub(crate) fn memory<A: Family>(ebpf: &Ebpf) -> Result<u64> {
    let fd = data(ebpf, A::FLOWS)?.fd().as_fd().as_raw_fd();
    let path = format!("/proc/thread-self/fdinfo/{fd}");
    let info = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line.with_context(|| format!("no memlock in {path}"))?.trim().parse()?)
}

/// How long the agent takes to make what `headgate flows --json` prints, and how many rows that has.
pub(crate) fn list(ebpf: &Ebpf) -> Result<(Duration, usize)> {
    let tables = Tables {
        v4: Arc::new(maps::flow_table(ebpf, V4::FLOWS)?),
        v6: Arc::new(maps::flow_table(ebpf, V6::FLOWS)?),
    };
    let listing = Listing { tables: Some(tables), proxied: Vec::new() };
    let mut lines = Lines(0);
    let begin = Instant::now();
    listing.write(&FlowFilter::default(), &mut BufWriter::with_capacity(256 << 10, &mut lines))?;
    // A line for each row, between two others.
    Ok((begin.elapsed(), lines.0 - 2))
}

/// Counts lines.
struct Lines(usize);

impl Write for Lines {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0 += text.iter().filter(|byte| **byte == b'\n').count();
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How long each of some idle sweeps takes. None of these flows is idle.
pub(crate) fn sweeps(bed: Bed, times: usize) -> Result<Vec<Duration>> {
    let Bed { ebpf, .. } = bed;
    let kernel = Kernel::new(Loaded { ebpf, rejected: Vec::new(), seed: 0 })?;
    let moved = Moved { hops: &BTreeMap::new(), route: &|_| None };
    (0..times)
        .map(|_| {
            let begin = Instant::now();
            let usage = kernel.sweep(&Limits::default(), &moved, &mut |_, _| ())?;
            let taken = begin.elapsed();
            ensure!((1..=64).any(|backend| usage.has_open_flows(backend)), "the sweep saw no flow");
            Ok(taken)
        })
        .collect()
}

/// A map as the kernel has it.
pub(crate) fn data<'e>(ebpf: &'e Ebpf, name: &str) -> Result<&'e MapData> {
    match ebpf.map(name).with_context(|| format!("no map {name}"))? {
        Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) => Ok(data),
        other => bail!("{name} is another kind of map: {other:?}"),
    }
}
