//! The datapath on the host: frames in a vector, maps in hash maps. For tests, for comparison with the loaded
//! programs byte by byte, and for `headgate explain`.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread::ThreadId;

use crate::address::Address;
use crate::answer::{answer, quoted_sum, unanswered};
use crate::checksum;
use crate::decide::{Action, Env, Output, Rung, Verdict};
use crate::event::{self, Event};
use crate::fast::{self, Done};
use crate::flow::{Flow, Key};
use crate::packet::{Head, LinkHeader, Packet, Wire};
use crate::parse::{Link, Segment, Tags, ethertype, parse, parse_link, skip_extensions};
use crate::reason::Reason;
use crate::rewrite::rewrite;
use crate::table::{self, FlowSet, SetRef, WAYS, sets};
use crate::tables::{
    Active, Backend, Failed, NextHop, Opened, Service, ServiceKey, Settings, Tables, Window,
    active_of_cluster,
};
use crate::work::{Part, RouteKey, Work};
use crate::{V4, V6, icmp, off_path, open, tcp};

/// A frame as XDP sees it: all of it in reach, checksums complete, tags in the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(pub Vec<u8>);

impl Packet for Frame {
    fn len(&self) -> u32 {
        self.0.len() as u32
    }

    fn stripped_tag(&self) -> Option<(u16, u16)> {
        None
    }

    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        let bytes = self.0.get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: `bytes` has the size of T, and T is plain data of any alignment.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn write<T: Wire>(&mut self, offset: usize, value: T) -> Option<()> {
        let bytes = self.0.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: `bytes` has the size of T, and T is plain data of any alignment.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(value) };
        Some(())
    }

    fn head(&mut self, length: usize) -> Option<Head<'_>> {
        let bytes = self.0.get_mut(..length)?;
        // SAFETY: a mutable slice of this length.
        Some(unsafe { Head::new(bytes.as_mut_ptr(), length) })
    }

    fn add_to_l4_checksum(&mut self, offset: usize, addresses: u16, rest: u16, _v6: bool) -> Option<()> {
        let check = self.read::<u16>(offset)?;
        self.write(offset, checksum::apply(check, addresses as u32 + rest as u32))
    }

    fn skip_extensions(&self, l3: usize, next: u8) -> u32 {
        skip_extensions(self, l3, next)
    }

    fn find_mss(&self, start: usize, length: usize) -> u32 {
        tcp::find_mss(self, start, length)
    }

    fn set_link_header(&mut self, from: &Link, to: &LinkHeader) -> Option<()> {
        if from.is_bare() && to.bare {
            return Some(());
        }
        let mut header = Vec::with_capacity(22);
        header.extend(to.destination);
        header.extend(to.source);
        let ethertypes = [to.tags.outer, ethertype::VLAN];
        for (ethertype, tci) in ethertypes.iter().zip(to.tags.tci).take(to.tags.count as usize) {
            header.extend(ethertype.to_be_bytes());
            header.extend(tci.to_be_bytes());
        }
        header.extend(to.ethertype.to_be_bytes());
        self.replace_link_layer(from, header)
    }

    fn has_partial_checksum(&mut self, _offset: usize) -> Option<bool> {
        Some(false)
    }

    fn make_room(&mut self, from: &Link, keep: u32, room: u32) -> Option<()> {
        let mut front = vec![0; room as usize];
        if !from.is_bare() {
            let ethertype = from.ethertype.to_be_bytes();
            front.splice(..0, self.0.get(..12)?.iter().copied().chain(ethertype));
        }
        self.0.truncate(keep as usize);
        self.replace_link_layer(from, front)
    }
}

