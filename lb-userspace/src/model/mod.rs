//! What the user asked for, after validation: listeners, clusters and the datapath's settings. No I/O, no YAML.
//!
//! Every source of configuration ends in these types, and the agent knows no others.

mod health;
mod weights;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use health::{
    FailurePercentage, GrpcProbe, HealthCheck, HttpProbe, Jitter, OnLeaving, Outlier, Pace, Probe, ProbeTls,
    SlowStart, SuccessRate, TcpProbe,
};
pub use weights::fit as fit_weights;

use crate::access_log::Format;

/// A whole, valid configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub datapath: DatapathConfig,
    /// `None`: no admin port.
    pub admin: Option<Admin>,
    pub listeners: Vec<Listener>,
    pub clusters: Vec<Cluster>,
    /// Of an Envoy bootstrap, which has other defaults.
    pub imported: bool,
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

/// `admin:` of the configuration file: the HTTP port to look at the agent by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admin {
    pub address: SocketAddr,
}

/// An address that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub name: String,
    /// An unspecified address (`0.0.0.0`, `[::]`) means every address of the node, of that family alone.
    pub address: SocketAddr,
    /// What its connections are counted under in the statistics `tcp.<stat_prefix>.`.
    pub stat_prefix: String,
    /// At least one, none twice: each connection goes to one of them, by weight.
    pub clusters: Vec<WeightedCluster>,
    /// `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Instead of [`Cluster::connect_attempts`].
    pub connect_attempts: Option<u32>,
    /// A connection ends when it is that old; `None`: never.
    pub max_connection_duration: Option<Duration>,
    /// Where its connections are logged.
    pub access_logs: Vec<AccessLog>,
}

/// A cluster that a listener sends connections to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedCluster {
    pub name: String,
    /// Its share, relative to the listener's other clusters; at least 1.
    pub weight: u32,
}

/// A log with a line for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// A file, or a device such as `/dev/stdout`.
    pub path: PathBuf,
    pub format: Format,
    /// Another line so often for as long as the connection is open; `None`: only when it ends.
    pub flush_interval: Option<Duration>,
    /// Another line when the backend is connected.
    pub on_connect: bool,
    /// Another line when the connection is accepted.
    pub on_start: bool,
}

/// Endpoints that share the connections of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub name: String,
    pub discovery: Discovery,
    pub lb_policy: LbPolicy,
    pub connect_timeout: Duration,
    /// Backends tried for one connection before the client is told; at least 1.
    pub connect_attempts: u32,
    /// Connections to all its backends together beyond which there are no new ones; `None`: no limit.
    pub max_connections: Option<u32>,
    /// What its statistics are named by, instead of its name.
    pub stat_name: Option<String>,
    /// `None`: endpoints count as healthy until connections to them fail.
    pub health_check: Option<HealthCheck>,
    /// `None`: failing connections mean nothing.
    pub outlier: Option<Outlier>,
    /// With less than this percentage of healthy endpoints all are used, whatever their health; 0: never.
    pub panic_threshold: u32,
    pub slow_start: Option<SlowStart>,
    /// Endpoints nearby are preferred, others used as far as these do not suffice.
    pub prefer_local: PreferLocal,
    /// A level of priority takes all connections as long as this percentage times its healthy share is 100 at least.
    pub overprovisioning_percent: u32,
    /// An endpoint that leaves discovery stays until its health check fails (Envoy's default).
    pub keep_while_healthy: bool,
    pub on_removed: OnLeaving,
    pub on_unhealthy: OnLeaving,
    pub drain_timeout: Duration,
}

#[cfg(test)]
impl Cluster {
    /// One without health checks and ejection, for tests.
    pub(crate) fn sample(name: &str, discovery: Discovery) -> Self {
        Self {
            name: name.to_owned(),
            discovery,
            lb_policy: LbPolicy::RoundRobin,
            connect_timeout: Duration::from_secs(5),
            connect_attempts: 3,
            max_connections: None,
            stat_name: None,
            health_check: None,
            outlier: None,
            panic_threshold: 50,
            slow_start: None,
            prefer_local: PreferLocal::None,
            overprovisioning_percent: 140,
            keep_while_healthy: false,
            on_removed: OnLeaving::Drain,
            on_unhealthy: OnLeaving::Keep,
            drain_timeout: Duration::from_secs(60),
        }
    }
}

/// Where the endpoints of a cluster come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    Static(Vec<Endpoint>),
    StrictDns(StrictDns),
    Srv(Srv),
    File(EndpointFile),
    Kubernetes(Kubernetes),
}

impl Discovery {
    /// The families of its endpoints; `None` where nobody asks for them by family.
    pub fn family(&self) -> Option<DnsFamily> {
        match self {
            Self::StrictDns(dns) => Some(dns.family),
            Self::Srv(srv) => Some(srv.refresh.family),
            Self::Kubernetes(kubernetes) => Some(kubernetes.family),
            Self::Static(_) | Self::File(_) => None,
        }
    }
}

