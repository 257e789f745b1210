//! The state machine on a virtual clock, the resolver and the service against a DNS server of this process.

mod file;
mod machine;
mod resolving;
mod serving;
mod srv;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

/// What the server does with a query.
enum Reaction {
    /// These datagrams, or these bytes of the TCP connection, in order.
    Bytes(Vec<Vec<u8>>),
    Silence,
}

type Script = Box<dyn FnMut(&Message, Over) -> Reaction + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Udp,
    Tcp,
}

/// A DNS server on 127.0.0.x, UDP and TCP on one port; ends with this value.
struct FakeDns {
    address: SocketAddr,
    /// Name, type and transport of each query.
    asked: Arc<Mutex<Vec<(String, RecordType, Over)>>>,
    _tasks: JoinSet<()>,
}

impl FakeDns {
    async fn start(script: impl FnMut(&Message, Over) -> Reaction + Send + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script).await
    }

    async fn start_at(
        address: SocketAddr,
        script: impl FnMut(&Message, Over) -> Reaction + Send + 'static,
    ) -> Self {
        // A free port of UDP may be taken for TCP.
        for _ in 0..20 {
            let udp = UdpSocket::bind(address).await.unwrap();
            let address = udp.local_addr().unwrap();
            let Ok(tcp) = TcpListener::bind(address).await else { continue };
            return Self::serve(address, udp, tcp, Box::new(script));
        }
        panic!("no port that is free for both UDP and TCP");
    }

    fn serve(address: SocketAddr, udp: UdpSocket, tcp: TcpListener, script: Script) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(Mutex::new(script));
        let mut tasks = JoinSet::new();
        let react = {
            let asked = Arc::clone(&asked);
            move |bytes: &[u8], over| {
                let query = Message::from_vec(bytes).unwrap();
                let question = &query.queries[0];
                let name = question.name().to_ascii();
                asked.lock().unwrap().push((name, question.query_type(), over));
                let mut script = script.lock().unwrap();
                script(&query, over)
            }
        };
        let react_tcp = react.clone();
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
                if let Reaction::Bytes(datagrams) = react(&buffer[..length], Over::Udp) {
                    for datagram in datagrams {
                        udp.send_to(&datagram, peer).await.unwrap();
                    }
                }
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                // One query a connection.
                let Ok(length) = stream.read_u16().await else { continue };
                let mut query = vec![0; length.into()];
                if stream.read_exact(&mut query).await.is_err() {
                    continue;
                }
                if let Reaction::Bytes(parts) = react_tcp(&query, Over::Tcp) {
                    for part in parts {
                        let _ = stream.write_all(&part).await;
                    }
                }
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    fn asked(&self) -> Vec<(String, RecordType, Over)> {
        self.asked.lock().unwrap().clone()
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn record(owner: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(name(owner), ttl, data)
}

fn address_record(owner: &str, ttl: u32, address: &str) -> Record {
    let data = match address.parse().unwrap() {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    record(owner, ttl, data)
}

fn alias(owner: &str, ttl: u32, target: &str) -> Record {
    record(owner, ttl, RData::CNAME(CNAME(name(target))))
}

fn text(owner: &str) -> Record {
    record(owner, 60, RData::TXT(TXT::new(vec!["words".to_owned()])))
}

/// A response to the query, with those of the records that are of its type or aliases, and all that are neither.
fn response(query: &Message, code: ResponseCode, records: &[Record]) -> Message {
    let mut message = Message::response(query.id, query.op_code);
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.add_query(query.queries[0].clone());
    let kind = query.queries[0].query_type();
    let other = if kind == RecordType::A { RecordType::AAAA } else { RecordType::A };
    message.add_answers(records.iter().filter(|record| record.record_type() != other).cloned());
    message
}

/// The bytes as they go over the transport.
fn framed(bytes: &[u8], over: Over) -> Vec<u8> {
    match over {
        Over::Udp => bytes.to_vec(),
        Over::Tcp => [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat(),
    }
}

fn reply(message: &Message, over: Over) -> Reaction {
    Reaction::Bytes(vec![framed(&message.to_vec().unwrap(), over)])
}

fn records(query: &Message, over: Over, records: &[Record]) -> Reaction {
    reply(&response(query, ResponseCode::NoError, records), over)
}

fn code(query: &Message, over: Over, code: ResponseCode) -> Reaction {
    reply(&response(query, code, &[]), over)
}

/// A directory of its own, gone with this value.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("headgate-discovery-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// A `resolv.conf` of these lines.
    fn resolv_conf(&self, text: &str) -> PathBuf {
        let path = self.0.join("resolv.conf");
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
