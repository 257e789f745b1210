//! The proxy's choice of a backend: the same orders, tables and hashes as in the kernel.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use lb_common::address::words;
use lb_common::balance::{self, policy};
use lb_common::maglev::{self, Candidate};
use lb_common::{Address, Key, V4, V6};

use crate::desired;
use crate::endpoints::Endpoints;
use crate::model::{Cluster, LbPolicy};
use crate::proxy::{Backend, Balancer};

/// A cluster as the proxy sees it. Its content changes while connections are being made.
pub struct ClusterBalancer {
    table: RwLock<Arc<Table>>,
    cursor: AtomicU32,
    random: AtomicU64,
}

struct Table {
    policy: LbPolicy,
    /// For clients of IPv4 and IPv6: indices into `backends`.
    slots: [Vec<u32>; 2],
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
        Self {
            table: RwLock::new(Arc::new(Table::new(cluster, endpoints, &HashMap::new()))),
            cursor: AtomicU32::new(0),
            random: AtomicU64::new(std::process::id() as u64),
        }
    }

    /// Follows a change of the cluster or of its endpoints; the numbers of a backend go on.
    pub fn update(&self, cluster: &Cluster, endpoints: &Endpoints) {
        let known = self.table();
        let table = Arc::new(Table::new(cluster, endpoints, &known.by_address));
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    /// What the proxy did with an endpoint of the cluster, also with one that drains.
    pub fn backend(&self, address: SocketAddr) -> Option<Arc<Backend>> {
        self.table().by_address.get(&address).cloned()
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn position<A: Address>(&self, policy: LbPolicy, count: u32, key: &Key<A>, attempt: u32) -> u32 {
        let random = || balance::mix(self.random.fetch_add(1, Ordering::Relaxed)) as u32;
        match policy {
            LbPolicy::RoundRobin => self.cursor.fetch_add(1, Ordering::Relaxed) % count,
            LbPolicy::Random => balance::draw(policy::RANDOM, key, count, attempt, 0, random()),
            LbPolicy::Maglev => balance::draw(policy::MAGLEV, key, count, attempt, 0, 0),
            LbPolicy::SourceIp => balance::draw(policy::SOURCE_IP, key, count, attempt, 0, 0),
        }
    }
}

impl Table {
    fn new(cluster: &Cluster, endpoints: &Endpoints, known: &HashMap<SocketAddr, Arc<Backend>>) -> Self {
        let backend =
            |address| known.get(&address).cloned().unwrap_or_else(|| Arc::new(Backend::new(address)));
        let by_address: HashMap<_, _> =
            endpoints.of(&cluster.name).map(|(address, _)| (address, backend(address))).collect();
        let mut backends = Vec::new();
        let mut candidates = Vec::new();
        for endpoint in endpoints.active(&cluster.name) {
            candidates.push(Candidate {
                index: backends.len() as u32,
                identity: maglev::identity(words(endpoint.address.ip()), endpoint.address.port()),
                weight: endpoint.weight,
            });
            backends.extend(by_address.get(&endpoint.address).cloned());
        }
        let is_v6 = |candidate: &Candidate| backends[candidate.index as usize].address.is_ipv6();
        let slots = [false, true].map(|v6| {
            let of_family = desired::for_clients_of(cluster, &candidates, v6, is_v6);
            desired::slots(cluster.lb_policy, &of_family)
        });
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
    fn pick(&self, client: SocketAddr, local: SocketAddr, attempt: u32) -> Option<Arc<Backend>> {
        let table = self.table();
        let slots = &table.slots[local.is_ipv6() as usize];
        if slots.is_empty() {
            return None;
        }
        let (from, to) = (client.port().to_be(), local.port().to_be());
        let count = slots.len() as u32;
        let position = match (client.ip(), local.ip()) {
            (IpAddr::V4(client), IpAddr::V4(local)) => {
                let key = Key::new(V4::from(client), V4::from(local), from, to);
                self.position(table.policy, count, &key, attempt)
            }
            (client, local) => {
                let key = Key::new(V6(words(client)), V6(words(local)), from, to);
                self.position(table.policy, count, &key, attempt)
            }
        };
        table.backends.get(slots[position as usize] as usize).cloned()
    }

    fn connect_timeout(&self) -> Duration {
        self.table().connect_timeout
    }

    fn connect_attempts(&self) -> u32 {
        self.table().connect_attempts
    }
}
