//! Tables with one of everything: services of every policy and of every way to fail, backends behind every kind of
//! next hop, clients on every kind of link, in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::AtomicU32;

use lb_common::balance::policy;
use lb_common::host::HostTables;
use lb_common::parse::{TCP, Tags, ethertype};
use lb_common::tables::{Backend, NextHop, Service, ServiceKey, Settings, Window, backend, hop, service};
use lb_common::{V4, V6, address};

use crate::prog::{Device, Devices, coarse_now};

/// Ports of the VIP, and what is behind each.
pub mod port {
    /// Three backends in turn, three attempts.
    pub const ROUND_ROBIN: u16 = 80;
    /// Three backends by the hash of the 5-tuple, two attempts.
    pub const MAGLEV: u16 = 81;
    /// Three backends by the hash of the client's address.
    pub const SOURCE_IP: u16 = 82;
    /// A random one of one backend: the host's and the kernel's random numbers differ.
    pub const RANDOM: u16 = 83;
    /// No new flows.
    pub const DRAINING: u16 = 84;
    /// No backend.
    pub const EMPTY: u16 = 85;
    /// A backend for the proxy.
    pub const PROXY_ONLY: u16 = 86;
    /// A backend behind a device that XDP may not redirect to.
    pub const TC_ONLY: u16 = 87;
    /// A backend whose MAC address is not known.
    pub const UNRESOLVED: u16 = 88;
    /// A backend on the clients' interface.
    pub const HAIRPIN: u16 = 89;
    /// A backend on a VLAN, with a smaller MTU.
    pub const VLAN: u16 = 90;
    /// A backend behind two tags.
    pub const QINQ: u16 = 91;
    /// A next hop that the agent has not vouched for lately.
    pub const STALE: u16 = 92;
    /// A next hop that is not there any more.
    pub const GONE: u16 = 93;
    /// A backend without an SNAT address.
    pub const NO_SNAT: u16 = 94;
    /// A backend of the other family.
    pub const OTHER_FAMILY: u16 = 95;
    /// A slot that names an unused backend.
    pub const UNUSED: u16 = 96;
    /// A next hop by a device that is not in the device map.
    pub const UNMAPPED: u16 = 97;
    /// A backend behind the tag of [`super::network::VLAN`] with the EtherType of a service tag.
    pub const SERVICE_TAG: u16 = 98;
    /// All of these.
    pub const ALL: core::ops::RangeInclusive<u16> = ROUND_ROBIN..=SERVICE_TAG;
}

/// Networks that clients may be in: the second byte of an IPv4 address, the third group of an IPv6 one.
pub mod network {
    /// On the link.
    pub const LINK: u8 = 1;
    /// Behind a router.
    pub const ROUTER: u8 = 2;
    /// On the link, with tag 5.
    pub const VLAN: u8 = 5;
    /// On the link, with tags 7 and 8.
    pub const QINQ: u8 = 6;
    /// Behind a next hop that is not there.
    pub const GONE: u8 = 7;
    /// Without a route.
    pub const NOWHERE: u8 = 8;
    /// Behind two tags and a router.
    pub const ROUTER_QINQ: u8 = 4;
    /// Where backends are.
    pub const BACKENDS: u8 = 9;
}

/// Tags of [`network::VLAN`].
pub const VLAN_TAGS: &[(u16, u16)] = &[(ethertype::VLAN, 5)];
/// Tags of [`network::QINQ`].
pub const QINQ_TAGS: &[(u16, u16)] = &[(ethertype::QINQ, 7), (ethertype::VLAN, 8)];

/// SNAT ports.
pub const SNAT_PORTS: core::ops::Range<u16> = 20_000..20_064;
/// Flows of each family that the settings allow.
pub const MAX_FLOWS: u32 = 1024;

/// A host in one of the networks.
pub fn host(v6: bool, network: u8, host: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, network.into(), 0, 0, 0, 0, host.into()).into()
    } else {
        Ipv4Addr::new(10, network, 0, host).into()
    }
}

/// What clients connect to.
pub fn vip(v6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(host(v6, 100, 10), port)
}

const USED: u32 = hop::USED;
const GOOD: u32 = hop::USED | hop::RESOLVED | hop::XDP;

