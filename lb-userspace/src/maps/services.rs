//! SERVICES4, SERVICES6, CLUSTERS, CURSORS, SLOTS: from a served address to a backend.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::Result;
use lb_common::balance::policy;
use lb_common::tables::{Window, names, service};
use lb_common::{V4, V6};
use serde::Serialize;

use super::read::Family;
use super::{Context, render};
use crate::flows::socket;
use crate::table::{left, or_dash, right};

/// The name of a policy in the configuration.
pub(crate) fn policy_name(policy: u32) -> &'static str {
    match policy {
        policy::ROUND_ROBIN => "round_robin",
        policy::RANDOM => "random",
        policy::MAGLEV => "maglev",
        policy::SOURCE_IP => "source_ip",
        policy::LEAST_REQUEST => "least_request",
        _ => "unknown",
    }
}

#[derive(Serialize)]
struct ServiceRow {
    address: SocketAddr,
    /// IP protocol number; 6 is TCP.
    protocol: u8,
    /// Names the listener to the agent.
    service: u32,
    cluster: u32,
    lb_policy: &'static str,
    attempts: u16,
    draining: bool,
}

pub(super) fn services(context: &Context<'_>, v4: bool, v6: bool, json: bool) -> Result<String> {
    let mut rows = Vec::new();
    if v4 {
        rows.extend(family_services::<V4>(context)?);
    }
    if v6 {
        rows.extend(family_services::<V6>(context)?);
    }
    rows.sort_by_key(|row| row.address);
    let columns = [
        left("ADDRESS"),
        left("PROTOCOL"),
        right("SERVICE"),
        right("CLUSTER"),
        left("POLICY"),
        right("ATTEMPTS"),
        left(""),
    ];
    render(&rows, json, columns, |row| {
        [
            row.address.to_string(),
            if row.protocol == lb_common::parse::TCP { "tcp".into() } else { row.protocol.to_string() },
            row.service.to_string(),
            row.cluster.to_string(),
            row.lb_policy.into(),
            row.attempts.to_string(),
            if row.draining { "draining".into() } else { String::new() },
        ]
    })
}

fn family_services<A: Family>(context: &Context<'_>) -> Result<Vec<ServiceRow>> {
    let entries = A::services(context.maps)?;
    let rows = entries.into_iter().map(|(key, service)| ServiceRow {
        address: socket(key.address, key.port),
        protocol: key.protocol[0],
        service: service.id,
        cluster: service.cluster,
        lb_policy: policy_name(service.policy),
        attempts: service.attempts,
        draining: service.flags & service::DRAINING != 0,
    });
    Ok(rows.collect())
}

/// Clusters that have slots, by index.
pub(super) fn windows(context: &Context<'_>) -> Result<Vec<(u32, Window)>> {
    let windows = context.maps.mapped::<Window>(names::CLUSTERS)?;
    let all = (0..windows.len()).map(|cluster| (cluster, windows.get(cluster)));
    Ok(all.filter(|(_, window)| window.count > 0).collect())
}

#[derive(Serialize)]
struct ClusterRow {
    cluster: u32,
    first_slot: u32,
    slots: u32,
    backends: usize,
}

pub(super) fn clusters(context: &Context<'_>, json: bool) -> Result<String> {
    let rows: Vec<ClusterRow> = read_slots(context)?
        .into_iter()
        .map(|row| ClusterRow {
            cluster: row.cluster,
            first_slot: row.first_slot,
            slots: row.slots,
            backends: row.backends.len(),
        })
        .collect();
    let columns = [right("CLUSTER"), right("FIRST SLOT"), right("SLOTS"), right("BACKENDS")];
    render(&rows, json, columns, |row| {
        [row.cluster.to_string(), row.first_slot.to_string(), row.slots.to_string(), row.backends.to_string()]
    })
}

#[derive(Serialize)]
struct CursorRow {
    cluster: u32,
    slots: u32,
    /// The position that each CPU draws next, counted from the window's first slot.
    position_by_cpu: Vec<u32>,
}

