//! Flows, opened through the programs themselves: a handshake of three packets each.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use anyhow::{Result, bail, ensure};
use aya::Pod;
use lb_common::host_packets::{PacketBuilder, packet, verify_checksums};
use lb_common::tables::reason_index;
use lb_common::tcp::flags::SYN;
use lb_common::{Address, Flow, Key, Reason, Rung, address};
use lb_tests::maps;
use lb_tests::packet::of_key;
use lb_tests::prog::{Bed, Device};

use crate::driver::Driver;
use crate::entries::{Family, established, half_open};
use crate::tuple::Pattern;
use crate::world::{NEIGHBOUR, Way, World, client};

/// Flows that are half-open at once, at the most.
pub(crate) const SLICE: usize = 16_384;
/// Where the sequence numbers of clients and of backends begin.
pub(crate) const ISN: u32 = 1_000;
pub(crate) const BACKEND_ISN: u32 = 2_000;

/// A flow: how its packets arrive, from the client and from the backend. The other one reversed is how they leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened<A> {
    pub(crate) forward: Key<A>,
    pub(crate) reverse: Key<A>,
}

/// What the packets of some handshakes cost, nanoseconds each, without the driver.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Costs {
    pub(crate) syn: f64,
    pub(crate) syn_ack: f64,
    pub(crate) promotion: f64,
}

/// Why flows are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// To know what that costs. All of them have to find a place.
    Measure,
    /// To have them. The table may be too full for some.
    Fill,
}

/// Opens flows.
pub(crate) struct Opener {
    world: World,
    syn: Step,
    syn_ack: Step,
    ack: Step,
    random: fastrand::Rng,
}

struct Step {
    pattern: Pattern,
    driver: Driver,
    reason: Reason,
}

impl Opener {
    /// Of IPv4 or IPv6, by the program of `rung`; for so many flows at a time.
    pub(crate) fn new(bed: &Bed, world: World, rung: Rung, v6: bool, room: usize) -> Result<Self> {
        let (near, far) = ingresses(bed, world.way);
        let from_client = packet(client(v6, 0), world.vip(v6, 0)).macs(NEIGHBOUR, near.mac);
        // Any address does: the tuples have those of the flows.
        let backend = World::some_backend(v6);
        let from_backend = packet(backend, World::some_snat(v6)).macs(NEIGHBOUR, far.mac);
        let step = |packet, ingress: Device, reason| -> Result<Step> {
            let pattern = Pattern::new(v6, &packet);
            let driver = Driver::new(rung, v6, &pattern.frame, ingress.ifindex, room)?;
            Ok(Step { pattern, driver, reason })
        };
        Ok(Self {
            world,
            syn: step(from_client.clone().flags(SYN).seq(ISN).mss(1460), near, Reason::NEW_FLOW)?,
            syn_ack: step(
                from_backend.flags(SYN).seq(BACKEND_ISN).ack(ISN + 1).mss(1460),
                far,
                Reason::SYN_ACK,
            )?,
            ack: step(from_client.seq(ISN + 1).ack(BACKEND_ISN + 1), near, Reason::ESTABLISHED)?,
            random: fastrand::Rng::with_seed(1),
        })
    }

    /// Opens a flow for each of these clients (at most the room), which have none half-open or established yet.
    pub(crate) fn open<A: Family>(
        &mut self,
        bed: &Bed,
        rung: Rung,
        clients: Range<u32>,
        aim: Aim,
    ) -> Result<(Vec<Opened<A>>, Costs)>
    where
        Key<A>: Pod,
        Flow<A>: Pod,
        IpAddr: From<A>,
    {
        let count = clients.len();
        let syns: Vec<_> = clients
            .map(|number| {
                let (client, vip) = (client(A::V6, number), self.world.vip(A::V6, number));
                key(client, vip)
            })
            .collect();
        let syn = self.syn.all::<A>(bed, rung, &syns, (ISN, 0), aim)?;
        let mut opened = half_open::<A>(&bed.ebpf)?;
        // In a full table some of earlier ones stay half-open for good: one of their entries gave way to another.
        let asked: HashSet<_> = syns.iter().collect();
        opened.retain(|flow| asked.contains(&flow.forward));
        ensure!(
            aim == Aim::Fill || opened.len() == count,
            "{} flows are half-open, not {count}",
            opened.len()
        );
        self.random.shuffle(&mut opened);
        let answers: Vec<_> = opened.iter().map(|flow| flow.reverse).collect();
        let syn_ack = self.syn_ack.all::<A>(bed, rung, &answers, (BACKEND_ISN, ISN + 1), aim)?;
        let acks: Vec<_> = opened.iter().map(|flow| flow.forward).collect();
        let promotion = self.ack.all::<A>(bed, rung, &acks, (ISN + 1, BACKEND_ISN + 1), aim)?;
        Ok((opened, Costs { syn, syn_ack, promotion }))
    }
}