/// Indices of the next hops.
mod hops {
    pub(super) const BACKEND: u32 = 1;
    pub(super) const CLIENT: u32 = 2;
    pub(super) const ROUTER: u32 = 3;
    pub(super) const VLAN: u32 = 4;
    pub(super) const QINQ: u32 = 5;
    pub(super) const TC_ONLY: u32 = 6;
    pub(super) const UNRESOLVED: u32 = 7;
    pub(super) const HAIRPIN: u32 = 8;
    pub(super) const STALE: u32 = 9;
    pub(super) const GONE: u32 = 10;
    pub(super) const UNMAPPED: u32 = 11;
    pub(super) const CLIENT_VLAN: u32 = 12;
    pub(super) const CLIENT_QINQ: u32 = 13;
    pub(super) const ROUTER_QINQ: u32 = 14;
    pub(super) const SERVICE_TAG: u32 = 15;
}

/// The tables, without flows.
pub fn tables(devices: &Devices) -> HostTables {
    let mut tables = HostTables::default();
    tables.next_hops = next_hops(devices);
    tables.settings = Settings {
        max_flows: MAX_FLOWS,
        snat_ports: u32::from(SNAT_PORTS.end - SNAT_PORTS.start),
        ..Settings::default()
    };
    tables.snat_ports = SNAT_PORTS.map(u16::to_be).collect();
    for v6 in [false, true] {
        for last in [250, 251] {
            tables.snat_addresses.push(address::words(host(v6, network::BACKENDS, last)));
        }
        add_clusters(&mut tables, v6);
        add_routes(&mut tables, v6);
    }
    tables
}

/// All clusters of a family, each with its service.
fn add_clusters(tables: &mut HostTables, v6: bool) {
    let mut three = Vec::new();
    for last in 1..=3 {
        three.push(add_backend(tables, v6, last, hops::BACKEND, 0, 2));
    }
    let [a, b, c] = three[..] else { unreachable!("three were added") };
    add(tables, v6, port::ROUND_ROBIN, policy::ROUND_ROBIN, 3, &[a, b, a, c]);
    add(tables, v6, port::MAGLEV, policy::MAGLEV, 2, &[a, b, c, a, b, c, b]);
    add(tables, v6, port::SOURCE_IP, policy::SOURCE_IP, 2, &[a, b, c, a, b, c, b]);
    add(tables, v6, port::RANDOM, policy::RANDOM, 3, &[b, b, b]);
    add(tables, v6, port::DRAINING, policy::ROUND_ROBIN, 1, &[a]);
    add(tables, v6, port::EMPTY, policy::ROUND_ROBIN, 1, &[]);
    let odd = [
        (port::PROXY_ONLY, hops::BACKEND, backend::PROXY_ONLY, 2),
        (port::TC_ONLY, hops::TC_ONLY, 0, 2),
        (port::UNRESOLVED, hops::UNRESOLVED, 0, 2),
        (port::HAIRPIN, hops::HAIRPIN, 0, 2),
        (port::VLAN, hops::VLAN, 0, 2),
        (port::QINQ, hops::QINQ, 0, 2),
        (port::STALE, hops::STALE, 0, 2),
        (port::GONE, hops::GONE, 0, 2),
        (port::NO_SNAT, hops::BACKEND, 0, 0),
        (port::OTHER_FAMILY, hops::BACKEND, backend::V6, 2),
        (port::UNMAPPED, hops::UNMAPPED, 0, 2),
        (port::SERVICE_TAG, hops::SERVICE_TAG, 0, 2),
    ];
    for (port, hop, flags, snat_count) in odd {
        let index = add_backend(tables, v6, port as u8, hop, flags, snat_count);
        add(tables, v6, port, policy::ROUND_ROBIN, 2, &[index]);
    }
    add(tables, v6, port::UNUSED, policy::ROUND_ROBIN, 1, &[0]);
}

/// A backend with that last byte of its address; `flags` are toggled in what it would have. Gives its index.
fn add_backend(tables: &mut HostTables, v6: bool, last: u8, hop: u32, flags: u16, snat_count: u32) -> u32 {
    let family = if v6 { backend::V6 } else { 0 };
    tables.backends.push(Backend {
        address: address::words(host(v6, network::BACKENDS, last)),
        port: 8080u16.to_be(),
        flags: (backend::USED | family) ^ flags,
        hop,
        snat_first: if v6 { 2 } else { 0 },
        snat_count,
        cluster: tables.windows.len() as u32,
        zero: 0,
    });
    tables.backends.len() as u32 - 1
}

