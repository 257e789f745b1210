//! Who holds a TCP port, for the message "already in use by …".
//!
//! The socket is found in the kernel's table of this network namespace (`/proc/thread-self/net/tcp` and
//! `tcp6`: plain `/proc/net` is the namespace of the process's first thread), the process by the socket's
//! inode among all `/proc/PID/fd`. See proc_pid_net(5) and proc_pid_fd(5).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use procfs::net::{TcpNetEntries, TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process, all_processes};
use procfs::{FromReadSI as _, current_system_info};

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub pid: i32,
    /// The short name, as in `/proc/PID/comm`.
    pub command: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.command, self.pid)
    }
}

/// The process whose socket keeps this one from listening on `address`.
///
/// `None` if there is no such socket any more, or if its process cannot be seen: another user's without
/// `CAP_SYS_PTRACE`, or one outside this PID namespace (a pod with `hostNetwork` but without `hostPID`).
/// Of several processes that share the socket, the one with the lowest PID, which started the others.
pub fn port_owner(address: SocketAddr) -> Option<Owner> {
    let mut entries = socket_table("/proc/thread-self/net/tcp");
    entries.extend(socket_table("/proc/thread-self/net/tcp6"));
    entries.retain(|entry| entry.inode != 0 && in_conflict(entry.local_address, address));
    // A connection keeps a port only from sockets without SO_REUSEADDR, so it is named last.
    entries.sort_by_key(|entry| entry.state != TcpState::Listen);
    entries.iter().find_map(|entry| process_of(entry.inode))
}

/// An unreadable table (no `/proc`, no IPv6) has no sockets.
fn socket_table(path: &str) -> Vec<TcpNetEntry> {
    TcpNetEntries::from_file(path, current_system_info()).map(|table| table.0).unwrap_or_default()
}

/// Whether two sockets on these addresses collide. A socket on `[::]` also holds the port for IPv4, unless it
/// has `IPV6_V6ONLY`, which the table does not tell; it is counted in.
fn in_conflict(held: SocketAddr, wanted: SocketAddr) -> bool {
    if held.port() != wanted.port() {
        return false;
    }
    match (held.ip().to_canonical(), wanted.ip().to_canonical()) {
        (IpAddr::V6(held), IpAddr::V4(_)) => held == Ipv6Addr::UNSPECIFIED,
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
        (held, wanted) => held == wanted || held.is_unspecified() || wanted.is_unspecified(),
    }
}

fn process_of(inode: u64) -> Option<Owner> {
    all_processes()
        .ok()?
        .filter_map(Result::ok)
        .filter(|process| holds(process, inode))
        .min_by_key(Process::pid)
        .and_then(|process| Some(Owner { pid: process.pid(), command: process.stat().ok()?.comm }))
}

fn holds(process: &Process, inode: u64) -> bool {
    let Ok(descriptors) = process.fd() else { return false };
    descriptors.filter_map(Result::ok).any(|descriptor| descriptor.target == FDTarget::Socket(inode))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn own_command() -> String {
        std::fs::read_to_string("/proc/self/comm").unwrap().trim_end().to_owned()
    }

    #[test]
    fn names_this_process_for_its_own_sockets() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let socket = TcpListener::bind(address).unwrap();
            let owner = port_owner(socket.local_addr().unwrap()).expect("the socket is there");
            assert_eq!(owner, Owner { pid: std::process::id().cast_signed(), command: own_command() });
        }
    }

    #[test]
    fn a_wildcard_collides_with_every_address_of_its_family() {
        let conflict = |held: &str, wanted: &str| in_conflict(held.parse().unwrap(), wanted.parse().unwrap());
        assert!(conflict("0.0.0.0:80", "192.0.2.1:80"));
        assert!(conflict("192.0.2.1:80", "0.0.0.0:80"));
        assert!(conflict("[::]:80", "[2001:db8::1]:80"));
        assert!(conflict("[::]:80", "192.0.2.1:80"));
        assert!(conflict("[::ffff:192.0.2.1]:80", "192.0.2.1:80"));
        assert!(!conflict("192.0.2.1:80", "192.0.2.2:80"));
        assert!(!conflict("192.0.2.1:80", "192.0.2.1:81"));
        assert!(!conflict("0.0.0.0:80", "[::]:80"));
    }

    #[test]
    fn a_free_port_has_no_owner() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(port_owner(address), None);
    }
}
