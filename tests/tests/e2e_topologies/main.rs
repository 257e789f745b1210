//! Places where a balancer may stand: pods and bridges on its own node, tunnels, several links or one, wide frames,
//! and what only the node's stack can reach. In each, requests and a transfer both ways, counted on the rung that
//! should carry them.
//!
//! The node as a client is in `e2e_lifecycle`, links narrower than both ends believe in `e2e_bulk`, path MTU
//! discovery in `e2e_path_mtu`, VLANs in `e2e_vlan`.
#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod jumbo;
mod links;
mod local;
mod on_node;
mod tunnels;