impl Frame {
    /// Puts `front` in the place of what is before the IP header.
    fn replace_link_layer(&mut self, from: &Link, front: Vec<u8>) -> Option<()> {
        let old = if from.is_bare() { 0 } else { 14 + 4 * from.tags.in_frame as usize };
        if self.0.len() < old {
            return None;
        }
        self.0.splice(..old, front);
        Some(())
    }
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Result {
    /// Why.
    pub reason: Reason,
    /// The interface it leaves by, and whether the kernel's neighbour code fills in the MAC addresses.
    pub sent: Option<(u32, bool)>,
}

/// Runs the whole datapath on `frame`, which is rewritten if it is forwarded or answered.
pub fn run<T: Tables<V4> + Tables<V6>>(env: &Env, frame: &mut Frame, tables: &T) -> Result {
    match fast::handle(env, frame, tables, tables) {
        (Done::Nothing, _) => run_slow(env, frame, tables),
        (done, false) => finish::<V4, T>(env, frame, tables, done),
        (done, true) => finish::<V6, T>(env, frame, tables, done),
    }
}

fn finish<A: Address, T: Tables<A>>(env: &Env, frame: &mut Frame, tables: &T, done: Done<'_>) -> Result {
    match done {
        Done::Nothing => unreachable!("somebody else's"),
        Done::Passed(reason) | Done::Dropped(reason) => Result { reason, sent: None },
        Done::Forwarded(reason, hop) => Result { reason, sent: Some((hop.ifindex, false)) },
        Done::Opens => {
            let verdict = off_path::decode(tables, off_path::run_fresh(tables));
            let segment = *tables.work().expect("used just now").packet();
            carry_out(env, frame, &segment, verdict)
        }
    }
}

/// [`run`] without [`crate::fast`].
pub fn run_slow<T: Tables<V4> + Tables<V6>>(env: &Env, frame: &mut Frame, tables: &T) -> Result {
    let link = match parse_link(frame) {
        Ok(link) => link,
        Err(reason) => return Result { reason, sent: None },
    };
    match link.ethertype {
        ethertype::IPV4 => run_family::<V4, T>(env, frame, link, tables),
        ethertype::IPV6 => run_family::<V6, T>(env, frame, link, tables),
        _ => Result { reason: Reason::NOT_IP, sent: None },
    }
}

/// [`run`] on a packet of a device without an Ethernet header, which says what EtherType it has.
pub fn run_bare<T: Tables<V4> + Tables<V6>>(
    env: &Env,
    ethertype: u16,
    frame: &mut Frame,
    tables: &T,
) -> Result {
    match ethertype {
        ethertype::IPV4 => run_family::<V4, T>(env, frame, Link::bare(ethertype), tables),
        ethertype::IPV6 => run_family::<V6, T>(env, frame, Link::bare(ethertype), tables),
        _ => Result { reason: Reason::NOT_IP, sent: None },
    }
}

fn run_family<A: Address, T: Tables<A>>(env: &Env, frame: &mut Frame, link: Link, tables: &T) -> Result {
    let by = |output| match output {
        Output::Hop(hop) => (hop.ifindex, false),
        Output::Neighbour(hop) => (hop.device, true),
    };
    let segment = match parse::<A, _>(frame, link) {
        Ok(segment) => segment,
        // Only TC looks into ICMP.
        Err(Reason::NOT_TCP) if env.rung == Rung::Tc => {
            let Verdict { reason, action, .. } = icmp::decide::<A, _, T>(env, frame, &link, tables);
            let Action::Forward(flow, output) = action else { return Result { reason, sent: None } };
            if icmp::rewrite(frame, &link, tables, flow.get(), output).is_none() {
                return Result { reason: Reason::REWRITE_FAILED, sent: None };
            }
            return Result { reason, sent: Some(by(output)) };
        }
        Err(reason) => return Result { reason, sent: None },
    };
    carry_out(env, frame, &segment, off_path::decide(env, &segment, tables))
}

fn carry_out<A: Address>(
    env: &Env,
    frame: &mut Frame,
    segment: &Segment<A>,
    Verdict { reason, action, mtu }: Verdict<'_, A>,
) -> Result {
    let by = |output| match output {
        Output::Hop(hop) => (hop.ifindex, false),
        Output::Neighbour(hop) => (hop.device, true),
    };
    let link = segment.link;
    let sent = match action {
        Action::Forward(flow, output) => {
            if rewrite(frame, segment, flow.get(), output).is_none() {
                return Result { reason: Reason::REWRITE_FAILED, sent: None };
            }
            Some(by(output))
        }
        Action::Answer => {
            let quoted = quoted_sum(frame, link.l3, segment.l4);
            if quoted.and_then(|quoted| answer::<A, _>(frame, &link, segment.l4, mtu, quoted)).is_none() {
                return Result { reason: unanswered(mtu), sent: None };
            }
            Some((env.ingress, false))
        }
        Action::Pass | Action::Drop => None,
    };
    Result { reason, sent }
}

/// An entry of all zeroes.
pub fn empty_flow<A: Address>() -> Flow<A> {
    let zero = A::from_words([0; 4]);
    let key = Key::new(zero, zero, 0, 0);
    Flow {
        word: 0,
        key,
        out: key,
        delta_l3: 0,
        delta_addresses: 0,
        delta_ports: 0,
        mss: 0,
        hop: 0,
        backend: 0,
        service: 0,
        attempts: 0,
        mac: [0; 6],
        syn_payload: 0,
        tags: Tags::default(),
        last_seen: 0,
        end: 0,
        packets: 0,
        isn: 0,
        peer_isn: 0,
    }
}

/// A set without entries.
pub fn empty_set<A: Address>() -> FlowSet<A> {
    FlowSet { tags: [0; 3], strays: 0, zero: [0; 4], flows: [empty_flow(); WAYS] }
}

/// Flows that the tables of the host are for unless told otherwise.
const HOST_FLOWS: u32 = 1 << 12;

/// A flow table.
struct FlowTable<A>(Box<UnsafeCell<[FlowSet<A>]>>);

impl<A: Address> FlowTable<A> {
    fn new(sets: u32) -> Self {
        // SAFETY: zeroes are a set without entries; the cell is transparent, and the pointer just released.
        Self(unsafe {
            let sets = Box::into_raw(Box::<[FlowSet<A>]>::new_zeroed_slice(sets as usize).assume_init());
            Box::from_raw(sets as *mut UnsafeCell<[FlowSet<A>]>)
        })
    }

