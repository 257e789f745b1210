//! The connections of the kernel: what the programs and the sweep tell of them becomes lines of the access log, counts,
//! and, where one has reached a limit, a RST to both ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lb_common::event::{Event, by, kind};
use lb_common::flow::mark;
use lb_common::{Address, Rung as KernelRung};

use crate::access_log::{Close, Flags, Kind, Record, Rung, reason};
use crate::agent::Agent;
use crate::agent::kernel_side::{KernelSide, Names};
use crate::datapath::connection::KernelConnection;
use crate::datapath::events::Told;
use crate::datapath::kernel::monotonic_now;
use crate::datapath::sweep::Found;
use crate::net::{Reset, Resets};
use crate::proxy::Observer;

/// Events that are read in one go, so that the agent comes to other things.
const EVENTS: usize = 65_536;

impl Agent {
    /// Reads what the programs have told.
    pub(super) fn hear(&mut self) {
        let Some(kernel) = &mut self.kernel else { return };
        for _ in 0..EVENTS {
            let told = match kernel.kernel.events.take() {
                Ok(Some(Told::V4(event))) => Heard::of(&event),
                Ok(Some(Told::V6(event))) => Heard::of(&event),
                Ok(None) => return,
                Err(error) => {
                    log::warn!("reading events of the datapath: {error:#}");
                    continue;
                }
            };
            for record in told.records(&kernel.names) {
                self.connections.tell(&record);
            }
        }
    }

    /// What the sweep has found.
    pub(super) fn found(&mut self, all: Vec<(Found, KernelConnection)>) {
        let Some(kernel) = &mut self.kernel else { return };
        for (found, connection) in &all {
            match found {
                Found::Unanswered => kernel.count_unanswered(connection.backend_index, true),
                // A minute ago, which says nothing of now.
                Found::GivenUp { refused: false } => kernel.count_unanswered(connection.backend_index, false),
                _ => {}
            }
        }
        let Some(kernel) = &self.kernel else { return };
        for (found, connection) in all {
            let mut record = record(&connection, &kernel.names, monotonic_now());
            if !connection.established {
                self.connections.tell(&start_of(&record));
            }
            match found {
                Found::Idle => record.local_close = Some(reason::IDLE_TIMEOUT),
                Found::TooOld => {
                    record.flags |= Flags::DT;
                    record.local_close = Some(reason::MAX_DURATION);
                }
                Found::Cut => record.local_close = Some(reason::DRAINED),
                Found::Unanswered => fail(&mut record, None),
                Found::GivenUp { .. } => record.flags = Flags::UF,
                Found::Ended => {}
                Found::Open => record.kind = Kind::Periodic,
            }
            self.end(kernel, found, &connection);
            self.connections.tell(&record);
        }
    }

    /// Logs that a connection of the proxy is open, if it is time: `passed` since the last look.
    pub(super) fn tell_if_due(&self, record: &Record, passed: Duration) {
        let listener = self.config.listeners.iter().find(|listener| *listener.name == *record.listener);
        let mut every = listener.iter().flat_map(|of| &of.access_logs).filter_map(|log| log.flush_interval);
        let turns = |age: Duration, every: Duration| age.as_nanos() / every.as_nanos().max(1);
        if every
            .any(|every| turns(record.duration, every) > turns(record.duration.saturating_sub(passed), every))
        {
            self.connections.tell(record);
        }
    }

    fn end(&self, kernel: &KernelSide, found: Found, connection: &KernelConnection) {
        match found {
            Found::Open | Found::GivenUp { .. } => {}
            Found::Ended => kernel.kernel.leave(connection.backend_index),
            Found::Idle | Found::TooOld | Found::Cut => {
                kernel.kernel.leave(connection.backend_index);
                self.reset_both(connection);
            }
            Found::Unanswered => {
                // Its SYN is all that a client has sent, and wants acknowledged.
                self.reset(&Reset { seq: 0, ..to_client(connection) });
                // It may have answered, which was lost: with what number nobody knows.
                self.reset(&Reset { ack: None, ..to_backend(connection) });
            }
        }
    }

    /// Resets both ends of a connection.
    pub(super) fn reset_both(&self, connection: &KernelConnection) {
        self.reset(&to_client(connection));
        self.reset(&to_backend(connection));
    }

    fn reset(&self, reset: &Reset) {
        if let Some(resets) = &self.resets
            && let Err(error) = resets.send(reset)
        {
            log::debug!("resetting {} for {}: {error}", reset.to, reset.from);
        }
    }
}

impl KernelSide {
    /// What there is to say of a connection as it is now.
    pub(super) fn record(&self, connection: &KernelConnection) -> Record {
        record(connection, &self.names, monotonic_now())
    }
}

