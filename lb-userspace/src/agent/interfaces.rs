//! Which interfaces carry traffic, and by which rung: the fastest one that each of them can have.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use lb_common::Rung;

use crate::datapath::attach;
use crate::datapath::kernel::Kernel;
use crate::datapath::object::{Pins, Rejected, TC_L3_PROGRAM, XDP_FRAGS_PROGRAM, XDP_PROGRAM};
use crate::model::{Config, Mode};
use crate::net::{self, Link, RouteTo, Snapshot};

/// Kinds of devices that exist in software alone: no driver receives for them, so that XDP has nowhere to run before
/// there is an skb. Bonds and veths, which are software too, have native XDP.
const SOFTWARE: [&str; 10] =
    ["bridge", "vlan", "vxlan", "geneve", "macvlan", "ipvlan", "gre", "gretap", "dummy", "openvswitch"];

/// An interface, and what carries its packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// `None`: the proxy alone.
    pub rung: Option<Rung>,
    /// Why not a faster one, or that this is the fastest.
    pub why: String,
    /// The MTU that the rung was chosen for.
    mtu: u32,
}

/// The interfaces with our programs on them, or that should have them.
pub struct Interfaces {
    list: Vec<Interface>,
    mode: Mode,
}

impl Interfaces {
    /// None yet.
    pub fn new(mode: Mode) -> Self {
        Self { list: Vec::new(), mode }
    }

    /// What there is.
    pub fn list(&self) -> &[Interface] {
        &self.list
    }

    /// Another mode from the next [`attach`](Self::attach) on.
    pub fn set_mode(&mut self, mode: Mode) {
        if self.mode != mode {
            self.mode = mode;
            self.list.clear();
        }
    }

    /// Some are to be attached to anew by the next [`attach`](Self::attach).
    pub fn forget(&mut self, indices: &[u32]) {
        self.list.retain(|interface| !indices.contains(&interface.index));
    }

    /// Attaches to the interfaces that are to carry traffic and leaves those that are not. With a forced mode, an
    /// interface that cannot have it is an error.
    pub async fn attach(
        &mut self,
        kernel: &mut Kernel,
        pins: &Pins,
        config: &Config,
        network: &Snapshot,
        paths: &HashMap<IpAddr, RouteTo>,
    ) -> Result<()> {
        let named = config.datapath.interfaces.as_ref();
        let wanted: Vec<Link> = match named {
            Some(names) => names.iter().filter_map(|name| network.link_by_name(name)).cloned().collect(),
            None => automatic(network, paths, &attach::attached(pins)),
        };
        let known = std::mem::take(&mut self.list);
        let mut failure = None;
        for link in wanted {
            let before = known.iter().find(|interface| interface.index == link.index);
            // One without a kernel rung is tried again: what stood in the way may have gone.
            if let Some(before) = before
                && before.rung.is_some()
                && before.mtu == link.mtu
            {
                self.list.push(Interface { name: link.name.clone(), ..before.clone() });
                continue;
            }
            let attached = attach_one(self.mode, kernel, pins, &link, named.is_some()).await;
            let (rung, why) = match attached {
                Ok((rung, why)) => (Some(rung), why),
                // One interface without a kernel rung costs the others nothing.
                Err(error) if self.mode == Mode::Auto => (None, format!("{error:#}")),
                Err(error) => {
                    failure = Some(error);
                    continue;
                }
            };
            let interface =
                Interface { index: link.index, name: link.name.clone(), rung, why, mtu: link.mtu };
            if before.is_none_or(|before| (before.rung, &before.why) != (rung, &interface.why)) {
                log::info!("{}: {} ({})", link.name, rung_name(rung), interface.why);
            }
            self.list.push(interface);
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        // Last: as long as something can fail, nothing is taken away.
        for index in attach::attached(pins) {
            if !self.list.iter().any(|interface| interface.index == index) {
                let name = network.link_by_index(index).map(|link| link.name.as_str());
                attach::detach(pins, index, name)?;
                log::info!("{}: not in use any more", name.unwrap_or("an interface that is gone"));
            }
        }
        Ok(())
    }
}

/// The name of a rung, or of the one that is left.
pub fn rung_name(rung: Option<Rung>) -> &'static str {
    rung.map_or("proxy", Rung::name)
}

/// Those with addresses or routes, and those by which a backend is reached. One that has the programs keeps them, be it
/// without an address or down: its flows wait for it to come back.
fn automatic(network: &Snapshot, paths: &HashMap<IpAddr, RouteTo>, attached: &[u32]) -> Vec<Link> {
    let mut links: Vec<Link> = network.candidate_interfaces().into_iter().cloned().collect();
    for path in paths.values() {
        if let RouteTo::Via(path) = path
            && let Some(link) = network.link_by_index(path.link)
            && !links.iter().any(|other| other.index == link.index)
        {
            links.push(link.clone());
        }
    }
    for link in attached.iter().filter_map(|&index| network.link_by_index(index)) {
        if link.master.is_none() && !links.iter().any(|other| other.index == link.index) {
            links.push(link.clone());
        }
    }
    links
}

