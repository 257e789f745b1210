//! Named counters: what became of connections, for `status` and Prometheus.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Shared;

/// What can happen to a connection. Names are stable, scripts may rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    Accepted,
    /// accept(2) failed: no descriptor or memory left.
    AcceptError,
    /// Both ends have sent their FIN and all bytes have arrived.
    Closed,
    /// The client has reset an established connection, or has vanished; so the backend's was reset.
    ClientReset,
    /// The backend has reset an established connection, or has vanished; so the client's was reset.
    BackendReset,
    /// Reset since it was open for the listener's longest time.
    MaxDuration,
    /// Reset since its backend has drained for as long as it may, or is unfit.
    Drained,
    /// The client was reset: the cluster had as many connections as it may have.
    Overflow,
    /// Reset since no byte has moved for the listener's idle timeout.
    IdleTimeout,
    /// The client has reset the connection before a backend was connected.
    ClientGone,
    /// The client was reset: there was no backend to try.
    NoBackend,
    /// The client was reset: all attempts had failed. Each attempt is counted below as well.
    ConnectFailed,
    ConnectRefused,
    ConnectTimeout,
    /// No route, or an ICMP error that says so.
    ConnectUnreachable,
    /// The attempt failed on this node: no descriptor, no port left, forbidden by the firewall.
    ConnectError,
    /// A transfer had to wait because no pipe could be made: no descriptor left.
    PipeShortage,
}

impl Counter {
    pub const ALL: [Self; 17] = [
        Self::Accepted,
        Self::AcceptError,
        Self::Closed,
        Self::ClientReset,
        Self::BackendReset,
        Self::MaxDuration,
        Self::Drained,
        Self::Overflow,
        Self::IdleTimeout,
        Self::ClientGone,
        Self::NoBackend,
        Self::ConnectFailed,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectUnreachable,
        Self::ConnectError,
        Self::PipeShortage,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::AcceptError => "accept_error",
            Self::Closed => "closed",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::MaxDuration => "max_duration",
            Self::Drained => "drained",
            Self::Overflow => "overflow",
            Self::IdleTimeout => "idle_timeout",
            Self::ClientGone => "client_gone",
            Self::NoBackend => "no_backend",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectUnreachable => "connect_unreachable",
            Self::ConnectError => "connect_error",
            Self::PipeShortage => "pipe_shortage",
        }
    }
}

const _: () = {
    let mut index = 0;
    while index < Counter::ALL.len() {
        assert!(Counter::ALL[index] as usize == index, "ALL is in the order of the variants");
        index += 1;
    }
};

/// The counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts([u64; Counter::ALL.len()]);

impl Counts {
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Name and value of each, also of those at zero.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL.into_iter().map(|counter| (counter.name(), self.get(counter)))
    }
}

/// One listener's counts.
#[derive(Clone, Debug)]
pub struct ListenerStats {
    pub name: Arc<str>,
    /// The socket's: where port 0 was asked for, the port that the kernel chose.
    pub address: SocketAddr,
    pub counts: Counts,
}

#[derive(Default)]
pub(super) struct Counters([AtomicU64; Counter::ALL.len()]);

impl Counters {
    pub(super) fn snapshot(&self) -> Counts {
        Counts(self.0.each_ref().map(|counter| counter.load(Relaxed)))
    }

    fn add(&self, counter: Counter) {
        self.0[counter as usize].fetch_add(1, Relaxed);
    }
}

/// Counts for a listener and in the sum of all.
#[derive(Clone)]
pub(super) struct Tally {
    pub(super) shared: Arc<Shared>,
    pub(super) listener: Arc<Counters>,
}

impl Tally {
    pub(super) fn count(&self, counter: Counter) {
        self.shared.counters.add(counter);
        self.listener.add(counter);
    }
}

#[cfg(test)]
mod tests {
    use lb_common::Reason;

    use super::*;

    /// Whoever sees a counter grow finds there what to do.
    #[test]
    fn the_operators_page_has_every_counter() {
        let page = include_str!("../../../docs/operations.md");
        let names = Reason::ALL.iter().map(|reason| reason.name()).chain(Counter::ALL.map(Counter::name));
        let missing: Vec<&str> = names.filter(|name| !page.contains(&format!("`{name}`"))).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
