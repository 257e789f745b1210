//! BACKENDS, OPENED, SERVED, FAILED, ACTIVE, SNAT_ADDRESSES, SNAT_PORTS: where connections go to, and from which addresses of ours.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_common::tables::{
    Active, Backend, Failed, MAX_BACKENDS, Opened, PORTS_A_VALUE, Settings, backend, names,
};
use serde::Serialize;

use super::{Context, address_of_words, backend_address, ranges, render};
use crate::table::{left, or_dash, right};

#[derive(Serialize)]
struct BackendRow {
    index: u32,
    address: Option<SocketAddr>,
    cluster: u32,
    next_hop: u32,
    device: Option<String>,
    snat_addresses: Vec<IpAddr>,
    /// The kernel leaves its connections to the proxy.
    proxy_only: bool,
    /// It gets no new connections.
    out: bool,
}

pub(super) fn backends(context: &Context<'_>, json: bool) -> Result<String> {
    let snat = snat_words(context)?;
    let rows: Vec<BackendRow> = context
        .backends()
        .map(|(index, backend)| BackendRow {
            index,
            address: backend_address(&backend),
            cluster: backend.cluster,
            next_hop: backend.hop,
            device: (backend.hop > 0 && backend.hop < context.hops.len())
                .then(|| context.devices.name(context.hops.get(backend.hop).ifindex)),
            snat_addresses: snat_range(&backend)
                .filter_map(|index| snat.get(index as usize))
                .map(|words| address_of_words(*words))
                .collect(),
            proxy_only: backend.flags & backend::PROXY_ONLY != 0,
            out: backend.flags & backend::OUT != 0,
        })
        .collect();
    let columns = [
        right("BACKEND"),
        left("ADDRESS"),
        right("CLUSTER"),
        right("HOP"),
        left("DEVICE"),
        left("SNAT ADDRESSES"),
        left(""),
    ];
    render(&rows, json, columns, |row| {
        let snat: Vec<String> = row.snat_addresses.iter().map(IpAddr::to_string).collect();
        [
            row.index.to_string(),
            or_dash(row.address),
            row.cluster.to_string(),
            if row.next_hop == 0 { "-".into() } else { row.next_hop.to_string() },
            or_dash(row.device.as_ref()),
            if snat.is_empty() { "-".into() } else { snat.join(", ") },
            [(row.proxy_only, "proxy only"), (row.out, "out")]
                .into_iter()
                .filter_map(|(is, word)| is.then_some(word))
                .collect::<Vec<_>>()
                .join(", "),
        ]
    })
}

/// Indices of a backend's SNAT addresses.
fn snat_range(backend: &Backend) -> std::ops::Range<u32> {
    backend.snat_first..backend.snat_first.saturating_add(backend.snat_count)
}

/// As many of the SNAT addresses as backends use.
pub(super) fn snat_count(context: &Context<'_>) -> u32 {
    context.backends().map(|(_, backend)| snat_range(&backend).end).max().unwrap_or(0)
}

fn snat_words(context: &Context<'_>) -> Result<Vec<[u32; 4]>> {
    context.maps.array(names::SNAT_ADDRESSES, snat_count(context))
}

#[derive(Serialize)]
struct OpenedRow {
    backend: u32,
    address: Option<SocketAddr>,
    xdp: u64,
    tc: u64,
}

pub(super) fn opened(context: &Context<'_>, json: bool) -> Result<String> {
    let sum = |by_cpu: &Vec<Opened>| {
        by_cpu.iter().fold((0, 0), |(xdp, tc), opened| (xdp + opened.xdp, tc + opened.tc))
    };
    let rows: Vec<OpenedRow> = context
        .maps
        .per_cpu::<Opened>(names::OPENED)?
        .iter()
        .enumerate()
        .map(|(index, by_cpu)| (index as u32, sum(by_cpu)))
        .map(|(backend, (xdp, tc))| OpenedRow { backend, address: context.backend_address(backend), xdp, tc })
        .filter(|row| row.address.is_some() || row.xdp + row.tc > 0)
        .collect();
    let columns = [right("BACKEND"), left("ADDRESS"), right("XDP"), right("TC")];
    render(&rows, json, columns, |row| {
        [row.backend.to_string(), or_dash(row.address), row.xdp.to_string(), row.tc.to_string()]
    })
}

#[derive(Serialize)]
struct ServedRow {
    service: u32,
    xdp: u64,
    tc: u64,
}

pub(super) fn served(context: &Context<'_>, json: bool) -> Result<String> {
    let rows: Vec<ServedRow> = context
        .maps
        .per_cpu::<Opened>(names::SERVED)?
        .iter()
        .enumerate()
        .map(|(service, by_cpu)| ServedRow {
            service: service as u32,
            xdp: by_cpu.iter().map(|opened| opened.xdp).sum(),
            tc: by_cpu.iter().map(|opened| opened.tc).sum(),
        })
        .filter(|row| row.xdp + row.tc > 0)
        .collect();
    render(&rows, json, [right("SERVICE"), right("XDP"), right("TC")], |row| {
        [row.service.to_string(), row.xdp.to_string(), row.tc.to_string()]
    })
}

