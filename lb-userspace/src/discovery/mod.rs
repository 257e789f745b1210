//! Where the endpoints of clusters come from, and what has become of them.
//!
//! [`Discovery`] watches the clusters of a configuration and tells what changed. `dns` asks for names again and again
//! (Envoy's STRICT_DNS and LOGICAL_DNS); `feed` takes whole sets of endpoints from sources that tell by themselves. Both keep
//! the last good endpoints through every failure, `saved` on disk, too. `docs/config.md` has the rules for users.

mod answer;
mod dns;
mod event;
mod feed;
mod file;
mod flap;
mod host;
mod kubernetes;
mod parked;
mod phase;
mod resolv_conf;
mod resolver;
mod saved;
mod schedule;
mod srv;
mod state;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use self::dns::Dns;
pub use self::event::Event;
use self::feed::Feeds;
use self::phase::Phase;
use self::resolv_conf::ResolvConfFile;
use self::resolver::Resolver;
use crate::model::{Cluster, Endpoint};

/// Endpoints of a cluster; what is beyond it is cut, in the order of addresses.
const MAX_ENDPOINTS: usize = 4096;

/// What happened to a cluster.
#[derive(Clone, Debug)]
pub struct Update {
    pub cluster: String,
    /// The list of endpoints, or what is said of one in it, is another than before.
    pub endpoints_changed: bool,
    /// Endpoints go from `absent` to `healthy`, and to `draining` when they left. A cluster is `unresolved`, `saved`,
    /// `resolved`, `stale` or `empty`.
    pub events: Vec<Event>,
}

/// How the discovery of a cluster stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClusterDiscovery {
    /// One of the states of a cluster, see [`Update::events`].
    pub state: &'static str,
    pub why: String,
    /// Seconds since the last answer; `None`: never.
    pub last_answer_age_s: Option<u64>,
    /// Seconds to the next refresh; `None` where nothing is asked for, or answers come by themselves.
    pub next_refresh_s: Option<u64>,
    /// The last failure, if there was one since the start.
    pub last_failure: Option<String>,
}

/// What was asked for a cluster so far, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefreshCounts {
    /// Names that were asked for, or reports of a source.
    pub attempts: u64,
    /// Those that were answered; NXDOMAIN is an answer.
    pub answered: u64,
    pub failed: u64,
    /// Of the answers those without an endpoint.
    pub empty: u64,
    /// Refreshes that changed no endpoint.
    pub unchanged: u64,
}

/// The clusters whose endpoints do not stand in the configuration.
pub struct Discovery {
    dns: Dns,
    feeds: Feeds,
}

impl Discovery {
    /// Asks the servers of the file `resolv_conf`, keeps the last good endpoints in `state_dir`.
    pub fn new(resolv_conf: PathBuf, state_dir: Option<PathBuf>) -> Self {
        Self::with_port(resolv_conf, state_dir, dns::PORT)
    }

    /// `port`: of the DNS servers.
    fn with_port(resolv_conf: PathBuf, state_dir: Option<PathBuf>, port: u16) -> Self {
        let resolver = Arc::new(Resolver::new(ResolvConfFile::new(resolv_conf), port));
        let feeds = Feeds::new(Arc::clone(&resolver), state_dir.clone());
        Self { feeds, dns: Dns::new(resolver, state_dir) }
    }

    /// Makes the watched clusters equal to those of `clusters` whose endpoints are discovered. One that stays keeps its
    /// endpoints; what another configuration changes comes from [`changed`](Self::changed). Needs a tokio runtime.
    pub fn apply(&mut self, clusters: &[Cluster]) {
        self.dns.apply(clusters);
        self.feeds.apply(clusters);
    }

    /// Waits for something to tell: a change, or the first outcome of a cluster. Cancel safe.
    pub async fn changed(&mut self) -> Update {
        tokio::select! {
            update = self.dns.changed() => update,
            update = self.feeds.changed() => update,
        }
    }

    /// The endpoints of a cluster now, sorted, each once. `None`: they are not discovered, or there was no answer and
    /// nothing was saved.
    pub fn endpoints(&self, cluster: &str) -> Option<&[Endpoint]> {
        self.dns.endpoints(cluster).or_else(|| self.feeds.endpoints(cluster))
    }

    /// Whether the endpoints of a cluster are of an earlier run or configuration.
    pub fn is_saved(&self, cluster: &str) -> bool {
        self.status(cluster).is_some_and(|status| status.state == Phase::Saved.as_str())
    }

    /// Addresses that are not among the endpoints of a cluster since its source says that they are to leave.
    pub fn leaving(&self, cluster: &str) -> impl Iterator<Item = SocketAddr> {
        self.feeds.leaving(cluster)
    }

    /// How the discovery of a cluster stands; `None` if its endpoints stand in the configuration.
    pub fn status(&self, cluster: &str) -> Option<ClusterDiscovery> {
        self.dns.status(cluster).or_else(|| self.feeds.status(cluster))
    }

    /// What was asked for a cluster so far; `None` if its endpoints stand in the configuration.
    pub fn counts(&self, cluster: &str) -> Option<RefreshCounts> {
        self.dns.counts(cluster).or_else(|| self.feeds.counts(cluster))
    }

    /// Whether every cluster had its first outcome, an answer or a failure.
    pub fn settled(&self) -> bool {
        self.unsettled() == 0
    }

    /// Clusters whose first result is outstanding.
    pub fn unsettled(&self) -> usize {
        self.dns.unsettled() + self.feeds.unsettled()
    }
}
