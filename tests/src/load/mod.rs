//! Clients that ask without a pause worth naming until they are told to stop, and a record of every request that
//! failed.

mod client;
mod record;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, ensure};

use self::client::{Client, REST};
pub use self::record::{Failure, Record};
use crate::netns::Namespace;

/// Requests of a connection that is kept, after which the client makes another one.
const KEPT: u32 = 50;

/// How many clients of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    /// They keep one connection from first to last.
    pub held: usize,
    /// They keep a connection for fifty requests.
    pub keep_alive: usize,
    /// They make a connection for each request.
    pub one_shot: usize,
}

/// What a client does about a kept connection that ends before any byte of an answer to the request it has just sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The request has failed: with servers that close no idle connection it is the balancer's fault.
    Fails,
    /// The request is sent once more on a new connection, as real clients do: RFC 9112, section 9.3.1. Of a
    /// connection's first request they do not.
    IsRetried,
}

/// Clients at work. Dropping it ends them.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    record: Mutex<Record>,
}

impl Load {
    /// Clients in `host` that ask `address` from now on; nothing is tried twice.
    pub fn start(host: &Namespace, address: SocketAddr, clients: Clients) -> Result<Self> {
        Self::start_with(host, address, clients, Ended::Fails)
    }

    /// The same with a rule for kept connections that end.
    pub fn start_with(host: &Namespace, address: SocketAddr, clients: Clients, ended: Ended) -> Result<Self> {
        Self::start_paced(host, address, clients, ended, REST)
    }

    /// The same with so long a rest between two requests of a client.
    pub fn start_paced(
        host: &Namespace,
        address: SocketAddr,
        clients: Clients,
        ended: Ended,
        rest: Duration,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut load = Self { shared, clients: Vec::new() };
        let kinds = [(clients.held, u32::MAX), (clients.keep_alive, KEPT), (clients.one_shot, 1)];
        for kept in kinds.into_iter().flat_map(|(count, kept)| std::iter::repeat_n(kept, count)) {
            let shared = Arc::clone(&load.shared);
            let client = Client::new(shared, address, kept, ended).resting(rest);
            // A thread begins in the namespace of the thread that starts it.
            load.clients.push(host.within(|| std::thread::spawn(move || client.ask()))?);
        }
        Ok(load)
    }

    /// What happened so far.
    pub fn record(&self) -> Record {
        self.shared.record().clone()
    }

    /// The slowest request since the last such call.
    pub fn take_slowest(&self) -> Duration {
        std::mem::take(&mut self.shared.record().slowest)
    }

    /// The failures since the last such call, which those of later calls and of [`Load::stop`] do not have.
    pub fn take_failures(&self) -> Vec<Failure> {
        std::mem::take(&mut self.shared.record().failures)
    }

    /// Lets every client finish the request it is at.
    pub fn stop(mut self) -> Result<Record> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            ensure!(client.join().is_ok(), "a client panicked");
        }
        Ok(self.record())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
