//! What the agent knows of the node's network: links, addresses, routes and neighbours, through netlink.
//!
//! [`snapshot`](fn@snapshot) reads the picture, [`watch`](fn@watch) says when it is out of date, and everything
//! in between is a pure function of a [`Snapshot`]. [`route_to`] and [`resolve`] ask the kernel about one
//! destination and one next hop, [`probe`] has it ask a next hop again, [`translated`](fn@translated) tries one
//! address; [`xdp_features`], [`rx_vlan_offload`] and [`driver`] ask about one device. [`findings`] says what
//! stands in the way on this node.
//!
//! Everything here belongs to the network namespace of the calling thread: a netlink socket, an ioctl and
//! `/proc/sys/net` all follow it. Links are named by their index, which outlives a change of name, except where
//! the kernel wants the name. Prefix lengths are in bits, MTUs in bytes without the link header.
//! Errors say what was being asked of the kernel and carry its [`std::io::Error`] as the source.
//!
//! Kernel interfaces: rtnetlink(7), sock_diag(7), netlink(7), `Documentation/netlink/specs/` in the kernel's source.

mod conntrack;
mod decode;
mod dump;
mod ethtool;
mod host;
mod neighbour;
mod netlink;
mod ports;
mod reset;
mod route;
mod snapshot;
mod sock_diag;
mod translated;
mod watch;
mod xdp;

#[cfg(test)]
mod namespace_tests;

pub use dump::{neighbours, snapshot};
pub use ethtool::{driver, rx_vlan_offload};
pub use host::{Finding, findings, host_name};
pub use neighbour::{Resolution, probe, resolve, unmanage};
pub use ports::{local_port_range, reserved_ports};
pub use reset::{Reset, Resets};
pub use route::{Path, RouteTo, Router, Unreachable, route_to};
pub use snapshot::{Address, Link, Neighbour, NeighbourState, Route, Snapshot, Vlan};
pub use translated::{Translation, translated};
pub use watch::{Changes, Watch, watch};
pub use xdp::{XdpFeatures, xdp_features};
