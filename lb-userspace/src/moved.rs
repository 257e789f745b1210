//! Routes to clients that have moved under open flows.
//!
//! A flow holds the next hop of the route that led to its client when it was opened. Where that route changes, so does
//! the next hop, and the flow follows. But a route may also go, so that a less specific one takes its clients, or a
//! more specific one may come and take some; and where clients are neighbours on a link, the MAC addresses that flows
//! have learned are of no use on another one. Then the next hop is marked: the programs look the route of each of its
//! packets up again and go by no learned address, for as long as a flow is left that needs it. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::tables::hop;

use crate::datapath::contents::Contents;

/// A SYN that has just looked its route up may become a flow for this long, nanoseconds.
const GRACE: u64 = 2_000_000_000;

/// Next hops by which some clients may not be reached any more.
#[derive(Debug, Default)]
pub struct MovedRoutes {
    since: BTreeMap<u32, u64>,
}

impl MovedRoutes {
    /// The marked next hops, and since when, in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn hops(&self) -> &BTreeMap<u32, u64> {
        &self.since
    }

    /// A next hop that an earlier agent has marked.
    pub fn adopt(&mut self, hop: u32, now: u64) {
        self.since.insert(hop, now);
    }

    /// Marks in `new`, which is to replace `old`, the next hops whose clients go another way from now on. Those whose route
    /// is gone are still in `new` as long as a flow refers to them.
    pub fn mark(&mut self, old: &Contents, new: &mut Contents, now: u64) {
        let (before, after) = (routes(old), routes(new));
        for (prefix, hop) in &before {
            if !after.contains_key(prefix) || has_left_its_link(old, new, *hop) {
                self.since.insert(*hop, now);
            }
        }
        for prefix in after.keys().filter(|prefix| !before.contains_key(prefix)) {
            // The next wider one had its clients so far.
            let covering = before.iter().filter(|(wider, _)| wider.contains(prefix));
            if let Some((_, hop)) = covering.max_by_key(|(wider, _)| wider.prefix_len()) {
                self.since.insert(*hop, now);
            }
        }
        for index in self.since.keys() {
            if let Some(hop) = new.hops.get_mut(index) {
                hop.flags |= hop::RELOOKUP;
            }
        }
    }

    /// Forgets what no flow needs any more: `astray` tells whether a flow of a next hop leaves by another one, or has learned
    /// an address on another link. Whether anything was forgotten.
    pub fn settle(&mut self, now: u64, astray: impl Fn(u32) -> bool) -> bool {
        let before = self.since.len();
        self.since.retain(|&hop, since| now.saturating_sub(*since) < GRACE || astray(hop));
        self.since.len() != before
    }
}

/// Whether clients that were neighbours on one link are now reached by another, or by a gateway.
fn has_left_its_link(old: &Contents, new: &Contents, hop: u32) -> bool {
    match (old.hops.get(&hop), new.hops.get(&hop)) {
        (Some(old), Some(new)) => {
            old.flags & hop::ON_LINK != 0 && (old.device != new.device || new.flags & hop::ON_LINK == 0)
        }
        _ => false,
    }
}

/// All routes to clients.
fn routes(contents: &Contents) -> BTreeMap<IpNet, u32> {
    let v4 = contents.routes4.iter().filter_map(|((address, bits), hop)| {
        let IpAddr::V4(address) = IpAddr::from(*address) else { return None };
        Some((Ipv4Net::new(address, *bits).ok()?.into(), *hop))
    });
    let v6 = contents.routes6.iter().filter_map(|((address, bits), hop)| {
        let IpAddr::V6(address) = IpAddr::from(*address) else { return None };
        Some((Ipv6Net::new(address, *bits).ok()?.into(), *hop))
    });
    v4.chain(v6).collect()
}

