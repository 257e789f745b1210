//! The maps: their names, keys and values, and the trait through which the datapath reaches them.

use crate::address::Address;
use crate::decide::Rung;
use crate::event::Event;
use crate::off_path;
use crate::parse::Tags;
use crate::table::SetRef;
use crate::work::Work;

/// Names of the maps, as in the object and in the pins.
pub mod names {
    /// IPv4 flows, half-open ones, and tombstones: ARRAY of [`crate::table::FlowSet`]`<V4>`.
    pub const FLOWS4: &str = "FLOWS4";
    /// The same for IPv6.
    pub const FLOWS6: &str = "FLOWS6";
    /// Served IPv4 addresses: HASH, [`super::ServiceKey`] to [`super::Service`].
    pub const SERVICES4: &str = "SERVICES4";
    /// Served IPv6 addresses.
    pub const SERVICES6: &str = "SERVICES6";
    /// Routes towards IPv4 clients: LPM_TRIE, address to a next-hop index (u32).
    pub const ROUTES4: &str = "ROUTES4";
    /// Routes towards IPv6 clients.
    pub const ROUTES6: &str = "ROUTES6";
    /// Windows into the slots: ARRAY of [`super::Window`] by cluster index.
    pub const CLUSTERS: &str = "CLUSTERS";
    /// Next slot of round_robin: PERCPU_ARRAY of u32 by cluster index.
    pub const CURSORS: &str = "CURSORS";
    /// Backend indices in the order of choice: ARRAY of u32.
    pub const SLOTS: &str = "SLOTS";
    /// ARRAY of [`super::Backend`].
    pub const BACKENDS: &str = "BACKENDS";
    /// Flows opened per backend: PERCPU_ARRAY of [`super::Opened`].
    pub const OPENED: &str = "OPENED";
    /// Flows opened to each listener: PERCPU_ARRAY of [`super::Opened`] by service id.
    pub const SERVED: &str = "SERVED";
    /// Attempts that failed per backend: PERCPU_ARRAY of [`super::Failed`].
    pub const FAILED: &str = "FAILED";
    /// Connections that are open: ARRAY of [`super::Active`], by backend, then by cluster, see [`super::active_of_cluster`].
    pub const ACTIVE: &str = "ACTIVE";
    /// What became of connections, one by one: RINGBUF of [`crate::event::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// ARRAY of [`super::NextHop`].
    pub const NEXT_HOPS: &str = "NEXT_HOPS";
    /// SNAT addresses: ARRAY of [u32; 4], see [`super::Address::to_words`].
    pub const SNAT_ADDRESSES: &str = "SNAT_ADDRESSES";
    /// SNAT ports: ARRAY of [u16; 4], network byte order: a value takes 8 bytes in any case.
    pub const SNAT_PORTS: &str = "SNAT_PORTS";
    /// Groups of sets of the flow tables that may have entries, a bit for each: ARRAY of u64, [`crate::table::GROUP_WORDS`] for
    /// IPv4, then as many for IPv6.
    pub const OCCUPIED: &str = "OCCUPIED";
    /// ARRAY of one [`super::Settings`].
    pub const SETTINGS: &str = "SETTINGS";
    /// Flows of each family: ARRAY of [`super::Live`], index 0 IPv4, 1 IPv6.
    pub const LIVE: &str = "LIVE";
    /// PERCPU_ARRAY of u64: [`super::reason_index`].
    pub const REASONS: &str = "REASONS";
    /// Devices that XDP may redirect to: DEVMAP_HASH by interface index.
    pub const DEVICES: &str = "DEVICES";
}

/// Clusters, and windows of the slot table.
pub const MAX_CLUSTERS: u32 = 1024;
/// Entries of the slot table, shared by all clusters and their windows.
pub const MAX_SLOTS: u32 = 1 << 20;
/// Service ids.
pub const MAX_SERVICE_IDS: u32 = 1 << 12;
/// Bytes of the ring of events: a power of two.
pub const EVENT_BYTES: u32 = 8 << 20;
/// Backends. Index 0 means none.
pub const MAX_BACKENDS: u32 = 1 << 14;
/// Next hops. Index 0 means none.
pub const MAX_NEXT_HOPS: u32 = 1 << 15;
/// Routes of each family.
pub const MAX_ROUTES: u32 = 1 << 15;
/// Served address and port pairs of each family.
pub const MAX_SERVICES: u32 = 1 << 12;
/// SNAT addresses of both families together.
pub const MAX_SNAT_ADDRESSES: u32 = 1 << 12;
/// SNAT ports.
pub const MAX_SNAT_PORTS: u32 = 1 << 16;
/// SNAT ports of one value of their map.
pub const PORTS_A_VALUE: u32 = 4;
/// Names of the constants that a loader sets in the programs.
pub mod constants {
    /// u32, 0 or 1: whether this machine lets no store be seen before an earlier one (x86).
    pub const ORDERED_STORES: &str = "ORDERED_STORES";
    /// u32: sets of each flow table.
    pub const FLOW_SETS: &str = "FLOW_SETS";
    /// u64: what the hashes of the flow tables begin with. Random, so that nobody can choose tuples that fall into one set.
    pub const FLOW_SEED: &str = "FLOW_SEED";
}

