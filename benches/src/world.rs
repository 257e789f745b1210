//! What the programs are told for the benchmark: many backends, many clients, room for a million flows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::AtomicU32;

use lb_common::balance::policy;
use lb_common::host::HostTables;
use lb_common::parse::{TCP, Tags};
use lb_common::tables::{Backend, NextHop, Service, ServiceKey, Window, backend, hop, settings};
use lb_common::{V4, V6, address};
use lb_tests::prog::{Devices, coarse_now};

/// Where the backends of a service are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// On the clients' interface: `XDP_TX`.
    OneInterface,
    /// On another one.
    TwoInterfaces,
}

/// The size of the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    pub(crate) max_flows: u32,
    pub(crate) backends: u32,
    pub(crate) services: u32,
    pub(crate) way: Way,
    /// Whether completed handshakes are events, as where an access log wants a line for each.
    pub(crate) tells_connected: bool,
}

impl Default for World {
    fn default() -> Self {
        Self { max_flows: 80_000, backends: 64, services: 1, way: Way::OneInterface, tells_connected: false }
    }
}

/// The port of the first service; the others have the next ones.
const PORT: u16 = 80;
const SNAT_PORTS: std::ops::Range<u16> = 1024..30_000;
/// Numbers of own addresses: the VIP, the first backend, the first SNAT address.
const VIP: u32 = 1;
const BACKENDS: u32 = 0x1000;
const SNAT: u32 = 0xff00;
/// Addresses towards the backends.
const SNAT_ADDRESSES: u32 = 16;
/// The neighbour on either side.
pub(crate) const NEIGHBOUR: [u8; 6] = [0x02, 0, 0, 0, 0x30, 1];
/// Indices of the next hops.
const TO_BACKENDS: u32 = 1;
const TO_CLIENTS: u32 = 2;

/// A host in 198.18.0.0/15 or 2001:2::/48, which are for benchmarks (RFC 2544, RFC 5180): clients.
fn client_address(v6: bool, number: u32) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 1, number as u16).into()
    } else {
        Ipv4Addr::from(0xc612_0000 | number & 0xffff).into()
    }
}

/// A host in 10.9.0.0/16 or 2001:db8::/32: the VIP, backends and SNAT addresses.
fn own_address(v6: bool, number: u32) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, number as u16).into()
    } else {
        Ipv4Addr::from(0x0a09_0000 | number).into()
    }
}

/// The client of that number: 65,536 addresses, then the same with another port.
pub(crate) fn client(v6: bool, number: u32) -> SocketAddr {
    SocketAddr::new(client_address(v6, number & 0xffff), 10_000 + (number >> 16) as u16)
}

impl World {
    /// Where that client connects to.
    pub(crate) fn vip(&self, v6: bool, client: u32) -> SocketAddr {
        SocketAddr::new(own_address(v6, VIP), PORT + (client % self.services) as u16)
    }

    /// A backend.
    pub(crate) fn some_backend(v6: bool) -> SocketAddr {
        SocketAddr::new(own_address(v6, BACKENDS), 8080)
    }

    /// An address of Headgate's own towards the backends.
    pub(crate) fn some_snat(v6: bool) -> SocketAddr {
        SocketAddr::new(own_address(v6, SNAT), SNAT_PORTS.start)
    }

    /// The tables, without flows.
    pub(crate) fn tables(&self, devices: &Devices) -> HostTables {
        let mut tables = HostTables::default();
        tables.settings.max_flows = self.max_flows;
        tables.settings.flags = if self.tells_connected { settings::TELL_CONNECTED } else { 0 };
        tables.settings.snat_ports = u32::from(SNAT_PORTS.end - SNAT_PORTS.start);
        tables.snat_ports = SNAT_PORTS.map(u16::to_be).collect();
        tables.next_hops.extend(self.next_hops(devices));
        for v6 in [false, true] {
            let snat_first = tables.snat_addresses.len() as u32;
            let addresses = (0..SNAT_ADDRESSES).map(|n| address::words(own_address(v6, SNAT + n)));
            tables.snat_addresses.extend(addresses);
            let first = tables.backends.len() as u32;
            for number in 0..self.backends {
                tables.backends.push(Backend {
                    address: address::words(own_address(v6, BACKENDS + number)),
                    port: 8080u16.to_be(),
                    flags: backend::USED | if v6 { backend::V6 } else { 0 },
                    hop: TO_BACKENDS,
                    snat_first,
                    snat_count: SNAT_ADDRESSES,
                    cluster: tables.windows.len() as u32,
                    zero: 0,
                });
            }
            let window = Window { first: tables.slots.len() as u32, count: self.backends };
            tables.slots.extend(first..first + self.backends);
            for number in 0..self.services {
                let cluster = tables.windows.len() as u32;
                tables.windows.push(window);
                tables.cursors.push(AtomicU32::new(0));
                let service =
                    Service { id: 1 + cluster, cluster, policy: policy::ROUND_ROBIN, attempts: 3, flags: 0 };
                let (port, protocol) = ((PORT + number as u16).to_be(), [TCP, 0]);
                match own_address(v6, VIP) {
                    IpAddr::V4(vip) => {
                        let key = ServiceKey { address: V4::from(vip), port, protocol };
                        tables.v4.services.insert(key, service);
                    }
                    IpAddr::V6(vip) => {
                        let key = ServiceKey { address: V6::from(vip), port, protocol };
                        tables.v6.services.insert(key, service);
                    }
                }
            }
            match client_address(v6, 0) {
                IpAddr::V4(network) => tables.v4.routes.push((network.into(), 15, TO_CLIENTS)),
                IpAddr::V6(network) => tables.v6.routes.push((network.into(), 48, TO_CLIENTS)),
            }
        }
        tables
    }

    fn next_hops(&self, devices: &Devices) -> [NextHop; 2] {
        let backend = match self.way {
            Way::OneInterface => devices.client,
            Way::TwoInterfaces => devices.backend,
        };
        // Vouched for until long after the run.
        let confirmed = coarse_now() + 3_600_000_000_000;
        [backend, devices.client].map(|device| NextHop {
            ifindex: device.ifindex,
            device: device.ifindex,
            mtu: 1500,
            flags: hop::USED | hop::RESOLVED | hop::XDP,
            mac: NEIGHBOUR,
            source_mac: device.mac,
            tags: Tags::default(),
            epoch: 1,
            confirmed,
            zero: [0; 2],
        })
    }
}
