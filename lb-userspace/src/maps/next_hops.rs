//! NEXT_HOPS, ROUTES4, ROUTES6, DEVICES.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use aya::maps::xdp::DevMapHash;
use lb_common::tables::{HOP_CONFIRMATION, NextHop, hop, names};
use lb_common::{V4, V6};
use serde::Serialize;

use super::flow_entries::{mac, render_vlans, vlans};
use super::read::Family;
use super::{Context, render};
use crate::flows::seconds_since;
use crate::table::{duration, left, right};

#[derive(Serialize)]
struct HopRow {
    index: u32,
    /// What the packet is transmitted on, and what routing sees: they differ where a VLAN device lies above.
    device: String,
    ifindex: u32,
    routing_device: String,
    routing_ifindex: u32,
    mac: String,
    source_mac: String,
    mtu: u32,
    flags: Vec<&'static str>,
    vlans: Vec<u16>,
    /// Moves when the MAC address or the validity changes.
    epoch: u32,
    /// Since the agent last vouched for it; past 10 s the programs ask the kernel's own neighbour table.
    confirmed_s: f64,
    fresh: bool,
}

pub(super) fn next_hops(context: &Context<'_>, json: bool) -> Result<String> {
    let rows: Vec<HopRow> = (1..context.hops.len())
        .map(|index| (index, context.hops.get(index)))
        .filter(|(_, hop)| hop.flags & hop::USED != 0)
        .map(|(index, hop)| HopRow {
            index,
            device: context.devices.name(hop.ifindex),
            ifindex: hop.ifindex,
            routing_device: context.devices.name(hop.device),
            routing_ifindex: hop.device,
            mac: mac(hop.mac),
            source_mac: mac(hop.source_mac),
            mtu: hop.mtu,
            flags: flag_names(&hop),
            vlans: vlans(hop.tags),
            epoch: hop.epoch,
            confirmed_s: seconds_since(hop.confirmed, context.now),
            fresh: hop.is_confirmed(context.now),
        })
        .collect();
    let columns = [
        right("HOP"),
        left("DEVICE"),
        left("ROUTED BY"),
        left("TO MAC"),
        left("FROM MAC"),
        right("MTU"),
        left("FLAGS"),
        left("VLAN"),
        right("EPOCH"),
        left("CONFIRMED"),
    ];
    render(&rows, json, columns, |row| {
        [
            row.index.to_string(),
            row.device.clone(),
            row.routing_device.clone(),
            if row.flags.contains(&"resolved") { row.mac.clone() } else { "-".into() },
            row.source_mac.clone(),
            row.mtu.to_string(),
            row.flags.join(","),
            render_vlans(&row.vlans),
            row.epoch.to_string(),
            format!("{} ago{}", duration(row.confirmed_s), if row.fresh { "" } else { " (too old)" }),
        ]
    })
}

fn flag_names(next_hop: &NextHop) -> Vec<&'static str> {
    let names = [
        (hop::RESOLVED, "resolved"),
        (hop::ON_LINK, "on_link"),
        (hop::XDP, "xdp"),
        (hop::XDP_SG, "xdp_sg"),
        (hop::L3, "l3"),
        (hop::RELOOKUP, "relookup"),
    ];
    names.iter().filter(|(bit, _)| next_hop.flags & bit != 0).map(|(_, name)| *name).collect()
}

/// A next hop in words: `device lb1, MAC 02:00:00:00:00:01, MTU 1500, resolved`.
pub(crate) fn describe(next_hop: &NextHop, now: u64, device: &dyn Fn(u32) -> String) -> String {
    if next_hop.flags & hop::USED == 0 {
        return "the route is gone".to_owned();
    }
    let mut words = vec![format!("device {}", device(next_hop.ifindex))];
    if next_hop.device != next_hop.ifindex {
        words.push(format!("below {}", device(next_hop.device)));
    }
    let vlans = vlans(next_hop.tags);
    if !vlans.is_empty() {
        words.push(format!("VLAN {}", render_vlans(&vlans)));
    }
    if next_hop.flags & hop::RESOLVED != 0 {
        words.push(format!("MAC {}", mac(next_hop.mac)));
    }
    words.push(format!("MTU {}", next_hop.mtu));
    let has = |flag| next_hop.flags & flag != 0;
    words.push(match (has(hop::L3), has(hop::RESOLVED), has(hop::ON_LINK)) {
        (true, ..) => "no Ethernet header, hence no neighbour".to_owned(),
        (false, true, _) => "resolved".to_owned(),
        (false, false, true) => "the destination itself is on the link".to_owned(),
        (false, false, false) => "its MAC address is not known".to_owned(),
    });
    if has(hop::RELOOKUP) {
        words.push("its route has moved, so each packet's is looked up again".to_owned());
    }
    if !next_hop.is_confirmed(now) {
        words.push(format!(
            "not confirmed by an agent for {} (after {} the kernel's neighbour table is used instead)",
            duration(seconds_since(next_hop.confirmed, now)),
            duration(HOP_CONFIRMATION as f64 / 1e9),
        ));
    }
    words.join(", ")
}

#[derive(Serialize)]
struct RouteRow {
    prefix: String,
    next_hop: u32,
    device: String,
    flags: Vec<&'static str>,
}

pub(super) fn routes(context: &Context<'_>, v4: bool, v6: bool, json: bool) -> Result<String> {
    let mut rows = Vec::new();
    if v4 {
        rows.extend(family_routes::<V4>(context)?);
    }
    if v6 {
        rows.extend(family_routes::<V6>(context)?);
    }
    let columns = [left("PREFIX"), right("HOP"), left("DEVICE"), left("FLAGS")];
    render(&rows, json, columns, |row| {
        [row.prefix.clone(), row.next_hop.to_string(), row.device.clone(), row.flags.join(",")]
    })
}

fn family_routes<A: Family>(context: &Context<'_>) -> Result<Vec<RouteRow>> {
    let row = |(address, bits, index): (A, u32, u32)| {
        let address: IpAddr = address.into();
        let known = index < context.hops.len();
        let next_hop = known.then(|| context.hops.get(index)).filter(|hop| hop.flags & hop::USED != 0);
        RouteRow {
            prefix: format!("{address}/{bits}"),
            next_hop: index,
            device: next_hop.map_or_else(|| "(gone)".to_owned(), |hop| context.devices.name(hop.ifindex)),
            flags: next_hop.map_or(Vec::new(), |hop| flag_names(&hop)),
        }
    };
    Ok(A::routes(context.maps)?.into_iter().map(row).collect())
}

#[derive(Serialize)]
struct DeviceRow {
    ifindex: u32,
    device: String,
}

/// Indices of the interfaces that XDP may redirect to.
pub(super) fn device_indices(context: &Context<'_>) -> Result<Vec<u32>> {
    let map: DevMapHash<MapData> = context.maps.typed(names::DEVICES)?;
    // An entry that goes away meanwhile sends the iteration back to the beginning.
    let keys = map.keys().take(1 << 12);
    let mut indices = keys.collect::<Result<Vec<u32>, _>>().context("reading the map of devices")?;
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

pub(super) fn devices(context: &Context<'_>, json: bool) -> Result<String> {
    let row = |ifindex| DeviceRow { ifindex, device: context.devices.name(ifindex) };
    let rows: Vec<DeviceRow> = device_indices(context)?.into_iter().map(row).collect();
    render(&rows, json, [right("IFINDEX"), left("DEVICE")], |row| {
        [row.ifindex.to_string(), row.device.clone()]
    })
}