/// A served address: where clients connect to. IPv4: 8 bytes, IPv6: 20.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ServiceKey<A> {
    /// The VIP.
    pub address: A,
    /// Network byte order.
    pub port: u16,
    /// IP protocol number, then zero.
    pub protocol: [u8; 2],
}

/// What is served at an address.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Service {
    /// Names the listener to the agent.
    pub id: u32,
    /// Index into the clusters.
    pub cluster: u32,
    /// See [`crate::balance::policy`].
    pub policy: u32,
    /// Backends tried for one connection, at least 1.
    pub attempts: u16,
    /// See [`service`].
    pub flags: u16,
}

/// Bits of [`Service::flags`].
pub mod service {
    /// No new flows; SYNs go up.
    pub const DRAINING: u16 = 1;
}

/// The part of the slot table that a cluster draws from, as one 64-bit store.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// Index of the first slot.
    pub first: u32,
    /// Number of slots; 0: the cluster has no backend.
    pub count: u32,
}

/// An endpoint, 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backend {
    /// See [`Address::to_words`].
    pub address: [u32; 4],
    /// Network byte order.
    pub port: u16,
    /// See [`backend`].
    pub flags: u16,
    /// Index into the next hops, 0: none known.
    pub hop: u32,
    /// Index of the first of its SNAT addresses.
    pub snat_first: u32,
    /// How many they are.
    pub snat_count: u32,
    /// Index of the cluster.
    pub cluster: u32,
    /// Keeps the size a multiple of 8.
    pub zero: u32,
}

/// Bits of [`Backend::flags`].
pub mod backend {
    /// The entry is in use.
    pub const USED: u16 = 1;
    /// An IPv6 address.
    pub const V6: u16 = 1 << 1;
    /// Only the proxy can reach it.
    pub const PROXY_ONLY: u16 = 1 << 2;
    /// It takes no new flows, also where slots still name it: one store takes a backend out of all of them.
    pub const OUT: u16 = 1 << 3;
}

/// Flows opened to a backend, by the rung that carried the SYN.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Opened {
    /// By XDP.
    pub xdp: u64,
    /// By TC.
    pub tc: u64,
}

/// Attempts to reach a backend that failed.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Failed {
    /// It answered with a RST, or a router said that it cannot be reached.
    pub refused: u64,
    /// It did not answer, and the client's next SYN went to another one.
    pub unanswered: u64,
}

/// Connections that are open to a backend or a cluster.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Active {
    /// Flows of the kernel in the lower half, connections of the proxy in the upper: one word, so that both are counted at
    /// the same moment.
    pub both: u64,
    /// Of a cluster: how many there may be; 0: no limit.
    pub limit: u64,
    /// Of a backend: attempts that failed since the last one that did not, of all rungs.
    pub failing: u64,
}

impl Active {
    /// One connection of the proxy, in [`Active::both`].
    pub const PROXIED: u64 = 1 << 32;

    /// Flows of the kernel, of [`Active::both`]. Never below 0: where two do not agree on which flow ended, it must not
    /// be that there is no room any more.
    #[inline(always)]
    pub const fn kernel(both: u64) -> u64 {
        let flows = both as u32 as i32;
        if flows < 0 { 0 } else { flows as u64 }
    }

    /// Connections of the proxy, of [`Active::both`], as above.
    #[inline(always)]
    pub const fn proxied(both: u64) -> u64 {
        // The lower half may have borrowed.
        let connections = (both.wrapping_sub(both as u32 as i32 as u64) >> 32) as u32 as i32;
        if connections < 0 { 0 } else { connections as u64 }
    }

    /// Connections of all rungs, of [`Active::both`].
    #[inline(always)]
    pub const fn sum(both: u64) -> u64 {
        Self::kernel(both) + Self::proxied(both)
    }
}

/// Index into the active connections of the cluster whose [`Backend::cluster`] is given.
#[inline(always)]
pub const fn active_of_cluster(cluster: u32) -> u32 {
    MAX_BACKENDS + cluster
}

