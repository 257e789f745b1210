//! The proxy between real sockets on the loopback interface. Time limits are only there to end a test that
//! hangs.

mod connecting;
mod listening;
mod traffic;

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::{Backend, Balancer, Proxy, ProxyListener};
use crate::active::ActiveCount;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(60);

/// Tries its backends in order.
struct InOrder {
    open: ActiveCount,
    backends: Vec<Arc<Backend>>,
    connect_timeout: Duration,
}

impl Balancer for InOrder {
    fn name(&self) -> Arc<str> {
        "backends".into()
    }

    fn open(&self) -> &ActiveCount {
        &self.open
    }

    fn pick(&self, _client: SocketAddr, _local: SocketAddr, tried: &[SocketAddr]) -> Option<Arc<Backend>> {
        self.backends.get(tried.len()).cloned()
    }

    fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    fn connect_attempts(&self) -> u32 {
        3
    }
}

fn backends(addresses: &[SocketAddr]) -> Vec<Arc<Backend>> {
    addresses.iter().map(|&address| Arc::new(Backend::new(address))).collect()
}

fn listener(address: SocketAddr, backends: Vec<Arc<Backend>>) -> ProxyListener {
    ProxyListener {
        name: "test".into(),
        address,
        idle_timeout: None,
        max_connection_duration: None,
        connect_attempts: None,
        clusters: vec![(
            Arc::new(InOrder { open: ActiveCount::default(), backends, connect_timeout: PATIENCE }),
            1,
        )],
    }
}

/// A proxy with one listener on a free port.
fn proxy(ip: IpAddr, backends: &[Arc<Backend>]) -> (Proxy, SocketAddr) {
    start(listener(SocketAddr::new(ip, 0), backends.to_vec()))
}

fn start(listener: ProxyListener) -> (Proxy, SocketAddr) {
    let proxy = Proxy::new(Arc::new(()));
    proxy.apply(vec![listener]).unwrap();
    let address = proxy.listener_stats()[0].address;
    (proxy, address)
}

/// A server that runs `serve` for each connection.
async fn server<F, R>(ip: IpAddr, serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let socket = if ip.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
    socket.bind((ip, 0).into()).unwrap();
    // tokio's default is small: with hundreds of connections at once the kernel would turn to SYN cookies,
    // and reset what comes when those have failed.
    let socket = socket.listen(4096).unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

async fn echo(mut stream: TcpStream) {
    let (mut from, mut to) = stream.split();
    // The client may reset it.
    if tokio::io::copy(&mut from, &mut to).await.is_ok() {
        drop(to.shutdown().await);
    }
}

/// An address that refuses connections, for as long as the socket lives: bound, but not listening.
fn refusing(ip: IpAddr) -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::for_address((ip, 0).into()), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// An address that answers no SYN: a listening socket whose queue of 1 (backlog 0) is full.
fn silent() -> ([Socket; 2], SocketAddr) {
    let (socket, address) = refusing(V4);
    socket.listen(0).unwrap();
    let first = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    first.connect(&address.into()).unwrap();
    ([socket, first], address)
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

async fn read_all(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut data = Vec::new();
    within(from.read_to_end(&mut data)).await.unwrap();
    data
}

/// Reads up to a reset, and fails at a FIN.
async fn read_to_reset(from: &mut TcpStream) -> Vec<u8> {
    let mut data = Vec::new();
    let error = within(from.read_to_end(&mut data)).await.expect_err("a reset, not a FIN");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    data
}

/// Whether the proxy resets a new connection; this may show as early as in connect(2).
async fn is_reset(address: SocketAddr) -> bool {
    match TcpStream::connect(address).await {
        Ok(mut client) => read_to_reset(&mut client).await.is_empty(),
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("within a minute")
}

async fn until(mut holds: impl FnMut() -> bool) {
    within(async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
