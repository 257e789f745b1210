//! `headgate maps`: the BPF maps, decoded, from their pins. Needs no agent.
//!
//! Every field of the JSON has one name and one unit, named in it where it is not plain (`age_s`, `bytes`). Tables
//! for people show the same, shorter.

mod counters;
mod devices;
mod flow_entries;
mod list;
mod next_hops;
pub mod read;
mod services;
mod targets;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use lb_common::tables::{Backend, NextHop, backend, names};
use lb_common::{Address, V4, V6};
use serde::Serialize;

use crate::datapath::kernel::monotonic_now;
use crate::datapath::mapped::Mapped;
use crate::datapath::object::Pins;
use crate::flows::socket;
use crate::table::{Column, Table};

pub(crate) use counters::fate_name;
pub use devices::Devices;
pub(crate) use flow_entries::mac;
pub(crate) use next_hops::describe as describe_hop;
pub(crate) use services::policy_name;

use read::PinnedMaps;

/// How a map is decoded. The maps of the two families share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    Flows,
    Services,
    Routes,
    Clusters,
    Cursors,
    Slots,
    Backends,
    Opened,
    Served,
    Failed,
    Active,
    Events,
    Occupied,
    NextHops,
    SnatAddresses,
    SnatPorts,
    Settings,
    Live,
    Reasons,
    Devices,
}

/// What a map is called and holds.
struct Description {
    name: &'static str,
    view: View,
    holds: &'static str,
}

const fn map(name: &'static str, view: View, holds: &'static str) -> Description {
    Description { name, view, holds }
}

/// All pinned maps.
const MAPS: &[Description] = &[
    map(names::FLOWS4, View::Flows, "IPv4 flows, an entry for each direction, and SYNs left to the proxy"),
    map(names::FLOWS6, View::Flows, "IPv6 flows, an entry for each direction, and SYNs left to the proxy"),
    map(names::SERVICES4, View::Services, "IPv4 addresses that clients connect to"),
    map(names::SERVICES6, View::Services, "IPv6 addresses that clients connect to"),
    map(names::ROUTES4, View::Routes, "routes back to IPv4 clients"),
    map(names::ROUTES6, View::Routes, "routes back to IPv6 clients"),
    map(names::CLUSTERS, View::Clusters, "the part of SLOTS that each cluster draws from"),
    map(names::CURSORS, View::Cursors, "the next slot of round_robin, by CPU"),
    map(names::SLOTS, View::Slots, "backends in the order of choice"),
    map(names::BACKENDS, View::Backends, "backend addresses"),
    map(names::OPENED, View::Opened, "flows opened to each backend, by rung"),
    map(names::SERVED, View::Served, "flows opened to each listener, by rung"),
    map(names::FAILED, View::Failed, "attempts to reach each backend that failed"),
    map(names::ACTIVE, View::Active, "connections that are open to each backend and cluster"),
    map(names::EVENTS, View::Events, "what became of connections, until the agent has read it"),
    map(names::NEXT_HOPS, View::NextHops, "devices and MAC addresses that packets leave by"),
    map(names::SNAT_ADDRESSES, View::SnatAddresses, "own addresses towards the backends"),
    map(names::SNAT_PORTS, View::SnatPorts, "own ports towards the backends"),
    map(names::OCCUPIED, View::Occupied, "parts of the flow tables that may have entries"),
    map(names::SETTINGS, View::Settings, "limits that the agent sets"),
    map(names::LIVE, View::Live, "how many flows were opened and closed, by address family"),
    map(names::REASONS, View::Reasons, "packets by what became of them and why"),
    map(names::DEVICES, View::Devices, "interfaces that XDP may redirect to"),
];

/// Other names: of a pair of maps, and of some that people call otherwise.
const ALIASES: &[(&str, View)] = &[
    ("FLOWS", View::Flows),
    ("HALF_OPEN", View::Flows),
    ("TOMBSTONES", View::Flows),
    ("SERVICES", View::Services),
    ("LISTENERS", View::Services),
    ("ROUTES", View::Routes),
    ("WINDOWS", View::Clusters),
    ("HOPS", View::NextHops),
    ("PORTS", View::SnatPorts),
    ("COUNTERS", View::Reasons),
];

/// The maps that `name` means; never none. Case and the kind of dash do not matter.
fn find(name: &str) -> Result<Vec<&'static Description>> {
    let wanted = name.to_ascii_uppercase().replace('-', "_");
    let alias = ALIASES.iter().find(|(alias, _)| *alias == wanted).map(|(_, view)| *view);
    let found: Vec<_> =
        MAPS.iter().filter(|map| map.name == wanted || alias.is_some_and(|view| view == map.view)).collect();
    if found.is_empty() {
        let lower = |name: &str| name.to_ascii_lowercase().replace('_', "-");
        let all: Vec<String> = MAPS.iter().map(|map| lower(map.name)).collect();
        let similar = all.iter().map(|known| (strsim::osa_distance(known, &lower(name)), known)).min();
        let hint = match similar {
            Some((distance, known)) if distance <= 2 => format!(" (did you mean `{known}`?)"),
            _ => String::new(),
        };
        let aliases: Vec<String> = ALIASES.iter().map(|(alias, _)| lower(alias)).collect();
        bail!("no map `{name}`{hint}; there are {}; or {}", all.join(", "), aliases.join(", "));
    }
    Ok(found)
}

