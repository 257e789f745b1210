//! Finding out of endpoints whether only the node's own stack can reach them: one connection to each, in the
//! background, so that one that does not answer holds nothing up.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant as Deadline, timeout_at};

use crate::net::{self, Translation};

/// Connections at the same time.
const AT_ONCE: usize = 64;
/// What is not known yet is tried again after this long.
const AGAIN: Duration = Duration::from_secs(10);

/// What is known of endpoints.
pub(super) struct Trials {
    known: HashMap<SocketAddr, Knowledge>,
    running: JoinSet<Trial>,
    room: Arc<Semaphore>,
    /// The last failure, which is not logged again.
    failure: Option<String>,
}

type Trial = (SocketAddr, anyhow::Result<Translation>);

enum Knowledge {
    /// Being found out.
    Pending,
    Direct,
    Elsewhere(SocketAddr),
    /// It could not be found out at that time; taken for direct until then.
    Unknown(Instant),
}

impl Default for Trials {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            running: JoinSet::new(),
            room: Arc::new(Semaphore::new(AT_ONCE)),
            failure: None,
        }
    }
}

impl Trials {
    /// Forgets all but `endpoints` and tries those that are `reachable` and not known.
    pub(super) fn start(&mut self, endpoints: &BTreeSet<SocketAddr>, reachable: impl Fn(SocketAddr) -> bool) {
        self.known.retain(|address, _| endpoints.contains(address));
        for &address in endpoints {
            let due = match self.known.get(&address) {
                None => true,
                Some(Knowledge::Unknown(since)) => since.elapsed() >= AGAIN,
                Some(_) => false,
            };
            if !due || !reachable(address) {
                continue;
            }
            self.known.entry(address).or_insert(Knowledge::Pending);
            let room = Arc::clone(&self.room);
            self.running.spawn(async move {
                let _permit = room.acquire_owned().await;
                (address, net::translated(address).await)
            });
            // Not once more while this one runs.
            if let Some(Knowledge::Unknown(since)) = self.known.get_mut(&address) {
                *since = Instant::now();
            }
        }
    }

    /// Waits for those that run, at most until `deadline`.
    pub(super) async fn settle(&mut self, deadline: Deadline) {
        while !self.running.is_empty() && timeout_at(deadline, self.next()).await.is_ok() {}
    }

    /// Waits for the end of one; for ever while none runs. Whether an endpoint is now reached another way, of those that have
    /// come to an end by then. Cancel safe.
    pub(super) async fn next(&mut self) -> bool {
        let Some(first) = self.running.join_next().await else { return std::future::pending().await };
        let mut changed = self.ended(first);
        while let Some(further) = self.running.try_join_next() {
            changed |= self.ended(further);
        }
        changed
    }

    fn ended(&mut self, trial: Result<Trial, JoinError>) -> bool {
        let Ok((address, result)) = trial else { return false };
        let Some(entry) = self.known.get_mut(&address) else { return false };
        let was_left = matches!(entry, Knowledge::Pending | Knowledge::Elsewhere(_));
        *entry = match result {
            Ok(Translation::Direct) => Knowledge::Direct,
            Ok(Translation::Elsewhere(to)) => {
                log::warn!(
                    "backend {address}: left to the proxy, since this node sends its own connections on to {to}"
                );
                Knowledge::Elsewhere(to)
            }
            Ok(Translation::Unknown) => Knowledge::Unknown(Instant::now()),
            Err(error) => {
                let failure = format!("{error:#}");
                if self.failure.as_ref() != Some(&failure) {
                    log::warn!("finding out whether backends are translated: {failure}");
                    self.failure = Some(failure);
                }
                Knowledge::Unknown(Instant::now())
            }
        };
        was_left != matches!(entry, Knowledge::Elsewhere(_))
    }

    /// Endpoints that the kernel rungs must leave alone.
    pub(super) fn left_to_the_stack(&self) -> BTreeSet<SocketAddr> {
        let left =
            self.known.iter().filter(|(_, of)| matches!(of, Knowledge::Pending | Knowledge::Elsewhere(_)));
        left.map(|(address, _)| *address).collect()
    }

    /// Why an endpoint is left to the stack, if it is.
    pub(super) fn why(&self, address: SocketAddr) -> Option<String> {
        match self.known.get(&address)? {
            Knowledge::Pending => Some("its first connection has not come to an end yet".into()),
            Knowledge::Elsewhere(to) => Some(format!(
                "this node sends its own connections to it on to {to}, as for a ClusterIP: use a headless Service, \
                 whose name has the addresses of the pods"
            )),
            Knowledge::Direct | Knowledge::Unknown(_) => None,
        }
    }
}
