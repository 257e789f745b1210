//! The maps of a loaded datapath, and what the agent does with them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::lpm_trie::Key as RouteKey;
use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, HashMap as BpfHashMap, LpmTrie, Map, MapData, PerCpuArray};
use lb_common::flow::mark;
use lb_common::tables::{
    Active, Backend, Failed, Live, MAX_BACKENDS, MAX_SNAT_ADDRESSES, NextHop, Opened, Service, ServiceKey,
    Settings, Window, active_of_cluster, hop, names, reason_index,
};
use lb_common::{Address, Reason, Rung, V4, V6};

use crate::datapath::contents::{Contents, Prefix, Step};
use crate::datapath::events::Events;
use crate::datapath::flow_table::{FlowTable, Occupied};
use crate::datapath::mapped::Mapped;
use crate::datapath::object::{Loaded, Rejected};
use crate::datapath::slots::{REST, SlotSpace};

/// Words of an [`Active`].
pub const BOTH_WORD: usize = std::mem::offset_of!(Active, both) / 8;
/// As above.
pub const FAILING_WORD: usize = std::mem::offset_of!(Active, failing) / 8;
const LIMIT_WORD: usize = std::mem::offset_of!(Active, limit) / 8;

/// The maps of one address family.
pub struct FamilyMaps<A> {
    /// Shared with listings, which are made beside the agent.
    pub flows: Arc<FlowTable<A>>,
    services: BpfHashMap<MapData, ServiceKey<A>, Service>,
    routes: LpmTrie<MapData, A, u32>,
    /// Index into `LIVE`.
    pub index: u32,
}

/// The maps of a loaded datapath. The programs stay loaded as long as this lives, or are attached.
pub struct Kernel {
    pub ebpf: Ebpf,
    pub v4: FamilyMaps<V4>,
    pub v6: FamilyMaps<V6>,
    /// Which parts of the flow tables may have entries.
    occupied: Arc<Mapped<u64>>,
    clusters: Mapped<Window>,
    slots: Mapped<u32>,
    slot_space: SlotSpace,
    backends: Mapped<Backend>,
    opened: PerCpuArray<MapData, Opened>,
    served: PerCpuArray<MapData, Opened>,
    failed: PerCpuArray<MapData, Failed>,
    /// Shared with the proxy, whose connections count, too.
    pub active: Arc<Mapped<Active>>,
    pub events: Events,
    hops: Mapped<NextHop>,
    snat_addresses: Array<MapData, [u32; 4]>,
    snat_ports: Array<MapData, [u16; 4]>,
    settings: Mapped<Settings>,
    pub live: Mapped<Live>,
    reasons: PerCpuArray<MapData, u64>,
    devices: DevMapHash<MapData>,
    cursors: PerCpuArray<MapData, u32>,
    rejected: Vec<Rejected>,
    /// Stores into maps so far, each of up to 8 bytes or of a whole value; but for what is counted and vouched for.
    pub writes: u64,
}

impl Kernel {
    /// Takes the maps out of a loaded object.
    pub fn new(Loaded { mut ebpf, rejected, seed }: Loaded) -> Result<Self> {
        let mut take =
            |name: &str| ebpf.take_map(name).with_context(|| format!("the object has no map {name}"));
        let occupied = Arc::new(Mapped::new(&data(take(names::OCCUPIED)?)?)?);
        let v4 = family(&mut take, [names::FLOWS4, names::SERVICES4, names::ROUTES4], 0, seed, &occupied)?;
        let v6 = family(&mut take, [names::FLOWS6, names::SERVICES6, names::ROUTES6], 1, seed, &occupied)?;
        let clusters = Mapped::<Window>::new(&data(take(names::CLUSTERS)?)?)?;
        let slots = Mapped::new(&data(take(names::SLOTS)?)?)?;
        let settings = Mapped::<Settings>::new(&data(take(names::SETTINGS)?)?)?;
        settings.word(0, std::mem::offset_of!(Settings, seed) / 8).store(seed, Ordering::Relaxed);
        let slot_space = SlotSpace::new(slots.len(), (0..clusters.len()).map(|index| clusters.get(index)));
        Ok(Self {
            v4,
            v6,
            occupied,
            clusters,
            slots,
            slot_space,
            backends: Mapped::new(&data(take(names::BACKENDS)?)?)?,
            opened: PerCpuArray::try_from(take(names::OPENED)?)?,
            served: PerCpuArray::try_from(take(names::SERVED)?)?,
            failed: PerCpuArray::try_from(take(names::FAILED)?)?,
            active: Arc::new(Mapped::new(&data(take(names::ACTIVE)?)?)?),
            events: Events::new(take(names::EVENTS)?)?,
            hops: Mapped::new(&data(take(names::NEXT_HOPS)?)?)?,
            snat_addresses: Array::try_from(take(names::SNAT_ADDRESSES)?)?,
            snat_ports: Array::try_from(take(names::SNAT_PORTS)?)?,
            settings,
            live: Mapped::new(&data(take(names::LIVE)?)?)?,
            reasons: PerCpuArray::try_from(take(names::REASONS)?)?,
            devices: DevMapHash::try_from(take(names::DEVICES)?)?,
            cursors: PerCpuArray::try_from(take(names::CURSORS)?)?,
            ebpf,
            rejected,
            writes: 0,
        })
    }