/// Endpoints from DNS: every address of every host is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrictDns {
    /// At least one; no name and port twice.
    pub hosts: Vec<DnsHost>,
    /// From the end of a refresh that was answered to the next; at least 100 ms.
    pub refresh_rate: Duration,
    /// The next refresh comes when the least TTL of the answer has passed; `refresh_rate` where that is none or 0.
    pub respect_ttl: bool,
    /// A random part of this comes on top of each wait.
    pub jitter: Duration,
    pub failure_backoff: Backoff,
    /// How long NXDOMAIN and NODATA are answered without interruption before they count; 0: at once.
    pub hold_nx: Duration,
    pub family: DnsFamily,
    /// Only one address of each name is an endpoint at a time (Envoy's LOGICAL_DNS), the one that stays as long as it is in
    /// the answers.
    pub logical: bool,
}

impl StrictDns {
    pub fn refresh(&self) -> DnsRefresh {
        DnsRefresh {
            rate: self.refresh_rate,
            respect_ttl: self.respect_ttl,
            jitter: self.jitter,
            failure_backoff: self.failure_backoff,
            hold_nx: self.hold_nx,
            family: self.family,
        }
    }
}

/// Endpoints from the SRV records of a name (RFC 2782): every address of every target is one, with the record's port,
/// weight and priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Srv {
    /// In lower case, absolute if it ends with a dot.
    pub name: String,
    pub refresh: DnsRefresh,
}

/// How DNS is asked again and again; each is as in [`StrictDns`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsRefresh {
    pub rate: Duration,
    pub respect_ttl: bool,
    pub jitter: Duration,
    pub failure_backoff: Backoff,
    pub hold_nx: Duration,
    pub family: DnsFamily,
}

/// Endpoints from a file in the form of Envoy's endpoint discovery (EDS), which is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointFile {
    pub path: PathBuf,
    /// The cluster's name in the file.
    pub cluster_name: String,
}

/// The wait after a refresh that failed: `base`, doubled with each one more, up to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// At least 100 ms.
    pub base: Duration,
    /// At least `base`.
    pub max: Duration,
}

/// A name to ask for, and what its addresses have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsHost {
    /// A name in lower case, absolute if it ends with a dot; or an IP address, which needs no query.
    pub name: String,
    pub port: u16,
    /// 1 to 256.
    pub weight: u32,
    /// As [`Endpoint::priority`].
    pub priority: u32,
    /// As [`Endpoint::probe`].
    pub probe: ProbePlace,
}

impl DnsHost {
    /// One with nothing special about it.
    pub fn new(name: &str, port: u16, weight: u32) -> Self {
        Self { name: name.to_owned(), port, weight, priority: 0, probe: ProbePlace::default() }
    }
}

/// The address families to ask for, and which of the answers a listener uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsFamily {
    /// Both are asked; a listener uses the endpoints of its own family where there are any, else the others.
    #[default]
    Auto,
    V4,
    V6,
    /// Both are asked, and every listener uses all.
    All,
}

/// Endpoints of a Service, from its EndpointSlices (`discovery.k8s.io/v1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    pub namespace: String,
    pub service: String,
    /// `None`: the only one that the EndpointSlices have.
    pub port: Option<KubernetesPort>,
    /// Of the addresses that are used; as with DNS, `Auto` leaves the choice to each listener.
    pub family: DnsFamily,
    /// How to get to the API server. `None`: as a pod does, and outside of pods by `$KUBECONFIG` or `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// Of the kubeconfig; `None`: its current one.
    pub context: Option<String>,
}

/// A port as EndpointSlices have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubernetesPort {
    Name(String),
    /// The target port, where the endpoints listen, not that of the Service.
    Number(u16),
}

/// One backend of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// 1 to 256.
    pub weight: u32,
    /// Level: 0 is used first, the next ones as far as that does not suffice.
    pub priority: u32,
    /// The node that it runs on, if that is known.
    pub node: Option<Arc<str>>,
    /// The zone of that node.
    pub zone: Option<Arc<str>>,
    /// Where it comes from says that it takes connections now.
    pub ready: bool,
    pub probe: ProbePlace,
}

impl Endpoint {
    /// One with nothing special about it.
    pub fn new(address: SocketAddr, weight: u32) -> Self {
        let probe = ProbePlace::default();
        Self { address, weight, priority: 0, node: None, zone: None, ready: true, probe }
    }
}

/// Where an endpoint is asked for its health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProbePlace {
    /// Instead of [`HealthCheck::port`].
    pub port: Option<u16>,
    /// Instead of the endpoint's own address.
    pub address: Option<IpAddr>,
    /// Instead of the host of the probe.
    pub host: Option<Arc<str>>,
    /// It is not asked, and counts as healthy.
    pub skip: bool,
}

/// Which endpoints are nearby.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreferLocal {
    #[default]
    None,
    /// Those on this node.
    Node,
    /// Those in this node's zone.
    Zone,
}

/// Where this runs, as far as that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    pub node: Option<String>,
    pub zone: Option<String>,
}

impl Locality {
    /// Whether an endpoint counts as nearby.
    pub fn has(&self, endpoint: &Endpoint, by: PreferLocal) -> bool {
        let (own, its) = match by {
            PreferLocal::None => return false,
            PreferLocal::Node => (&self.node, &endpoint.node),
            PreferLocal::Zone => (&self.zone, &endpoint.zone),
        };
        own.is_some() && own.as_deref() == its.as_deref()
    }
}

/// How a backend is chosen for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LbPolicy {
    #[default]
    RoundRobin,
    Random,
    Maglev,
    SourceIp,
    LeastRequest,
}
