//! Thousands of endpoints: one host that answers for whole networks, behind the balancer's only neighbour.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};
use lb_tests::netns::Namespace;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Where the endpoints serve, and where they are asked for their health.
pub(super) const PORT: u16 = 8080;
pub(super) const READINESS: u16 = 15021;
/// Their addresses are in here.
const NETWORK: &str = "10.64.0.0/14";
const FIRST: u32 = 0x0a40_0001;
/// Connections that wait to be accepted, of which a start makes many at once.
const BACKLOG: u32 = 4096;

/// The endpoint of that number.
pub(super) fn endpoint(number: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from(FIRST + number).into(), PORT)
}

/// The balancer's namespace, and that of the host, joined by a veth pair.
pub(super) struct Hosts {
    pub(super) balancer: Namespace,
    /// Ends the server.
    _server: oneshot::Sender<()>,
    _host: Namespace,
    readiness: Arc<Mutex<Readiness>>,
}

/// Endpoints that say that they are not ready, and when one first said so, or the contrary, since it was told to.
#[derive(Default)]
struct Readiness {
    failing: HashSet<IpAddr>,
    told: Option<IpAddr>,
    said: Option<Instant>,
}

impl Hosts {
    /// Those of one measurement.
    pub(super) fn new() -> Result<Self> {
        let name = |part: &str| format!("lbb{}-{part}", std::process::id());
        let balancer = Namespace::create(&name("lb"))?;
        let host = Namespace::create(&name("be"))?;
        balancer.ip(&["link", "add", "lb0", "type", "veth", "peer", "name", "be0", "netns", host.name()])?;
        for (namespace, link, address) in [(&balancer, "lb0", "10.0.0.1/30"), (&host, "be0", "10.0.0.2/30")] {
            namespace.ip(&["address", "add", address, "dev", link])?;
            namespace.ip(&["link", "set", link, "up"])?;
        }
        balancer.ip(&["route", "add", NETWORK, "via", "10.0.0.2"])?;
        host.ip(&["route", "add", "local", NETWORK, "dev", "lo"])?;
        let readiness = Arc::default();
        let (server, ended) = oneshot::channel();
        host.within(|| serve(Arc::clone(&readiness), ended))??;
        Ok(Self { balancer, _server: server, _host: host, readiness })
    }

    /// Has an endpoint say that it is ready, or that it is not.
    pub(super) fn set_ready(&self, address: IpAddr, ready: bool) {
        let mut readiness = locked(&self.readiness);
        if ready {
            readiness.failing.remove(&address);
        } else {
            readiness.failing.insert(address);
        }
        (readiness.told, readiness.said) = (Some(address), None);
    }

    /// When it said so first.
    pub(super) fn said(&self) -> Option<Instant> {
        locked(&self.readiness).said
    }
}

fn locked(readiness: &Mutex<Readiness>) -> std::sync::MutexGuard<'_, Readiness> {
    readiness.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to serve, on a thread that is in the namespace of the calling one.
fn serve(readiness: Arc<Mutex<Readiness>>, ended: oneshot::Receiver<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listen = |port| -> Result<TcpListener> {
        let _runtime = runtime.enter();
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))?;
        socket.listen(BACKLOG).with_context(|| format!("listening on port {port}"))
    };
    let (plain, http) = (listen(PORT)?, listen(READINESS)?);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = accept(&plain, |stream| async move { let _ = drain(stream).await; }) => {}
                () = accept(&http, |stream| answer(stream, Arc::clone(&readiness))) => {}
                _ = ended => {}
            }
        });
    });
    Ok(())
}

async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: &TcpListener,
    mut each: impl FnMut(TcpStream) -> F,
) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(each(stream));
        }
    }
}

/// Reads until the client closes.
async fn drain(mut stream: TcpStream) -> io::Result<()> {
    let mut piece = [0; 512];
    while stream.read(&mut piece).await? > 0 {}
    Ok(())
}

/// Says whether the address that was connected to is ready.
async fn answer(mut stream: TcpStream, readiness: Arc<Mutex<Readiness>>) {
    const READY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    const NOT_READY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
    let mut request = [0; 1024];
    if !matches!(stream.read(&mut request).await, Ok(1..)) {
        return;
    }
    let Ok(address) = stream.local_addr() else { return };
    let text = {
        let mut readiness = locked(&readiness);
        if readiness.told == Some(address.ip()) && readiness.said.is_none() {
            readiness.said = Some(Instant::now());
        }
        if readiness.failing.contains(&address.ip()) { NOT_READY } else { READY }
    };
    if stream.write_all(text).await.is_ok() {
        let _ = drain(stream).await;
    }
}
