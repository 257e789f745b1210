//! What stands between the client and the backend.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV4};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::Array;
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader, Pod};
use lb_common::{Rung, V4};
use lb_tests::prog::{Bed, Devices};
use lb_userspace::datapath::object;

use super::attach_xdp;
use super::lane::Lane;
use super::receiver::{Receiver, Wanted};
use crate::driver::{OBJECT, load};
use crate::flows::{Opened, fill};
use crate::world::{NEIGHBOUR, Way, World};

/// A way for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// None: they are counted as they come in.
    Sender,
    /// The kernel's routing, to the address that they are sent to.
    Forwarding,
    /// The kernel's full NAT.
    Nftables,
    Toy(Rung),
    Headgate(Rung),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sender => "the sender alone",
            Self::Forwarding => "kernel forwarding",
            Self::Nftables => "nftables DNAT",
            Self::Toy(Rung::Xdp) => "toy NAT, xdp",
            Self::Toy(Rung::Tc) => "toy NAT, tc",
            Self::Headgate(Rung::Xdp) => "Headgate, xdp",
            Self::Headgate(Rung::Tc) => "Headgate, tc",
        })
    }
}

/// Established flows that Headgate has.
pub(crate) const FLOWS: usize = 4096;
/// The program that leaves all to the stack.
const PASS: &str = "bench_xdp_pass";

/// A subject at work.
pub(crate) struct Stand {
    pub(crate) receiver: Receiver,
    /// Headgate's programs and their flows.
    pub(crate) headgate: Option<(Bed, Vec<Opened<V4>>)>,
    /// Hold the attachments of other programs.
    _attached: Vec<Ebpf>,
}

impl Stand {
    pub(crate) fn new(lane: &Lane, subject: Subject) -> Result<Self> {
        let (mut attached, mut headgate) = (Vec::new(), None);
        let world = world();
        let backends = Wanted { first: v4(World::some_backend(false))?, addresses: world.backends };
        let receiver = match subject {
            Subject::Sender => {
                let vip = Wanted { first: v4(world.vip(false, 0))?, addresses: 1 };
                Receiver::new(&lane.balancer, lane.devices.client.ifindex, vip)?
            }
            _ => Receiver::new(&lane.backend, lane.e0, backends)?,
        };
        if !matches!(subject, Subject::Sender | Subject::Toy(Rung::Xdp) | Subject::Headgate(Rung::Xdp)) {
            attached.push(pass(lane)?);
        }
        match subject {
            Subject::Sender => {}
            Subject::Forwarding => route(lane)?,
            Subject::Nftables => {
                route(lane)?;
                lane.balancer.run("nft", &[&ruleset(backends)?])?;
            }
            Subject::Toy(rung) => attached.push(toy(lane, rung)?),
            Subject::Headgate(rung) => headgate = Some(balance(lane, rung)?),
        }
        Ok(Self { receiver, headgate, _attached: attached })
    }
}

/// What Headgate is told: backends behind another interface than the clients'.
pub(crate) fn world() -> World {
    World { way: Way::TwoInterfaces, ..World::default() }
}

/// veth hands redirected frames over only where a program is; behind this one the stack has them, and TC.
fn pass(lane: &Lane) -> Result<Ebpf> {
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    load(&mut ebpf, PASS, Rung::Xdp)?;
    attach_xdp(&lane.balancer, &mut ebpf, PASS, lane.devices.client.ifindex)?;
    Ok(ebpf)
}

/// The kernel forwards between clients and backends.
fn route(lane: &Lane) -> Result<()> {
    lane.balancer.sysctl("net.ipv4.ip_forward", "1")?;
    lane.balancer.ip(&["route", "add", "198.18.0.0/15", "via", "10.200.0.2"])?;
    lane.balancer.ip(&["route", "add", "10.9.16.0/24", "via", "10.200.1.2"]).map(drop)
}

