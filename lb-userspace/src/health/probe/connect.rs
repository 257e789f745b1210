//! The connection of a probe.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::failure::io_text;
use super::{Failure, Target};

/// A connection to the target. Whoever drops it closes it, by a FIN where nothing unread is left: a reset could
/// overtake the endpoint's `accept`, and looks like a fault in its log. What that costs is a socket in TIME_WAIT,
/// which the kernel keeps for each pair of addresses and ports apart.
pub(super) async fn connect(target: &Target) -> Result<TcpStream, Failure> {
    let socket = open(target).map_err(|error| match target.source {
        Some(source) => {
            Failure::network(format!("no connection can be made from {source}: {}", io_text(&error)))
        }
        None => Failure::network(format!("no socket: {}", io_text(&error))),
    })?;
    let stream = socket.connect(target.address).await.map_err(|error| Failure::io(&error))?;
    // A request is small and in several writes: Nagle's algorithm would hold the second one back.
    stream.set_nodelay(true).map_err(|error| Failure::io(&error))?;
    Ok(stream)
}

fn open(target: &Target) -> io::Result<TcpSocket> {
    let domain = Domain::for_address(target.address);
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if let Some(source) = target.source {
        bind(&socket, source)?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Binds to the address alone. The port is chosen by connect(2), where it need not be free for every peer
/// (`IP_BIND_ADDRESS_NO_PORT`): else there would be no more probes at a time than ephemeral ports.
fn bind(socket: &Socket, source: IpAddr) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&SocketAddr::new(source, 0).into())
}