/// `headgate maps list`: what each map is, holds and takes.
pub fn list(pins: &Pins, json: bool) -> Result<String> {
    list::list(PinnedMaps::open(pins)?, json)
}

/// `headgate maps dump`: the entries of the map called `name`, or of both families' maps of that kind.
pub fn dump(pins: &Pins, name: &str, json: bool) -> Result<String> {
    let wanted = find(name)?;
    let maps = PinnedMaps::open(pins)?;
    let view = wanted[0].view;
    let has = |name: &str| wanted.iter().any(|map| map.name == name);
    let context = Context::new(maps)?;
    match view {
        View::Flows => {
            let mut rows = Vec::new();
            if has(names::FLOWS4) {
                rows.extend(flow_entries::read::<V4>(&context)?);
            }
            if has(names::FLOWS6) {
                rows.extend(flow_entries::read::<V6>(&context)?);
            }
            flow_entries::render(&rows, json)
        }
        View::Services => services::services(&context, has(names::SERVICES4), has(names::SERVICES6), json),
        View::Routes => next_hops::routes(&context, has(names::ROUTES4), has(names::ROUTES6), json),
        View::Clusters => services::clusters(&context, json),
        View::Cursors => services::cursors(&context, json),
        View::Slots => services::slots(&context, json),
        View::Backends => targets::backends(&context, json),
        View::Opened => targets::opened(&context, json),
        View::Served => targets::served(&context, json),
        View::Failed => targets::failed(&context, json),
        View::Active => targets::active(&context, json),
        View::Events => counters::events(&context, json),
        View::NextHops => next_hops::next_hops(&context, json),
        View::SnatAddresses => targets::snat_addresses(&context, json),
        View::SnatPorts => targets::snat_ports(&context, json),
        View::Occupied => counters::occupied(&context, json),
        View::Settings => counters::settings(&context, json),
        View::Live => counters::live(&context, json),
        View::Reasons => counters::reasons(&context, json),
        View::Devices => next_hops::devices(&context, json),
    }
}

/// What entries refer to.
struct Context<'p> {
    maps: PinnedMaps<'p>,
    backends: Mapped<Backend>,
    hops: Mapped<NextHop>,
    devices: Devices,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    now: u64,
}

impl<'p> Context<'p> {
    fn new(maps: PinnedMaps<'p>) -> Result<Self> {
        Ok(Self {
            maps,
            backends: maps.mapped(names::BACKENDS)?,
            hops: maps.mapped(names::NEXT_HOPS)?,
            devices: Devices::new(),
            now: monotonic_now(),
        })
    }

    /// Backends in use, by index.
    fn backends(&self) -> impl Iterator<Item = (u32, Backend)> {
        let all = (1..self.backends.len()).map(|index| (index, self.backends.get(index)));
        all.filter(|(_, backend)| backend.flags & backend::USED != 0)
    }

    fn backend_address(&self, index: u32) -> Option<SocketAddr> {
        let known = index > 0 && index < self.backends.len();
        known.then(|| self.backends.get(index)).and_then(|backend| backend_address(&backend))
    }
}

/// The address of a backend that is in use.
pub(crate) fn backend_address(backend: &Backend) -> Option<SocketAddr> {
    if backend.flags & backend::USED == 0 {
        return None;
    }
    Some(if backend.flags & backend::V6 != 0 {
        socket(V6(backend.address), backend.port)
    } else {
        socket(V4::from_words(backend.address), backend.port)
    })
}

/// An address of either family, where nothing else tells the family: no IPv6 address in use ends in 96 zero bits.
fn address_of_words(words: [u32; 4]) -> IpAddr {
    if words[1..] == [0; 3] { V4(words[0]).into() } else { V6(words).into() }
}

/// The numbers in one piece for each run: `1024-1027, 2000`.
fn ranges(mut numbers: Vec<u32>) -> Vec<(u32, u32)> {
    numbers.sort_unstable();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if number <= *last + 1 => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

/// The output of a view.
fn render<T: Serialize, const N: usize>(
    rows: &[T],
    json: bool,
    columns: [Column; N],
    cells: impl Fn(&T) -> [String; N],
) -> Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(rows)? + "\n");
    }
    if rows.is_empty() {
        return Ok("no entries\n".to_owned());
    }
    let mut table = Table::new(columns);
    for row in rows {
        table.row(cells(row));
    }
    Ok(table.to_string())
}

#[cfg(test)]
mod pinned_tests;
#[cfg(test)]
mod tests;
