//! Which way a packet to one destination would leave.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteLwEnCapType, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::decode;
use super::netlink::Netlink;

/// The kernel's answer for one destination, policy routing included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteTo {
    /// Out of a link.
    Via(Path),
    /// The destination is the node itself.
    Local,
    Unreachable(Unreachable),
}

/// The way out for a unicast destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    pub link: u32,
    /// `None`: the destination is on the link. May be of the other family (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// The node's address that the kernel would send from; see
    /// [`Snapshot::stable_source`](super::Snapshot::stable_source).
    pub source: IpAddr,
    /// Path MTU in bytes, where the route or an ICMP error sets one below the link's.
    pub mtu: Option<u32>,
    /// The route wraps packets on their way (MPLS, SRv6, IP tunnel): only the stack can send by it.
    pub encapsulated: bool,
}

impl Path {
    /// Whose hardware address a packet to `destination` needs.
    pub fn next_hop(&self, destination: IpAddr) -> IpAddr {
        self.gateway.unwrap_or(destination)
    }
}

/// Why a destination cannot be a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No route, or an `unreachable` one.
    NoRoute,
    /// A `blackhole` route.
    Blackhole,
    /// A `prohibit` route.
    Prohibited,
    /// There is a route, but the node has no address of that family to send from.
    NoSource,
    /// A broadcast, multicast or anycast address.
    NotUnicast,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoute => "the node has no route to it",
            Self::Blackhole => "a blackhole route covers it",
            Self::Prohibited => "a prohibit route covers it",
            Self::NoSource => "the node has no address of that family to reach it from",
            Self::NotUnicast => "it is not a unicast address",
        })
    }
}

/// Asks the kernel for the ways to destinations, one after the other.
pub struct Router {
    netlink: Netlink,
}

impl Router {
    /// Needs a tokio runtime around it.
    pub fn new() -> Result<Self> {
        Ok(Self { netlink: Netlink::open(NETLINK_ROUTE).context("cannot open a netlink socket")? })
    }

    /// The way to one destination.
    pub async fn route_to(&mut self, destination: IpAddr) -> Result<RouteTo> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(destination);
        question.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        question.attributes.push(RouteAttribute::Destination(RouteAddress::from(destination)));
        match self.netlink.request(RouteNetlinkMessage::GetRoute(question), 0).await {
            Ok(answers) => {
                let Some(RouteNetlinkMessage::NewRoute(answer)) = answers.into_iter().next() else {
                    bail!("netlink gave no usable answer about the route to {destination}");
                };
                Ok(read(&answer))
            }
            Err(error) => match error.raw_os_error().and_then(from_errno) {
                Some(why) => Ok(RouteTo::Unreachable(why)),
                None => Err(error)
                    .with_context(|| format!("cannot ask for the route to {destination} through netlink")),
            },
        }
    }
}

/// Asks the kernel for the way to one destination.
pub async fn route_to(destination: IpAddr) -> Result<RouteTo> {
    Router::new()?.route_to(destination).await
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// What a lookup fails with: `fib_props` in the kernel's `net/ipv4/fib_semantics.c`, and the same in IPv6.
fn from_errno(errno: i32) -> Option<Unreachable> {
    match errno {
        libc::ENETUNREACH | libc::EHOSTUNREACH => Some(Unreachable::NoRoute),
        libc::EINVAL => Some(Unreachable::Blackhole),
        libc::EACCES => Some(Unreachable::Prohibited),
        _ => None,
    }
}

fn read(answer: &RouteMessage) -> RouteTo {
    match answer.header.kind {
        RouteType::Local => return RouteTo::Local,
        RouteType::Unicast => {}
        RouteType::BlackHole => return RouteTo::Unreachable(Unreachable::Blackhole),
        RouteType::Prohibit => return RouteTo::Unreachable(Unreachable::Prohibited),
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => {
            return RouteTo::Unreachable(Unreachable::NotUnicast);
        }
        _ => return RouteTo::Unreachable(Unreachable::NoRoute),
    }
    let mut link = None;
    let mut gateway = None;
    let mut source = None;
    let mut mtu = None;
    let mut encapsulated = false;
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::PrefSource(address) => source = decode::ip(address),
            RouteAttribute::EncapType(kind) => encapsulated = *kind != RouteLwEnCapType::None,
            RouteAttribute::Metrics(metrics) => mtu = decode::mtu(metrics),
            other => gateway = decode::via(other).or(gateway),
        }
    }
    match (link, source) {
        (Some(link), Some(source)) => RouteTo::Via(Path { link, gateway, source, mtu, encapsulated }),
        (Some(_), None) => RouteTo::Unreachable(Unreachable::NoSource),
        (None, _) => RouteTo::Unreachable(Unreachable::NoRoute),
    }
}
