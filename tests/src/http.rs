//! A small HTTP/1.1 client for what curl cannot do: thousands of connections, and connections held open while
//! something happens.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::netns::Namespace;
use crate::payload::{Payload, sha256_of};

/// For one connect, read or write; far above what any takes, also with losses.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Failures that are described one by one; the rest is counted.
const DESCRIBED: usize = 5;

/// The connection ended before a byte of the answer had come: the context of such errors, by which they are told from
/// others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered;

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection ended before any answer")
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects from the thread's own namespace.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TIME_LIMIT)
            .with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIME_LIMIT))?;
        stream.set_write_timeout(Some(TIME_LIMIT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Connects from `host`.
    pub fn open_in(host: &Namespace, address: SocketAddr) -> Result<Self> {
        host.within(|| Self::open(address))?
    }

    /// The client's own address.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.get_ref().local_addr()?)
    }

    /// `GET /` and the answer's body without the line end; the connection stays open.
    pub fn get(&mut self) -> Result<String> {
        self.send("keep-alive")?;
        self.receive()
    }

    /// `GET /` of which the server closes the connection.
    pub fn get_last(mut self) -> Result<String> {
        self.send("close")?;
        let body = self.receive()?;
        let rest = self.stream.read(&mut [0])?;
        ensure!(rest == 0, "more bytes after the answer");
        Ok(body)
    }

    /// `GET /big`, compared with the payload; the connection stays open.
    pub fn download(&mut self, payload: &Payload) -> Result<()> {
        self.request("GET /big", "")?;
        let length = self.head()?;
        let (bytes, sha256) = sha256_of((&mut self.stream).take(length))?;
        ensure!(bytes == payload.bytes, "{bytes} bytes arrived instead of {}", payload.bytes);
        ensure!(sha256 == payload.sha256, "the download arrived changed");
        Ok(())
    }

    /// `PUT /upload/NAME` of the payload; the connection stays open.
    pub fn upload(&mut self, payload: &Payload, name: &str) -> Result<()> {
        let length = format!("Content-Length: {}\r\n", payload.bytes);
        self.request(&format!("PUT /upload/{name}"), &length)?;
        io::copy(&mut File::open(payload.path())?, self.stream.get_mut()).context("body")?;
        self.receive().map(drop)
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    fn request(&mut self, what: &str, headers: &str) -> Result<()> {
        let request = format!("{what} HTTP/1.1\r\nHost: headgate\r\n{headers}\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).map_err(unanswered).context("request")
    }

    fn send(&mut self, connection: &str) -> Result<()> {
        self.request("GET /", &format!("Connection: {connection}\r\n"))
    }

    fn receive(&mut self) -> Result<String> {
        let mut body = vec![0; self.head()?.try_into()?];
        self.stream.read_exact(&mut body).context("body")?;
        Ok(String::from_utf8(body)?.trim_end().to_owned())
    }

    /// Status line and headers of an answer; the length of its body.
    fn head(&mut self) -> Result<u64> {
        if self.stream.fill_buf().map_err(unanswered)?.is_empty() {
            bail!(Unanswered);
        }
        let status = self.line().context("status line")?;
        ensure!(status.starts_with("HTTP/1.1 2"), "answer {status:?}");
        let mut length = 0;
        loop {
            let line = self.line().context("header")?;
            match line.split_once(": ") {
                None => break,
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse()?
                }
                Some(_) => {}
            }
        }
        Ok(length)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end().to_owned())
    }
}

/// Of an error where no answer has begun. A time limit that is over is no end of the connection.
fn unanswered(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            Error::new(error).context(Unanswered)
        }
        _ => error.into(),
    }
}

/// A connection that stays open, and the backend that answers it.
#[derive(Debug)]
pub struct Kept {
    connection: Connection,
    pub name: String,
}

impl Kept {
    /// Connects from `host` and asks who answers.
    pub fn open_in(host: &Namespace, address: SocketAddr) -> Result<Self> {
        let mut connection = Connection::open_in(host, address)?;
        let name = connection.get()?;
        Ok(Self { connection, name })
    }

    /// Fails unless it is still answered, by the same one.
    pub fn check(&mut self) -> Result<()> {
        let name = self.connection.get()?;
        ensure!(name == self.name, "{name} answers instead of {}", self.name);
        Ok(())
    }
}