    fn len(&self) -> usize {
        self.0.get().len()
    }

    fn set(&self, index: u32) -> Option<SetRef<'_, A>> {
        let index = Some(index as usize).filter(|index| *index < self.len())?;
        // SAFETY: inside the slice, which lives as long as `self` and is only reached by `SetRef`s.
        Some(unsafe { SetRef::new(NonNull::new(self.0.get().cast::<FlowSet<A>>().add(index))?) })
    }

    fn entries(&self) -> Vec<Flow<A>> {
        let sets = (0..self.len()).filter_map(|index| self.set(index as u32));
        let sets = sets.filter(|set| !set.is_empty());
        let flows = sets.flat_map(|set| (0..WAYS).filter_map(move |way| set.flow(way)));
        flows.filter(|flow| flow.seen() != 0).map(|flow| *flow.get()).collect()
    }
}

// SAFETY: entries are only changed through `SetRef` and `FlowRef`, atomically where it matters.
unsafe impl<A: Send> Sync for FlowTable<A> {}

/// The tables of one family on the host.
pub struct FamilyTables<A> {
    flows: FlowTable<A>,
    /// Served addresses.
    pub services: HashMap<ServiceKey<A>, Service>,
    /// Next-hop index towards each prefix: address, bits, index.
    pub routes: Vec<(A, u8, u32)>,
    live: AtomicU64,
    /// What the agent was told.
    pub events: Mutex<Vec<Event<A>>>,
    work: Rooms<A>,
}

