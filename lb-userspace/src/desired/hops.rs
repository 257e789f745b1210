//! Next hops: towards backends, and towards clients by the routes of the main table.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;
use lb_common::parse::Tags;
use lb_common::tables::{MAX_NEXT_HOPS, NextHop, hop};
use lb_common::{V4, V6};

use super::{Destination, Indices, Observed};
use crate::datapath::contents::Contents;
use crate::net::{Link, NeighbourState, Path, Snapshot};

/// The next hop towards a backend; `None`: only the stack can send there.
pub(super) fn towards(backend: IpAddr, path: &Path, observed: &Observed<'_>) -> Option<NextHop> {
    if path.encapsulated {
        return None;
    }
    let mut hop = on_link(observed.network.link_by_index(path.link)?, observed)?;
    if let Some(mtu) = path.mtu {
        hop.mtu = hop.mtu.min(mtu);
    }
    set_neighbour(&mut hop, observed.network, path.link, path.next_hop(backend));
    Some(hop)
}

/// The device part of a next hop; `None` for an Ethernet device without an address.
fn on_link(link: &Link, observed: &Observed<'_>) -> Option<NextHop> {
    let mut tags = Tags::default();
    let mut transmit = link.index;
    if let Some(vlan) = &link.vlan {
        let parent = observed.network.link_by_index(vlan.parent?)?;
        // Tags on tags are left to the stack's own devices.
        if parent.vlan.is_none() {
            transmit = parent.index;
            tags = Tags { tci: [vlan.id, 0], count: 1, in_frame: 0, outer: vlan.protocol };
        }
    }
    let mut flags = hop::USED;
    if !link.ethernet {
        flags |= hop::L3;
    }
    match observed.devices.get(&transmit) {
        Some(true) => flags |= hop::XDP | hop::XDP_SG,
        Some(false) => flags |= hop::XDP,
        None => {}
    }
    Some(NextHop {
        ifindex: transmit,
        device: link.index,
        mtu: link.mtu,
        flags: if link.up { flags } else { 0 },
        mac: [0; 6],
        source_mac: if link.ethernet { link.mac? } else { [0; 6] },
        tags,
        epoch: 0,
        confirmed: 0,
        zero: [0; 2],
    })
}

fn set_neighbour(hop: &mut NextHop, network: &Snapshot, link: u32, address: IpAddr) {
    let Some(neighbour) = network.neighbour(link, address) else { return };
    let answers = matches!(neighbour.state, NeighbourState::Resolved | NeighbourState::Fixed);
    if let Some(mac) = neighbour.mac
        && answers
    {
        hop.mac = mac;
        hop.flags |= hop::RESOLVED;
    }
}

/// Routes back to clients: the main table, of each prefix the one of least metric.
pub(super) fn add_routes(
    observed: &Observed<'_>,
    indices: &mut Indices,
    contents: &mut Contents,
) -> Result<()> {
    let mut best: HashMap<IpNet, &crate::net::Route> = HashMap::new();
    for route in &observed.network.routes {
        match best.get(&route.destination) {
            Some(other) if other.metric <= route.metric => {}
            _ => {
                best.insert(route.destination, route);
            }
        }
    }
    for (destination, route) in best {
        let Some(link) = observed.network.link_by_index(route.link) else { continue };
        let Some(mut hop) = on_link(link, observed) else { continue };
        if let Some(mtu) = route.mtu {
            hop.mtu = hop.mtu.min(mtu);
        }
        match route.gateway {
            Some(gateway) => set_neighbour(&mut hop, observed.network, route.link, gateway),
            None if link.ethernet => hop.flags |= hop::ON_LINK,
            None => {}
        }
        let Some(index) = indices.hops.get(&Destination::Clients(destination)) else {
            bail!("more than {} next hops", MAX_NEXT_HOPS - 1);
        };
        contents.hops.insert(index, hop);
        match destination {
            IpNet::V4(net) => {
                contents.routes4.insert((V4::from(net.network()), net.prefix_len()), index);
            }
            IpNet::V6(net) => {
                contents.routes6.insert((V6::from(net.network()), net.prefix_len()), index);
            }
        }
    }
    Ok(())
}
