//! SETTINGS, LIVE, REASONS.

use anyhow::Result;
use lb_common::reason::Fate;
use lb_common::tables::{Live, Settings, names, reason_index};
use lb_common::{Reason, Rung, V4, V6};
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
}

pub(super) fn live(context: &Context<'_>, json: bool) -> Result<String> {
    let counters = context.maps.mapped::<Live>(names::LIVE)?;
    let rows = [(V4::NAME, V4::INDEX), (V6::NAME, V6::INDEX)].map(|(family, index)| {
        let Live { opened, closed } = counters.get(index);
        LiveRow { family, opened, closed, live: opened.wrapping_sub(closed) }
    });
    render(&rows, json, [left("FAMILY"), right("OPENED"), right("CLOSED"), right("LIVE")], |row| {
        [row.family.into(), row.opened.to_string(), row.closed.to_string(), row.live.to_string()]
    })
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
