//! A small world in tables: one VIP of each family before some backends. Host tests run the datapath on it, tests in
//! the kernel fill the maps from it.
//!
//! Clients are behind a router on one interface, but for one VLAN whose clients are neighbours; the backends are
//! neighbours on another interface with a smaller MTU.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::AtomicU32;

use crate::address::{V4, V6, words};
use crate::balance::policy;
use crate::decide::Rung;
use crate::host::HostTables;
use crate::maglev::{self, Candidate};
use crate::parse::{TCP, Tags, ethertype};
use crate::tables::{Backend, NextHop, Service, ServiceKey, Settings, Window, backend, hop};

/// The interface that clients come in by.
pub const CLIENT_SIDE: u32 = 2;
/// The interface of the backends.
pub const BACKEND_SIDE: u32 = 3;
/// Bytes of an IP packet towards clients.
pub const CLIENT_MTU: u32 = 1500;
/// Bytes of an IP packet towards backends.
pub const BACKEND_MTU: u32 = 1450;
/// The VLAN of the neighbours among the clients: 192.0.2.128/25 and 2001:db8:c:1::/64.
pub const NEIGHBOURS_VLAN: u16 = 42;

/// MAC addresses.
pub mod mac {
    /// The balancer, towards clients.
    pub const CLIENT_SIDE: [u8; 6] = [2, 0, 0, 0, 2, 0];
    /// The router of the clients.
    pub const ROUTER: [u8; 6] = [2, 0, 0, 0, 2, 1];
    /// The balancer, towards backends.
    pub const BACKEND_SIDE: [u8; 6] = [2, 0, 0, 0, 3, 0];

    /// Backend `n` of a family, from 0 on.
    pub fn backend(n: u32) -> [u8; 6] {
        let [.., high, low] = n.to_be_bytes();
        [2, 0, 0, 1, high, low]
    }
}

/// Indices into [`HostTables::next_hops`].
pub mod next_hop {
    /// The router of the clients.
    pub const ROUTER: u32 = 1;
    /// The clients that are neighbours.
    pub const NEIGHBOURS: u32 = 2;

    /// Backend `n`, from 0 on, in both families.
    pub fn backend(n: u32) -> u32 {
        3 + n
    }
}

/// SNAT ports.
pub const SNAT_PORTS: std::ops::Range<u16> = 20_000..21_000;
/// Backends tried for one connection.
pub const ATTEMPTS: u16 = 3;

/// The address that clients connect to.
pub fn vip(v6: bool) -> SocketAddr {
    pick(v6, Ipv4Addr::new(198, 51, 100, 10), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10), 80)
}

/// Client `n`, behind the router.
pub fn client(v6: bool, n: u16) -> SocketAddr {
    let low = (n % 100) as u8 + 1;
    pick(
        v6,
        Ipv4Addr::new(192, 0, 2, low),
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, low as u16),
        40_000 + n,
    )
}

/// Client `n` among the neighbours.
pub fn neighbour(v6: bool, n: u16) -> SocketAddr {
    let low = (n % 100) as u8 + 129;
    pick(
        v6,
        Ipv4Addr::new(192, 0, 2, low),
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 1, 0, 0, 0, low as u16),
        40_000 + n,
    )
}

/// Backend `n` of a family, from 0 on.
pub fn backend_address(v6: bool, n: u32) -> SocketAddr {
    let [.., high, low] = (n + 1).to_be_bytes();
    pick(v6, Ipv4Addr::new(10, 0, high, low), Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, n as u16 + 1), 8080)
}

/// The address that the backends see.
pub fn snat(v6: bool) -> IpAddr {
    pick(v6, Ipv4Addr::new(10, 0, 255, 1), Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0xff, 1), 0).ip()
}

fn pick(v6: bool, v4_address: Ipv4Addr, v6_address: Ipv6Addr, port: u16) -> SocketAddr {
    let address = if v6 { IpAddr::V6(v6_address) } else { IpAddr::V4(v4_address) };
    SocketAddr::new(address, port)
}

/// Index of backend `n`, from 0 on, in a world with `count` of each family.
pub fn backend_index(v6: bool, count: u32, n: u32) -> u32 {
    1 + n + if v6 { count } else { 0 }
}