/// All tables on the host, for both families.
pub struct HostTables {
    /// IPv4.
    pub v4: FamilyTables<V4>,
    /// IPv6.
    pub v6: FamilyTables<V6>,
    /// By cluster.
    pub windows: Vec<Window>,
    /// By cluster.
    pub cursors: Vec<AtomicU32>,
    /// Backend indices.
    pub slots: Vec<u32>,
    /// Index 0 is none.
    pub backends: Vec<Backend>,
    /// By backend, xdp and tc.
    pub opened: Mutex<HashMap<u32, Opened>>,
    /// By service id, as above.
    pub served: Mutex<HashMap<u32, Opened>>,
    /// By backend.
    pub failed: Mutex<HashMap<u32, Failed>>,
    /// By the index of [`crate::tables::names::ACTIVE`].
    pub active: Mutex<HashMap<u32, Active>>,
    /// Index 0 is none.
    pub next_hops: Vec<NextHop>,
    /// See [`Address::to_words`].
    pub snat_addresses: Vec<[u32; 4]>,
    /// Network byte order.
    pub snat_ports: Vec<u16>,
    /// The settings.
    pub settings: Settings,
    clock: AtomicU64,
    random: AtomicU64,
}

impl<A: Address + std::hash::Hash> FamilyTables<A> {
    fn new() -> Self {
        Self {
            flows: FlowTable::new(sets(HOST_FLOWS)),
            services: HashMap::new(),
            routes: Vec::new(),
            live: AtomicU64::new(0),
            events: Mutex::default(),
            work: Rooms(Mutex::new(HashMap::new())),
        }
    }

    /// All entries of established flows.
    pub fn established_entries(&self) -> Vec<Flow<A>> {
        self.flows.entries().into_iter().filter(Flow::is_established).collect()
    }

    /// All half-open entries and tombstones.
    pub fn half_open_entries(&self) -> Vec<Flow<A>> {
        self.flows.entries().into_iter().filter(|flow| !flow.is_established()).collect()
    }

    /// A copy of the flow table.
    pub fn sets(&self) -> Vec<FlowSet<A>> {
        // SAFETY: read in tests that have stopped writing.
        unsafe { (*self.flows.0.get()).to_vec() }
    }

    /// An empty flow table for so many flows.
    pub fn resize(&mut self, max_flows: u32) {
        self.flows = FlowTable::new(sets(max_flows));
    }
}

impl Default for HostTables {
    fn default() -> Self {
        let none = Backend {
            address: [0; 4],
            port: 0,
            flags: 0,
            hop: 0,
            snat_first: 0,
            snat_count: 0,
            cluster: 0,
            zero: 0,
        };
        let nowhere = NextHop {
            ifindex: 0,
            device: 0,
            mtu: 0,
            flags: 0,
            mac: [0; 6],
            source_mac: [0; 6],
            tags: Tags::default(),
            epoch: 0,
            confirmed: 0,
            zero: [0; 2],
        };
        Self {
            v4: FamilyTables::new(),
            v6: FamilyTables::new(),
            windows: Vec::new(),
            cursors: Vec::new(),
            slots: Vec::new(),
            backends: vec![none],
            opened: Mutex::default(),
            served: Mutex::default(),
            failed: Mutex::default(),
            active: Mutex::default(),
            next_hops: vec![nowhere],
            snat_addresses: Vec::new(),
            snat_ports: Vec::new(),
            settings: Settings { max_flows: 1 << 16, ..Settings::default() },
            clock: AtomicU64::new(1 << 6),
            random: AtomicU64::new(0),
        }
    }
}

impl HostTables {
    /// Whatever the next calls of `precise_now` return is later than `now`; calls are 64 ns apart.
    pub fn set_clock(&self, now: u64) {
        self.clock.store(now, Relaxed);
    }

    /// What is open to a backend or, by [`active_of_cluster`], a cluster.
    pub fn active_at(&self, index: u32) -> Active {
        self.active.lock().expect("no panic while locked").get(&index).copied().unwrap_or_default()
    }

    /// Adds flows of the kernel to what is open to a backend and its cluster, wrapping.
    fn add_active(&self, backend: u32, flows: u64) {
        let cluster = self.backends.get(backend as usize).map(|backend| active_of_cluster(backend.cluster));
        let mut active = self.active.lock().expect("no panic while locked");
        for index in [Some(backend), cluster].into_iter().flatten() {
            let both = &mut active.entry(index).or_default().both;
            *both = both.wrapping_add(flows);
        }
    }

