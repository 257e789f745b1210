//! The endpoints of all clusters, over their whole life: those that new connections go to, and those that have left
//! their cluster but still carry connections. Pure: no clock, no map.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::model::Endpoint;

/// A connection may be on its way to an endpoint for this long after it was taken out of the tables.
const GRACE: Duration = Duration::from_secs(2);

/// Of which cluster an endpoint is. Those that an earlier agent left, and of which only the address is known, have the
/// empty name.
pub type Name = (String, SocketAddr);

/// An endpoint of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub endpoint: Endpoint,
    /// Since when it takes no new connections.
    pub draining: Option<Instant>,
}

/// All endpoints, in the order of cluster and address.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    members: BTreeMap<Name, Member>,
}

impl Endpoints {
    /// Makes `endpoints` those of a cluster that take new connections. Others of it drain from `now` on. Whether that
    /// changed anything.
    pub fn set(&mut self, cluster: &str, endpoints: &[Endpoint], now: Instant) -> bool {
        let mut changed = false;
        for endpoint in endpoints {
            let member = Member { endpoint: endpoint.clone(), draining: None };
            let old = self.members.insert((cluster.to_owned(), endpoint.address), member.clone());
            changed |= old != Some(member);
        }
        for ((_, address), member) in self.members.iter_mut().filter(|((name, _), _)| name == cluster) {
            let wanted = endpoints.iter().any(|endpoint| endpoint.address == *address);
            if !wanted && member.draining.is_none() {
                member.draining = Some(now);
                changed = true;
            }
        }
        changed
    }

    /// Has what clusters other than these have left drain from `now` on: their endpoints, each.
    pub fn keep_clusters(&mut self, clusters: &[&str], now: Instant) -> Vec<Name> {
        let mut left = Vec::new();
        for (name, member) in &mut self.members {
            if !clusters.contains(&name.0.as_str()) && member.draining.is_none() {
                member.draining = Some(now);
                left.push(name.clone());
            }
        }
        left
    }

    /// An earlier agent's: its connections live on.
    pub fn adopt_draining(&mut self, address: SocketAddr, now: Instant) {
        self.members.insert(
            (String::new(), address),
            Member { endpoint: Endpoint::new(address, 1), draining: Some(now) },
        );
    }

    /// Takes out those that have drained: no connection of them is left.
    pub fn take_drained(&mut self, now: Instant, has_flows: impl Fn(&Name) -> bool) -> Vec<Name> {
        let mut drained = Vec::new();
        self.members.retain(|name, member| {
            let over = member.draining.is_some_and(|since| now.saturating_duration_since(since) >= GRACE);
            let gone = over && !has_flows(name);
            if gone {
                drained.push(name.clone());
            }
            !gone
        });
        drained
    }

    /// Every endpoint.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Member)> {
        self.members.iter()
    }

    /// Those of a cluster that take new connections.
    pub fn active<'a>(&'a self, cluster: &str) -> impl Iterator<Item = Endpoint> + 'a {
        self.of(cluster)
            .filter(|(_, member)| member.draining.is_none())
            .map(|(_, member)| member.endpoint.clone())
    }

    /// All of a cluster.
    pub fn of<'a>(&'a self, cluster: &str) -> impl Iterator<Item = (SocketAddr, &'a Member)> + 'a {
        let lowest = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0);
        let cluster = cluster.to_owned();
        self.members
            .range((cluster.clone(), lowest)..)
            .take_while(move |((name, _), _)| *name == cluster)
            .map(|((_, address), member)| (*address, member))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(host: u8) -> Endpoint {
        Endpoint::new(SocketAddr::from(([10, 0, 0, host], 80)), 1)
    }

    fn name(host: u8) -> Name {
        ("a".to_owned(), endpoint(host).address)
    }

    #[test]
    fn one_that_leaves_drains_until_its_connections_have_ended() {
        let start = Instant::now();
        let mut endpoints = Endpoints::default();
        assert!(endpoints.set("a", &[endpoint(1), endpoint(2)], start));
        assert!(endpoints.set("b", &[endpoint(1)], start));
        assert!(!endpoints.set("a", &[endpoint(2), endpoint(1)], start), "the order is no change");
        assert!(endpoints.set("a", &[endpoint(2)], start));
        let active: Vec<_> = endpoints.active("a").collect();
        assert_eq!(active, [endpoint(2)]);
        assert_eq!(endpoints.of("a").count(), 2);

        assert_eq!(endpoints.take_drained(start, |_| false), [], "a SYN may still be on its way");
        assert_eq!(endpoints.take_drained(start + GRACE, |of| *of == name(1)), [], "it has a connection");
        assert_eq!(endpoints.take_drained(start + GRACE, |_| false), [name(1)]);
        assert_eq!(endpoints.of("a").count(), 1);
        assert_eq!(endpoints.active("b").count(), 1, "the other cluster has it still");
    }

    #[test]
    fn one_that_comes_back_drains_no_more() {
        let start = Instant::now();
        let mut endpoints = Endpoints::default();
        endpoints.set("a", &[endpoint(1)], start);
        endpoints.set("a", &[], start);
        assert!(endpoints.set("a", &[endpoint(1)], start));
        assert_eq!(endpoints.take_drained(start + GRACE, |_| false), []);
        assert_eq!(endpoints.active("a").count(), 1);
    }

    #[test]
    fn a_removed_cluster_drains_wholly() {
        let start = Instant::now();
        let mut endpoints = Endpoints::default();
        endpoints.set("a", &[endpoint(1)], start);
        endpoints.set("b", &[endpoint(2)], start);
        assert_eq!(endpoints.keep_clusters(&["b"], start), [name(1)]);
        assert_eq!(endpoints.active("a").count(), 0);
        assert_eq!(endpoints.active("b").count(), 1);
        assert_eq!(endpoints.keep_clusters(&["b"], start), []);
    }
}
