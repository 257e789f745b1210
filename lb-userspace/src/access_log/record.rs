//! What is known of a connection when a line of it is logged.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::Flags;

/// A connection at the moment of one line. Plain data, filled in by whoever carried the connection.
#[derive(Clone, Debug)]
pub struct Record {
    pub kind: Kind,
    /// `%CONNECTION_ID%`
    pub id: u64,
    /// When the client's connection was accepted, or its SYN arrived.
    pub start: SystemTime,
    /// Since `start`.
    pub duration: Duration,
    /// From `start` until a backend was connected, or until the last attempt was given up; `None`: not yet, or there
    /// was no cluster to choose from.
    pub connect: Option<Duration>,
    /// Payload from the client.
    pub bytes_in: u64,
    /// Payload to the client.
    pub bytes_out: u64,
    pub client: SocketAddr,
    pub local: SocketAddr,
    /// The source address towards the backend; `None`: not connected. It decides what the log calls connected.
    pub upstream_local: Option<SocketAddr>,
    /// The backend that was connected, or that was tried last when all attempts have failed.
    pub upstream: Option<SocketAddr>,
    /// Backends that were tried before `upstream`, in that order.
    pub earlier: Vec<SocketAddr>,
    pub listener: Arc<str>,
    /// `None`: not chosen yet, or not configured.
    pub cluster: Option<Arc<str>>,
    pub flags: Flags,
    /// Attempts to connect a backend, the one that succeeded included.
    pub attempts: u32,
    /// `%CONNECTION_TERMINATION_DETAILS%`
    pub termination: Option<&'static str>,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`, one of [`reason`].
    pub failure: Option<&'static str>,
    /// Why this side has ended the connection; `None`: it has not. One of [`reason`].
    pub local_close: Option<&'static str>,
    /// The backend was the last to end it, not the client or this side.
    pub backend_last: bool,
    pub downstream_close: Close,
    pub upstream_close: Close,
    pub rung: Rung,
}

/// The moment that a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Start,
    Connected,
    Periodic,
    End,
}

impl Kind {
    /// As in `%ACCESS_LOG_TYPE%`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "TcpConnectionStart",
            Self::Connected => "TcpUpstreamConnected",
            Self::Periodic => "TcpPeriodic",
            Self::End => "TcpConnectionEnd",
        }
    }
}

/// How one side of a connection has ended. An open one is `Normal`, as in Envoy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Close {
    #[default]
    Normal,
    /// Headgate has sent a RST.
    LocalReset,
    /// The peer has sent a RST.
    RemoteReset,
}

impl Close {
    /// As in `%DOWNSTREAM_DETECTED_CLOSE_TYPE%`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::LocalReset => "LocalReset",
            Self::RemoteReset => "RemoteReset",
        }
    }
}

/// What carried the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    Xdp,
    Tc,
    Proxy,
}

impl Rung {
    /// As in `%HEADGATE_RUNG%`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::Proxy => "proxy",
        }
    }
}

/// Envoy's words for [`Record::local_close`] and [`Record::failure`], spelled as Envoy spells them.
pub mod reason {
    /// No attempt to connect a backend has succeeded (`UF`).
    pub const CONNECT_FAILED: &str = "tcp_initializion_failure:0";
    /// `UH`
    pub const NO_HEALTHY_UPSTREAM: &str = "tcp_initializion_failure:1";
    /// `UO`
    pub const OVERFLOW: &str = "tcp_initializion_failure:2";
    /// `NC`
    pub const NO_CLUSTER: &str = "tcp_initializion_failure:3";
    /// The only sign of it: there is no flag.
    pub const IDLE_TIMEOUT: &str = "tcp_session_idle_timeout";
    /// `DT`
    pub const MAX_DURATION: &str = "max_connection_duration_reached";
    /// Its backend has left or is unfit, and the rule for that has ended it; there is nothing of Envoy's for that.
    pub const DRAINED: &str = "drained";
    /// Headgate has ended while it was open; there is nothing of Envoy's for that.
    pub const SHUTDOWN: &str = "shutdown";

    // Failures: what became of the last attempt. A connect timeout has none.

    /// The backend has answered with a RST.
    pub const REFUSED: &str = "delayed_connect_error:_Connection_refused";
    /// No answer to ARP or neighbour discovery, or an ICMP error.
    pub const NO_ROUTE_TO_HOST: &str = "delayed_connect_error:_No_route_to_host";
}
