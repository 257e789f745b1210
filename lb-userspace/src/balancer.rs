//! The proxy's choice of a backend: the same orders, tables and hashes as in the kernel.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use lb_common::address::words;
use lb_common::balance::{self, policy};
use lb_common::maglev::{self, Candidate};
use lb_common::{Address, Key, V4, V6};

use crate::active::{ActiveCount, Place};
use crate::desired;
use crate::endpoints::Endpoints;
use crate::model::{Cluster, LbPolicy};
use crate::proxy::{Backend, BackendTotals, Balancer};

/// Draws for an attempt that should go to another backend than those before.
const DRAWS: u32 = 4;

/// A cluster as the proxy sees it. Its content changes while connections are being made.
pub struct ClusterBalancer {
    name: Arc<str>,
    open: ActiveCount,
    /// The sums of backends that are gone.
    gone: Mutex<BackendTotals>,
    table: RwLock<Arc<Table>>,
    cursor: AtomicU32,
    random: AtomicU64,
}

struct Table {
    policy: LbPolicy,
    /// For clients of IPv4 and IPv6: indices into `backends`.
    slots: [Arc<[u32]>; 2],
    /// Those that take new connections.
    backends: Vec<Arc<Backend>>,
    /// Draining ones too.
    by_address: HashMap<SocketAddr, Arc<Backend>>,
    connect_timeout: Duration,
    connect_attempts: u32,
}

impl ClusterBalancer {
    /// A balancer for `cluster`.
    pub fn new(cluster: &Cluster, endpoints: &Endpoints) -> Self {
        let open = ActiveCount::default();
        open.set_limit(cluster.max_connections);
        Self {
            name: cluster.name.as_str().into(),
            open,
            gone: Mutex::default(),
            table: RwLock::new(Arc::new(Table::new(cluster, endpoints, &HashMap::new()))),
            cursor: AtomicU32::new(0),
            random: AtomicU64::new(std::process::id() as u64),
        }
    }

