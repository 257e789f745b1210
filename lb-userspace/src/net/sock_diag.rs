//! Where a TCP socket is really connected to, through sock_diag(7).
//!
//! `getpeername()` does not tell: a balancer in the socket layer rewrites the address in `connect()` and puts
//! the one that was asked for back in `getpeername()` (BPF attach types `cgroup/connect4` and
//! `cgroup/getpeername4`, as Cilium does). sock_diag reads the kernel's socket itself.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::Netlink;

/// The peer of an open or opening socket whose own end is `local` and that was to be connected to `wanted`. `None` if it
/// is neither, and on a kernel without `inet_diag`.
pub(super) async fn peer(
    socket: impl AsFd,
    local: SocketAddr,
    wanted: SocketAddr,
) -> io::Result<Option<SocketAddr>> {
    let cookie = cookie_bytes(rustix::net::sockopt::socket_cookie(socket)?);
    let found = async {
        let mut netlink = Netlink::open(NETLINK_SOCK_DIAG)?;
        // Mostly it is there: the kernel finds it at once. A dump goes through all that it has room for.
        if let Ok(answers) = netlink.request(question(local, Some((wanted, cookie))), 0).await {
            let found: Vec<_> = answers.into_iter().filter_map(ends).collect();
            if found.iter().any(|(found, _)| *found == cookie) {
                return Ok(found);
            }
        }
        netlink.dump(question(local, None), ends).await
    };
    match found.await {
        Ok(sockets) => {
            Ok(sockets.into_iter().find(|(found, _)| *found == cookie).map(|(_, destination)| destination))
        }
        // No `inet_diag` (the kernel's `inet_diag_lock_handler`), or no netlink protocol of that number.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EPROTONOSUPPORT)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One socket by its ends and its cookie, or all of a family and local port; the kernel compares only the ports in a dump.
fn question(local: SocketAddr, one: Option<(SocketAddr, [u8; 8])>) -> SockDiagMessage {
    let mut socket_id = if local.is_ipv4() { SocketId::new_v4() } else { SocketId::new_v6() };
    socket_id.source_port = local.port();
    if let Some((destination, cookie)) = one {
        socket_id.source_address = local.ip();
        socket_id.destination_address = destination.ip();
        socket_id.destination_port = destination.port();
        socket_id.cookie = cookie;
    }
    SockDiagMessage::InetRequest(InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::SYN_SENT | StateFlags::ESTABLISHED | StateFlags::CLOSE_WAIT,
        socket_id,
    })
}

/// A socket's cookie and destination.
fn ends(answer: SockDiagMessage) -> Option<([u8; 8], SocketAddr)> {
    let SockDiagMessage::InetResponse(socket) = answer else { return None };
    let id = socket.header.socket_id;
    Some((id.cookie, SocketAddr::new(id.destination_address, id.destination_port)))
}

/// As in `struct inet_diag_sockid`: the low half first, each half in host order.
fn cookie_bytes(cookie: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&(cookie as u32).to_ne_bytes());
    bytes[4..].copy_from_slice(&((cookie >> 32) as u32).to_ne_bytes());
    bytes
}