/// To each backend in turn, from the balancer's own address.
fn ruleset(backends: Wanted) -> Result<String> {
    let (first, port) = (u32::from(*backends.first.ip()), backends.first.port());
    let map: Vec<_> = (0..backends.addresses)
        .map(|number| format!("{number} : {} . {port}", std::net::Ipv4Addr::from(first + number)))
        .collect();
    let vip = v4(world().vip(false, 0))?;
    let (address, service, count, map) = (vip.ip(), vip.port(), map.len(), map.join(", "));
    Ok(format!(
        "table ip bench {{
           chain pre {{
             type nat hook prerouting priority dstnat; policy accept;
             ip daddr {address} tcp dport {service} dnat ip addr . port to numgen inc mod {count} map {{ {map} }}
           }}
           chain post {{
             type nat hook postrouting priority srcnat; policy accept;
             oifname \"lb1\" masquerade
           }}
         }}"
    ))
}

/// `Constants` of the toy.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Constants {
    destination_mac: [u8; 6],
    source_mac: [u8; 6],
    source: [u8; 4],
    destination: [u8; 4],
    destination_port: u32,
    egress: u32,
    zero: u32,
}

// SAFETY: integers only, no padding.
unsafe impl Pod for Constants {}

fn toy(lane: &Lane, rung: Rung) -> Result<Ebpf> {
    let Devices { client, backend, .. } = lane.devices;
    let (source, destination) = (v4(World::some_snat(false))?, v4(World::some_backend(false))?);
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    let mut map: Array<_, Constants> = ebpf.map_mut("TOY").context("no map of the toy")?.try_into()?;
    let constants = Constants {
        destination_mac: NEIGHBOUR,
        source_mac: backend.mac,
        source: source.ip().octets(),
        destination: destination.ip().octets(),
        destination_port: destination.port().to_be().into(),
        egress: backend.ifindex,
        zero: 0,
    };
    map.set(0, constants, 0)?;
    let name = match rung {
        Rung::Xdp => "bench_toy_xdp",
        Rung::Tc => "bench_toy_tc",
    };
    load(&mut ebpf, name, rung)?;
    match rung {
        Rung::Xdp => attach_xdp(&lane.balancer, &mut ebpf, name, client.ifindex)?,
        Rung::Tc => attach_tc(lane, &mut ebpf, name, "lc0")?,
    }
    Ok(ebpf)
}

/// Headgate's programs on both interfaces of the balancer, with [`FLOWS`] established flows.
fn balance(lane: &Lane, rung: Rung) -> Result<(Bed, Vec<Opened<V4>>)> {
    let (mut bed, flows) = lane.balancer.within(|| -> Result<_> {
        let world = world();
        let mut bed = Bed::on(lane.devices, world.max_flows)?;
        let flows = fill::<V4>(&mut bed, world, FLOWS)?;
        Ok((bed, flows))
    })??;
    ensure!(flows.len() == FLOWS, "{} flows of {FLOWS} are established", flows.len());
    for (device, name) in [(lane.devices.client, "lc0"), (lane.devices.backend, "lb1")] {
        match rung {
            Rung::Xdp => attach_xdp(&lane.balancer, &mut bed.ebpf, object::XDP_PROGRAM, device.ifindex)?,
            Rung::Tc => attach_tc(lane, &mut bed.ebpf, object::TC_PROGRAM, name)?,
        }
    }
    Ok((bed, flows))
}

/// For as long as the object lives.
fn attach_tc(lane: &Lane, ebpf: &mut Ebpf, name: &str, device: &str) -> Result<()> {
    let program: &mut SchedClassifier = ebpf.program_mut(name).context("no program")?.try_into()?;
    let attached = lane.balancer.within(|| program.attach(device, TcAttachType::Ingress))?;
    attached.with_context(|| format!("attaching {name} to {device} (TCX: Linux 6.6)")).map(drop)
}

pub(crate) fn v4(address: SocketAddr) -> Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => bail!("{address} is not IPv4"),
    }
}