/// What became of many connections.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Connections that did all they should, by the name that answered.
    pub served: BTreeMap<String, u64>,
    pub failed: u64,
    /// The first few failures.
    pub failures: Vec<String>,
}

impl Outcome {
    pub fn record(&mut self, result: Result<String>) {
        match result {
            Ok(name) => *self.served.entry(name).or_default() += 1,
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < DESCRIBED {
                    self.failures.push(format!("{error:#}"));
                }
            }
        }
    }

    pub fn total(&self) -> u64 {
        self.served.values().sum::<u64>() + self.failed
    }

    /// Fails unless all `count` connections were served.
    pub fn require(&self, count: u64) -> Result<()> {
        ensure!(
            self.failed == 0,
            "{} of {} connections failed: {:#?}",
            self.failed,
            self.total(),
            self.failures
        );
        ensure!(self.total() == count, "{} connections instead of {count}", self.total());
        Ok(())
    }

    fn add(&mut self, other: Self) {
        for (name, count) in other.served {
            *self.served.entry(name).or_default() += count;
        }
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.failures.truncate(DESCRIBED);
    }
}

/// `count` connections of one request each, every one opened after the one before was closed.
pub fn sequential(host: &Namespace, address: SocketAddr, count: u64) -> Result<Outcome> {
    host.within(|| {
        let mut outcome = Outcome::default();
        for _ in 0..count {
            outcome.record(Connection::open(address).and_then(Connection::get_last));
        }
        outcome
    })
}

/// `count` such connections by `workers` threads at a time.
pub fn parallel(host: &Namespace, address: SocketAddr, count: u64, workers: u64) -> Result<Outcome> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..workers).map(|_| scope.spawn(|| sequential(host, address, count / workers))).collect();
        let mut outcome = Outcome::default();
        for thread in threads {
            outcome.add(thread.join().expect("no panic in a client")?);
        }
        Ok(outcome)
    })
}

/// `count` connections open at once; once all are, each makes `rounds` requests, which one backend must answer.
pub fn concurrent(host: &Namespace, address: SocketAddr, count: usize, rounds: usize) -> Result<Outcome> {
    const WORKERS: usize = 4;
    allow_descriptors(count as u64 + 1000)?;
    let all_open = Barrier::new(WORKERS);
    let worker = || -> Result<Outcome> {
        host.within(|| {
            let connections: Vec<_> = (0..count / WORKERS).map(|_| Connection::open(address)).collect();
            all_open.wait();
            let mut outcome = Outcome::default();
            for result in talk_at_once(connections, rounds) {
                outcome.record(result);
            }
            outcome
        })
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
        let mut outcome = Outcome::default();
        for thread in threads {
            outcome.add(thread.join().expect("no panic in a client")?);
        }
        Ok(outcome)
    })
}

/// In each round a request on every connection, then every answer. The name that answered on each.
fn talk_at_once(connections: Vec<Result<Connection>>, rounds: usize) -> Vec<Result<String>> {
    let mut talks: Vec<Result<Talk>> =
        connections.into_iter().map(|connection| Ok(Talk { connection: connection?, name: None })).collect();
    for _ in 0..rounds {
        talks = talks.into_iter().map(|talk| talk?.ask()).collect();
        talks = talks.into_iter().map(|talk| talk?.hear()).collect();
    }
    talks.into_iter().map(|talk| talk?.name.context("no answer")).collect()
}

/// A connection and the name that answered on it.
struct Talk {
    connection: Connection,
    name: Option<String>,
}

impl Talk {
    fn ask(mut self) -> Result<Self> {
        self.connection.send("keep-alive")?;
        Ok(self)
    }

    fn hear(mut self) -> Result<Self> {
        let name = self.connection.receive()?;
        let first = self.name.get_or_insert_with(|| name.clone());
        ensure!(*first == name, "one connection was answered by {first} and by {name}");
        Ok(self)
    }
}

/// Lets this process open so many files.
pub fn allow_descriptors(count: u64) -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        limit.current = Some(count);
        setrlimit(Resource::Nofile, limit).with_context(|| format!("the tests need {count} open files"))?;
    }
    Ok(())
}
