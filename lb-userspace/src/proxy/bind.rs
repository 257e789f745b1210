//! Opening listening sockets, and saying why one cannot be had.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;

use super::ProxyListener;
use crate::port_owner::{Owner, port_owner};

/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn` (4096 since Linux 5.4).
pub(super) const BACKLOG: i32 = 4096;

/// An address that the proxy cannot listen on.
#[derive(Debug)]
pub struct BindError {
    pub listener: String,
    pub address: SocketAddr,
    pub reason: BindReason,
}

/// What keeps the proxy from listening.
#[derive(Debug)]
pub enum BindReason {
    /// Another socket has it; the owner if it can be seen from here.
    InUse(Option<Owner>),
    /// Another listener of the same set has it.
    Duplicate(String),
    Io(io::Error),
}

impl BindError {
    pub(super) fn duplicate(listener: &ProxyListener, other: &str) -> Self {
        Self::new(listener, BindReason::Duplicate(other.to_owned()))
    }

    fn new(listener: &ProxyListener, reason: BindReason) -> Self {
        Self { listener: listener.name.to_string(), address: listener.address, reason }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listener, address, reason } = self;
        write!(f, "listener \"{listener}\": cannot listen on {address}: ")?;
        match reason {
            BindReason::InUse(Some(owner)) => write!(f, "already in use by {owner}"),
            BindReason::InUse(None) => write!(
                f,
                "already in use by a process that cannot be seen from here (it takes root and the host's PID \
                 namespace; `ss -ltnp` on the host tells)"
            ),
            BindReason::Duplicate(other) => write!(f, "listener \"{other}\" has the same address"),
            BindReason::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(
                    f,
                    "{error} (ports below net.ipv4.ip_unprivileged_port_start take CAP_NET_BIND_SERVICE)"
                )
            }
            BindReason::Io(error) => error.fmt(f),
        }
    }
}

impl Error for BindError {}

/// A socket that listens on the listener's address. `own` are the other listening sockets of this proxy.
pub(super) fn bind<'a>(
    listener: &ProxyListener,
    own: impl Iterator<Item = &'a TcpListener>,
) -> Result<TcpListener, BindError> {
    let result = match listen(listener.address, false) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => listen_beside(listener.address, own),
        other => other,
    };
    result.map_err(|error| {
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => BindReason::InUse(port_owner(listener.address)),
            _ => BindReason::Io(error),
        };
        BindError::new(listener, reason)
    })
}

/// A wildcard and an address of the same port exclude each other unless both have `SO_REUSEPORT` (socket(7));
/// the kernel then prefers the address. The option is set only where the other socket is this proxy's own:
/// otherwise a second agent could listen beside the first unnoticed.
fn listen_beside<'a>(
    address: SocketAddr,
    own: impl Iterator<Item = &'a TcpListener>,
) -> io::Result<TcpListener> {
    let mut any = false;
    for socket in own {
        let other = socket.local_addr()?;
        if other.port() == address.port() && other.is_ipv4() == address.is_ipv4() {
            SockRef::from(socket).set_reuse_port(true)?;
            any = true;
        }
    }
    if any { listen(address, true) } else { Err(io::ErrorKind::AddrInUse.into()) }
}

fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Connections of an earlier agent may still be there.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