    /// Goes on with other programs and flow tables; all other maps are the same.
    pub fn replace_tables(&mut self, Loaded { mut ebpf, rejected, seed }: Loaded) -> Result<()> {
        let mut take =
            |name: &str| ebpf.take_map(name).with_context(|| format!("the object has no map {name}"));
        let occupied = |family| Some(Occupied::new(Arc::clone(&self.occupied), family));
        let v4 = Arc::new(FlowTable::new(data(take(names::FLOWS4)?)?, seed, occupied(self.v4.index))?);
        let v6 = Arc::new(FlowTable::new(data(take(names::FLOWS6)?)?, seed, occupied(self.v6.index))?);
        (self.v4.flows, self.v6.flows, self.ebpf, self.rejected) = (v4, v6, ebpf, rejected);
        Ok(())
    }

    /// Whether the kernel does not take a program.
    pub fn rejected(&self, program: &str) -> Option<&Rejected> {
        self.rejected.iter().find(|rejected| rejected.program == program)
    }

    /// The programs that the kernel does not take.
    pub fn all_rejected(&self) -> &[Rejected] {
        &self.rejected
    }

    /// Carries out one step of a plan.
    pub fn apply(&mut self, step: &Step) -> Result<()> {
        // The others count their own.
        if !matches!(step, Step::Backend(..) | Step::Slots(..) | Step::NoSlots(_)) {
            self.writes += 1;
        }
        match step {
            Step::Device(index, true) => self.devices.insert(*index, *index, None, 0)?,
            Step::Device(index, false) => ignore_missing(self.devices.remove(*index))?,
            Step::Hop(index, hop) => self.set_hop(*index, *hop),
            Step::SnatAddress(index, address) => {
                self.snat_addresses.set(*index, address, 0)?;
            }
            Step::SnatPorts(ports) => {
                for (index, ports) in ports.chunks(4).enumerate() {
                    let mut value = [0; 4];
                    value[..ports.len()].copy_from_slice(ports);
                    self.snat_ports.set(index as u32, value, 0)?;
                }
            }
            Step::Backend(index, backend) => self.set_backend(*index, *backend),
            Step::Limit(cluster, limit) => {
                let index = active_of_cluster(*cluster);
                self.active.word(index, LIMIT_WORD).store(limit.unwrap_or(0), Ordering::Relaxed);
            }
            Step::Slots(cluster, slots) => self.set_slots(*cluster, slots)?,
            Step::NoSlots(cluster) => self.set_slots(*cluster, &[])?,
            Step::Route4(prefix, hop) => set_route(&mut self.v4.routes, *prefix, *hop)?,
            Step::Route6(prefix, hop) => set_route(&mut self.v6.routes, *prefix, *hop)?,
            Step::Settings(settings) => {
                self.settings.store(0, settings.max_flows as u64 | (settings.snat_ports as u64) << 32);
                let flags = self.settings.word(0, std::mem::offset_of!(Settings, flags) / 8);
                flags.store(settings.flags, Ordering::Relaxed);
            }
            Step::Service4(key, service) => set_service(&mut self.v4.services, *key, *service)?,
            Step::Service6(key, service) => set_service(&mut self.v6.services, *key, *service)?,
        }
        Ok(())
    }

