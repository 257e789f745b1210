//! Whether the node itself sends connections to an address elsewhere, so that a packet on a wire would not.
//!
//! The usual case is a Kubernetes ClusterIP, an address of no machine. Asking the rules is hopeless (iptables,
//! nft and BPF each have their own); the outcome of one connection answers for all of them: the reply
//! source of its entry in connection tracking, and the socket's peer.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{conntrack, sock_diag};

/// What the connection may take to open, and again to close.
const PATIENCE: Duration = Duration::from_millis(250);

/// Where the node's own netfilter or socket layer sends a TCP connection to `address`; `None` if nowhere else.
///
/// Opens one connection. If it is established in time, it is closed by FIN without a byte having been sent.
///
/// It need not be established for an answer, and failing to be is no error. Only a connection that is refused
/// at once may leave nothing to compare (the kernel takes the entry of a connection away on a RST that comes
/// first), so ask again once the address answers. The addresses of kube-proxy in IPVS mode need no connection:
/// see [`Snapshot::is_cluster_ip`](super::Snapshot::is_cluster_ip).
pub async fn translated(address: SocketAddr) -> Result<Option<SocketAddr>> {
    let address = unmapped(address);
    let Some(socket) = begin(address).with_context(|| format!("cannot open a socket to {address}"))? else {
        return Ok(None);
    };
    let target = target(&socket, address).await;
    end(socket).await;
    target
}

/// A connection under way; `None` if the kernel knows at once that there will be none.
fn begin(address: SocketAddr) -> io::Result<Option<Socket>> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // The SYN leaves within the call, which is when the entry in connection tracking is made.
    match socket.connect(&SockAddr::from(address)) {
        Ok(()) => Ok(Some(socket)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(Some(socket)),
        Err(_) => Ok(None),
    }
}

async fn target(socket: &Socket, address: SocketAddr) -> Result<Option<SocketAddr>> {
    let local = socket.local_addr().ok().and_then(|local| local.as_socket());
    let Some(local) = local else { return Ok(None) };
    let peer = sock_diag::peer(socket, local)
        .await
        .with_context(|| format!("cannot see where a connection to {address} goes (sock_diag)"))?;
    if let Some(peer) = peer
        && !is_same(peer, address)
    {
        return Ok(Some(peer));
    }
    match conntrack::reply_source(local, address).await {
        Ok(source) => Ok(source.filter(|source| !is_same(*source, address))),
        Err(error) => Err(explain(error))
            .with_context(|| format!("cannot see whether the node translates connections to {address}")),
    }
}

fn explain(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => anyhow!("reading connection tracking needs CAP_NET_ADMIN"),
        io::ErrorKind::Unsupported => {
            anyhow!("connections are tracked but not shown: load the module nf_conntrack_netlink")
        }
        _ => error.into(),
    }
}

/// Waits for the connection and closes it, so that the other side sees nothing but an open and a close.
async fn end(socket: Socket) {
    let Ok(mut stream) = TcpStream::from_std(socket.into()) else { return };
    let opened = timeout(PATIENCE, stream.writable()).await.is_ok();
    if !opened || !matches!(stream.take_error(), Ok(None)) || stream.peer_addr().is_err() {
        return;
    }
    if SockRef::from(&stream).shutdown(Shutdown::Write).is_err() {
        return;
    }
    // Closing with bytes unread would send a RST, so read what the other side may say of itself.
    let _ = timeout(PATIENCE, async {
        let mut greeting = [0; 1024];
        while stream.read(&mut greeting).await.is_ok_and(|length| length > 0) {}
    })
    .await;
}

/// An IPv4 address that is written as an IPv6 one is reached, and tracked, as IPv4.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        v4 @ IpAddr::V4(_) => SocketAddr::new(v4, address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Address and port alone: the kernel's tables do not name the zone of a link-local address.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip(), one.port()) == (other.ip(), other.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_rights_are_named() {
        let text = |kind: io::ErrorKind| explain(kind.into()).to_string();
        assert!(text(io::ErrorKind::PermissionDenied).contains("CAP_NET_ADMIN"));
        assert!(text(io::ErrorKind::Unsupported).contains("nf_conntrack_netlink"));
    }

    #[test]
    fn one_destination_has_one_form() {
        let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
        for text in ["[::ffff:192.0.2.1]:80", "192.0.2.1:80"] {
            assert_eq!(unmapped(socket(text)), socket("192.0.2.1:80"));
        }
        assert_eq!(unmapped(socket("[fe80::1%3]:80")), socket("[fe80::1%3]:80"));
        assert!(is_same(socket("[fe80::1%3]:80"), socket("[fe80::1]:80")));
        assert!(!is_same(socket("192.0.2.1:80"), socket("192.0.2.1:81")));
    }
}