/// Tables with `backends` (at least 1) of each family behind the VIPs, chosen by `policy` (see [`policy`]). On
/// [`Rung::Xdp`] XDP may send to every device, on [`Rung::Tc`] it has to hand over. The next hops are confirmed for as
/// long as the clock runs.
pub fn scenario(rung: Rung, policy: u32, backends: u32) -> HostTables {
    let mut tables = HostTables::default();
    let to = |ifindex: u32, mtu: u32, source_mac: [u8; 6], mac: [u8; 6], flags: u32| NextHop {
        ifindex,
        device: ifindex,
        mtu,
        flags: hop::USED | flags | if rung == Rung::Xdp { hop::XDP } else { 0 },
        mac,
        source_mac,
        tags: Tags::default(),
        epoch: 1,
        confirmed: i64::MAX as u64,
        zero: [0; 2],
    };
    tables.next_hops.push(to(CLIENT_SIDE, CLIENT_MTU, mac::CLIENT_SIDE, mac::ROUTER, hop::RESOLVED));
    let mut neighbours = to(CLIENT_SIDE, CLIENT_MTU, mac::CLIENT_SIDE, [0; 6], hop::ON_LINK);
    neighbours.tags = Tags { tci: [NEIGHBOURS_VLAN, 0], count: 1, in_frame: 1, outer: ethertype::VLAN };
    tables.next_hops.push(neighbours);
    for n in 0..backends {
        tables.next_hops.push(to(
            BACKEND_SIDE,
            BACKEND_MTU,
            mac::BACKEND_SIDE,
            mac::backend(n),
            hop::RESOLVED,
        ));
    }

    tables.snat_addresses = vec![words(snat(false)), words(snat(true))];
    tables.snat_ports = SNAT_PORTS.map(u16::to_be).collect();
    tables.settings =
        Settings { max_flows: 1 << 16, snat_ports: tables.snat_ports.len() as u32, ..Settings::default() };
    for v6 in [false, true] {
        let cluster = v6 as u32;
        let mut candidates = Vec::new();
        for n in 0..backends {
            let address = backend_address(v6, n);
            let address_words = words(address.ip());
            candidates.push(Candidate {
                index: backend_index(v6, backends, n),
                identity: maglev::identity(address_words, address.port()),
                weight: 1,
            });
            tables.backends.push(Backend {
                address: address_words,
                port: address.port().to_be(),
                flags: backend::USED | if v6 { backend::V6 } else { 0 },
                hop: next_hop::backend(n),
                snat_first: v6 as u32,
                snat_count: 1,
                cluster,
                zero: 0,
            });
        }
        set_slots(&mut tables, cluster, policy, &candidates);
        tables.cursors.push(AtomicU32::new(0));
    }

    let service = |cluster: u32| Service { id: 1 + cluster, cluster, policy, attempts: ATTEMPTS, flags: 0 };
    let port = vip(false).port().to_be();
    let words4 = words(vip(false).ip());
    tables.v4.services.insert(ServiceKey { address: V4(words4[0]), port, protocol: [TCP, 0] }, service(0));
    let words6 = words(vip(true).ip());
    tables.v6.services.insert(ServiceKey { address: V6(words6), port, protocol: [TCP, 0] }, service(1));

    let words_of = |v6: bool| (words(client(v6, 0).ip()), words(neighbour(v6, 0).ip()));
    let ((clients4, neighbours4), (clients6, neighbours6)) = (words_of(false), words_of(true));
    let network4 = |words: [u32; 4], last: u8| {
        V4(u32::from_ne_bytes({
            let [a, b, c, _] = words[0].to_ne_bytes();
            [a, b, c, last]
        }))
    };
    let network6 = |words: [u32; 4]| V6([words[0], words[1], 0, 0]);
    tables.v4.routes = vec![
        (network4(clients4, 0), 25, next_hop::ROUTER),
        (network4(neighbours4, 128), 25, next_hop::NEIGHBOURS),
    ];
    tables.v6.routes =
        vec![(network6(clients6), 64, next_hop::ROUTER), (network6(neighbours6), 64, next_hop::NEIGHBOURS)];
    tables
}

/// Fills a new window of `cluster` with `candidates`, as the policy places them.
pub fn set_slots(tables: &mut HostTables, cluster: u32, policy: u32, candidates: &[Candidate]) {
    let slots = match policy {
        policy::MAGLEV | policy::SOURCE_IP => maglev::table(candidates),
        _ => maglev::order(candidates),
    };
    let window = Window { first: tables.slots.len() as u32, count: slots.len() as u32 };
    tables.slots.extend(slots);
    let at = cluster as usize;
    if tables.windows.len() <= at {
        tables.windows.resize(at + 1, Window { first: 0, count: 0 });
    }
    tables.windows[at] = window;
}