pub(super) fn cursors(context: &Context<'_>, json: bool) -> Result<String> {
    let cursors = context.maps.per_cpu::<u32>(names::CURSORS)?;
    let rows: Vec<CursorRow> = windows(context)?
        .into_iter()
        .map(|(cluster, window)| CursorRow {
            cluster,
            slots: window.count,
            position_by_cpu: cursors.get(cluster as usize).cloned().unwrap_or_default(),
        })
        .collect();
    let columns = [right("CLUSTER"), right("SLOTS"), left("NEXT POSITION ON CPU 0, 1, ...")];
    render(&rows, json, columns, |row| {
        let positions: Vec<String> = row.position_by_cpu.iter().map(u32::to_string).collect();
        [row.cluster.to_string(), row.slots.to_string(), positions.join(", ")]
    })
}

#[derive(Serialize)]
struct SlotsRow {
    cluster: u32,
    first_slot: u32,
    slots: u32,
    backends: Vec<Share>,
    runs: Vec<Run>,
}

/// How many of a window's slots are a backend's.
#[derive(Serialize)]
struct Share {
    backend: u32,
    address: Option<SocketAddr>,
    slots: u32,
}

/// Slots in a row that hold the same backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Run {
    pub(super) backend: u32,
    pub(super) slots: u32,
}

pub(super) fn runs(slots: impl IntoIterator<Item = u32>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for backend in slots {
        match runs.last_mut() {
            Some(run) if run.backend == backend => run.slots += 1,
            _ => runs.push(Run { backend, slots: 1 }),
        }
    }
    runs
}

fn read_slots(context: &Context<'_>) -> Result<Vec<SlotsRow>> {
    let slots = context.maps.mapped::<u32>(names::SLOTS)?;
    let row = |(cluster, window): (u32, Window)| {
        let end = window.first.saturating_add(window.count).min(slots.len());
        let runs = runs((window.first.min(end)..end).map(|index| slots.get(index)));
        let mut shares = BTreeMap::new();
        for run in &runs {
            *shares.entry(run.backend).or_insert(0) += run.slots;
        }
        let share = |(backend, slots)| Share { backend, address: context.backend_address(backend), slots };
        SlotsRow {
            cluster,
            first_slot: window.first,
            slots: window.count,
            backends: shares.into_iter().map(share).collect(),
            runs,
        }
    };
    Ok(windows(context)?.into_iter().map(row).collect())
}

/// Runs that a line of the table shows.
const SHOWN_RUNS: usize = 12;

pub(super) fn slots(context: &Context<'_>, json: bool) -> Result<String> {
    let rows = read_slots(context)?;
    if json {
        return Ok(serde_json::to_string_pretty(&rows)? + "\n");
    }
    let columns = [
        right("CLUSTER"),
        left("SLOTS"),
        right("BACKEND"),
        left("ADDRESS"),
        right("HAS SLOTS"),
        right("SHARE"),
        left("ORDER OF THE WINDOW"),
    ];
    let lines: Vec<(&SlotsRow, usize)> =
        rows.iter().flat_map(|row| (0..row.backends.len()).map(move |at| (row, at))).collect();
    render(&lines, json, columns, |(row, at)| {
        let share = &row.backends[*at];
        let first_line = *at == 0;
        let on_first = |text: String| if first_line { text } else { String::new() };
        [
            on_first(row.cluster.to_string()),
            on_first(format!("{}-{}", row.first_slot, row.first_slot + row.slots - 1)),
            share.backend.to_string(),
            or_dash(share.address),
            share.slots.to_string(),
            format!("{:.1}%", share.slots as f64 * 100.0 / row.slots as f64),
            on_first(order(&row.runs)),
        ]
    })
}

/// The beginning of a window: `2, 1 (3 times), 2, ...`.
pub(super) fn order(runs: &[Run]) -> String {
    let mut words: Vec<String> = runs
        .iter()
        .take(SHOWN_RUNS)
        .map(|run| match run.slots {
            1 => run.backend.to_string(),
            slots => format!("{} ({slots} times)", run.backend),
        })
        .collect();
    if runs.len() > SHOWN_RUNS {
        words.push("...".to_owned());
    }
    words.join(", ")
}
