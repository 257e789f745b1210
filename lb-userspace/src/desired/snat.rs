//! SNAT ports and addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::address::words;

use crate::model::Config;

/// The SNAT ports for a configuration: its range or 1024-29999, less what the host itself uses and what listeners
/// listen on. Host order, ascending.
pub fn snat_ports(
    config: &Config,
    local: (u16, u16),
    reserved: &[std::ops::RangeInclusive<u16>],
) -> Vec<u16> {
    let listens: BTreeSet<u16> = config.listeners.iter().map(|listener| listener.address.port()).collect();
    match &config.datapath.snat_ports {
        // What the user names, the user answers for.
        Some(range) => range.clone().filter(|port| !listens.contains(port)).collect(),
        None => (1024..=29_999)
            .filter(|port| !listens.contains(port))
            .filter(|port| !(local.0..=local.1).contains(port))
            .filter(|port| !reserved.iter().any(|range| range.contains(port)))
            .collect(),
    }
}

/// The list of SNAT addresses, and where in it each backend's stand. It only grows: what stands in it may be in use by
/// a packet.
pub(super) struct SnatAddresses<'a> {
    configured: Option<[(u32, u32); 2]>,
    list: &'a mut Vec<[u32; 4]>,
}

impl<'a> SnatAddresses<'a> {
    /// With the addresses of the configuration, if it names some, behind those of `list`.
    pub(super) fn new(config: &Config, list: &'a mut Vec<[u32; 4]>) -> Self {
        let configured = config.datapath.snat_addresses.as_ref().map(|addresses| {
            [false, true].map(|v6| {
                let of_family = addresses.iter().filter(|ip| ip.is_ipv6() == v6);
                window(list, &of_family.map(|ip| words(*ip)).collect::<Vec<_>>())
            })
        });
        Self { configured, list }
    }

    /// First and count of the addresses to use where the route prefers `source`.
    pub(super) fn window(&mut self, source: IpAddr) -> (u32, u32) {
        match self.configured.map(|windows| windows[source.is_ipv6() as usize]) {
            Some((first, count)) if count > 0 => (first, count),
            _ => window(self.list, &[words(source)]),
        }
    }
}

/// First and count of `wanted` in the list, to whose end they are added if they are not there side by side.
fn window(list: &mut Vec<[u32; 4]>, wanted: &[[u32; 4]]) -> (u32, u32) {
    if wanted.is_empty() {
        return (0, 0);
    }
    let first = list.windows(wanted.len()).position(|window| window == wanted).unwrap_or_else(|| {
        list.extend_from_slice(wanted);
        list.len() - wanted.len()
    });
    (first as u32, wanted.len() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_stay_where_they_are() {
        let [a, b, c] = [1, 2, 3].map(|last| [last, 0, 0, 0]);
        let mut list = Vec::new();
        assert_eq!(window(&mut list, &[a]), (0, 1));
        assert_eq!(window(&mut list, &[b, c]), (1, 2));
        assert_eq!(window(&mut list, &[c]), (2, 1));
        assert_eq!(window(&mut list, &[a, c]), (3, 2), "not side by side before");
        assert_eq!(window(&mut list, &[a]), (0, 1));
        assert_eq!(window(&mut list, &[]), (0, 0));
        assert_eq!(list, [a, b, c, a, c]);
    }
}