/// The next hop to a client: of the routes in `contents` the most specific one.
pub fn route_to_client(contents: &Contents) -> impl Fn(IpAddr) -> Option<u32> + use<> {
    let routes: HashMap<IpNet, u32> = routes(contents).into_iter().collect();
    // The longest first, of either family: a client is asked for by each length that there is.
    let lengths = |v6: bool| -> Vec<u8> {
        let of_family = routes.keys().filter(|prefix| matches!(prefix, IpNet::V6(_)) == v6);
        of_family.map(IpNet::prefix_len).collect::<BTreeSet<_>>().into_iter().rev().collect()
    };
    let lengths = [lengths(false), lengths(true)];
    move |client| {
        lengths[client.is_ipv6() as usize].iter().find_map(|&length| {
            let prefix = IpNet::new(client, length).ok()?.trunc();
            routes.get(&prefix).copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::V4;
    use lb_common::parse::Tags;
    use lb_common::tables::NextHop;

    fn contents(routes: &[(&str, u32)]) -> Contents {
        let mut contents = Contents::default();
        for (prefix, index) in routes {
            let prefix: Ipv4Net = prefix.parse().unwrap();
            contents.routes4.insert((V4::from(prefix.network()), prefix.prefix_len()), *index);
            let entry = NextHop {
                ifindex: *index,
                device: *index,
                mtu: 1500,
                flags: hop::USED,
                mac: [0; 6],
                source_mac: [0; 6],
                tags: Tags::default(),
                epoch: 0,
                confirmed: 0,
                zero: [0; 2],
            };
            contents.hops.insert(*index, entry);
        }
        contents
    }

    fn marked(contents: &Contents) -> Vec<u32> {
        let marked = contents.hops.iter().filter(|(_, hop)| hop.flags & hop::RELOOKUP != 0);
        marked.map(|(index, _)| *index).collect()
    }

    #[test]
    fn a_more_specific_route_marks_the_next_wider_one_until_its_flows_have_ended() {
        let start = 1_000;
        let old = contents(&[("0.0.0.0/0", 1), ("10.0.0.0/8", 2), ("192.168.0.0/16", 3)]);
        let mut new =
            contents(&[("0.0.0.0/0", 1), ("10.0.0.0/8", 2), ("192.168.0.0/16", 3), ("10.1.0.0/16", 4)]);
        let mut moved = MovedRoutes::default();
        moved.mark(&old, &mut new, start);
        assert_eq!(marked(&new), [2]);
        assert!(!moved.settle(start + GRACE, |hop| hop == 2), "a flow goes by the new route");
        assert!(!moved.settle(start, |_| false), "one may still come");
        assert!(moved.settle(start + GRACE, |_| false));
        let mut next =
            contents(&[("0.0.0.0/0", 1), ("10.0.0.0/8", 2), ("192.168.0.0/16", 3), ("10.1.0.0/16", 4)]);
        moved.mark(&new, &mut next, start);
        assert!(marked(&next).is_empty());
    }

    #[test]
    fn a_route_that_is_gone_marks_its_next_hop() {
        let start = 1_000;
        let old = contents(&[("0.0.0.0/0", 1), ("10.0.0.0/8", 2)]);
        let without = || {
            let mut contents = contents(&[("0.0.0.0/0", 1), ("10.0.0.0/8", 2)]);
            contents.routes4.retain(|_, hop| *hop != 2);
            contents
        };
        let mut new = without();
        let mut moved = MovedRoutes::default();
        moved.mark(&old, &mut new, start);
        assert_eq!(marked(&new), [2]);
        // Also over the next changes.
        let mut next = without();
        moved.mark(&new, &mut next, start);
        assert_eq!(marked(&next), [2]);
        assert!(moved.settle(start + GRACE, |_| false));
        let mut last = without();
        moved.mark(&next, &mut last, start);
        assert!(marked(&last).is_empty());
    }

    #[test]
    fn neighbours_on_another_link_mark_their_next_hop() {
        let old_and_new = |flags| {
            let mut old = contents(&[("10.0.0.0/8", 2)]);
            let mut new = old.clone();
            old.hops.get_mut(&2).unwrap().flags |= flags;
            new.hops.get_mut(&2).unwrap().device = 9;
            (old, new)
        };
        let (old, mut new) = old_and_new(hop::ON_LINK);
        new.hops.get_mut(&2).unwrap().device = 2;
        let mut moved = MovedRoutes::default();
        moved.mark(&old, &mut new, 7);
        assert_eq!(marked(&new), [2], "by a gateway on the same link");
        let (old, mut new) = old_and_new(hop::ON_LINK);
        new.hops.get_mut(&2).unwrap().flags |= hop::ON_LINK;
        let mut moved = MovedRoutes::default();
        moved.mark(&old, &mut new, 7);
        assert_eq!(marked(&new), [2]);
        assert_eq!(moved.hops()[&2], 7);
        // A gateway's address is the next hop's own.
        let (old, mut new) = old_and_new(0);
        MovedRoutes::default().mark(&old, &mut new, 7);
        assert!(marked(&new).is_empty());
    }

    #[test]
    fn the_most_specific_route_leads_to_a_client() {
        let route = route_to_client(&contents(&[("0.0.0.0/0", 1), ("10.0.0.0/8", 2)]));
        assert_eq!(route("10.1.2.3".parse().unwrap()), Some(2));
        assert_eq!(route("11.1.2.3".parse().unwrap()), Some(1));
        assert_eq!(route("::1".parse().unwrap()), None);
    }
}