impl Step {
    /// A packet of each of these keys; nanoseconds each, without the driver if they are to be measured.
    fn all<A: Address>(
        &mut self,
        bed: &Bed,
        rung: Rung,
        keys: &[Key<A>],
        (sequence, acknowledgement): (u32, u32),
        aim: Aim,
    ) -> Result<f64> {
        let tuples: Vec<_> =
            keys.iter().map(|key| self.pattern.tuple(key, sequence, acknowledgement)).collect();
        self.driver.set_tuples(&tuples)?;
        let target = target(bed, rung)?;
        if aim == Aim::Fill {
            return Ok(self.driver.run(&target, tuples.len())?.nanoseconds);
        }
        let control = self.driver.control(tuples.len())?;
        let run = counted(bed, rung, self.reason, tuples.len(), || self.driver.run(&target, tuples.len()))?;
        verify_checksums(&run.output).map_err(anyhow::Error::msg)?;
        Ok(run.nanoseconds - control)
    }
}

/// Headgate's program for a hook.
pub(crate) fn target(bed: &Bed, rung: Rung) -> Result<aya::programs::ProgramFd> {
    Ok(match rung {
        Rung::Xdp => bed.xdp()?.fd()?.try_clone()?,
        Rung::Tc => bed.tc()?.fd()?.try_clone()?,
    })
}

/// Does `work`, which has to make exactly so many packets count for that reason, and none for another.
pub(crate) fn counted<T>(
    bed: &Bed,
    rung: Rung,
    reason: Reason,
    packets: usize,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let before = bed.reasons()?;
    let result = work()?;
    let after = bed.reasons()?;
    let moved: Vec<_> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
    let slot = reason_index(rung, reason) as usize;
    if moved[slot] != packets as u64 || moved.iter().sum::<u64>() != packets as u64 {
        let others: Vec<_> = moved.iter().enumerate().filter(|(_, moved)| **moved > 0).collect();
        bail!("not all {packets} packets count as {} ({slot}): {others:?}", reason.name());
    }
    Ok(result)
}

/// The interfaces that packets of clients and of backends come in by.
pub(crate) fn ingresses(bed: &Bed, way: Way) -> (Device, Device) {
    let far = match way {
        Way::OneInterface => bed.devices.client,
        Way::TwoInterfaces => bed.devices.backend,
    };
    (bed.devices.client, far)
}

/// Empties the flow maps, and tells the programs of `world`.
pub(crate) fn reset(bed: &mut Bed, world: &World) -> Result<()> {
    maps::fill(&mut bed.ebpf, &world.tables(&bed.devices))
}

/// How packets between two sockets of a family arrive.
pub(crate) fn key<A: Address>(source: SocketAddr, destination: SocketAddr) -> Key<A> {
    let family = |address: IpAddr| A::from_words(address::words(address));
    Key::new(family(source.ip()), family(destination.ip()), source.port().to_be(), destination.port().to_be())
}

/// A packet with the 5-tuple of a flow's direction.
pub(crate) fn arriving<A: Address>(key: &Key<A>, mac: [u8; 6]) -> PacketBuilder
where
    IpAddr: From<A>,
{
    of_key(key).macs(NEIGHBOUR, mac)
}

/// A round of handshakes with a table that is empty at first.
pub(crate) struct Handshakes {
    bed: Bed,
    world: World,
    rung: Rung,
    opener: Opener,
}

impl Handshakes {
    pub(crate) fn new(bed: &Bed, world: World, rung: Rung, v6: bool) -> Result<Self> {
        let bed = bed.another(world.max_flows)?;
        let opener = Opener::new(&bed, world, rung, v6, SLICE)?;
        Ok(Self { bed, world, rung, opener })
    }

    /// The same without emptying the table and the ring of events: their mean cost, for clients from `first` on.
    pub(crate) fn further<A: Family>(&mut self, first: u32) -> Result<Costs>
    where
        Key<A>: Pod,
        Flow<A>: Pod,
        IpAddr: From<A>,
    {
        let clients = first..first + SLICE as u32;
        Ok(self.opener.open::<A>(&self.bed, self.rung, clients, Aim::Measure)?.1)
    }

    /// Opens so many flows, whole slices of them; means over them.
    pub(crate) fn round<A: Family>(&mut self, flows: usize) -> Result<Costs>
    where
        Key<A>: Pod,
        Flow<A>: Pod,
        IpAddr: From<A>,
    {
        reset(&mut self.bed, &self.world)?;
        let slices = flows / SLICE;
        let mut sum = Costs::default();
        for slice in 0..slices {
            let first = (slice * SLICE) as u32;
            let clients = first..first + SLICE as u32;
            let (_, costs) = self.opener.open::<A>(&self.bed, self.rung, clients, Aim::Measure)?;
            sum.syn += costs.syn;
            sum.syn_ack += costs.syn_ack;
            sum.promotion += costs.promotion;
        }
        let count = slices as f64;
        Ok(Costs { syn: sum.syn / count, syn_ack: sum.syn_ack / count, promotion: sum.promotion / count })
    }
}

/// Opens that many flows of `world`, and gives those that are there then, of which there may be fewer.
pub(crate) fn fill<A: Family>(bed: &mut Bed, world: World, count: usize) -> Result<Vec<Opened<A>>>
where
    Key<A>: Pod,
    Flow<A>: Pod,
    IpAddr: From<A>,
{
    reset(bed, &world)?;
    let mut opener = Opener::new(bed, world, Rung::Xdp, A::V6, SLICE.min(count))?;
    for first in (0..count).step_by(SLICE) {
        let clients = first as u32..(first + SLICE).min(count) as u32;
        opener.open::<A>(bed, Rung::Xdp, clients, Aim::Fill)?;
    }
    established(&bed.ebpf)
}
