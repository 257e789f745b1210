//! Clients that ask without a pause worth naming until they are told to stop, and a record of every request that
//! failed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::http::{Connection, Unanswered};
use crate::netns::Namespace;

/// Between two requests of one client, so that all of them together leave the machine some time for other things.
const REST: Duration = Duration::from_millis(2);
/// Requests of a connection that is kept, after which the client makes another one.
const KEPT: u32 = 50;
/// A request that takes longer has been held up by something: a SYN that is sent again takes a second.
const SLOW: Duration = Duration::from_millis(250);

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

/// What happened so far.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Requests that were answered, by the name of the server.
    pub served: BTreeMap<String, u64>,
    /// Connections that were made.
    pub connections: u64,
    /// Requests that were sent a second time: see [`Ended`].
    pub retried: u64,
    pub failures: Vec<Failure>,
    /// The longest time from a request's beginning, including its connect, to its answer.
    pub slowest: Duration,
    /// When the last request ended that took more than a quarter of a second.
    pub last_slow: Option<Instant>,
}

/// A request that was not answered as it should be.
#[derive(Clone, Debug)]
pub struct Failure {
    pub began: Instant,
    pub at: Instant,
    /// The client's address, if it was connected.
    pub client: Option<SocketAddr>,
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

    /// Fails if a request has; the error tells how long after `began` each has.
    pub fn require_no_failure(&self, began: Instant) -> Result<()> {
        let failures = self.failures.iter();
        let failures: Vec<_> = failures.map(|failure| failure.text(began)).collect();
        ensure!(failures.is_empty(), "{} requests failed: {failures:#?}", failures.len());
        Ok(())
    }
}

