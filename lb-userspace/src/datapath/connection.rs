//! A connection of the kernel, of whatever family: what both of its entries say, for the log, the statistics and its end.

use std::net::{IpAddr, SocketAddr};

use lb_common::flow::mark;
use lb_common::tcp::state;
use lb_common::{Address, Flow, Rung};

use crate::flows::socket;

/// A connection at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelConnection {
    pub client: SocketAddr,
    /// What the client connected to.
    pub vip: SocketAddr,
    /// Our own address and port towards the backend.
    pub snat: SocketAddr,
    pub backend: SocketAddr,
    /// Service id of the listener.
    pub service: u32,
    /// Index of the backend.
    pub backend_index: u32,
    pub rung: Rung,
    pub established: bool,
    /// Time of the last attempt's SYN, nanoseconds of `CLOCK_MONOTONIC`.
    pub opened_at: u64,
    /// From that SYN to the backend's answer, microseconds.
    pub connect_us: Option<u32>,
    /// SYNs sent to backends.
    pub attempts: u32,
    /// Payload from the client.
    pub bytes_in: u64,
    /// Payload to the client.
    pub bytes_out: u64,
    /// The next sequence number that the backend expects, and the client.
    pub next_to_backend: u32,
    pub next_to_client: u32,
}

impl KernelConnection {
    /// `reverse`: unless it is gone.
    pub fn of<A: Address + Into<IpAddr>>(forward: &Flow<A>, reverse: Option<&Flow<A>>) -> Self {
        let word = forward.word | reverse.map_or(0, |reverse| reverse.word);
        let after = |end: u64, fin: u64| (end as u32).wrapping_add((word & fin != 0).into());
        let answered = forward.word & (mark::ANSWERED | mark::ESTABLISHED) != 0;
        Self {
            client: socket(forward.key.source, forward.key.source_port),
            vip: socket(forward.key.destination, forward.key.destination_port),
            snat: socket(forward.out.source, forward.out.source_port),
            backend: socket(forward.out.destination, forward.out.destination_port),
            service: forward.service.into(),
            backend_index: forward.backend.into(),
            rung: forward.rung(),
            established: forward.is_established(),
            opened_at: forward.opened_at(),
            connect_us: reverse.filter(|_| answered).map(|reverse| reverse.peer_isn),
            attempts: forward.attempts.into(),
            bytes_in: forward.payload_bytes(),
            bytes_out: reverse.map_or(0, |reverse| reverse.payload_bytes()),
            next_to_backend: after(forward.end, state::CLIENT_FIN),
            next_to_client: after(reverse.map_or(0, |reverse| reverse.end), state::BACKEND_FIN),
        }
    }
}
