//! The proxy's choice of a backend: the same orders, tables and hashes as in the kernel.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use lb_common::address::words;
use lb_common::balance::{self, policy};
use lb_common::maglev::{self, Candidate};
use lb_common::{Address, Key, V4, V6};

use crate::desired;
use crate::model::{Cluster, LbPolicy};
use crate::proxy::{Backend, Balancer};

/// A cluster as the proxy sees it.
pub struct ClusterBalancer {
    policy: LbPolicy,
    slots: Vec<u32>,
    backends: Vec<Arc<Backend>>,
    cursor: AtomicU32,
    random: AtomicU64,
    connect_timeout: Duration,
    connect_attempts: u32,
}

impl ClusterBalancer {
    /// A balancer for `cluster`.
    pub fn new(cluster: &Cluster) -> Self {
        let candidates: Vec<Candidate> = cluster
            .endpoints
            .iter()
            .enumerate()
            .map(|(index, endpoint)| Candidate {
                index: index as u32,
                identity: maglev::identity(words(endpoint.address.ip()), endpoint.address.port()),
                weight: endpoint.weight,
            })
            .collect();
        Self {
            policy: cluster.lb_policy,
            slots: desired::slots(cluster.lb_policy, &candidates),
            backends: cluster.endpoints.iter().map(|e| Arc::new(Backend::new(e.address))).collect(),
            cursor: AtomicU32::new(0),
            random: AtomicU64::new(std::process::id() as u64),
            connect_timeout: cluster.connect_timeout,
            connect_attempts: cluster.connect_attempts,
        }
    }

    /// Its backends, in the order of the configuration.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    fn position<A: Address>(&self, key: &Key<A>, attempt: u32) -> u32 {
        let count = self.slots.len() as u32;
        let random = || balance::mix(self.random.fetch_add(1, Ordering::Relaxed)) as u32;
        match self.policy {
            LbPolicy::RoundRobin => self.cursor.fetch_add(1, Ordering::Relaxed) % count,
            LbPolicy::Random => balance::draw(policy::RANDOM, key, count, attempt, 0, random()),
            LbPolicy::Maglev => balance::draw(policy::MAGLEV, key, count, attempt, 0, 0),
            LbPolicy::SourceIp => balance::draw(policy::SOURCE_IP, key, count, attempt, 0, 0),
        }
    }
}

impl Balancer for ClusterBalancer {
    fn pick(&self, client: SocketAddr, local: SocketAddr, attempt: u32) -> Option<Arc<Backend>> {
        if self.slots.is_empty() {
            return None;
        }
        let (from, to) = (client.port().to_be(), local.port().to_be());
        let position = match (client.ip(), local.ip()) {
            (IpAddr::V4(client), IpAddr::V4(local)) => {
                self.position(&Key::new(V4::from(client), V4::from(local), from, to), attempt)
            }
            (client, local) => {
                let (client, local) = (V6(words(client)), V6(words(local)));
                self.position(&Key::new(client, local, from, to), attempt)
            }
        };
        self.backends.get(self.slots[position as usize] as usize).cloned()
    }

    fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    fn connect_attempts(&self) -> u32 {
        self.connect_attempts
    }
}