impl Failure {
    /// Its time after `began`, and why.
    pub fn text(&self, began: Instant) -> String {
        let after = self.at.saturating_duration_since(began).as_secs_f64();
        format!("{after:.1} s, from {:?}: {}", self.client, self.why)
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
    /// Clients in `host` that ask `address` from now on; nothing is tried twice.
    pub fn start(host: &Namespace, address: SocketAddr, clients: Clients) -> Result<Self> {
        Self::start_with(host, address, clients, Ended::Fails)
    }

    /// The same with a rule for kept connections that end.
    pub fn start_with(host: &Namespace, address: SocketAddr, clients: Clients, ended: Ended) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut load = Self { shared, clients: Vec::new() };
        let kinds = [(clients.held, u32::MAX), (clients.keep_alive, KEPT), (clients.one_shot, 1)];
        for kept in kinds.into_iter().flat_map(|(count, kept)| std::iter::repeat_n(kept, count)) {
            let shared = Arc::clone(&load.shared);
            let client = Client { shared, address, kept, ended, idle: None, local: None };
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

/// One of them.
#[derive(Debug)]
struct Client {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Requests that it makes on a connection.
    kept: u32,
    ended: Ended,
    /// The connection that it keeps, and how many more requests that one may have.
    idle: Option<(Connection, u32)>,
    /// Its end of the last connection.
    local: Option<SocketAddr>,
}

impl Client {
    fn ask(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let answer = self.request();
            self.note(began, answer);
            std::thread::sleep(REST);
        }
    }

    /// A request on the connection that it keeps, or else on a new one.
    fn request(&mut self) -> Result<String> {
        if let Some((mut connection, left)) = self.idle.take() {
            match connection.get() {
                Err(error) if self.ended == Ended::IsRetried && error.is::<Unanswered>() => {
                    self.shared.record().retried += 1;
                }
                Err(error) => return Err(error),
                Ok(name) => {
                    self.keep(connection, left);
                    return Ok(name);
                }
            }
        }
        self.shared.record().connections += 1;
        self.local = None;
        let mut connection = Connection::open(self.address)?;
        self.local = Some(connection.local()?);
        if self.kept == 1 {
            return connection.get_last();
        }
        let name = connection.get()?;
        self.keep(connection, self.kept);
        Ok(name)
    }

    /// A connection of which `left` requests were left has had one more.
    fn keep(&mut self, connection: Connection, left: u32) {
        self.idle = (left > 1).then(|| (connection, left - 1));
    }

    /// Writes a request down.
    fn note(&self, began: Instant, answer: Result<String>) {
        let at = Instant::now();
        let mut record = self.shared.record();
        record.slowest = record.slowest.max(at - began);
        if at - began > SLOW {
            record.last_slow = Some(at);
        }
        match answer {
            Ok(name) => *record.served.entry(name).or_default() += 1,
            Err(error) => {
                record.failures.push(Failure { began, at, client: self.local, why: format!("{error:#}") })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nb1\n";

    /// A server that answers each connection of a list so many requests and ends it at the next one, after these bytes.
    fn serve(connections: Vec<(u32, &'static [u8])>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for (answers, last) in connections {
                let (mut stream, _) = listener.accept().unwrap();
                for _ in 0..answers {
                    hear(&mut stream);
                    stream.write_all(ANSWER).unwrap();
                }
                hear(&mut stream);
                stream.write_all(last).unwrap();
            }
        });
        address
    }

    /// A request is one segment here.
    fn hear(stream: &mut TcpStream) {
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
    }

    fn client(address: SocketAddr, kept: u32, ended: Ended) -> Client {
        Client { shared: Arc::default(), address, kept, ended, idle: None, local: None }
    }

    fn retried(client: &Client) -> u64 {
        client.shared.record().retried
    }

    #[test]
    fn a_kept_connection_that_ends_unanswered_is_retried_once() {
        let mut client = client(serve(vec![(2, b""), (1, b""), (0, b"")]), u32::MAX, Ended::IsRetried);
        for retries in [0, 0, 1] {
            assert_eq!(client.request().unwrap(), "b1");
            assert_eq!(retried(&client), retries);
        }
        // The second try is the first request of its connection.
        assert!(client.request().unwrap_err().is::<Unanswered>());
        assert_eq!(retried(&client), 2);
    }

    #[test]
    fn a_reset_is_retried_like_a_close() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = client(listener.local_addr().unwrap(), u32::MAX, Ended::IsRetried);
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            hear(&mut stream);
            stream.write_all(ANSWER).unwrap();
            // Closed with something unread, it sends a RST.
            stream.peek(&mut [0]).unwrap();
            drop(stream);
            let (mut stream, _) = listener.accept().unwrap();
            hear(&mut stream);
            stream.write_all(ANSWER).unwrap();
        });
        assert_eq!(client.request().unwrap(), "b1");
        assert_eq!(client.request().unwrap(), "b1");
        assert_eq!(retried(&client), 1);
        server.join().unwrap();
    }

    #[test]
    fn neither_a_first_request_nor_a_begun_answer_nor_a_strict_client_is_retried() {
        for (connections, kept, ended, good) in [
            (vec![(0, &b""[..])], u32::MAX, Ended::IsRetried, 0),
            (vec![(0, b"")], 1, Ended::IsRetried, 0),
            (vec![(1, b"HTTP/1.1 2")], u32::MAX, Ended::IsRetried, 1),
            (vec![(1, b"")], u32::MAX, Ended::Fails, 1),
        ] {
            let mut client = client(serve(connections), kept, ended);
            for _ in 0..good {
                client.request().unwrap();
            }
            let error = client.request().unwrap_err();
            assert_eq!(retried(&client), 0, "{error:#}");
            client.note(Instant::now(), Err(error));
            let record = client.shared.record().clone();
            assert_eq!((record.failures.len(), record.failures[0].client), (1, client.local));
        }
    }

    #[test]
    fn connections_are_kept_for_as_many_requests_as_they_should() {
        let mut client = client(serve(vec![(3, b""), (3, b"")]), 3, Ended::Fails);
        for _ in 0..3 {
            client.request().unwrap();
        }
        assert!(client.idle.is_none());
    }
}
