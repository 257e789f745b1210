//! `type: srv`.

use std::net::{IpAddr, SocketAddr};

use super::dns;
use crate::config::dns_name;
use crate::config::tree::{Entry, Fields, Report};
use crate::model::Srv;

pub(super) fn read(fields: &Fields<'_>, report: &mut Report) -> Option<Srv> {
    let refresh = dns::refresh(fields, report);
    let name = fields.require("name", "the name to ask for, as in _http._tcp.gateway.example", report);
    Some(Srv { name: name.and_then(|entry| service_name(&entry, report))?, refresh: refresh? })
}

/// A name without a port, in lower case.
fn service_name(entry: &Entry<'_>, report: &mut Report) -> Option<String> {
    let text = entry.text("a name, as in _http._tcp.gateway.example", report)?;
    let is_address = text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok();
    let problem = match text.rsplit_once(':') {
        _ if is_address => {
            Some("an address has no SRV records: write a name, or use type: static".to_owned())
        }
        Some((name, _)) => Some(format!("the port comes from DNS: write the name alone, {name}")),
        None => dns_name::problem(text),
    };
    if let Some(problem) = problem {
        entry.refuse(format!("`{text}`: {problem}"), report);
        return None;
    }
    Some(text.to_ascii_lowercase())
}