    /// Follows a change of the cluster or of its endpoints; the numbers of a backend go on.
    pub fn update(&self, cluster: &Cluster, endpoints: &Endpoints) {
        self.open.set_limit(cluster.max_connections);
        let known = self.table();
        let table = Arc::new(Table::new(cluster, endpoints, &known.by_address));
        let gone = known.by_address.iter().filter(|(address, _)| !table.by_address.contains_key(address));
        for (_, backend) in gone {
            let mut sums = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
            *sums = sums.and(backend.totals());
            // Its index may be another's soon.
            backend.open.move_to(None);
        }
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    /// What the proxy did with all endpoints, also those that are gone.
    pub fn totals(&self) -> BackendTotals {
        let gone = *self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        self.backends().iter().fold(gone, |sums, backend| sums.and(backend.totals()))
    }

    /// Connections of all rungs that are open.
    pub fn open_connections(&self) -> u64 {
        self.open.sum()
    }

    /// Counts open connections in the kernel's map, at the place that it has for the cluster and for each backend; `None`:
    /// there is none.
    pub fn move_to(&self, cluster: Option<Place>, backend: impl Fn(SocketAddr) -> Option<Place>) {
        self.open.move_to(cluster);
        for of in self.backends() {
            of.open.move_to(backend(of.address));
        }
    }

    /// All endpoints, also those that drain.
    fn backends(&self) -> Vec<Arc<Backend>> {
        self.table().by_address.values().cloned().collect()
    }

    /// What the proxy did with an endpoint of the cluster, also with one that drains.
    pub fn backend(&self, address: SocketAddr) -> Option<Arc<Backend>> {
        self.table().by_address.get(&address).cloned()
    }

    /// How attempts to reach the endpoints fare.
    pub fn attempts(&self) -> Attempts {
        Attempts(self.table())
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn position<A: Address>(&self, policy: LbPolicy, count: u32, key: &Key<A>, attempt: u32) -> u32 {
        let random = || balance::mix(self.random.fetch_add(1, Ordering::Relaxed)) as u32;
        match policy {
            LbPolicy::RoundRobin => self.cursor.fetch_add(1, Ordering::Relaxed) % count,
            LbPolicy::Random | LbPolicy::LeastRequest => {
                balance::draw(policy::RANDOM, key, count, attempt, 0, random())
            }
            LbPolicy::Maglev => balance::draw(policy::MAGLEV, key, count, attempt, 0, 0),
            LbPolicy::SourceIp => balance::draw(policy::SOURCE_IP, key, count, attempt, 0, 0),
        }
    }
}

/// How attempts to reach the endpoints of a cluster fare, over all rungs.
pub struct Attempts(Arc<Table>);

impl Attempts {
    /// Whether the last attempt of any endpoint has failed.
    pub fn any_failing(&self) -> bool {
        self.0.by_address.values().any(|backend| backend.open.failing() > 0)
    }

    /// Those that failed since the last one that did not.
    pub fn failing(&self, address: SocketAddr) -> u32 {
        self.0.by_address.get(&address).map_or(0, |backend| backend.open.failing())
    }
}

impl Table {
    /// Whether a backend was not tried, and is for clients of the same family.
    fn may_take_the_place(&self, other: &Backend, of: &Backend, tried: &[SocketAddr]) -> bool {
        !tried.contains(&other.address)
            && (other.address.is_ipv6() == of.address.is_ipv6()
                || Arc::ptr_eq(&self.slots[0], &self.slots[1]))
    }

    fn new(cluster: &Cluster, endpoints: &Endpoints, known: &HashMap<SocketAddr, Arc<Backend>>) -> Self {
        let backend =
            |address| known.get(&address).cloned().unwrap_or_else(|| Arc::new(Backend::new(address)));
        let by_address: HashMap<_, _> =
            endpoints.of(&cluster.name).map(|(address, _)| (address, backend(address))).collect();
        let mut backends = Vec::new();
        let mut candidates = Vec::new();
        for (address, weight) in endpoints.active(&cluster.name) {
            candidates.push(Candidate {
                index: backends.len() as u32,
                identity: maglev::identity(words(address.ip()), address.port()),
                weight,
            });
            backends.extend(by_address.get(&address).cloned());
        }
        let is_v6 = |candidate: &Candidate| backends[candidate.index as usize].address.is_ipv6();
        let of_family = |v6| desired::for_clients_of(cluster, &candidates, v6, is_v6);
        let (v4, v6) = (of_family(false), of_family(true));
        let slots_v4: Arc<[u32]> = desired::slots(cluster.lb_policy, &v4).into();
        let slots_v6 =
            if v4 == v6 { Arc::clone(&slots_v4) } else { desired::slots(cluster.lb_policy, &v6).into() };
        let slots = [slots_v4, slots_v6];
        Self {
            policy: cluster.lb_policy,
            slots,
            backends,
            by_address,
            connect_timeout: cluster.connect_timeout,
            connect_attempts: cluster.connect_attempts,
        }
    }
}

impl Balancer for ClusterBalancer {
    fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    fn open(&self) -> &ActiveCount {
        &self.open
    }

    fn pick(&self, client: SocketAddr, local: SocketAddr, tried: &[SocketAddr]) -> Option<Arc<Backend>> {
        let table = self.table();
        let slots = &table.slots[local.is_ipv6() as usize];
        if slots.is_empty() {
            return None;
        }
        let (from, to) = (client.port().to_be(), local.port().to_be());
        let count = slots.len() as u32;
        let draw = |attempt| match (client.ip(), local.ip()) {
            (IpAddr::V4(client), IpAddr::V4(local)) => {
                let key = Key::new(V4::from(client), V4::from(local), from, to);
                self.position(table.policy, count, &key, attempt)
            }
            (client, local) => {
                let key = Key::new(V6(words(client)), V6(words(local)), from, to);
                self.position(table.policy, count, &key, attempt)
            }
        };
        let drawn = |attempt| table.backends.get(slots[draw(attempt) as usize] as usize);
        let first_attempt = tried.len() as u32 * DRAWS;
        let mut backend = drawn(first_attempt)?;
        for attempt in first_attempt + 1..first_attempt + DRAWS {
            if !tried.contains(&backend.address) {
                break;
            }
            backend = drawn(attempt)?;
        }
        if tried.contains(&backend.address)
            && let Some(other) =
                table.backends.iter().find(|other| table.may_take_the_place(other, backend, tried))
        {
            backend = other;
        }
        if table.policy == LbPolicy::LeastRequest {
            let second = drawn(first_attempt)?;
            if !tried.contains(&second.address) && second.open.sum() < backend.open.sum() {
                backend = second;
            }
        }
        Some(Arc::clone(backend))
    }

    fn connect_timeout(&self) -> Duration {
        self.table().connect_timeout
    }

    fn connect_attempts(&self) -> u32 {
        self.table().connect_attempts
    }
}
