//! `address: { socket_address: { address, port_value } }`.

use std::net::{IpAddr, SocketAddr};

use super::import::Import;
use super::message;
use super::schema::{Field, read, refused};
use super::value;
use crate::config::address::socket_problem;
use crate::config::tree::Entry;

const ADDRESS: &[Field] = &[read("socket_address"), read("pipe"), read("envoy_internal_address")];

const SOCKET_ADDRESS: &[Field] = &[
    read("protocol"),
    read("address"),
    read("port_value"),
    read("named_port"),
    refused("resolver_name", "Headgate resolves names by the servers of /etc/resolv.conf alone"),
    refused("ipv4_compat", "an IPv6 listener serves IPv6 alone: add a listener for 0.0.0.0"),
    refused("network_namespace_filepath", "Headgate works in one network namespace: run it in that one"),
];

/// A host, which may be a name, and a port.
pub(super) struct HostPort<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    /// Where the host stands.
    pub(super) entry: Entry<'a>,
}

/// The host and port of a message `Address`; their keys are judged.
pub(super) fn host_port<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<HostPort<'a>> {
    let address = message::read(entry, ADDRESS, import)?;
    let kinds = ["socket_address", "pipe", "envoy_internal_address"];
    let Some(socket) = address.one_of(&kinds, import) else {
        import.error(entry, "needs socket_address");
        return None;
    };
    if address.get("socket_address").is_none() {
        import.refuse(socket, "Headgate serves TCP over IP alone: give a socket_address");
        return None;
    }
    let fields = message::read(socket, SOCKET_ADDRESS, import)?;
    if let Some(protocol) = fields.get("protocol") {
        match value::word(protocol, &["TCP", "UDP"], import)? {
            0 => import.honour(protocol),
            _ => import.refuse(protocol, "UDP is not supported yet"),
        }
    }
    let port = fields.one_of(&["port_value", "named_port"], import);
    if let Some(named) = fields.get("named_port") {
        import.refuse(named, "Headgate has no names of ports: give the number, as port_value");
        return None;
    }
    let (Some(host), Some(port)) = (fields.get("address"), port) else {
        import.error(socket, "needs address and port_value");
        return None;
    };
    let number = value::u32(port, 0..=u32::from(u16::MAX), import)?;
    let text = value::nonempty(host, import)?;
    if number == 0 {
        import.refuse(port, "port 0 is any port: give one from 1 to 65535");
        return None;
    }
    import.honour(host);
    import.honour(port);
    Some(HostPort { host: text, port: u16::try_from(number).ok()?, entry: host.clone() })
}

/// An address to listen on.
pub(super) fn socket_address(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<SocketAddr> {
    let found = host_port(entry, import)?;
    usable(ip_address(&found, import)?, &found.entry, import)
}

/// The host as an IP address, which it has to be.
pub(super) fn ip_address(found: &HostPort<'_>, import: &mut Import<'_>) -> Option<SocketAddr> {
    let Ok(ip) = found.host.parse::<IpAddr>() else {
        let message = format!(
            "`{}` is no IP address, as in 192.0.2.1 or 2001:db8::1; names are for clusters of type STRICT_DNS \
             and LOGICAL_DNS",
            found.host
        );
        import.error(&found.entry, message);
        return None;
    };
    Some(SocketAddr::new(ip, found.port))
}

/// An address that a backend can have.
pub(super) fn backend(address: SocketAddr, entry: &Entry<'_>, import: &mut Import<'_>) -> Option<SocketAddr> {
    if address.ip().is_unspecified() {
        import
            .refuse(entry, format!("`{}`: no host has the unspecified address: write its own", address.ip()));
        return None;
    }
    usable(address, entry, import)
}

/// The address, unless no TCP connection can have it.
fn usable(address: SocketAddr, entry: &Entry<'_>, import: &mut Import<'_>) -> Option<SocketAddr> {
    match socket_problem(address) {
        None => Some(address),
        Some(problem) => {
            import.refuse(entry, format!("`{}`: {problem}", address.ip()));
            None
        }
    }
}
