//! SETTINGS, LIVE, EVENTS, REASONS.

use std::os::fd::AsFd;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use lb_common::reason::Fate;
use lb_common::table::{GROUP_WORDS, group_sets};
use lb_common::tables::{EVENT_BYTES, Live, Settings, names, reason_index};
use lb_common::{Reason, Rung, V4, V6};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use serde::Serialize;

use super::read::Family;
use super::{Context, render};
use crate::table::{left, right};

#[derive(Serialize)]
struct SettingsRow {
    max_flows: u32,
    snat_ports: u32,
}

pub(super) fn settings(context: &Context<'_>, json: bool) -> Result<String> {
    let Settings { max_flows, snat_ports, .. } = context.maps.mapped::<Settings>(names::SETTINGS)?.get(0);
    render(&[SettingsRow { max_flows, snat_ports }], json, [right("MAX FLOWS"), right("SNAT PORTS")], |row| {
        [row.max_flows.to_string(), row.snat_ports.to_string()]
    })
}

#[derive(Serialize)]
struct LiveRow {
    family: &'static str,
    /// Since the maps were made.
    opened: u64,
    closed: u64,
    /// Those in the table now, the ones whose port is at rest included.
    live: u64,
    /// What became of connections, untold since the ring was full.
    events_lost: u64,
}

pub(super) fn live(context: &Context<'_>, json: bool) -> Result<String> {
    let counters = context.maps.mapped::<Live>(names::LIVE)?;
    let rows = [(V4::NAME, V4::INDEX), (V6::NAME, V6::INDEX)].map(|(family, index)| {
        let Live { opened, closed, lost } = counters.get(index);
        LiveRow { family, opened, closed, live: opened.wrapping_sub(closed), events_lost: lost }
    });
    let columns = [left("FAMILY"), right("OPENED"), right("CLOSED"), right("LIVE"), right("EVENTS LOST")];
    render(&rows, json, columns, |row| {
        [
            row.family.into(),
            row.opened.to_string(),
            row.closed.to_string(),
            row.live.to_string(),
            row.events_lost.to_string(),
        ]
    })
}

#[derive(Serialize)]
struct EventsRow {
    capacity_bytes: u32,
    waiting_bytes: u64,
}

pub(super) fn events(context: &Context<'_>, json: bool) -> Result<String> {
    let rows = [EventsRow { capacity_bytes: EVENT_BYTES, waiting_bytes: waiting_events(context)? }];
    render(&rows, json, [right("CAPACITY"), right("WAITING")], |row| {
        [row.capacity_bytes.to_string(), row.waiting_bytes.to_string()]
    })
}

/// Bytes of the ring that the agent has not read yet.
pub(super) fn waiting_events(context: &Context<'_>) -> Result<u64> {
    let map = context.maps.data(names::EVENTS)?;
    // The reader's position begins the first page, the writers' the second (kernel, Documentation/bpf/ringbuf.rst).
    Ok(position(&map, 1)?.wrapping_sub(position(&map, 0)?))
}

/// The first word of a page of a ring.
fn position(map: &MapData, page: u64) -> Result<u64> {
    let bytes = rustix::param::page_size();
    // SAFETY: a new mapping at a place of the kernel's choice.
    let at = unsafe {
        let (protection, flags) = (ProtFlags::READ, MapFlags::SHARED);
        mmap(std::ptr::null_mut(), bytes, protection, flags, map.fd().as_fd(), page * bytes as u64)
    }
    .context("mapping a ring")?;
    // SAFETY: inside the mapping, which is a page; others write to it meanwhile.
    let position = unsafe { at.cast::<u64>().read_volatile() };
    // SAFETY: the mapping made above, to which there is no reference.
    unsafe { munmap(at, bytes) }.context("unmapping a ring")?;
    Ok(position)
}

#[derive(Serialize)]
struct OccupiedRow {
    family: &'static str,
    /// Groups of sets, see `lb_common::table::group_sets`.
    groups: u64,
    sets_a_group: u32,
}

pub(super) fn occupied(context: &Context<'_>, json: bool) -> Result<String> {
    let [v4, v6] = occupied_groups(context)?;
    let rows = [
        OccupiedRow { family: V4::NAME, groups: v4, sets_a_group: group_sets::<V4>() },
        OccupiedRow { family: V6::NAME, groups: v6, sets_a_group: group_sets::<V6>() },
    ];
    render(&rows, json, [left("FAMILY"), right("GROUPS"), right("SETS A GROUP")], |row| {
        [row.family.into(), row.groups.to_string(), row.sets_a_group.to_string()]
    })
}

/// Groups that may have entries, of each family.
pub(super) fn occupied_groups(context: &Context<'_>) -> Result<[u64; 2]> {
    let words = context.maps.mapped::<u64>(names::OCCUPIED)?;
    let count = |family: u32| {
        let words = (family * GROUP_WORDS..(family + 1) * GROUP_WORDS).map(|word| words.get(word));
        words.map(|word| u64::from(word.count_ones())).sum()
    };
    Ok([count(V4::INDEX), count(V6::INDEX)])
}

/// What becomes of a packet, in one word.
pub(crate) fn fate_name(fate: Fate) -> &'static str {
    match fate {
        Fate::Forwarded => "forwarded",
        Fate::Passed => "passed",
        Fate::HandedOver => "handed_over",
        Fate::Answered => "answered",
        Fate::Dropped => "dropped",
    }
}

#[derive(Serialize)]
struct ReasonRow {
    reason: &'static str,
    fate: &'static str,
    /// Packets, by the rung that decided.
    xdp: u64,
    tc: u64,
    help: &'static str,
}

pub(super) fn reasons(context: &Context<'_>, json: bool) -> Result<String> {
    let counters = context.maps.per_cpu::<u64>(names::REASONS)?;
    let count = |rung, reason: &Reason| -> u64 {
        counters.get(reason_index(rung, *reason) as usize).map_or(0, |by_cpu| by_cpu.iter().sum())
    };
    let rows: Vec<ReasonRow> = Reason::ALL
        .iter()
        .map(|reason| ReasonRow {
            reason: reason.name(),
            fate: fate_name(reason.fate()),
            xdp: count(Rung::Xdp, reason),
            tc: count(Rung::Tc, reason),
            help: reason.help(),
        })
        .collect();
    render(&rows, json, [left("REASON"), left("FATE"), right("XDP"), right("TC"), left("MEANS")], |row| {
        [row.reason.into(), row.fate.into(), row.xdp.to_string(), row.tc.to_string(), row.help.into()]
    })
}
