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

/// What one connection told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// It went to the address itself.
    Direct,
    /// It went to this address instead.
    Elsewhere(SocketAddr),
    /// Nothing was seen of it: ask again once the address answers.
    Unknown,
}

/// Where the node's own netfilter or socket layer sends a TCP connection to `address`.
///
/// Opens one connection. If it is established in time, it is closed by FIN without a byte having been sent.
///
/// It need not be established for an answer where connections are tracked, and failing to be is no error. It is
/// [`Unknown`](Translation::Unknown) where there is no route, where nobody answers in time and connections are not
/// tracked, and where it is refused (the kernel takes the entry of a connection away on a RST that comes first). The
/// addresses of kube-proxy in IPVS mode need no connection: see
/// [`Snapshot::is_cluster_ip`](super::Snapshot::is_cluster_ip).
pub async fn translated(address: SocketAddr) -> Result<Translation> {
    let address = unmapped(address);
    let Some(socket) = begin(address).with_context(|| format!("cannot open a socket to {address}"))? else {
        return Ok(Translation::Unknown);
    };
    let seen = look(&socket, address).await;
    let established = end(socket).await;
    Ok(judge(address, seen?, established))
}

/// What the kernel shows of a connection.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// The socket's peer.
    peer: Option<SocketAddr>,
    /// Who answers by its entry in connection tracking.
    reply_source: Option<SocketAddr>,
}

fn judge(address: SocketAddr, seen: Seen, established: bool) -> Translation {
    let other = |seen: Option<SocketAddr>| seen.filter(|seen| !is_same(*seen, address));
    if let Some(elsewhere) = other(seen.peer).or_else(|| other(seen.reply_source)) {
        return Translation::Elsewhere(elsewhere);
    }
    // An entry is found by the address that was asked for, so the socket layer has left that alone. Without one
    // the peer has to be seen, and a peer that answered has passed whatever rules there are.
    if seen.reply_source.is_some() || (established && seen.peer.is_some()) {
        Translation::Direct
    } else {
        Translation::Unknown
    }
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

async fn look(socket: &Socket, address: SocketAddr) -> Result<Seen> {
    let local = socket.local_addr().ok().and_then(|local| local.as_socket());
    let Some(local) = local else { return Ok(Seen::default()) };
    let peer = sock_diag::peer(socket, local, address)
        .await
        .with_context(|| format!("cannot see where a connection to {address} goes (sock_diag)"))?;
    if let Some(peer) = peer
        && !is_same(peer, address)
    {
        return Ok(Seen { peer: Some(peer), reply_source: None });
    }
    match conntrack::reply_source(local, address).await {
        Ok(reply_source) => Ok(Seen { peer, reply_source }),
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

/// Waits for the connection and closes it, so that the other side sees nothing but an open and a close. Tells whether
/// it was established.
async fn end(socket: Socket) -> bool {
    let Ok(mut stream) = TcpStream::from_std(socket.into()) else { return false };
    let opened = timeout(PATIENCE, stream.writable()).await.is_ok();
    if !opened || !matches!(stream.take_error(), Ok(None)) || stream.peer_addr().is_err() {
        return false;
    }
    if SockRef::from(&stream).shutdown(Shutdown::Write).is_err() {
        return true;
    }
    // Closing with bytes unread would send a RST, so read what the other side may say of itself.
    let _ = timeout(PATIENCE, async {
        let mut greeting = [0; 1024];
        while stream.read(&mut greeting).await.is_ok_and(|length| length > 0) {}
    })
    .await;
    true
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
    fn only_what_was_seen_counts() {
        let address: SocketAddr = "192.0.2.1:80".parse().unwrap();
        let other: SocketAddr = "192.0.2.2:80".parse().unwrap();
        let of = |peer, reply_source, established| judge(address, Seen { peer, reply_source }, established);
        // An entry counts before the connection is established, and without the peer of the socket.
        assert_eq!(of(Some(address), Some(address), false), Translation::Direct);
        assert_eq!(of(None, Some(address), false), Translation::Direct);
        assert_eq!(of(Some(address), Some(other), false), Translation::Elsewhere(other));
        assert_eq!(of(Some(other), None, false), Translation::Elsewhere(other));
        // Not tracked, or refused and the entry gone.
        assert_eq!(of(Some(address), None, true), Translation::Direct);
        assert_eq!(of(Some(address), None, false), Translation::Unknown);
        assert_eq!(of(None, None, true), Translation::Unknown);
        assert_eq!(of(None, None, false), Translation::Unknown);
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