    /// While its addresses change, a hop counts as not resolved: XDP leaves packets to TC, which asks the kernel.
    fn set_hop(&self, index: u32, new: Option<NextHop>) {
        const FLAGS_WORD: usize = std::mem::offset_of!(NextHop, mtu) / 8;
        let old = self.hops.get(index);
        let store = |mtu: u32, flags: u32| {
            self.hops.word(index, FLAGS_WORD).store(mtu as u64 | (flags as u64) << 32, Ordering::Release);
        };
        let Some(mut new) = new else { return store(old.mtu, 0) };
        let flags = new.flags;
        let moved = old.mac != new.mac || (old.flags ^ flags) & (hop::USED | hop::RESOLVED) != 0;
        new.epoch = old.epoch.wrapping_add(moved as u32);
        new.confirmed = monotonic_now();
        if old.mac != new.mac || old.source_mac != new.source_mac || old.ifindex != new.ifindex {
            new.flags = old.flags & flags & !hop::RESOLVED;
            store(old.mtu, new.flags);
        }
        self.hops.set(index, new);
        store(new.mtu, flags);
    }

    /// Vouches for the hops for some more seconds.
    pub fn confirm(&self, hops: impl IntoIterator<Item = u32>) {
        const CONFIRMED_WORD: usize = std::mem::offset_of!(NextHop, confirmed) / 8;
        let now = monotonic_now();
        for index in hops {
            self.hops.word(index, CONFIRMED_WORD).store(now, Ordering::Relaxed);
        }
    }

