//! What changed, when, and why.

use std::fmt;
use std::net::SocketAddr;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

/// A transition of an endpoint, of a cluster's discovery as a whole, or of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// RFC 3339, UTC, in milliseconds.
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
    /// Empty: the configuration.
    pub cluster: String,
    /// `None`: the cluster itself.
    pub endpoint: Option<SocketAddr>,
    pub from: String,
    pub to: String,
    pub why: String,
}

impl Event {
    /// One that happens now.
    pub fn now(cluster: &str, endpoint: Option<SocketAddr>, from: &str, to: &str, why: &str) -> Self {
        Self {
            at: SystemTime::now(),
            cluster: cluster.to_owned(),
            endpoint,
            from: from.to_owned(),
            to: to.to_owned(),
            why: why.to_owned(),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, from, to, why, .. } = self;
        match cluster.as_str() {
            "" => f.write_str("configuration")?,
            _ => write!(f, "cluster {cluster}")?,
        }
        if let Some(endpoint) = self.endpoint {
            write!(f, ", endpoint {endpoint}")?;
        }
        if from == to { write!(f, ": {to}: {why}") } else { write!(f, ": {from} -> {to}: {why}") }
    }
}

fn rfc3339<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*at))
}
