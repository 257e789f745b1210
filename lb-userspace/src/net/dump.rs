//! Reading the whole picture.

use anyhow::{Context, Result};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::decode;
use super::netlink::Netlink;
use super::snapshot::{Neighbour, Route, Snapshot};

/// Reads links, addresses, routes and neighbours of the calling thread's network namespace.
pub async fn snapshot() -> Result<Snapshot> {
    let mut netlink = open()?;
    let mut links = LinkMessage::default();
    // Counters are most of a link's message.
    links.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    Ok(Snapshot {
        links: netlink
            .dump(RouteNetlinkMessage::GetLink(links), decode::link)
            .await
            .context("cannot read the links through netlink")?,
        addresses: netlink
            .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), decode::address)
            .await
            .context("cannot read the addresses through netlink")?,
        routes: dump_routes(&mut netlink).await?,
        neighbours: dump_neighbours(&mut netlink).await?,
    })
}

/// Reads the neighbours alone, for a notice of no other change.
pub async fn neighbours() -> Result<Vec<Neighbour>> {
    dump_neighbours(&mut open()?).await
}

fn open() -> Result<Netlink> {
    Netlink::open(NETLINK_ROUTE).context("cannot open a netlink socket")
}

async fn dump_routes(netlink: &mut Netlink) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        filter.header.table = RouteHeader::RT_TABLE_MAIN;
        filter.header.kind = RouteType::Unicast;
        match netlink.dump(RouteNetlinkMessage::GetRoute(filter), decode::route).await {
            // Without IPv6 the kernel answers with the routes of other families.
            Ok(found) => routes.extend(
                found
                    .into_iter()
                    .filter(|route| route.destination.addr().is_ipv6() == (family == AddressFamily::Inet6)),
            ),
            // The table is made with its first route.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error).context("cannot read the routes through netlink"),
        }
    }
    Ok(routes)
}

async fn dump_neighbours(netlink: &mut Netlink) -> Result<Vec<Neighbour>> {
    netlink
        .dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), decode::neighbour)
        .await
        .context("cannot read the neighbours through netlink")
}
