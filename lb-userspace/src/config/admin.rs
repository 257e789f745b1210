//! `admin:`.

use std::net::{Ipv4Addr, SocketAddr};

use super::tree::{Entry, Located, Report};

/// Loopback: who reaches the port sees everything.
pub(super) const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8001);

pub(super) fn read(entry: &Entry<'_>, report: &mut Report) -> Option<Located<SocketAddr>> {
    let fields = entry.fields(&["address"], report)?;
    let Some(entry) = fields.get("address") else { return Some(entry.at(ADDRESS)) };
    let address = entry.socket_address("the admin port needs IP:PORT, as in 127.0.0.1:8001", report)?;
    Some(entry.at(address))
}
