//! What the node's settings do to the balancer, in words for people.
//!
//! Only what can really hurt: forwarding, for one, may be as it likes. Settings are read from `/proc/sys`
//! (`Documentation/networking/ip-sysctl.rst`, `Documentation/admin-guide/sysctl/net.rst`); one that cannot be
//! read is one that this kernel or this network namespace does not have.

use std::fmt;
use std::fs;

use serde::Serialize;

use super::ethtool;
use super::snapshot::Link;

/// How full connection tracking may be, in percent, before it is worth a word.
const CONNTRACK_FULL: u64 = 90;

/// Something about the node that slows the balancer down or loses its packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The device it is about; `None` for the node as a whole.
    pub interface: Option<String>,
    /// What is so, and what comes of it.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(interface) = &self.interface {
            write!(f, "{interface}: ")?;
        }
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// Looks at the settings of the calling thread's network namespace and of these links, which are those that
/// packets of clients and backends come in by.
pub fn findings(links: &[Link]) -> Vec<Finding> {
    judge(&Node::read(), &links.iter().map(Device::read).collect::<Vec<_>>())
}

/// Settings of the node, as far as they are there.
#[derive(Default)]
struct Node {
    /// `net.ipv4.conf.all.rp_filter`: the greater of this and the device's counts.
    rp_filter: Option<u64>,
    /// `net.core.bpf_jit_enable`, in the first network namespace alone.
    bpf_jit: Option<u64>,
    /// `net.ipv4.nexthop_compat_mode`, from Linux 5.9.
    nexthop_compat: Option<u64>,
    conntrack_count: Option<u64>,
    conntrack_max: Option<u64>,
}

impl Node {
    fn read() -> Self {
        Self {
            rp_filter: setting("ipv4/conf/all/rp_filter"),
            bpf_jit: setting("core/bpf_jit_enable"),
            nexthop_compat: setting("ipv4/nexthop_compat_mode"),
            conntrack_count: setting("netfilter/nf_conntrack_count"),
            conntrack_max: setting("netfilter/nf_conntrack_max"),
        }
    }
}

/// Settings of a link.
struct Device<'a> {
    link: &'a Link,
    rp_filter: Option<u64>,
    large_receive: bool,
}

impl<'a> Device<'a> {
    fn read(link: &'a Link) -> Self {
        Self {
            link,
            rp_filter: setting(&format!("ipv4/conf/{}/rp_filter", link.name)),
            // A link that has gone since it was listed has no offloads either.
            large_receive: ethtool::large_receive_offload(&link.name).unwrap_or(false),
        }
    }
}

/// A number below `/proc/sys/net`.
fn setting(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?.trim().parse().ok()
}

