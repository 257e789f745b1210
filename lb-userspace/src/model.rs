//! What the user asked for, after validation: listeners, clusters and the datapath's settings. No I/O, no YAML.
//!
//! Every source of configuration ends in these types, and the agent knows no others.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// A whole, valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub datapath: DatapathConfig,
    pub listeners: Vec<Listener>,
    pub clusters: Vec<Cluster>,
}

impl Config {
    /// The cluster of that name; `config` has made sure that a listener's cluster exists.
    pub fn cluster(&self, name: &str) -> Option<&Cluster> {
        self.clusters.iter().find(|cluster| cluster.name == name)
    }
}

/// `datapath:` of the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatapathConfig {
    pub mode: Mode,
    /// `None`: every interface that a client or a reply may enter by.
    pub interfaces: Option<Vec<String>>,
    /// `None`: 1024-29999 less what the host uses itself.
    pub snat_ports: Option<RangeInclusive<u16>>,
    /// `None`: the preferred source of the route to each backend.
    pub snat_addresses: Option<Vec<IpAddr>>,
    /// Flows of each address family that the kernel tables hold; `None`: by memory.
    pub max_flows: Option<u32>,
}

/// The rungs to use; a forced one that cannot be had is an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Auto,
    Xdp,
    Tc,
    Proxy,
}

/// An address that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub name: String,
    /// An unspecified address (`0.0.0.0`, `[::]`) means every address of the node, of that family alone.
    pub address: SocketAddr,
    pub cluster: String,
    /// `None`: never.
    pub idle_timeout: Option<Duration>,
}

/// Endpoints that share the connections of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub name: String,
    pub endpoints: Vec<Endpoint>,
    pub lb_policy: LbPolicy,
    pub connect_timeout: Duration,
    /// Backends tried for one connection before the client is told; at least 1.
    pub connect_attempts: u32,
    pub drain_timeout: Duration,
}

/// One backend of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// 1 to 256.
    pub weight: u32,
}

/// How a backend is chosen for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LbPolicy {
    #[default]
    RoundRobin,
    Random,
    Maglev,
    SourceIp,
}
