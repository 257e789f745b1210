//! A client, a balancer and a backend in network namespaces of their own, for one subject and one kind of traffic.
//!
//! ```text
//!   client               balancer               backend
//!   c0 ─────────────── lc0      lb1 ─────────────── e0
//!      10.200.0.1/24 ──┘          └── 10.200.1.1/24
//! ```
//!
//! Nobody at the far ends has an address: packets are made and counted by programs. The balancer knows both as
//! neighbours, so no ARP is among the packets, and without IPv6 nothing else is.

use anyhow::{Context as _, Result};
use lb_tests::netns::Namespace;
use lb_tests::prog::{Device, Devices};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

use crate::world::NEIGHBOUR;

/// The hosts; they end with it.
pub(crate) struct Lane {
    pub(crate) client: Namespace,
    pub(crate) balancer: Namespace,
    pub(crate) backend: Namespace,
    /// The balancer's interfaces.
    pub(crate) devices: Devices,
    /// The client's.
    pub(crate) c0: u32,
    /// The backend's.
    pub(crate) e0: u32,
}

/// Last bytes of the balancer's MAC addresses.
const NEAR: u8 = 1;
const FAR: u8 = 2;

impl Lane {
    /// No two of a process have the same number.
    pub(crate) fn new(number: usize) -> Result<Self> {
        let namespace = |role: &str| {
            // Swept up like those of tests, should this process be killed.
            let namespace = Namespace::create(&format!("hgt-{}-frames{number}-{role}", std::process::id()))?;
            namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
            Ok::<_, anyhow::Error>(namespace)
        };
        let (client, balancer, backend) = (namespace("client")?, namespace("lb")?, namespace("backend")?);
        for (device, last, far, far_end, subnet) in
            [("lc0", NEAR, &client, "c0", 0), ("lb1", FAR, &backend, "e0", 1)]
        {
            let (mac, neighbour) = (text(mac(last)), text(NEIGHBOUR));
            balancer.ip(&[
                "link",
                "add",
                device,
                "address",
                &mac,
                "type",
                "veth",
                "peer",
                "name",
                far_end,
                "address",
                &neighbour,
                "netns",
                far.name(),
            ])?;
            balancer.ip(&["addr", "add", &format!("10.200.{subnet}.1/24"), "dev", device])?;
            for (host, device) in [(&balancer, device), (far, far_end)] {
                host.ip(&["link", "set", device, "up"])?;
            }
            let address = format!("10.200.{subnet}.2");
            balancer.ip(&["neigh", "add", &address, "lladdr", &neighbour, "dev", device])?;
        }
        let index = |host: &Namespace, name: &'static str| host.within(|| index(name))?;
        let near = Device { ifindex: index(&balancer, "lc0")?, mac: mac(NEAR) };
        let far = Device { ifindex: index(&balancer, "lb1")?, mac: mac(FAR) };
        // There is no device that the device map lacks.
        let devices = Devices { client: near, backend: far, unmapped: far };
        Ok(Self { c0: index(&client, "c0")?, e0: index(&backend, "e0")?, client, balancer, backend, devices })
    }
}

const fn mac(last: u8) -> [u8; 6] {
    [0x02, 0, 0, 0, 0x20, last]
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Of an interface of the calling thread's namespace.
fn index(name: &str) -> Result<u32> {
    // Any socket answers for the interfaces of its namespace.
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    name_to_index(&socket, name).with_context(|| format!("no interface {name}"))
}
