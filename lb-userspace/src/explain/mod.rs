//! `headgate explain`: what would happen to a packet, and why.
//!
//! The datapath's own decision code ([`lb_common::decide`](fn@lb_common::decide)) runs over the live maps on a TCP
//! segment that is made up. It changes nothing: what the code writes stays in memory. The segment is a SYN, unless
//! there is a flow of that tuple: then it is the next one that the flow waits for.

mod overlay;
mod pinned;
mod segment;
mod story;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use lb_common::{Address, Key, Rung, V4, V6};
use serde::Serialize;

use crate::datapath::kernel::monotonic_now;
use crate::datapath::object::Pins;
use crate::maps::Devices;
use crate::maps::read::PinnedMaps;
use overlay::Source;
use pinned::PinnedSource;
use story::{Question, tell};

/// The packet in question.
#[derive(Args, Clone, Debug)]
pub struct Packet {
    /// Where it comes from: a client, or a backend that answers.
    #[arg(long, value_name = "IP:PORT")]
    pub from: SocketAddr,
    /// Where it goes to.
    #[arg(long, value_name = "IP:PORT")]
    pub to: SocketAddr,
    /// Its protocol.
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp")]
    pub proto: Protocol,
    /// The interface it comes in by; without it the one that the route back leaves by.
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    /// The rung that sees it first; without it the one that is attached to the interface.
    #[arg(long, value_name = "RUNG")]
    pub rung: Option<FirstRung>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A rung of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FirstRung {
    Xdp,
    Tc,
}

/// Names that are not in the maps; `None` where nobody knows.
pub struct Names<'n> {
    /// Of a listener, by its service id.
    pub listener: &'n dyn Fn(u32) -> Option<String>,
    /// Of a cluster, by its index.
    pub cluster: &'n dyn Fn(u32) -> Option<String>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// What happens and why, in order, for people.
    pub steps: Vec<String>,
    /// `forwarded`, `passed`, `answered` (by an ICMP error) or `dropped`.
    pub verdict: &'static str,
    /// Name of the reason, as in `maps dump reasons`.
    pub reason: &'static str,
    /// What kind of packet was imagined.
    pub packet: &'static str,
    /// Interface that it was imagined to come in by.
    pub interface: Option<String>,
    /// Rung that decides.
    pub rung: Option<&'static str>,
    pub service: Option<u32>,
    pub listener: Option<String>,
    pub cluster: Option<u32>,
    /// Present where the packet belongs to a kernel flow, or opens one.
    pub backend: Option<SocketAddr>,
    pub snat: Option<SocketAddr>,
    /// Source and destination that the packet leaves with, and the device it leaves by.
    pub leaves_from: Option<SocketAddr>,
    pub leaves_to: Option<SocketAddr>,
    pub leaves_by: Option<String>,
}

impl Explanation {
    /// For people or, with `json`, for scripts.
    pub fn render(&self, json: bool) -> Result<String> {
        if json {
            return Ok(serde_json::to_string_pretty(self)? + "\n");
        }
        let width = self.steps.len().to_string().len();
        let line = |(at, step): (usize, &String)| format!("{:>width$}. {step}\n", at + 1);
        Ok(self.steps.iter().enumerate().map(line).collect())
    }
}

/// What would happen to `packet` by the maps pinned in `pins`.
pub fn explain(pins: &Pins, packet: &Packet, names: &Names<'_>) -> Result<Explanation> {
    if packet.proto == Protocol::Udp {
        return Ok(udp(packet));
    }
    match (packet.from.ip(), packet.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => explain_tcp(pins, packet, names, V4::from(from), V4::from(to)),
        (IpAddr::V6(from), IpAddr::V6(to)) => explain_tcp(pins, packet, names, V6::from(from), V6::from(to)),
        _ => bail!("--from {} and --to {}: both must be IPv4, or both IPv6", packet.from, packet.to),
    }
}

fn udp(packet: &Packet) -> Explanation {
    let reason = lb_common::Reason::NOT_TCP;
    let step = format!(
        "Headgate forwards TCP only: a UDP packet from {} to {} goes up to the network stack untouched, as if Headgate \
         were not there.",
        packet.from, packet.to
    );
    Explanation {
        steps: vec![step, format!("Verdict: {}, passed.", reason.name())],
        verdict: "passed",
        reason: reason.name(),
        packet: "UDP",
        ..Explanation::default()
    }
}

fn explain_tcp<A>(pins: &Pins, packet: &Packet, names: &Names<'_>, from: A, to: A) -> Result<Explanation>
where
    A: crate::maps::read::Family,
    lb_common::host::HostTables: lb_common::Tables<A>,
{
    let source = PinnedSource::new(PinnedMaps::open(pins)?)?;
    let devices = Devices::new();
    let key = Key::new(from, to, packet.from.port().to_be(), packet.to.port().to_be());
    let ingress = match &packet.interface {
        Some(name) => {
            let index = devices.index(name);
            Some(index.with_context(|| format!("no interface `{name}` in this network namespace"))?)
        }
        None => likely_ingress(&source, &key),
    };
    let links = Links::of(pins);
    let first = match packet.rung {
        Some(FirstRung::Xdp) => Rung::Xdp,
        Some(FirstRung::Tc) => Rung::Tc,
        None if ingress.is_some_and(|index| links.xdp.contains(&index)) => Rung::Xdp,
        None => Rung::Tc,
    };
    let device = |index| devices.name(index);
    let question = Question { key, ingress, first, now: monotonic_now(), device: &device };
    let mut explanation = tell(&source, &question, names);
    source.check()?;
    if let Some(index) = ingress.filter(|index| links.pass_by(*index)) {
        let warning = format!(
            "But: Headgate is not attached to {}. Packets that come in there pass it by; the rest holds for an \
             interface that it is attached to.",
            device(index)
        );
        explanation.steps.insert(0, warning);
    }
    Ok(explanation)
}

/// The interface that such a packet comes in by, if what is sent to its source leaves by the same.
fn likely_ingress<A: Address, S: Source<A>>(source: &S, key: &Key<A>) -> Option<u32> {
    // An answer of a backend comes back the way its flow goes there.
    let reverse = source.flow(key).filter(|flow| !flow.is_forward());
    let forward = reverse.and_then(|reverse| source.flow(&reverse.out.reversed()));
    let hop = match forward {
        Some(forward) => forward.hop.into(),
        None => source.route(key.source)?,
    };
    source.next_hop(hop).map(|hop| hop.ifindex).filter(|index| *index != 0)
}

/// Interfaces that programs are attached to by pinned links.
struct Links {
    xdp: Vec<u32>,
    tc: Vec<u32>,
}

impl Links {
    fn of(pins: &Pins) -> Self {
        let mut links = Self { xdp: Vec::new(), tc: Vec::new() };
        let entries = std::fs::read_dir(pins.links()).into_iter().flatten().flatten();
        for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
            match name.split_once('-').map(|(rung, index)| (rung, index.parse())) {
                Some(("xdp", Ok(index))) => links.xdp.push(index),
                Some(("tc", Ok(index))) => links.tc.push(index),
                _ => {}
            }
        }
        links
    }

    /// Whether there is no program on an interface. Where TC programs are not attached by links (before Linux 6.6),
    /// that is not known.
    fn pass_by(&self, index: u32) -> bool {
        !self.tc.is_empty() && !self.tc.contains(&index) && !self.xdp.contains(&index)
    }
}

#[cfg(test)]
mod tests;