/// How a packet leaves: a device and the addresses of the Ethernet header. 56 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// The device to transmit on; under a VLAN device, the one that carries its tags.
    pub ifindex: u32,
    /// The device as routing sees it, for `bpf_redirect_neigh`.
    pub device: u32,
    /// Bytes of an IP packet at the most.
    pub mtu: u32,
    /// See [`hop`].
    pub flags: u32,
    /// The neighbour's MAC address.
    pub mac: [u8; 6],
    /// The device's MAC address.
    pub source_mac: [u8; 6],
    /// Tags to leave with.
    pub tags: Tags,
    /// Moves on a change of MAC address or validity.
    pub epoch: u32,
    /// When the agent last vouched for it, nanoseconds of `CLOCK_MONOTONIC`.
    pub confirmed: u64,
    /// Keeps the size a multiple of 8.
    pub zero: [u32; 2],
}

/// Bits of [`NextHop::flags`].
pub mod hop {
    /// There is such a route.
    pub const USED: u32 = 1;
    /// `mac` is that of a neighbour that answers.
    pub const RESOLVED: u32 = 1 << 1;
    /// The destination itself is the neighbour: each has its own MAC address, learned from its SYN.
    pub const ON_LINK: u32 = 1 << 2;
    /// XDP may redirect to the device.
    pub const XDP: u32 = 1 << 3;
    /// The device's driver sends frames of several buffers that XDP redirects to it (`NDO_XMIT_SG`).
    pub const XDP_SG: u32 = 1 << 4;
    /// A device without an Ethernet header (tun, WireGuard, IPIP): there is no neighbour to resolve.
    pub const L3: u32 = 1 << 5;
    /// The route that this stands for has moved under open flows: each packet's route is looked up again.
    pub const RELOOKUP: u32 = 1 << 6;
}

/// How long a next hop is used without the agent's word, nanoseconds.
pub const HOP_CONFIRMATION: u64 = 10_000_000_000;

impl NextHop {
    /// Whether the agent still vouches for it. Its clock may be ahead of `now`, which is coarse.
    #[inline(always)]
    pub fn is_confirmed(&self, now: u64) -> bool {
        (now.wrapping_sub(self.confirmed) as i64) < HOP_CONFIRMATION as i64
    }
}

/// What the agent may change while packets flow.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Flows of each family beyond which SYNs go up to the proxy.
    pub max_flows: u32,
    /// How many of the SNAT ports are in use.
    pub snat_ports: u32,
    /// What the flow tables were filled with, see [`constants::FLOW_SEED`].
    pub seed: u64,
    /// See [`settings`].
    pub flags: u64,
}

/// Bits of [`Settings::flags`].
pub mod settings {
    /// Completed handshakes are events, too.
    pub const TELL_CONNECTED: u64 = 1;
}

/// Established flows: `opened - closed`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Live {
    /// Promotions so far.
    pub opened: u64,
    /// Flows taken out so far, by the agent or to make room.
    pub closed: u64,
    /// Events that the ring had no room for.
    pub lost: u64,
}

/// Slot of a reason's counter on a rung.
#[inline(always)]
pub const fn reason_index(rung: Rung, reason: crate::Reason) -> u32 {
    rung as u32 * crate::reason::REASONS as u32 + reason.number()
}

/// Slots of the reason counters: XDP's, then TC's.
pub const REASON_SLOTS: u32 = 2 * crate::reason::REASONS as u32;

/// What the datapath tells of its way through the tables; for `headgate explain`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// An entry among the established flows.
    FoundEstablished,
    /// An entry of an ended flow, which a new SYN replaces.
    ReplacesEnded,
    /// An entry among the half-open flows.
    FoundHalfOpen,
    /// A tombstone.
    FoundTombstone,
    /// No entry.
    FoundNothing,
    /// The address is served: service id and cluster.
    Service(u32, u32),
    /// The address is not served.
    NotServed,
    /// Slot and backend that the policy drew.
    Backend(u32, u32),
    /// Next hop to the backend.
    HopToBackend(u32),
    /// Next hop to the client.
    HopToClient(u32),
    /// The route of the flow has moved; the next hop that it has now, 0: none.
    Rerouted(u32),
    /// An SNAT port was taken (network byte order), after so many tries.
    Port(u16, u32),
}

/// The maps of one address family. Entries of the flow table are looked up and written by [`crate::table`].
pub trait Tables<A: Address> {
    /// Sets of the flow table, at least 2.
    fn flow_sets(&self) -> u32;
    /// What the hashes of the flow table begin with.
    fn seed(&self) -> u64;
    /// Notes that there may be entries in a set from now on, where the agent looks for them. Comes after the way is taken: who
    /// finds a set empty takes the note away first and then looks again.
    fn occupy(&self, set: u32);
    /// A set of the flow table.
    fn flow_set(&self, index: u32) -> Option<SetRef<'_, A>>;