    /// Where only the flags change, by one store.
    fn set_backend(&mut self, index: u32, backend: Option<Backend>) {
        const FLAGS_WORD: usize = std::mem::offset_of!(Backend, port) / 8;
        let old = self.backends.get(index);
        let new = backend.unwrap_or(Backend { flags: 0, ..old });
        let stays = new.flags & old.flags & lb_common::tables::backend::USED != 0;
        if stays && (Backend { flags: old.flags, ..new }) == old || backend.is_none() {
            let word = [new.port.to_ne_bytes(), new.flags.to_ne_bytes()].concat();
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&word);
            bytes[4..].copy_from_slice(&new.hop.to_ne_bytes());
            self.backends.word(index, FLAGS_WORD).store(u64::from_ne_bytes(bytes), Ordering::Release);
            self.writes += 1;
        } else {
            if (old.address, old.port, old.cluster) != (new.address, new.port, new.cluster)
                || old.flags & lb_common::tables::backend::USED == 0
            {
                // What another one had the index for.
                self.active.word(index, FAILING_WORD).store(0, Ordering::Relaxed);
            }
            self.backends.set(index, new);
            self.writes += (size_of::<Backend>() / 8) as u64;
        }
    }

    fn set_slots(&mut self, cluster: u32, slots: &[u32]) -> Result<()> {
        let now = Instant::now();
        let old = self.clusters.get(cluster);
        let count = slots.len() as u32;
        if count > 0 && count == old.count {
            for (offset, &slot) in slots.iter().enumerate() {
                let at = old.first + offset as u32;
                if self.slots.get(at) != slot {
                    self.slots.set(at, slot);
                    self.writes += 1;
                }
            }
            return Ok(());
        }
        self.writes += u64::from(count) + 1;
        let window = if count == 0 {
            Window { first: 0, count }
        } else {
            let room = self.slot_space.take(count, now).or_else(|| {
                // What was switched away a moment ago is free after its rest.
                std::thread::sleep(REST);
                self.slot_space.take(count, Instant::now())
            });
            room.with_context(|| {
                format!(
                    "no room for {count} slots in the table of {}: too many clusters with maglev or source_ip",
                    self.slots.len()
                )
            })?
        };
        for (offset, slot) in slots.iter().enumerate() {
            self.slots.set(window.first + offset as u32, *slot);
        }
        // CPUs start at different places, or all would send their first connections to the same backend.
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        let starts: Vec<u32> =
            (0..cpus).map(|cpu| (cpu as u64 * count as u64 / cpus as u64) as u32).collect();
        self.cursors.set(cluster, aya::maps::PerCpuValues::try_from(starts)?, 0)?;
        self.clusters.store(cluster, window.first as u64 | (window.count as u64) << 32);
        self.slot_space.release(old, now);
        Ok(())
    }

    /// Sets the counts of open flows to what is in the tables: under other indices, after a crash, or after a change of
    /// tables they are others. Flows that come and go meanwhile may be missed; [`crate::datapath::drift`] finds that.
    pub fn recount_active(&self) -> Result<()> {
        let mut counted = vec![0i64; self.active.len() as usize];
        let mut count = |backend: u32| {
            for index in [backend, active_of_cluster(self.backends.get(backend).cluster)] {
                counted[index as usize] += 1;
            }
        };
        count_open(&self.v4.flows, &mut count)?;
        count_open(&self.v6.flows, &mut count)?;
        for (index, counted) in counted.into_iter().enumerate() {
            let missing = counted - self.active_flows(index as u32);
            if missing != 0 {
                self.correct_active(index as u32, missing);
            }
        }
        Ok(())
    }

    /// Flows that count as open at an index of [`Active`], below 0 too.
    pub fn active_flows(&self, index: u32) -> i64 {
        (self.active.word(index, BOTH_WORD).load(Ordering::Relaxed) as u32 as i32).into()
    }

    /// Attempts to reach a backend that failed since the last one that did not, of all rungs.
    pub fn failing(&self, backend: u32) -> u32 {
        self.active.word(backend, FAILING_WORD).load(Ordering::Relaxed).min(u32::MAX.into()) as u32
    }

    /// Counts one more.
    pub fn count_failing(&self, backend: u32) {
        self.active.word(backend, FAILING_WORD).fetch_add(1, Ordering::Relaxed);
    }

    /// Corrects that number.
    pub fn correct_active(&self, index: u32, by: i64) {
        self.active.word(index, BOTH_WORD).fetch_add(by as u64, Ordering::Relaxed);
    }

    /// Takes the connections of an earlier agent's proxy off, which have ended with it.
    pub fn forget_proxied(&self) {
        for index in 0..self.active.len() {
            self.active.word(index, BOTH_WORD).fetch_and(Active::PROXIED - 1, Ordering::Relaxed);
        }
    }

    /// Backends in use, by index: what an earlier agent left.
    pub fn backends(&self) -> HashMap<u32, Backend> {
        (1..self.backends.len())
            .map(|index| (index, self.backends.get(index)))
            .filter(|(_, backend)| backend.flags & lb_common::tables::backend::USED != 0)
            .collect()
    }

    /// Next hops in use, by index: what an earlier agent left.
    pub fn used_hops(&self) -> BTreeMap<u32, NextHop> {
        (1..self.hops.len())
            .map(|index| (index, self.hops.get(index)))
            .filter(|(_, hop)| hop.flags & hop::USED != 0)
            .collect()
    }

    /// Limits of clusters, by their index in [`Backend::cluster`], which an earlier agent may have left.
    pub fn read_limits(&self) -> BTreeMap<u32, u64> {
        let clusters = MAX_BACKENDS..self.active.len();
        let limits = clusters.map(|index| (index - MAX_BACKENDS, self.active.get(index).limit));
        limits.filter(|(_, limit)| *limit != 0).collect()
    }

    /// Reads services, routes and slot windows, which an earlier agent may have left.
    pub fn read_served(&self, contents: &mut Contents) -> Result<()> {
        contents.services4 = self.v4.services.iter().collect::<Result<_, _>>()?;
        contents.services6 = self.v6.services.iter().collect::<Result<_, _>>()?;
        for entry in self.v4.routes.iter() {
            let (key, hop) = entry?;
            contents.routes4.insert((key.data(), key.prefix_len() as u8), hop);
        }
        for entry in self.v6.routes.iter() {
            let (key, hop) = entry?;
            contents.routes6.insert((key.data(), key.prefix_len() as u8), hop);
        }
        for index in 0..self.clusters.len() {
            let window = self.clusters.get(index);
            if window.count > 0 {
                let slots = window.first..window.first.saturating_add(window.count).min(self.slots.len());
                contents
                    .slots
                    .insert(index, slots.map(|slot| self.slots.get(slot)).collect::<Vec<_>>().into());
            }
        }
        Ok(())
    }

    /// The SNAT addresses that backends refer to, which an earlier agent may have left: up to the last that is in use.
    pub fn read_snat_addresses(&self) -> Result<Vec<[u32; 4]>> {
        let last = self.backends().values().map(|backend| backend.snat_first + backend.snat_count).max();
        let count = last.unwrap_or(0).min(MAX_SNAT_ADDRESSES);
        (0..count).map(|index| Ok(self.snat_addresses.get(&index, 0)?)).collect()
    }

    /// Flows opened to a backend since the maps were made.
    pub fn opened(&self, backend: u32) -> Result<Opened> {
        Ok(sum_opened(&self.opened.get(&backend, 0)?))
    }

    /// Flows opened to a service since the maps were made.
    pub fn served(&self, service: u32) -> Result<Opened> {
        Ok(sum_opened(&self.served.get(&service, 0)?))
    }

    /// Attempts to reach a backend that failed, since the maps were made.
    pub fn failed(&self, backend: u32) -> Result<Failed> {
        let per_cpu = self.failed.get(&backend, 0)?;
        Ok(per_cpu.iter().fold(Failed::default(), |sum, one| Failed {
            refused: sum.refused + one.refused,
            unanswered: sum.unanswered + one.unanswered,
        }))
    }

    /// Events that the ring had no room for.
    pub fn events_lost(&self) -> u64 {
        [self.v4.index, self.v6.index].into_iter().map(|index| self.live.get(index).lost).sum()
    }

    /// Takes a flow that has ended off the open connections of its backend.
    pub fn leave(&self, backend: u32) {
        let cluster = active_of_cluster(self.backends.get(backend).cluster);
        for index in [backend, cluster] {
            self.active.word(index, BOTH_WORD).fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How often each reason was counted, on both rungs together; those that never were are left out.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>> {
        let mut counts = Vec::new();
        for &reason in Reason::ALL {
            let mut count = 0;
            for rung in [Rung::Xdp, Rung::Tc] {
                count += self.reasons.get(&reason_index(rung, reason), 0)?.iter().sum::<u64>();
            }
            if count > 0 {
                counts.push((reason, count));
            }
        }
        Ok(counts)
    }

    /// Flows of a family in the table.
    pub fn live_flows(&self, index: u32) -> u64 {
        let live = self.live.get(index);
        live.opened.saturating_sub(live.closed)
    }
}

/// Calls `count` with the backend of each connection that is open.
fn count_open<A: Address>(table: &FlowTable<A>, count: &mut impl FnMut(u32)) -> Result<()> {
    const OPEN: u64 = mark::ESTABLISHED;
    table.for_each(|flow| {
        if flow.word & (mark::ESTABLISHED | mark::REVERSE | mark::ENDED) == OPEN {
            count(flow.backend.into());
        }
    })
}

fn sum_opened(per_cpu: &[Opened]) -> Opened {
    per_cpu.iter().fold(Opened::default(), |sum, one| Opened { xdp: sum.xdp + one.xdp, tc: sum.tc + one.tc })
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of the programs.
pub fn monotonic_now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn family<A: Address + aya::Pod>(
    take: &mut impl FnMut(&str) -> Result<Map>,
    [flows, services, routes]: [&str; 3],
    index: u32,
    seed: u64,
    occupied: &Arc<Mapped<u64>>,
) -> Result<FamilyMaps<A>>
where
    ServiceKey<A>: aya::Pod,
{
    Ok(FamilyMaps {
        flows: Arc::new(FlowTable::new(
            data(take(flows)?)?,
            seed,
            Some(Occupied::new(Arc::clone(occupied), index)),
        )?),
        services: BpfHashMap::try_from(take(services)?)?,
        routes: LpmTrie::try_from(take(routes)?)?,
        index,
    })
}

fn data(map: Map) -> Result<MapData> {
    match map {
        Map::Array(data) => Ok(data),
        other => bail!("unexpected kind of map: {other:?}"),
    }
}

fn set_route<A: aya::Pod>(
    routes: &mut LpmTrie<MapData, A, u32>,
    prefix: Prefix<A>,
    hop: Option<u32>,
) -> Result<()> {
    let key = RouteKey::new(prefix.1 as u32, prefix.0);
    match hop {
        Some(hop) => Ok(routes.insert(&key, hop, 0)?),
        None => ignore_missing(routes.remove(&key)),
    }
}

fn set_service<A: aya::Pod>(
    services: &mut BpfHashMap<MapData, ServiceKey<A>, Service>,
    key: ServiceKey<A>,
    service: Option<Service>,
) -> Result<()>
where
    ServiceKey<A>: aya::Pod,
{
    match service {
        Some(service) => Ok(services.insert(key, service, 0)?),
        None => ignore_missing(services.remove(&key)),
    }
}

/// To take away what is not there is no fault.
fn ignore_missing(result: Result<(), aya::maps::MapError>) -> Result<()> {
    match result {
        Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
