//! SNAT ports and addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Result, bail};
use lb_common::address::words;
use lb_common::tables::MAX_SNAT_ADDRESSES;

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
    /// Of IPv4 and IPv6.
    configured: [(u32, u32); 2],
    list: &'a mut Vec<[u32; 4]>,
}

impl<'a> SnatAddresses<'a> {
    /// With the addresses of the configuration, if it names some, behind those of `list`.
    pub(super) fn new(config: &Config, list: &'a mut Vec<[u32; 4]>) -> Result<Self> {
        let mut configured = [(0, 0); 2];
        for (v6, place) in [false, true].into_iter().zip(&mut configured) {
            let named = config.datapath.snat_addresses.iter().flatten();
            let of_family: Vec<_> = named.filter(|ip| ip.is_ipv6() == v6).map(|ip| words(*ip)).collect();
            *place = window(list, &of_family)?;
        }
        Ok(Self { configured, list })
    }

    /// First and count of the addresses to use where the route prefers `source`.
    pub(super) fn window(&mut self, source: IpAddr) -> Result<(u32, u32)> {
        match self.configured[source.is_ipv6() as usize] {
            (_, 0) => window(self.list, &[words(source)]),
            configured => Ok(configured),
        }
    }
}

/// First and count of `wanted` in the list, to whose end they are added if they are not there side by side.
fn window(list: &mut Vec<[u32; 4]>, wanted: &[[u32; 4]]) -> Result<(u32, u32)> {
    if wanted.is_empty() {
        return Ok((0, 0));
    }
    let first = match list.windows(wanted.len()).position(|window| window == wanted) {
        Some(first) => first,
        None if list.len() + wanted.len() > MAX_SNAT_ADDRESSES as usize => {
            bail!(
                "more than {MAX_SNAT_ADDRESSES} SNAT addresses, those of earlier configurations included: restart the agent"
            );
        }
        None => {
            list.extend_from_slice(wanted);
            list.len() - wanted.len()
        }
    };
    Ok((first as u32, wanted.len() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_stay_where_they_are() {
        let [a, b, c] = [1, 2, 3].map(|last| [last, 0, 0, 0]);
        let mut list = Vec::new();
        assert_eq!(window(&mut list, &[a]).unwrap(), (0, 1));
        assert_eq!(window(&mut list, &[b, c]).unwrap(), (1, 2));
        assert_eq!(window(&mut list, &[c]).unwrap(), (2, 1));
        assert_eq!(window(&mut list, &[a, c]).unwrap(), (3, 2), "not side by side before");
        assert_eq!(window(&mut list, &[a]).unwrap(), (0, 1));
        assert_eq!(window(&mut list, &[]).unwrap(), (0, 0));
        assert_eq!(list, [a, b, c, a, c]);
        list.resize(MAX_SNAT_ADDRESSES as usize, a);
        assert!(window(&mut list, &[[9, 0, 0, 0]]).is_err());
        assert_eq!(list.len(), MAX_SNAT_ADDRESSES as usize);
    }
}