    /// What is served at an address.
    fn service(&self, key: &ServiceKey<A>) -> Option<Service>;
    /// The window of a cluster.
    fn window(&self, cluster: u32) -> Option<Window>;
    /// Position of round_robin in a cluster, on this CPU.
    fn cursor(&self, cluster: u32) -> u32;
    /// Moves it.
    fn set_cursor(&self, cluster: u32, position: u32);
    /// Backend index in a slot.
    fn slot(&self, index: u32) -> Option<u32>;
    /// A backend.
    fn backend(&self, index: u32) -> Option<&Backend>;
    /// A next hop.
    fn next_hop(&self, index: u32) -> Option<&NextHop>;
    /// Index of the next hop towards an address.
    fn route(&self, address: A) -> Option<u32>;
    /// An SNAT address.
    fn snat_address(&self, index: u32) -> Option<A>;
    /// An SNAT port, network byte order.
    fn snat_port(&self, index: u32) -> Option<u16>;
    /// The settings.
    fn settings(&self) -> Option<Settings>;

    /// Flows of this family.
    fn live(&self) -> u64;
    /// Counts a flow that was promoted, also for its backend and service: the backend does not fail any more.
    fn count_opened(&self, backend: u32, service: u32, rung: Rung);
    /// Takes a flow that was counted so, and has ended, off the open connections of its backend.
    fn leave(&self, backend: u32);
    /// Connections of all rungs that are open to a backend.
    fn active(&self, backend: u32) -> u64;
    /// Whether a backend's cluster has as many connections as it may have.
    fn is_full(&self, backend: &Backend) -> bool;
    /// Counts an attempt that failed, see [`Failed`], also among those in a row.
    fn count_failed(&self, backend: u32, unanswered: bool);
    /// Tells the agent, if there is room.
    fn emit(&self, event: &Event<A>);
    /// Counts an established flow that gave way to another one.
    fn count_closed(&self);
    /// See [`Work::ask_to_tell`].
    #[inline(always)]
    fn ask_to_tell(&self, kind: u32)
    where
        Self: Sized,
    {
        if let Some(work) = self.work() {
            work.ask_to_tell(kind);
        }
    }
    /// Room to work on one packet; always the same while it is worked on.
    fn work(&self) -> Option<&Work<A>>;

    /// [`crate::off_path::handle`]: handles the packet in [`Tables::work`]. In the kernel a function that is verified on its own, so
    /// that its paths do not multiply with those that lead to it; pointers do not pass, hence the work room.
    fn handle_off_path(&self) -> off_path::Code;
    /// [`crate::off_path::open`]: goes on where that one leaves a SYN, or [`crate::fast`].
    fn open(&self, fresh: u32) -> off_path::Code;
    /// [`crate::open::choose`]. For the same reason a function.
    fn choose(&self) -> u32;
    /// [`crate::open::reserve_port`]: reserves a port for the flow in [`Tables::work`]; 1 if there was one. For the same
    /// reason a function.
    fn reserve_port(&self) -> u32;
    /// [`crate::off_path::finish`]: what is left to do then, whether there was one.
    fn finish(&self, how: u32) -> off_path::Code;
    /// [`crate::table::seek`]. For the same reason a function.
    fn seek(&self) -> u32;
    /// [`crate::table::insert`]: an entry of the work room, see [`crate::table::which`]. For the same reason a function.
    fn insert(&self, which: u32) -> u32;
    /// [`crate::table::settle`]. For the same reason a function.
    fn settle(&self, set: u32, tag: u32, how: u32) -> u32;
    /// [`crate::event::record`]. For the same reason a function.
    fn record(&self, kind: u32) -> u32;
    /// A random number.
    fn random(&self) -> u32;
    /// Nanoseconds of `CLOCK_MONOTONIC`, different at each call on a CPU.
    fn precise_now(&self) -> u64;

    /// Whether a store is never seen before an earlier one, so that an entry can be published without a barrier, which would
    /// wait for the entry's cache lines.
    fn has_ordered_stores(&self) -> bool;
    /// Called between two steps that another CPU may come between; for tests.
    #[inline(always)]
    fn between(&self) {}

    /// Tells what was found.
    #[inline(always)]
    fn note(&self, step: Step) {
        let _ = step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_connections_are_never_below_none() {
        let both = |kernel: i64, proxied: i64| {
            (kernel as u64).wrapping_add((proxied as u64).wrapping_mul(Active::PROXIED))
        };
        for (kernel, proxied) in
            [(0, 0), (3, 0), (0, 4), (3, 4), (-1, 4), (3, -1), (-2, -2), (i32::MAX as i64, 1)]
        {
            let both = both(kernel, proxied);
            assert_eq!(Active::kernel(both), kernel.max(0) as u64, "{kernel} {proxied}");
            assert_eq!(Active::proxied(both), proxied.max(0) as u64, "{kernel} {proxied}");
            assert_eq!(Active::sum(both), (kernel.max(0) + proxied.max(0)) as u64);
        }
    }
}