#[derive(Serialize)]
struct FailedRow {
    backend: u32,
    address: Option<SocketAddr>,
    refused: u64,
    unanswered: u64,
}

pub(super) fn failed(context: &Context<'_>, json: bool) -> Result<String> {
    let rows: Vec<FailedRow> = context
        .maps
        .per_cpu::<Failed>(names::FAILED)?
        .iter()
        .enumerate()
        .map(|(backend, by_cpu)| FailedRow {
            backend: backend as u32,
            address: context.backend_address(backend as u32),
            refused: by_cpu.iter().map(|failed| failed.refused).sum(),
            unanswered: by_cpu.iter().map(|failed| failed.unanswered).sum(),
        })
        .filter(|row| row.refused + row.unanswered > 0)
        .collect();
    let columns = [right("BACKEND"), left("ADDRESS"), right("REFUSED"), right("UNANSWERED")];
    render(&rows, json, columns, |row| {
        [row.backend.to_string(), or_dash(row.address), row.refused.to_string(), row.unanswered.to_string()]
    })
}

#[derive(Serialize)]
struct ActiveRow {
    /// Of a backend, or else a cluster's.
    backend: Option<u32>,
    address: Option<SocketAddr>,
    cluster: Option<u32>,
    kernel: u64,
    proxied: u64,
    /// Of a cluster: how many there may be.
    limit: Option<u64>,
    /// Of a backend: failed attempts in a row.
    failing: u64,
}

/// The entries that are in use, by index.
pub(super) fn active_entries(context: &Context<'_>) -> Result<Vec<(u32, Active)>> {
    let active = context.maps.mapped::<Active>(names::ACTIVE)?;
    let all = (0..active.len()).map(|index| (index, active.get(index)));
    Ok(all.filter(|(_, active)| active.both != 0 || active.limit != 0 || active.failing != 0).collect())
}

pub(super) fn active(context: &Context<'_>, json: bool) -> Result<String> {
    let rows: Vec<ActiveRow> = active_entries(context)?
        .into_iter()
        .map(|(index, active)| {
            let backend = Some(index).filter(|&index| index < MAX_BACKENDS);
            ActiveRow {
                backend,
                address: backend.and_then(|backend| context.backend_address(backend)),
                cluster: index.checked_sub(MAX_BACKENDS),
                kernel: Active::kernel(active.both),
                proxied: Active::proxied(active.both),
                limit: Some(active.limit).filter(|&limit| limit != 0),
                failing: active.failing,
            }
        })
        .collect();
    let columns = [
        right("BACKEND"),
        left("ADDRESS"),
        right("CLUSTER"),
        right("KERNEL"),
        right("PROXIED"),
        right("LIMIT"),
        right("FAILING"),
    ];
    render(&rows, json, columns, |row| {
        [
            or_dash(row.backend),
            or_dash(row.address),
            or_dash(row.cluster),
            row.kernel.to_string(),
            row.proxied.to_string(),
            or_dash(row.limit),
            row.failing.to_string(),
        ]
    })
}

#[derive(Serialize)]
struct SnatAddressRow {
    index: u32,
    address: IpAddr,
    backends: usize,
}

pub(super) fn snat_addresses(context: &Context<'_>, json: bool) -> Result<String> {
    let used = |index| context.backends().filter(|(_, backend)| snat_range(backend).contains(&index)).count();
    let rows: Vec<SnatAddressRow> = snat_words(context)?
        .into_iter()
        .enumerate()
        .map(|(index, words)| (index as u32, address_of_words(words)))
        .map(|(index, address)| SnatAddressRow { index, address, backends: used(index) })
        .collect();
    render(&rows, json, [right("INDEX"), left("ADDRESS"), right("BACKENDS")], |row| {
        [row.index.to_string(), row.address.to_string(), row.backends.to_string()]
    })
}

/// How many of the ports are in use.
pub(super) fn port_count(context: &Context<'_>) -> Result<u32> {
    Ok(context.maps.mapped::<Settings>(names::SETTINGS)?.get(0).snat_ports)
}

#[derive(Serialize)]
struct PortRange {
    first: u32,
    last: u32,
    ports: u32,
}

pub(super) fn snat_ports(context: &Context<'_>, json: bool) -> Result<String> {
    let count = port_count(context)?;
    let values = context.maps.array::<[u16; 4]>(names::SNAT_PORTS, count.div_ceil(PORTS_A_VALUE))?;
    let ports = values.into_iter().flatten().take(count as usize);
    let ports = ports.map(|port| u16::from_be(port) as u32).collect();
    let row = |(first, last)| PortRange { first, last, ports: last - first + 1 };
    let rows: Vec<PortRange> = ranges(ports).into_iter().map(row).collect();
    render(&rows, json, [right("FIRST"), right("LAST"), right("PORTS")], |row| {
        [row.first.to_string(), row.last.to_string(), row.ports.to_string()]
    })
}