/// Opens what RSTs are sent by; without it the ends of an idle connection learn of its end when they go on.
pub(super) fn open_resets() -> Option<Resets> {
    match Resets::new() {
        Ok(resets) => Some(resets),
        Err(error) => {
            log::warn!("connections that reach a limit end without a RST: {error:#} (it takes CAP_NET_RAW)");
            None
        }
    }
}

fn to_client(of: &KernelConnection) -> Reset {
    Reset { from: of.vip, to: of.client, seq: of.next_to_client, ack: Some(of.next_to_backend) }
}

fn to_backend(of: &KernelConnection) -> Reset {
    Reset { from: of.snat, to: of.backend, seq: of.next_to_backend, ack: Some(of.next_to_client) }
}

/// An event of either family.
struct Heard {
    kind: u32,
    by: u32,
    at: u64,
    connection: KernelConnection,
}

impl Heard {
    fn of<A: Address + Into<std::net::IpAddr>>(event: &Event<A>) -> Self {
        let reverse = Some(&event.reverse).filter(|reverse| reverse.word != 0);
        let mut forward = event.forward;
        if event.kind == kind::CONNECTED {
            forward.word |= mark::ESTABLISHED;
        }
        let connection = KernelConnection::of(&forward, reverse);
        Self { kind: event.kind, by: event.by, at: event.at, connection }
    }

    /// The lines that it makes.
    fn records(&self, names: &Names) -> Vec<Record> {
        let mut record = record(&self.connection, names, self.at);
        let start = start_of(&record);
        match self.kind {
            kind::CONNECTED => record.kind = Kind::Connected,
            kind::REFUSED => fail(&mut record, Some(reason::REFUSED)),
            kind::OVERFLOW => {
                record.flags = Flags::UO;
                record.local_close = Some(reason::OVERFLOW);
                (record.upstream, record.upstream_local) = (None, None);
            }
            _ => {
                record.backend_last = self.by & by::CLIENT == 0;
                match self.by & (by::RESET | by::CLIENT) {
                    by::RESET => backend_reset(&mut record),
                    0 | by::CLIENT => {}
                    _ => record.downstream_close = Close::RemoteReset,
                }
                return vec![record];
            }
        }
        // Nobody was told of it before.
        vec![start, record]
    }
}

/// The line about the beginning of a connection, when there was neither cluster nor backend.
fn start_of(record: &Record) -> Record {
    Record {
        kind: Kind::Start,
        duration: Duration::ZERO,
        connect: None,
        bytes_in: 0,
        bytes_out: 0,
        cluster: None,
        upstream: None,
        upstream_local: None,
        flags: Flags::NONE,
        attempts: 0,
        ..record.clone()
    }
}

/// The backend has reset an established connection, and so the client was.
fn backend_reset(record: &mut Record) {
    record.flags |= Flags::UR;
    record.downstream_close = Close::LocalReset;
    record.upstream_close = Close::RemoteReset;
}

/// No attempt has succeeded.
fn fail(record: &mut Record, why: Option<&'static str>) {
    record.flags = Flags::UF | Flags::URX;
    record.connect = Some(record.duration);
    record.failure = why;
    record.local_close = Some(reason::CONNECT_FAILED);
    record.upstream_local = None;
}

/// A line about a connection at a time, nanoseconds of `CLOCK_MONOTONIC`.
fn record(of: &KernelConnection, names: &Names, at: u64) -> Record {
    let ago = Duration::from_nanos(monotonic_now().saturating_sub(of.opened_at));
    let known = |address: SocketAddr| Some(address).filter(|_| of.established);
    Record {
        kind: Kind::End,
        // Two connections do not begin in one unit of the clock.
        id: of.opened_at,
        start: SystemTime::now() - ago,
        duration: Duration::from_nanos(at.saturating_sub(of.opened_at)),
        connect: of.connect_us.map(|us| Duration::from_micros(us.into())),
        bytes_in: of.bytes_in,
        bytes_out: of.bytes_out,
        client: of.client,
        local: of.vip,
        upstream_local: known(of.snat),
        upstream: Some(of.backend),
        earlier: Vec::new(),
        listener: names.listener(of.service),
        cluster: names.cluster(of.backend_index),
        // As in Envoy, also where a later attempt has succeeded.
        flags: if of.attempts > 1 { Flags::UF } else { Flags::NONE },
        attempts: of.attempts,
        termination: None,
        failure: None,
        local_close: None,
        backend_last: false,
        downstream_close: Close::default(),
        upstream_close: Close::default(),
        rung: match of.rung {
            KernelRung::Xdp => Rung::Xdp,
            KernelRung::Tc => Rung::Tc,
        },
    }
}

/// The listener of a connection of which nobody knows it any more.
pub(super) fn unknown() -> Arc<str> {
    "-".into()
}
