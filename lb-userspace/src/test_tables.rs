//! A small datapath on the host, for the tests of the views: one listener, two backends, real decisions.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::AtomicU32;

use lb_common::host::HostTables;
use lb_common::parse::{Link, Tags};
use lb_common::tables::{Backend, NextHop, Service, ServiceKey, Settings, Window, backend, hop};
use lb_common::tcp::flags;
use lb_common::{Env, Key, Reason, Rung, Segment, V4, decide};

/// Nanoseconds; late enough that nothing is before the beginning of time.
pub(crate) const NOW: u64 = 1_000_000_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const CLIENT: &str = "10.0.0.2:40000";
pub(crate) const VIP: &str = "10.0.0.1:80";
/// Interface towards the clients.
pub(crate) const CLIENTS: u32 = 11;
/// Interface towards the backends.
pub(crate) const BACKENDS: u32 = 12;

pub(crate) fn key(from: &str, to: &str) -> Key<V4> {
    let (from, to): (SocketAddrV4, SocketAddrV4) = (from.parse().unwrap(), to.parse().unwrap());
    Key::new((*from.ip()).into(), (*to.ip()).into(), from.port().to_be(), to.port().to_be())
}

pub(crate) fn address(text: &str) -> V4 {
    text.parse::<Ipv4Addr>().unwrap().into()
}

fn next_hop(device: u32, flags: u32) -> NextHop {
    NextHop {
        ifindex: device,
        device,
        mtu: 1500,
        flags: hop::USED | flags,
        mac: [2, 0, 0, 0, 0, device as u8],
        source_mac: [2, 0, 0, 0, 1, device as u8],
        tags: Tags::default(),
        epoch: 1,
        confirmed: NOW,
        zero: [0; 2],
    }
}

/// Listener 1 at [`VIP`], cluster 0 with the backends 10.0.1.2:8080 (index 1) and 10.0.1.3:8080 (index 2), clients
/// on the link of interface [`CLIENTS`].
pub(crate) fn tables() -> HostTables {
    let mut tables = HostTables::default();
    let service = ServiceKey { address: address("10.0.0.1"), port: 80u16.to_be(), protocol: [6, 0] };
    tables.v4.services.insert(service, Service { id: 1, cluster: 0, policy: 0, attempts: 3, flags: 0 });
    tables.v4.routes.push((address("10.0.0.0"), 24, 1));
    tables.windows.push(Window { first: 16, count: 2 });
    tables.cursors.push(AtomicU32::new(1));
    tables.slots = [vec![0; 16], vec![2, 1]].concat();
    for address in ["10.0.1.2", "10.0.1.3"] {
        tables.backends.push(Backend {
            address: [self::address(address).0, 0, 0, 0],
            port: 8080u16.to_be(),
            flags: backend::USED,
            hop: 2,
            snat_first: 0,
            snat_count: 1,
            cluster: 0,
            zero: 0,
        });
    }
    tables.next_hops.push(next_hop(CLIENTS, hop::ON_LINK));
    tables.next_hops.push(next_hop(BACKENDS, hop::RESOLVED | hop::XDP));
    tables.snat_addresses.push([address("10.0.1.1").0, 0, 0, 0]);
    tables.snat_ports = (1024..2048).map(u16::to_be).collect();
    tables.settings = Settings { max_flows: 1000, snat_ports: 1024, ..Settings::default() };
    tables.set_clock(NOW);
    tables
}

/// Runs one segment through the TC rung.
pub(crate) fn send(
    tables: &HostTables,
    now: u64,
    key: Key<V4>,
    tcp: u8,
    seq: u32,
    ack: u32,
    payload: u32,
) -> Reason {
    let link = Link { tags: Tags::default(), ethertype: 0x0800, l3: 14, source: [2, 0, 0, 0, 0, 99] };
    let segment =
        Segment { key, link, l4: 34, ttl: 64, fragment: false, flags: tcp, header: 20, seq, ack, payload };
    let ingress = if key.source == address("10.0.0.2") { CLIENTS } else { BACKENDS };
    // Beyond an MTU of payload they are super-packets.
    let env = Env { gso_size: 1000, ..Env::new(Rung::Tc, ingress, now) };
    decide(&env, &segment, tables).reason
}

/// Sends the SYN of [`CLIENT`] (initial sequence number 100); the key of what the backend answers.
pub(crate) fn half_open_flow(tables: &HostTables, now: u64) -> Key<V4> {
    assert_eq!(send(tables, now, key(CLIENT, VIP), flags::SYN, 100, 0, 0), Reason::NEW_FLOW);
    let entries = tables.v4.half_open_entries();
    let forward = entries.iter().find(|flow| flow.is_forward()).unwrap();
    forward.out.reversed()
}

/// As above, and the rest of the handshake; the backend's initial sequence number is 500.
pub(crate) fn established_flow(tables: &HostTables, now: u64) -> Key<V4> {
    let back = half_open_flow(tables, now);
    assert_eq!(send(tables, now, back, flags::SYN | flags::ACK, 500, 101, 0), Reason::SYN_ACK);
    assert_eq!(send(tables, now, key(CLIENT, VIP), flags::ACK, 101, 501, 0), Reason::ESTABLISHED);
    back
}