    /// Takes a half-open entry out, as may happen at any time to make room.
    pub fn evict_half_open<A: Address>(&self, key: &Key<A>)
    where
        Self: Tables<A>,
    {
        if let Some(flow) = table::find(self, key)
            && !flow.get().is_established()
        {
            let _ = table::remove(self, key, flow.seen(), u64::MAX);
        }
    }
}

/// Implements the family's part of the trait over `$self.$family`, and the shared part over `$self`.
macro_rules! host_tables {
    ($address:ty, $family:ident) => {
        impl Tables<$address> for HostTables {
            fn flow_sets(&self) -> u32 {
                self.$family.flows.len() as u32
            }

            fn seed(&self) -> u64 {
                self.settings.seed
            }

            fn has_ordered_stores(&self) -> bool {
                false
            }

            fn occupy(&self, _set: u32) {}

            fn flow_set(&self, index: u32) -> Option<SetRef<'_, $address>> {
                self.$family.flows.set(index)
            }

            fn service(&self, key: &ServiceKey<$address>) -> Option<Service> {
                self.$family.services.get(key).copied()
            }

            fn window(&self, cluster: u32) -> Option<Window> {
                self.windows.get(cluster as usize).copied()
            }

            fn cursor(&self, cluster: u32) -> u32 {
                self.cursors[cluster as usize].load(Relaxed)
            }

            fn set_cursor(&self, cluster: u32, position: u32) {
                self.cursors[cluster as usize].store(position, Relaxed);
            }

            fn slot(&self, index: u32) -> Option<u32> {
                self.slots.get(index as usize).copied()
            }

            fn backend(&self, index: u32) -> Option<&Backend> {
                self.backends.get(index as usize)
            }

            fn next_hop(&self, index: u32) -> Option<&NextHop> {
                self.next_hops.get(index as usize)
            }

            fn route(&self, address: $address) -> Option<u32> {
                let bits = |address: $address| {
                    address.to_words().iter().fold(0, |bits, word| bits << 32 | u32::from_be(*word) as u128)
                };
                self.$family
                    .routes
                    .iter()
                    .filter(|(prefix, length, _)| {
                        *length == 0 || (bits(address) ^ bits(*prefix)) >> (128 - *length as u32) == 0
                    })
                    .max_by_key(|(_, bits, _)| *bits)
                    .map(|(_, _, hop)| *hop)
            }

            fn snat_address(&self, index: u32) -> Option<$address> {
                self.snat_addresses.get(index as usize).map(|words| <$address>::from_words(*words))
            }

            fn snat_port(&self, index: u32) -> Option<u16> {
                self.snat_ports.get(index as usize).copied()
            }

            fn settings(&self) -> Option<Settings> {
                Some(self.settings)
            }

            fn live(&self) -> u64 {
                self.$family.live.load(Relaxed)
            }

            fn count_opened(&self, backend: u32, service: u32, rung: Rung) {
                self.$family.live.fetch_add(1, Relaxed);
                for (map, index) in [(&self.opened, backend), (&self.served, service)] {
                    let mut opened = map.lock().expect("no panic while locked");
                    let opened = opened.entry(index).or_default();
                    match rung {
                        Rung::Xdp => opened.xdp += 1,
                        Rung::Tc => opened.tc += 1,
                    }
                }
                self.add_active(backend, 1);
                self.active.lock().expect("no panic while locked").entry(backend).or_default().failing = 0;
            }

            fn leave(&self, backend: u32) {
                self.add_active(backend, u64::MAX);
            }

            fn active(&self, backend: u32) -> u64 {
                Active::sum(self.active_at(backend).both)
            }

            fn is_full(&self, backend: &Backend) -> bool {
                let Active { both, limit, .. } = self.active_at(active_of_cluster(backend.cluster));
                limit != 0 && Active::sum(both) >= limit
            }

            fn count_failed(&self, backend: u32, unanswered: bool) {
                let mut failed = self.failed.lock().expect("no panic while locked");
                let failed = failed.entry(backend).or_default();
                *(if unanswered { &mut failed.unanswered } else { &mut failed.refused }) += 1;
                self.active.lock().expect("no panic while locked").entry(backend).or_default().failing += 1;
            }

            fn emit(&self, event: &Event<$address>) {
                self.$family.events.lock().expect("no panic while locked").push(*event);
            }

            fn record(&self, kind: u32) -> u32 {
                event::record::<$address, _>(self, kind)
            }

            fn count_closed(&self) {
                self.$family.live.fetch_sub(1, Relaxed);
            }

            fn work(&self) -> Option<&Work<$address>> {
                Some(self.$family.work.of_this_thread())
            }

            fn handle_off_path(&self) -> off_path::Code {
                off_path::handle::<$address, _>(self)
            }

            fn open(&self, fresh: u32) -> off_path::Code {
                off_path::open::<$address, _>(self, fresh)
            }

            fn choose(&self) -> u32 {
                open::choose::<$address, _>(self)
            }

            fn reserve_port(&self) -> u32 {
                open::reserve_port::<$address, _>(self)
            }

            fn finish(&self, how: u32) -> off_path::Code {
                off_path::finish::<$address, _>(self, how)
            }

            fn seek(&self) -> u32 {
                table::seek::<$address, _>(self)
            }

            fn insert(&self, which: u32) -> u32 {
                table::insert::<$address, _>(self, which)
            }

            fn settle(&self, set: u32, tag: u32, how: u32) -> u32 {
                table::settle::<$address, _>(self, set, tag, how)
            }

            fn random(&self) -> u32 {
                crate::balance::mix(self.random.fetch_add(1, Relaxed)) as u32
            }

            fn precise_now(&self) -> u64 {
                self.clock.fetch_add(1 << 6, Relaxed)
            }
        }
    };
}

