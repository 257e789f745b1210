//! Packet loss and reordering on the way to the balancer, without netem.
//!
//! A TC program at the egress of each far end drops some packets and gives some others the priority of a slow HTB
//! class; all others, of no class, overtake them there. Both directions of a connection pass such a far end: the
//! client's packets at the client, the replies at the backend.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::bpf::PinnedProgram;
use crate::netns::Namespace;
use crate::topology::Topology;

/// HTB's class for the late packets: `1:10` as `skb->priority` says it.
const LATE_CLASS: u32 = 0x0001_0010;
/// 0.3 ms for each packet of 1,500 bytes: dozens of others pass it meanwhile.
const LATE_RATE: &str = "40mbit";

/// How many packets meet which fate, in tenths of a per cent.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub dropped_per_mille: u32,
    pub late_per_mille: u32,
}

/// What the faults did so far, over all hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Casualties {
    pub dropped: u64,
    pub late: u64,
    /// Segments that arrived before an earlier one at a host (`TcpExt.TCPOFOQueue`): after losses and reordering.
    pub out_of_order: u64,
    /// Times a sender found that it had not lost, but reordered (`TCPSACKReorder` and `TCPTSReorder`).
    pub reordered: u64,
}

/// Sets the faults up at the egress of every far end; they stay until the topology goes.
pub fn install(topology: &Topology, faults: Faults) -> Result<()> {
    let share = |per_mille: u32| u32::MAX / 1000 * per_mille;
    let program =
        PinnedProgram::faults(share(faults.dropped_per_mille), share(faults.late_per_mille), LATE_CLASS)?;
    for (host, device) in topology.far_ends() {
        let tc = |line: &str| {
            let args: Vec<&str> = line.split(' ').collect();
            host.run("tc", &args).map(drop)
        };
        tc(&format!("qdisc add dev {device} root handle 1: htb"))?;
        tc(&format!("class add dev {device} parent 1: classid 1:10 htb rate {LATE_RATE} burst 1600"))?;
        tc(&format!("qdisc add dev {device} clsact"))?;
        tc(&format!("filter add dev {device} egress bpf direct-action pinned {}", program.path()))?;
    }
    Ok(())
}

/// The counts since the topology was made.
pub fn casualties(topology: &Topology) -> Result<Casualties> {
    let mut sum = Casualties { dropped: 0, late: 0, out_of_order: 0, reordered: 0 };
    for (host, device) in topology.far_ends() {
        let qdiscs = tc_statistics(host, &["qdisc", "show", "dev", device])?;
        let clsact = qdiscs.iter().find(|qdisc| qdisc["kind"] == "clsact").context("no clsact")?;
        sum.dropped += clsact["drops"].as_u64().context("clsact: drops")?;
        // The JSON of iproute2 6.1 has no statistics of classes.
        let classes = host.run("tc", &["-s", "class", "show", "dev", device])?;
        sum.late += packets_sent(&classes).with_context(|| format!("no packet count in: {classes}"))?;
    }
    // The balancer is a receiver too, where the proxy ends the connections.
    for host in topology.hosts() {
        sum.out_of_order += host.counter("TcpExt", "TCPOFOQueue")?;
        sum.reordered +=
            host.counter("TcpExt", "TCPSACKReorder")? + host.counter("TcpExt", "TCPTSReorder")?;
    }
    Ok(sum)
}

fn tc_statistics(host: &Namespace, args: &[&str]) -> Result<Vec<Value>> {
    let text = host.run("tc", &[&["-j", "-s"], args].concat())?;
    serde_json::from_str(&text).with_context(|| format!("tc {args:?}: not the JSON expected: {text}"))
}

/// From " Sent 1514 bytes 1 pkt (dropped 0, overlimits 0 requeues 0)".
fn packets_sent(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Sent "))?;
    line.split(' ').nth(2)?.parse().ok()
}