fn judge(node: &Node, devices: &[Device<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(interpreted_programs(node));
    findings.extend(hidden_next_hops(node));
    findings.extend(full_conntrack(node));
    // With one way in, the way back is the same.
    if devices.len() > 1 {
        findings.extend(devices.iter().filter_map(|device| strict_reverse_path(node, device)));
    }
    for device in devices {
        findings.extend(large_receive(device));
    }
    findings
}

fn interpreted_programs(node: &Node) -> Option<Finding> {
    (node.bpf_jit == Some(0)).then(|| Finding {
        interface: None,
        what: "BPF programs are interpreted, not compiled: the kernel rungs are several times slower".into(),
        remedy: "sysctl -w net.core.bpf_jit_enable=1, then restart headgate".into(),
    })
}

fn hidden_next_hops(node: &Node) -> Option<Finding> {
    (node.nexthop_compat == Some(0)).then(|| Finding {
        interface: None,
        what:
            "routes that name a next hop object do not show where they lead: replies to clients behind them \
               take a less specific route, or without one the proxy serves these clients"
                .into(),
        remedy: "sysctl -w net.ipv4.nexthop_compat_mode=1".into(),
    })
}

fn full_conntrack(node: &Node) -> Option<Finding> {
    let (count, max) = (node.conntrack_count?, node.conntrack_max?);
    // 0 is no limit.
    (max > 0 && count * 100 >= max * CONNTRACK_FULL).then(|| Finding {
        interface: None,
        what: format!(
            "connection tracking holds {count} of {max} entries; when it is full the kernel drops new \
             connections of the proxy and of the node itself (the kernel rungs do not use it)"
        ),
        remedy: format!("sysctl -w net.netfilter.nf_conntrack_max={}", max * 2),
    })
}

fn strict_reverse_path(node: &Node, device: &Device<'_>) -> Option<Finding> {
    let value = node.rp_filter.unwrap_or(0).max(device.rp_filter?);
    let name = &device.link.name;
    (value == 1 && !device.link.loopback).then(|| Finding {
        interface: Some(name.clone()),
        what: "rp_filter is strict: IPv4 packets for the proxy or the node itself are dropped here if the \
               route back to their source leaves by another interface (the kernel rungs are not affected)"
            .into(),
        // The greater of the two values counts, and 2 is loose.
        remedy: format!(
            "if routes are asymmetric: sysctl -w net.ipv4.conf.{}.rp_filter=2",
            sysctl_name(name)
        ),
    })
}

fn large_receive(device: &Device<'_>) -> Option<Finding> {
    let name = &device.link.name;
    device.large_receive.then(|| Finding {
        interface: Some(name.clone()),
        what: "large receive offload merges segments into packets that cannot be sent on: bulk transfers \
               through the tc rung stall"
            .into(),
        remedy: format!("ethtool -K {name} lro off"),
    })
}

/// sysctl(8) takes the dots of a VLAN's name for separators, unless they are slashes.
fn sysctl_name(link: &str) -> String {
    link.replace('.', "/")
}

/// The node's name, as uname(2) has it.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: Option<&str>, mtu: u32) -> Link {
        Link {
            index: 2,
            name: name.to_owned(),
            mac: Some([2, 0, 0, 0, 0, 2]),
            mtu,
            up: true,
            ethernet: true,
            loopback: false,
            kind: kind.map(str::to_owned),
            vlan: None,
            master: None,
            peer: None,
        }
    }

    fn device(link: &Link, rp_filter: u64) -> Device<'_> {
        Device { link, rp_filter: Some(rp_filter), large_receive: false }
    }

    fn about(findings: &[Finding]) -> Vec<(Option<&str>, &str)> {
        findings.iter().map(|finding| (finding.interface.as_deref(), finding.remedy.as_str())).collect()
    }

    #[test]
    fn a_usual_node_has_no_findings() {
        let (eth0, eth1) = (link("eth0", None, 1500), link("eth1", None, 1500));
        let node = Node {
            rp_filter: Some(0),
            bpf_jit: Some(1),
            nexthop_compat: Some(1),
            conntrack_count: Some(100),
            conntrack_max: Some(262_144),
        };
        assert_eq!(judge(&node, &[device(&eth0, 0), device(&eth1, 2)]), []);
        assert_eq!(judge(&Node::default(), &[device(&eth0, 0)]), []);
    }

    #[test]
    fn the_greater_rp_filter_counts_and_only_with_two_ways_in() {
        let (eth0, vlan) = (link("eth0", None, 1500), link("eth0.7", Some("vlan"), 1500));
        let strict = Node { rp_filter: Some(1), ..Node::default() };
        assert_eq!(judge(&strict, &[device(&eth0, 1)]), []);
        let found = judge(&strict, &[device(&eth0, 2), device(&vlan, 0)]);
        assert_eq!(
            about(&found),
            [(Some("eth0.7"), "if routes are asymmetric: sysctl -w net.ipv4.conf.eth0/7.rp_filter=2")]
        );
        let loose = Node { rp_filter: Some(2), ..Node::default() };
        assert_eq!(judge(&loose, &[device(&eth0, 1), device(&vlan, 1)]), []);
    }

    #[test]
    fn large_receive_offload_is_found() {
        let eth0 = link("eth0", None, 1500);
        let found = judge(&Node::default(), &[Device { large_receive: true, ..device(&eth0, 0) }]);
        assert_eq!(about(&found), [(Some("eth0"), "ethtool -K eth0 lro off")]);
    }

    #[test]
    fn settings_of_the_node() {
        let node = Node {
            bpf_jit: Some(0),
            nexthop_compat: Some(0),
            conntrack_count: Some(90),
            conntrack_max: Some(100),
            ..Node::default()
        };
        assert_eq!(
            about(&judge(&node, &[])),
            [
                (None, "sysctl -w net.core.bpf_jit_enable=1, then restart headgate"),
                (None, "sysctl -w net.ipv4.nexthop_compat_mode=1"),
                (None, "sysctl -w net.netfilter.nf_conntrack_max=200"),
            ]
        );
        assert_eq!(full_conntrack(&Node { conntrack_count: Some(89), ..node }), None);
    }
}