fn add(tables: &mut HostTables, v6: bool, port: u16, policy: u32, attempts: u16, slots: &[u32]) {
    let cluster = tables.windows.len() as u32;
    tables.windows.push(Window { first: tables.slots.len() as u32, count: slots.len() as u32 });
    tables.cursors.push(AtomicU32::new(0));
    tables.slots.extend(slots);
    let flags = if port == port::DRAINING { service::DRAINING } else { 0 };
    let service = Service { id: 1000 + cluster, cluster, policy, attempts, flags };
    let (port, protocol) = (port.to_be(), [TCP, 0]);
    match vip(v6, 0).ip() {
        IpAddr::V4(vip) => {
            tables.v4.services.insert(ServiceKey { address: V4::from(vip), port, protocol }, service);
        }
        IpAddr::V6(vip) => {
            tables.v6.services.insert(ServiceKey { address: V6::from(vip), port, protocol }, service);
        }
    }
}

fn add_routes(tables: &mut HostTables, v6: bool) {
    let routes = [
        (network::LINK, hops::CLIENT),
        (network::ROUTER, hops::ROUTER),
        (network::VLAN, hops::CLIENT_VLAN),
        (network::QINQ, hops::CLIENT_QINQ),
        (network::ROUTER_QINQ, hops::ROUTER_QINQ),
        (network::GONE, hops::GONE),
        (network::BACKENDS, hops::BACKEND),
    ];
    for (network, hop) in routes {
        match host(v6, network, 0) {
            IpAddr::V4(address) => tables.v4.routes.push((address.into(), 16, hop)),
            IpAddr::V6(address) => tables.v6.routes.push((address.into(), 48, hop)),
        }
        // The longest prefix counts: one client on each link is behind the router.
        match host(v6, network, 99) {
            IpAddr::V4(address) => tables.v4.routes.push((address.into(), 32, hops::ROUTER)),
            IpAddr::V6(address) => tables.v6.routes.push((address.into(), 128, hops::ROUTER)),
        }
    }
}

fn next_hops(devices: &Devices) -> Vec<NextHop> {
    let Devices { client, backend, unmapped } = *devices;
    // Vouched for until long after the test.
    let confirmed = coarse_now() + 3_600_000_000_000;
    let hop = |device: Device, flags: u32, mtu: u32, tags: &[(u16, u16)]| NextHop {
        ifindex: device.ifindex,
        device: device.ifindex,
        mtu,
        flags,
        mac: [0x02, 0, 0, 0, 0x20, tags.len() as u8],
        source_mac: device.mac,
        tags: to_tags(tags),
        epoch: 1,
        confirmed,
        zero: [0; 2],
    };
    let on_link = hop::USED | hop::ON_LINK | hop::XDP;
    let mut stale = hop(backend, GOOD, 1500, &[]);
    stale.confirmed = 0;
    let mut hairpin = hop(client, hop::USED | hop::RESOLVED, 1500, &[]);
    hairpin.mac[5] = 0x88;
    vec![
        HostTables::default().next_hops[0],
        hop(backend, GOOD, 1500, &[]),
        hop(client, on_link, 1500, &[]),
        hop(client, GOOD, 1500, &[]),
        hop(backend, GOOD, 1400, &[(ethertype::VLAN, 0x6004)]),
        hop(backend, GOOD, 1396, &[(ethertype::QINQ, 11), (ethertype::VLAN, 12)]),
        hop(backend, USED | hop::RESOLVED, 1500, &[]),
        hop(backend, USED, 1500, &[]),
        hairpin,
        stale,
        hop(backend, 0, 1500, &[]),
        hop(unmapped, GOOD, 1500, &[]),
        hop(client, on_link, 1500, VLAN_TAGS),
        hop(client, on_link, 1500, QINQ_TAGS),
        hop(client, GOOD, 1500, QINQ_TAGS),
        hop(backend, GOOD, 1500, &[(ethertype::QINQ, 5)]),
    ]
}

fn to_tags(list: &[(u16, u16)]) -> Tags {
    let mut tags = Tags { count: list.len() as u8, ..Tags::default() };
    for (n, (ethertype, tci)) in list.iter().enumerate() {
        tags.tci[n] = *tci;
        if n == 0 {
            tags.outer = *ethertype;
        }
    }
    tags
}
