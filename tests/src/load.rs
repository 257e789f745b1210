//! Clients that ask without a pause worth naming until they are told to stop, and a record of every request that
//! failed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::http::Connection;
use crate::netns::Namespace;

/// Between two requests of one client, so that all of them together leave the machine some time for other things.
const REST: Duration = Duration::from_millis(2);
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

/// What happened so far.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Requests that were answered, by the name of the server.
    pub served: BTreeMap<String, u64>,
    /// Connections that were made.
    pub connections: u64,
    pub failures: Vec<Failure>,
    /// The longest time from a request's beginning, including its connect, to its answer.
    pub slowest: Duration,
}

/// A request that was not answered as it should be. There is no second try: with servers that close no idle
/// connection each of these is the balancer's fault.
#[derive(Clone, Debug)]
pub struct Failure {
    pub at: Instant,
    pub why: String,
}

impl Record {
    pub fn requests(&self) -> u64 {
        self.served.values().sum()
    }

    /// Requests answered by this server.
    pub fn by(&self, name: &str) -> u64 {
        self.served.get(name).copied().unwrap_or(0)
    }
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
    /// Clients in `host` that ask `address` from now on.
    pub fn start(host: &Namespace, address: SocketAddr, clients: Clients) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut load = Self { shared, clients: Vec::new() };
        let kinds = [(clients.held, u32::MAX), (clients.keep_alive, KEPT), (clients.one_shot, 1)];
        for kept in kinds.into_iter().flat_map(|(count, kept)| std::iter::repeat_n(kept, count)) {
            let shared = Arc::clone(&load.shared);
            // A thread begins in the namespace of the thread that starts it.
            load.clients.push(host.within(|| std::thread::spawn(move || shared.ask(address, kept)))?);
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
    /// Connections of up to `kept` requests each, one after the other.
    fn ask(&self, address: SocketAddr, kept: u32) {
        let stopped = || self.stop.load(Ordering::Relaxed);
        while !stopped() {
            let mut began = Instant::now();
            let connection = Connection::open(address);
            self.record().connections += 1;
            if kept == 1 {
                self.note(began, connection.and_then(Connection::get_last));
                continue;
            }
            let mut connection = match connection {
                Ok(connection) => connection,
                Err(error) => {
                    self.note(began, Err(error));
                    continue;
                }
            };
            for _ in 0..kept {
                let failed = !self.note(began, connection.get());
                if failed || stopped() {
                    break;
                }
                began = Instant::now();
            }
        }
    }

    /// Writes a request down and rests; whether it was answered.
    fn note(&self, began: Instant, answer: Result<String>) -> bool {
        let took = began.elapsed();
        let answered = answer.is_ok();
        let mut record = self.record();
        record.slowest = record.slowest.max(took);
        match answer {
            Ok(name) => *record.served.entry(name).or_default() += 1,
            Err(error) => record.failures.push(Failure { at: Instant::now(), why: format!("{error:#}") }),
        }
        drop(record);
        std::thread::sleep(REST);
        answered
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
