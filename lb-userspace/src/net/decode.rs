//! From the kernel's messages to the types of a [`Snapshot`](super::Snapshot).
//!
//! `None` means that the message is of no concern here (another family, another table), never an error.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState as Nud,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
    RouteNextHopFlags, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::neighbour::PROTOCOL;
use super::snapshot::{Address, Link, Neighbour, NeighbourState, Route, Vlan};

pub(super) fn link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(LinkMessage { header, attributes, .. }) = message else { return None };
    let mut link = Link {
        index: header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: header.flags.contains(LinkFlags::Up),
        ethernet: header.link_layer_type == LinkLayerType::Ether,
        loopback: header.flags.contains(LinkFlags::Loopback),
        kind: None,
        vlan: None,
        master: None,
        peer: None,
    };
    let mut below = None;
    let mut elsewhere = false;
    let mut info = Vec::new();
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::Link(index) => below = Some(index),
            // The index above is one of another namespace.
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(items) => info = items,
            _ => {}
        }
    }
    let below = below.filter(|index| !elsewhere && *index != 0);
    for item in info {
        match item {
            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Vlan(items)) => link.vlan = Some(vlan(below, &items)),
            _ => {}
        }
    }
    if link.kind.as_deref() == Some("veth") {
        link.peer = below;
    }
    Some(link)
}

fn vlan(parent: Option<u32>, items: &[InfoVlan]) -> Vlan {
    let mut vlan = Vlan { parent, id: 0, protocol: 0x8100 };
    for item in items {
        match item {
            InfoVlan::Id(id) => vlan.id = *id,
            InfoVlan::Protocol(protocol) => vlan.protocol = (*protocol).into(),
            _ => {}
        }
    }
    vlan
}

pub(super) fn address(message: RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(AddressMessage { header, attributes, .. }) = message else {
        return None;
    };
    let mut local = None;
    let mut address = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(header.flags.bits()));
    for attribute in attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the other end; elsewhere the two are the same, and IPv6
            // mostly sends IFA_ADDRESS alone.
            AddressAttribute::Local(own) => local = Some(own),
            AddressAttribute::Address(own_or_peer) => address = Some(own_or_peer),
            AddressAttribute::Flags(all) => flags = all,
            _ => {}
        }
    }
    let v6 = header.family == AddressFamily::Inet6;
    // The same bit means "secondary" in IPv4 and "temporary" in IPv6.
    let secondary_or_temporary = flags.contains(AddressFlags::Secondary);
    Some(Address {
        link: header.index,
        address: local.or(address)?,
        prefix_len: header.prefix_len,
        // An optimistic address may be used while detection runs (RFC 4429).
        tentative: flags.contains(AddressFlags::Dadfailed)
            || (flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic)),
        deprecated: flags.contains(AddressFlags::Deprecated),
        temporary: v6 && secondary_or_temporary,
        secondary: !v6 && secondary_or_temporary,
    })
}

pub(super) fn route(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = message else { return None };
    // Kernels that do not know a filter of the dump send everything; IPv6 lists cached routes too.
    if table(&header, &attributes) != u32::from(RouteHeader::RT_TABLE_MAIN)
        || header.kind != RouteType::Unicast
        || header.flags.contains(RouteFlags::Cloned)
        // Of the only next hop; those of a list have their own.
        || header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown)
    {
        return None;
    }
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut destination = any;
    let mut gateway = None;
    let mut link = None;
    let mut preferred_source = None;
    let mut metric = 0;
    let mut mtu = None;
    let mut hops = Vec::new();
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(&address)?,
            RouteAttribute::PrefSource(address) => preferred_source = ip(&address),
            RouteAttribute::Priority(priority) => metric = priority,
            RouteAttribute::Oif(index) => link = Some(index),
            RouteAttribute::Metrics(metrics) => mtu = self::mtu(&metrics),
            RouteAttribute::MultiPath(list) => hops = list,
            other => gateway = via(&other).or(gateway),
        }
    }
    if let Some(hop) = hops.iter().find(|hop| is_live(hop)) {
        link = Some(hop.interface_index);
        gateway = hop.attributes.iter().find_map(via);
    }
    let destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    // There is no link if all next hops are dead, or the route names a next hop object and shows nothing of it.
    Some(Route { destination, gateway, link: link?, preferred_source, metric, mtu })
}

