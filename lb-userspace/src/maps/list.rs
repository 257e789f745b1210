//! `headgate maps list`.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, MapType};
use lb_common::event::Event;
use lb_common::tables::{Failed, Live, Opened, hop, names};
use lb_common::{V4, V6};
use serde::Serialize;

use super::read::{Family, PinnedMaps};
use super::{Context, Description, MAPS, View, counters, next_hops, render, services, targets};
use crate::table::{bytes, left, or_dash, right};

#[derive(Serialize)]
struct MapRow {
    name: &'static str,
    kind: &'static str,
    holds: &'static str,
    key_bytes: u32,
    /// Of a per-CPU map on each CPU.
    value_bytes: u32,
    capacity: u32,
    /// Of an array the values that are in use.
    entries: u64,
    /// Kernel memory; `None` where the kernel does not say.
    memory_bytes: Option<u64>,
}

pub(super) fn list(maps: PinnedMaps<'_>, json: bool) -> Result<String> {
    let context = Context::new(maps)?;
    let rows = MAPS.iter().map(|map| row(&context, map)).collect::<Result<Vec<_>>>()?;
    let columns = [
        left("NAME"),
        left("KIND"),
        right("KEY"),
        right("VALUE"),
        right("CAPACITY"),
        right("ENTRIES"),
        right("MEMORY"),
        left("HOLDS"),
    ];
    render(&rows, json, columns, |row| {
        [
            row.name.into(),
            row.kind.into(),
            row.key_bytes.to_string(),
            row.value_bytes.to_string(),
            row.capacity.to_string(),
            row.entries.to_string(),
            or_dash(row.memory_bytes.map(bytes)),
            row.holds.into(),
        ]
    })
}

fn row(context: &Context<'_>, map: &Description) -> Result<MapRow> {
    let data = context.maps.data(map.name)?;
    let info = data.info().with_context(|| format!("asking about the map {}", map.name))?;
    Ok(MapRow {
        name: map.name,
        kind: info.map_type().map_or("unknown", kind_name),
        holds: map.holds,
        key_bytes: info.key_size(),
        value_bytes: info.value_size(),
        capacity: info.max_entries(),
        entries: entries(context, map).with_context(|| format!("counting the entries of {}", map.name))?,
        memory_bytes: memory(&data),
    })
}

/// The names that bpftool has for the kinds that we use.
fn kind_name(kind: MapType) -> &'static str {
    match kind {
        MapType::Hash => "hash",
        MapType::LpmTrie => "lpm_trie",
        MapType::Array => "array",
        MapType::PerCpuArray => "percpu_array",
        MapType::DevMapHash => "devmap_hash",
        MapType::RingBuf => "ringbuf",
        _ => "other",
    }
}

/// `memlock` of the descriptor's fdinfo (the kernel's `Documentation/bpf`, `bpf_map_show_fdinfo`).
fn memory(map: &MapData) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}

fn entries(context: &Context<'_>, map: &Description) -> Result<u64> {
    let maps = context.maps;
    let v6 = map.name.ends_with('6');
    Ok(match map.view {
        View::Flows if v6 => count::<V6>(context)?,
        View::Flows => count::<V4>(context)?,
        View::Services if v6 => V6::services(maps)?.len() as u64,
        View::Services => V4::services(maps)?.len() as u64,
        View::Routes if v6 => V6::routes(maps)?.len() as u64,
        View::Routes => V4::routes(maps)?.len() as u64,
        View::Clusters | View::Cursors => services::windows(context)?.len() as u64,
        View::Slots => services::windows(context)?.iter().map(|(_, window)| window.count as u64).sum(),
        View::Backends => context.backends().count() as u64,
        View::Opened => {
            let used = |opened: &Opened| opened.xdp + opened.tc > 0;
            maps.per_cpu::<Opened>(names::OPENED)?.iter().filter(|by_cpu| by_cpu.iter().any(used)).count()
                as u64
        }
        View::Served => {
            let used = |opened: &Opened| opened.xdp + opened.tc > 0;
            maps.per_cpu::<Opened>(names::SERVED)?.iter().filter(|by_cpu| by_cpu.iter().any(used)).count()
                as u64
        }
        View::Failed => {
            let used = |failed: &Failed| failed.refused + failed.unanswered > 0;
            maps.per_cpu::<Failed>(names::FAILED)?.iter().filter(|by_cpu| by_cpu.iter().any(used)).count()
                as u64
        }
        View::Active => targets::active_entries(context)?.len() as u64,
        View::Events => counters::waiting_events(context)? / size_of::<Event<V4>>() as u64,
        View::NextHops => {
            let hops = &context.hops;
            (1..hops.len()).filter(|index| hops.get(*index).flags & hop::USED != 0).count() as u64
        }
        View::SnatAddresses => targets::snat_count(context).into(),
        View::SnatPorts => targets::port_count(context)?.into(),
        View::Occupied => counters::occupied_groups(context)?.iter().sum(),
        View::Settings => 1,
        View::Live => maps.mapped::<Live>(names::LIVE)?.len().into(),
        View::Reasons => {
            let counters = maps.per_cpu::<u64>(names::REASONS)?;
            counters.iter().filter(|by_cpu| by_cpu.iter().any(|count| *count > 0)).count() as u64
        }
        View::Devices => next_hops::device_indices(context)?.len() as u64,
    })
}

fn count<A: Family>(context: &Context<'_>) -> Result<u64> {
    let mut entries = 0;
    context.maps.flows::<A>()?.for_each(|_| entries += 1)?;
    Ok(entries)
}
