//! IP addresses with and without a port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::tree::{Entry, Report};

impl Entry<'_> {
    /// `IP:PORT` or `[IPv6]:PORT`. `name_advice` says what to do with a host name.
    pub(super) fn socket_address(&self, name_advice: &str, report: &mut Report) -> Option<SocketAddr> {
        let text = self.text("an address IP:PORT or \"[IPv6]:PORT\"", report)?;
        let problem = match text.parse::<SocketAddr>() {
            Ok(address) => match socket_problem(address) {
                None => return Some(address),
                Some(problem) => problem,
            },
            Err(_) => syntax_problem(text, name_advice),
        };
        self.refuse(format!("`{text}`: {problem}"), report);
        None
    }

    /// An address without a port that packets can be sent from.
    pub(super) fn source_address(&self, report: &mut Report) -> Option<IpAddr> {
        let address = self.ip_address(report)?;
        let problem = if address.is_unspecified() {
            "the unspecified address cannot be a source: leave snat_addresses out for the default".to_owned()
        } else if address.is_loopback() {
            "a loopback address cannot leave the host: give an address of this node".to_owned()
        } else {
            return Some(address);
        };
        self.refuse(format!("`{address}`: {problem}"), report);
        None
    }

    /// An address without a port that a host can have, or that means all of them.
    pub(super) fn ip_address(&self, report: &mut Report) -> Option<IpAddr> {
        let text = self.text("an IP address", report)?;
        let problem = match text.parse::<IpAddr>() {
            Ok(address) => match ip_problem(address) {
                None => return Some(address),
                Some(problem) => format!("`{text}`: {problem}"),
            },
            Err(_) => format!("`{text}` is no IP address, as in 192.0.2.1 or 2001:db8::1"),
        };
        self.refuse(problem, report);
        None
    }
}

pub(super) fn socket_problem(address: SocketAddr) -> Option<String> {
    if address.port() == 0 {
        return Some("port 0: give a port from 1 to 65535".to_owned());
    }
    if matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0) {
        return Some("an address with a zone (%) is not accepted: give a global address".to_owned());
    }
    ip_problem(address.ip())
}

/// What no endpoint of a TCP connection can have.
fn ip_problem(address: IpAddr) -> Option<String> {
    if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some("a multicast or broadcast address: give a unicast address".to_owned());
    }
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map(|v4| format!("IPv4 in IPv6: write {v4}")),
        IpAddr::V4(_) => None,
    }
}

/// Why a text is no socket address; the likeliest mistake first.
fn syntax_problem(text: &str, name_advice: &str) -> String {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let example = SocketAddr::new(ip, 80);
        return format!("the port is missing: write IP:PORT, as in {example}");
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let is_name =
        host.contains(|c: char| c.is_ascii_alphabetic()) && !host.contains([':', '[', ']', '/', ' ']);
    if is_name {
        return format!("a host name: {name_advice}");
    }
    match port {
        Some(port) if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() => {
            format!("`{port}` is no port: give one from 1 to 65535")
        }
        _ => "not an address: write IP:PORT, as in 192.0.2.1:80, or \"[IPv6]:PORT\"".to_owned(),
    }
}
