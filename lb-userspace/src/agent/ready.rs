//! Whether new connections should come to this node: what a VIP and upstream balancers are steered by.

use anyhow::{Result, bail};

use crate::agent::Agent;

/// What it is judged by.
#[derive(Clone, Copy, Debug)]
struct Standing<'a> {
    /// By the operator.
    drained: bool,
    /// The datapath does not hold what the node's network looks like.
    unfollowed: bool,
    /// How many healthy endpoints there are for each listener.
    listeners: &'a [(&'a str, u64)],
}

impl Agent {
    /// `headgate ready`: an error says why not.
    pub(super) fn ready(&self) -> Result<String> {
        let healthy = |cluster: &str| self.endpoints.counts(cluster).healthy;
        let listeners: Vec<_> = self
            .config
            .listeners
            .iter()
            .map(|of| (of.name.as_str(), of.clusters.iter().map(|cluster| healthy(&cluster.name)).sum()))
            .collect();
        Standing { drained: self.node_drained.is_some(), unfollowed: self.unfollowed, listeners: &listeners }
            .judge()
    }
}

impl Standing<'_> {
    /// One listener that can be served is enough: what the others lack, another node will hardly have. Endpoints that are used
    /// in panic alone do not count, since a node that is cut off from all of them uses them so, too.
    fn judge(self) -> Result<String> {
        if self.drained {
            bail!("not ready: the node is drained");
        }
        if self.unfollowed {
            bail!("not ready: the datapath could not follow a change of the node's network");
        }
        let without: Vec<&str> =
            self.listeners.iter().filter(|(_, healthy)| *healthy == 0).map(|(name, _)| *name).collect();
        if without.len() == self.listeners.len() {
            bail!("not ready: no listener has a healthy endpoint");
        }
        Ok(match without.as_slice() {
            [] => "ready".to_owned(),
            without => format!("ready, but without a healthy endpoint for {}", without.join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(drained: bool, unfollowed: bool, listeners: &[(&str, u64)]) -> Result<String, String> {
        Standing { drained, unfollowed, listeners }.judge().map_err(|error| error.to_string())
    }

    #[test]
    fn one_listener_that_can_be_served_is_enough() {
        assert_eq!(judged(false, false, &[("http", 2), ("https", 1)]), Ok("ready".into()));
        let partly = judged(false, false, &[("http", 0), ("https", 1)]);
        assert_eq!(partly, Ok("ready, but without a healthy endpoint for http".into()));
        let none = judged(false, false, &[("http", 0), ("https", 0)]);
        assert_eq!(none, Err("not ready: no listener has a healthy endpoint".into()));
    }

    #[test]
    fn a_drained_node_and_a_datapath_behind_the_network_are_not_ready() {
        let healthy = [("http", 1)];
        assert_eq!(judged(true, false, &healthy), Err("not ready: the node is drained".into()));
        assert!(judged(false, true, &healthy).unwrap_err().contains("could not follow"));
    }
}