/// Puts the programs on one interface. `named`: the configuration names it.
async fn attach_one(
    mode: Mode,
    kernel: &mut Kernel,
    pins: &Pins,
    link: &Link,
    named: bool,
) -> Result<(Rung, String)> {
    if !link.ethernet
        && let Some(Rejected { why, .. }) = kernel.rejected(TC_L3_PROGRAM)
    {
        bail!("no Ethernet device, and the kernel does not take the program for such ones: {why}");
    }
    let tc_reason = match mode {
        Mode::Tc => Some("datapath.mode is tc".to_owned()),
        Mode::Xdp if named => None,
        Mode::Xdp => match software_kind(link) {
            None => local_sender(link).await,
            found => found,
        },
        Mode::Auto | Mode::Proxy => match kernel.rejected(XDP_PROGRAM) {
            Some(_) => Some("the kernel does not take the XDP program, see the log".to_owned()),
            None => slow_kind(link).await,
        },
    };
    let had_programs = attach::attached(pins).contains(&link.index);
    // Beneath XDP as well: it takes what XDP cannot send.
    attach::attach_tc(&mut kernel.ebpf, pins, link)
        .with_context(|| format!("attaching the TC program to {}", link.name))?;
    if let Some(why) = tc_reason {
        attach::detach_xdp(pins, link.index)?;
        return Ok((Rung::Tc, why));
    }
    match attach_xdp(kernel, pins, link) {
        Ok(why) => Ok((Rung::Xdp, why)),
        Err(error) if mode == Mode::Xdp => {
            if !had_programs {
                let _ = attach::detach(pins, link.index, Some(&link.name));
            }
            Err(error).with_context(|| {
                format!(
                    "datapath.mode is xdp, but {} takes no native XDP program (`mode: auto` would use tc there)",
                    link.name
                )
            })
        }
        Err(error) => Ok((Rung::Tc, format!("no native XDP: {error:#}"))),
    }
}

/// The plain program where it fits, else the one for frames of several buffers.
fn attach_xdp(kernel: &mut Kernel, pins: &Pins, link: &Link) -> Result<String> {
    if let Some(Rejected { why, .. }) = kernel.rejected(XDP_PROGRAM) {
        bail!("the kernel does not take the program: {why}");
    }
    let plain = match attach::attach_xdp(&mut kernel.ebpf, pins, link, XDP_PROGRAM) {
        Ok(()) => return Ok("native XDP".into()),
        Err(error) => error,
    };
    if kernel.rejected(XDP_FRAGS_PROGRAM).is_some() {
        return Err(plain).with_context(|| {
            format!("its MTU is {}, and this kernel has no XDP for larger frames (5.18 has)", link.mtu)
        });
    }
    match attach::attach_xdp(&mut kernel.ebpf, pins, link, XDP_FRAGS_PROGRAM) {
        Ok(()) => Ok(format!("native XDP, with frames of several buffers for an MTU of {}", link.mtu)),
        // The plain program's is the one to mend.
        Err(_) => Err(plain),
    }
}

/// That a device exists in software alone, if it does.
fn software_kind(link: &Link) -> Option<String> {
    if !link.ethernet {
        return Some("a device without an Ethernet header has no native XDP".into());
    }
    let kind = link.kind.as_deref().filter(|kind| SOFTWARE.contains(kind))?;
    Some(format!("a {kind} device exists in software alone and has no native XDP"))
}

/// That the far end of a veth is a local sender, as a pod is: without an XDP program there it takes no frames that XDP
/// sends, and it leaves checksums unfinished, a mark that XDP loses.
async fn local_sender(link: &Link) -> Option<String> {
    if link.kind.as_deref() != Some("veth") {
        return None;
    }
    match net::xdp_features(link.index).await {
        Ok(Some(features)) if !features.ndo_xmit => {
            Some("a veth whose far end has no XDP program: it takes no frames from XDP, and sends unfinished checksums".into())
        }
        _ => None,
    }
}

/// Why TC is better on a link than XDP, if it is.
async fn slow_kind(link: &Link) -> Option<String> {
    if let Some(why) = software_kind(link) {
        return Some(why);
    }
    if let Some(kind @ ("veth" | "bond")) = link.kind.as_deref() {
        return Some(format!("a {kind} device: packets are skbs here, which TC handles faster"));
    }
    match net::xdp_features(link.index).await {
        Ok(Some(features)) if !features.basic => {
            return Some(match net::driver(&link.name) {
                Ok(Some(driver)) => format!("the driver {driver} has no native XDP"),
                _ => "the driver has no native XDP".into(),
            });
        }
        _ => {}
    }
    match net::rx_vlan_offload(&link.name) {
        Ok(true) => Some(format!(
            "VLAN tags are taken off before XDP sees them; `ethtool -K {} rxvlan off` allows XDP",
            link.name
        )),
        _ => None,
    }
}
