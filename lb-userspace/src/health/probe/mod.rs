//! Active health probes: an endpoint is asked once, over a connection of its own.
//!
//! An endpoint may answer with anything, so each probe is bounded in time by its timeout, and in memory by the limits
//! of its protocol and of what is read of a connection. A probe is one future without tasks of its own: dropping it
//! closes its connection.

mod connect;
mod connection;
mod failure;
mod grpc;
mod health_message;
mod http;
mod matching;
mod request;
mod stream;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::model::{Probe, TcpProbe};
pub(super) use failure::{Failure, FailureKind};
use grpc::GrpcProber;
use http::HttpProber;

/// A probe of a cluster's health check, made ready: files read, TLS set up.
pub struct Prober {
    asking: Asking,
}

enum Asking {
    Tcp(TcpProbe),
    Http(Box<HttpProber>),
    Grpc(Box<GrpcProber>),
}

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// With the port to ask at.
    pub address: SocketAddr,
    /// The connection's own address; `None`: the kernel chooses. Of the same family as `address`.
    pub source: Option<IpAddr>,
    /// Instead of the probe's host or authority, and so of the server name of TLS as well.
    pub host: Option<Arc<str>>,
}

impl Prober {
    /// Reads the file of authorities, or the system's store where there is none. An error names the file or the
    /// value and what is wrong with it, but not whose probe it is.
    pub fn new(probe: &Probe) -> Result<Self> {
        let asking = match probe {
            Probe::Tcp(probe) => Asking::Tcp(probe.clone()),
            Probe::Http(probe) => Asking::Http(Box::new(HttpProber::new(probe)?)),
            Probe::Grpc(probe) => Asking::Grpc(Box::new(GrpcProber::new(probe)?)),
        };
        Ok(Self { asking })
    }

    /// Asks once. All of it, connecting included, takes no longer than `timeout`.
    pub async fn ask(&self, target: &Target, timeout: Duration) -> Result<(), Failure> {
        // Boxed, so that one who waits for the next probe has no room for this one.
        match tokio::time::timeout(timeout, Box::pin(self.exchange(target))).await {
            Ok(result) => result,
            Err(_) => Err(Failure::timeout(timeout)),
        }
    }

    async fn exchange(&self, target: &Target) -> Result<(), Failure> {
        let stream = connect::connect(target).await?;
        match &self.asking {
            Asking::Tcp(probe) => tcp::exchange(probe, stream).await,
            Asking::Http(prober) => Box::pin(prober.exchange(target, stream)).await,
            Asking::Grpc(prober) => Box::pin(prober.exchange(target, stream)).await,
        }
    }
}