/// Work rooms, one for each thread that ever needed one.
struct Rooms<A>(Mutex<HashMap<ThreadId, Box<Work<A>>>>);

impl<A: Address> Rooms<A> {
    fn of_this_thread(&self) -> &Work<A> {
        let mut rooms = self.0.lock().expect("no panic while locked");
        let room: *const Work<A> =
            &raw const **rooms.entry(std::thread::current().id()).or_insert_with(|| Box::new(empty_work()));
        // SAFETY: a box that is never taken out of the map lives as long as `self`; only this thread uses it.
        unsafe { &*room }
    }
}

// SAFETY: each room is used by one thread alone.
unsafe impl<A: Send> Sync for Rooms<A> {}

fn empty_work<A: Address>() -> Work<A> {
    let zero = A::from_words([0; 4]);
    let key = Key::new(zero, zero, 0, 0);
    let link = Link { tags: Tags::default(), ethertype: 0, l3: 0, source: [0; 6] };
    let segment = Segment {
        key,
        link,
        l4: 0,
        ttl: 0,
        fragment: false,
        flags: 0,
        header: 0,
        seq: 0,
        ack: 0,
        payload: 0,
    };
    Work {
        segment: Part::new(segment),
        env: Part::new(Env::new(Rung::Xdp, 0, 0)),
        forward: Part::new(empty_flow()),
        reverse: Part::new(empty_flow()),
        request: Part::new(open::Request::default()),
        choice: Part::new(open::Choice::default()),
        chosen: Part::new(empty_flow()),
        quote: Part::new(icmp::Quote { key, icmp: 0, l4: 0, has_check: false, ttl: 0 }),
        event: Part::new(Event { at: 0, kind: 0, by: 0, forward: empty_flow(), reverse: empty_flow() }),
        tell: Part::new(0),
        sought: Part::new(key),
        route: Part::new(RouteKey { bits: 0, address: zero }),
    }
}

host_tables!(V4, v4);
host_tables!(V6, v6);
