//! How endpoints are watched, and what their state means for connections.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Active health checking of a cluster's endpoints: each is asked again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub probe: Probe,
    /// The port to ask at; `None`: that of the endpoint.
    pub port: Option<u16>,
    /// From the end of one probe to the begin of the next.
    pub interval: Duration,
    /// A probe that has come to no end by then has failed.
    pub timeout: Duration,
    /// Failures in a row that make a healthy endpoint unhealthy; at least 1.
    pub unhealthy: u32,
    /// Successes in a row that make an unhealthy endpoint healthy; at least 1. The first probe of an endpoint decides alone.
    pub healthy: u32,
    pub jitter: Jitter,
    pub pace: Pace,
}

/// A random part on top of waits, so that probes of many endpoints spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jitter {
    /// Before the first probe, at the most.
    pub initial: Duration,
    /// On top of each interval, at the most.
    pub interval: Duration,
    /// The same in percent of the interval.
    pub percent: u32,
}

/// Intervals instead of [`HealthCheck::interval`] in certain states; `None`: that one, unless it is said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// For as long as the cluster has never had a connection.
    pub no_traffic: Option<Duration>,
    /// The same, of a healthy endpoint; `None`: as `no_traffic`.
    pub no_traffic_healthy: Option<Duration>,
    /// While it is unhealthy.
    pub unhealthy: Option<Duration>,
    /// While it is healthy, after failures that are not enough to change that; `None`: as `unhealthy`.
    pub unhealthy_edge: Option<Duration>,
    /// While it is unhealthy, after successes that are not enough to change that.
    pub healthy_edge: Option<Duration>,
}

/// What an endpoint is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    Tcp(TcpProbe),
    Http(HttpProbe),
    Grpc(GrpcProbe),
}

/// A connection; with nothing to send and to receive that is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpProbe {
    pub send: Vec<u8>,
    /// Expected in the answer in this order, with anything in between.
    pub receive: Vec<Vec<u8>>,
}

/// A request over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    pub method: String,
    /// As in a request line, with a query if there is one.
    pub path: String,
    /// Value of `Host`; `None`: the endpoint's address and port.
    pub host: Option<String>,
    /// Further headers, in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub send: Vec<u8>,
    /// Statuses of a healthy endpoint.
    pub expected: Vec<RangeInclusive<u16>>,
    /// Statuses that are a failure as any other; those that are neither expected nor retriable make the endpoint unhealthy at
    /// once.
    pub retriable: Vec<RangeInclusive<u16>>,
    /// Expected in the body in this order, with anything in between.
    pub receive: Vec<Vec<u8>>,
    /// Bytes of the body that are looked at; 0: no limit but the probe's own.
    pub body_limit: usize,
    /// HTTP/2, with prior knowledge or by ALPN.
    pub http2: bool,
    pub tls: Option<ProbeTls>,
}

/// The method `Check` of the gRPC health checking protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcProbe {
    /// Empty: the server as a whole.
    pub service: String,
    /// Value of `:authority`; `None`: the endpoint's address and port.
    pub authority: Option<String>,
    /// Further metadata, in lower case.
    pub metadata: Vec<(String, String)>,
    pub tls: Option<ProbeTls>,
}

/// TLS of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeTls {
    /// A PEM file of the authorities that are trusted; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Server name to ask for and to verify; `None`: the host of the probe, or else the endpoint's address.
    pub sni: Option<String>,
    /// Do not verify the certificate.
    pub insecure: bool,
}

/// Passive health checking: endpoints to which attempts to connect fail are left out for a while. As Envoy's outlier
/// detection for connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// Failed attempts in a row that eject; `None`: never.
    pub consecutive_failures: Option<u32>,
    /// Percent of the cases in which they do.
    pub enforcing_consecutive: u32,
    /// How often it is looked whether an ejection is over, and at the rates.
    pub interval: Duration,
    /// The first ejection's time; the next ones take as many times as long as there were in a row.
    pub base_ejection: Duration,
    /// No ejection takes longer.
    pub max_ejection: Duration,
    /// A random part on top, at the most.
    pub ejection_jitter: Duration,
    /// Of a cluster's endpoints no more than this are ejected at a time.
    pub max_ejection_percent: u32,
    /// One may be ejected whatever share of the cluster it is.
    pub always_eject_one: bool,
    pub success_rate: Option<SuccessRate>,
    pub failure_percentage: Option<FailurePercentage>,
    /// An active probe that succeeds ends an ejection.
    pub uneject_by_probe: bool,
}

/// Ejects endpoints whose attempts succeed more rarely than the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// Endpoints with enough attempts in an interval, or there is no judgement.
    pub minimum_hosts: u32,
    /// Attempts in an interval that are enough.
    pub request_volume: u32,
    /// How many standard deviations below the mean, in thousandths.
    pub stdev_factor: u32,
    /// Percent of the cases in which one is ejected.
    pub enforcing: u32,
}

/// Ejects endpoints of whose attempts more than a share fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    pub threshold: u32,
    pub minimum_hosts: u32,
    pub request_volume: u32,
    /// Percent of the cases in which one is ejected.
    pub enforcing: u32,
}

/// An endpoint that is new, or healthy again, has a share that grows to its full weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// How long that takes.
    pub window: Duration,
    /// The exponent's reciprocal of the growth, in thousandths: 1,000 grows evenly.
    pub aggression: u32,
    /// Percent of its weight that it has at least.
    pub min_weight_percent: u32,
}

/// What becomes of the connections of an endpoint that takes no new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLeaving {
    /// They live on.
    Keep,
    /// They live on up to the drain timeout, then they are reset.
    #[default]
    Drain,
    /// They are reset at once.
    Reset,
}