fn table(header: &RouteHeader, attributes: &[RouteAttribute]) -> u32 {
    let named = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    named.unwrap_or_else(|| header.table.into())
}

fn is_live(hop: &RouteNextHop) -> bool {
    !hop.flags.intersects(RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown)
}

/// The path MTU among a route's metrics.
pub(super) fn mtu(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// The gateway that an attribute names.
pub(super) fn via(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    }
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

pub(super) fn neighbour(message: RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(NeighbourMessage { header, attributes, .. }) = message else {
        return None;
    };
    let mut address = None;
    let mut mac = None;
    let mut managed = false;
    let mut ours = false;
    for attribute in attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(v6)),
            // Sent only in a state in which the kernel would use it.
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok(),
            NeighbourAttribute::ExtFlags(flags) => managed = flags.contains(NeighbourExtFlags::Managed),
            NeighbourAttribute::Protocol(protocol) => ours = protocol == PROTOCOL,
            _ => {}
        }
    }
    let state = match header.state {
        Nud::Permanent | Nud::Noarp => NeighbourState::Fixed,
        Nud::Reachable | Nud::Stale | Nud::Delay | Nud::Probe => NeighbourState::Resolved,
        Nud::Failed => NeighbourState::Failed,
        _ => NeighbourState::Unresolved,
    };
    Some(Neighbour { link: header.ifindex, address: address?, mac, state, managed, ours })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::address::AddressHeaderFlags;
    use netlink_packet_route::link::{InfoKind, VlanProtocol};

    use super::*;

    fn decoded_link(kind: InfoKind, data: Option<InfoData>, elsewhere: bool) -> Link {
        let mut message = LinkMessage::default();
        message.header.index = 9;
        message.attributes.push(LinkAttribute::Link(4));
        if elsewhere {
            message.attributes.push(LinkAttribute::LinkNetNsId(0));
        }
        let info = [LinkInfo::Kind(kind)].into_iter().chain(data.map(LinkInfo::Data)).collect();
        message.attributes.push(LinkAttribute::LinkInfo(info));
        link(RouteNetlinkMessage::NewLink(message)).unwrap()
    }

    #[test]
    fn a_vlan_names_its_parent_and_tag() {
        let data =
            || Some(InfoData::Vlan(vec![InfoVlan::Id(100), InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)]));
        let here = decoded_link(InfoKind::Vlan, data(), false);
        assert_eq!(here.vlan, Some(Vlan { parent: Some(4), id: 100, protocol: 0x88a8 }));
        assert_eq!((here.kind.as_deref(), here.peer), (Some("vlan"), None));
        let elsewhere = decoded_link(InfoKind::Vlan, data(), true);
        assert_eq!(elsewhere.vlan, Some(Vlan { parent: None, id: 100, protocol: 0x88a8 }));
    }

    #[test]
    fn a_veth_has_a_peer_if_that_is_in_this_namespace() {
        assert_eq!(decoded_link(InfoKind::Veth, None, false).peer, Some(4));
        assert_eq!(decoded_link(InfoKind::Veth, None, true).peer, None);
    }

    fn decoded_address(v6: bool, flags: AddressFlags) -> Address {
        let mut message = AddressMessage::default();
        message.header.family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.index = 2;
        message.header.prefix_len = 24;
        message.header.flags = AddressHeaderFlags::from_bits_truncate(flags.bits() as u8);
        message.attributes.push(AddressAttribute::Address("192.0.2.1".parse().unwrap()));
        message.attributes.push(AddressAttribute::Flags(flags));
        address(RouteNetlinkMessage::NewAddress(message)).unwrap()
    }

    #[test]
    fn one_flag_has_two_meanings() {
        let v4 = decoded_address(false, AddressFlags::Secondary);
        assert!(v4.secondary && !v4.temporary);
        let v6 = decoded_address(true, AddressFlags::Secondary);
        assert!(!v6.secondary && v6.temporary);
    }

    #[test]
    fn an_address_is_usable_unless_detection_forbids_it() {
        assert!(decoded_address(true, AddressFlags::Tentative).tentative);
        assert!(!decoded_address(true, AddressFlags::Tentative | AddressFlags::Optimistic).tentative);
        assert!(decoded_address(true, AddressFlags::Dadfailed).tentative);
        assert!(!decoded_address(true, AddressFlags::Permanent).tentative);
    }

    #[test]
    fn the_own_end_of_a_point_to_point_address_counts() {
        let mut message = AddressMessage::default();
        message.attributes.push(AddressAttribute::Address("192.0.2.2".parse().unwrap()));
        message.attributes.push(AddressAttribute::Local("192.0.2.1".parse().unwrap()));
        let decoded = address(RouteNetlinkMessage::NewAddress(message)).unwrap();
        assert_eq!(decoded.address, "192.0.2.1".parse::<IpAddr>().unwrap());
    }

    fn hop(link: u32, flags: RouteNextHopFlags, gateway: &str) -> RouteNextHop {
        let mut hop = RouteNextHop::default();
        hop.interface_index = link;
        hop.flags = flags;
        hop.attributes.push(RouteAttribute::Via(RouteVia::from(gateway.parse::<IpAddr>().unwrap())));
        hop
    }

    fn decoded_route(flags: RouteFlags, attributes: Vec<RouteAttribute>) -> Option<Route> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.header.flags = flags;
        message.attributes = attributes;
        route(RouteNetlinkMessage::NewRoute(message))
    }

    #[test]
    fn the_first_live_next_hop_stands_for_a_multipath_route() {
        let decoded = decoded_route(
            RouteFlags::empty(),
            vec![RouteAttribute::MultiPath(vec![
                hop(2, RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown, "fe80::2"),
                hop(3, RouteNextHopFlags::empty(), "fe80::3"),
                hop(4, RouteNextHopFlags::empty(), "fe80::4"),
            ])],
        )
        .unwrap();
        assert_eq!(decoded.link, 3);
        assert_eq!(decoded.gateway, Some("fe80::3".parse().unwrap()));
        assert_eq!(decoded.destination, "0.0.0.0/0".parse().unwrap());
    }

    #[test]
    fn a_route_without_a_live_next_hop_is_left_out() {
        let one = |flags| decoded_route(flags, vec![RouteAttribute::Oif(2)]);
        assert!(one(RouteFlags::empty()).is_some());
        assert_eq!(one(RouteFlags::Linkdown), None);
        assert_eq!(one(RouteFlags::Dead | RouteFlags::Linkdown), None);
        let hops =
            vec![hop(2, RouteNextHopFlags::Dead, "fe80::2"), hop(3, RouteNextHopFlags::Linkdown, "fe80::3")];
        assert_eq!(decoded_route(RouteFlags::empty(), vec![RouteAttribute::MultiPath(hops)]), None);
        assert_eq!(decoded_route(RouteFlags::empty(), vec![RouteAttribute::NhId(7)]), None);
    }

    #[test]
    fn routes_of_other_tables_and_types_are_left_out() {
        let decode_as = |table: u8, kind: RouteType| {
            let mut message = RouteMessage::default();
            message.header.address_family = AddressFamily::Inet6;
            message.header.table = table;
            message.header.kind = kind;
            message.attributes.push(RouteAttribute::Oif(2));
            route(RouteNetlinkMessage::NewRoute(message))
        };
        assert!(decode_as(RouteHeader::RT_TABLE_MAIN, RouteType::Unicast).is_some());
        assert!(decode_as(libc::RT_TABLE_LOCAL, RouteType::Unicast).is_none());
        assert!(decode_as(RouteHeader::RT_TABLE_MAIN, RouteType::BlackHole).is_none());
    }
}
