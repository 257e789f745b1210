//! One picture of the node's network: pure data and what follows from it, no I/O.

use std::net::IpAddr;

use ipnet::IpNet;

/// Where kube-proxy in IPVS mode keeps every ClusterIP (`DefaultDummyDevice` in its sources).
const IPVS_DEVICE: &str = "kube-ipvs0";

/// The links, addresses, routes and neighbours of one network namespace.
///
/// The four lists are read one after the other; whoever watches for changes reads again after one, and so
/// ends with lists that fit together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    /// Unicast routes of the main table. Policy routing may choose others: ask [`route_to`](super::route_to).
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// The hardware address, where it is six bytes long.
    pub mac: Option<[u8; 6]>,
    /// Bytes above the link header.
    pub mtu: u32,
    /// Switched on (`IFF_UP`); says nothing about a carrier.
    pub up: bool,
    /// Frames begin with an Ethernet header (`ARPHRD_ETHER`); false for tun, WireGuard, IPIP.
    pub ethernet: bool,
    pub loopback: bool,
    /// What made it: `veth`, `bridge`, `vlan`, `bond`, `tun`, `dummy`; `None` for hardware.
    pub kind: Option<String>,
    /// Present on a device of kind `vlan`.
    pub vlan: Option<Vlan>,
    /// The bridge, bond or VRF it belongs to.
    pub master: Option<u32>,
    /// The other end of a veth pair, if that is in this namespace.
    pub peer: Option<u32>,
}

/// The tag that a VLAN device puts on the frames of its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// The link below; `None` if that is in another namespace.
    pub parent: Option<u32>,
    pub id: u16,
    /// EtherType of the tag: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub protocol: u16,
}

/// An address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub link: u32,
    pub address: IpAddr,
    pub prefix_len: u8,
    /// Not usable (yet): duplicate address detection runs or has failed (RFC 4862 section 5.4).
    pub tentative: bool,
    /// Past its preferred lifetime: still accepted, not to be used as the source of new connections.
    pub deprecated: bool,
    /// IPv6 privacy address that will be replaced (RFC 8981).
    pub temporary: bool,
    /// IPv4 address in the subnet of an earlier one on the same link.
    pub secondary: bool,
}

/// A unicast route of the main table that has a live next hop.
///
/// Of several next hops (ECMP) the first live one stands for the route: which of them a flow takes is the
/// kernel's choice, that [`route_to`](super::route_to) asks for. A next hop is dead if its link is down, or
/// has no carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// `0.0.0.0/0` or `::/0` for the default route.
    pub destination: IpNet,
    /// Of the other family where IPv4 goes over an IPv6 next hop (RFC 5549).
    pub gateway: Option<IpAddr>,
    pub link: u32,
    pub preferred_source: Option<IpAddr>,
    /// Less is preferred.
    pub metric: u32,
    /// Path MTU in bytes, where the route sets one.
    pub mtu: Option<u32>,
}

/// An entry of the ARP or neighbour discovery cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub link: u32,
    pub address: IpAddr,
    /// Present while the kernel would send to it.
    pub mac: Option<[u8; 6]>,
    pub state: NeighbourState,
    /// The kernel keeps it resolved without traffic (`NTF_EXT_MANAGED`).
    pub managed: bool,
    /// Asked for by [`resolve`](super::resolve), of this agent or an earlier one.
    pub ours: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// No answer yet.
    Unresolved,
    /// Did not answer.
    Failed,
    /// Answered; possibly a while ago.
    Resolved,
    /// Set by an administrator or a control plane, or on a link that resolves nothing.
    Fixed,
}

impl Snapshot {
    pub fn link_by_name(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    pub fn link_by_index(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    pub fn neighbour(&self, link: u32, address: IpAddr) -> Option<&Neighbour> {
        self.neighbours.iter().find(|neighbour| neighbour.link == link && neighbour.address == address)
    }

    /// Whether the node itself answers to that address. Prefixes that a route makes local are not known here.
    pub fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.iter().any(|candidate| candidate.address == address)
    }

    /// Whether the address is a ClusterIP of kube-proxy in IPVS mode, which puts them all on one dummy device.
    /// It is a local address for [`route_to`](super::route_to), but no service of this node.
    pub fn is_cluster_ip(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|candidate| {
            candidate.address == address
                && self.link_by_index(candidate.link).is_some_and(|link| link.name == IPVS_DEVICE)
        })
    }

    /// What a wildcard listener of one family means: every usable address of the node, each once, except
    /// loopback and link-local ones and those of `kube-ipvs0`, where kube-proxy puts every ClusterIP.
    pub fn serving_addresses(&self, v6: bool) -> Vec<IpAddr> {
        let mut serving = Vec::new();
        for address in &self.addresses {
            // The kernel takes the local routes of a link away with IFF_UP.
            let link_serves =
                self.link_by_index(address.link).is_some_and(|link| link.up && link.name != IPVS_DEVICE);
            if link_serves
                && address.address.is_ipv6() == v6
                && !address.tentative
                && !address.address.is_loopback()
                && !is_link_local(address.address)
                && !serving.contains(&address.address)
            {
                serving.push(address.address);
            }
        }
        serving
    }

    /// The links for `interfaces: auto`: those by which a client or a reply may enter.
    ///
    /// Up, and with an address or a route of its own: a link-local address (BGP unnumbered) and a
    /// host route (the node's end of a pod's veth) count. Ports of a bridge or bond are left to their master,
    /// which receives the packets; a VRF receives nothing itself, its members do; nothing enters by a dummy.
    pub fn candidate_interfaces(&self) -> Vec<&Link> {
        self.links.iter().filter(|link| self.is_candidate(link)).collect()
    }

    fn is_candidate(&self, link: &Link) -> bool {
        let receives = match link.master.and_then(|master| self.link_by_index(master)) {
            Some(master) => master.kind.as_deref() == Some("vrf"),
            None => link.master.is_none(),
        };
        link.up
            && !link.loopback
            && receives
            && !matches!(link.kind.as_deref(), Some("dummy" | "vrf"))
            && (self.addresses.iter().any(|address| address.link == link.index)
                || self.routes.iter().any(|route| route.link == link.index))
    }

    /// The address to translate flows to, where the route to a backend says `source`.
    ///
    /// With privacy extensions the kernel prefers a temporary address, which goes away under long flows: the
    /// lasting one of the same link and prefix takes its place. Every other source stays as it is.
    pub fn stable_source(&self, source: IpAddr) -> IpAddr {
        let Some(found) = self.addresses.iter().find(|address| address.address == source) else {
            return source;
        };
        if !found.temporary && !found.deprecated {
            return source;
        }
        self.addresses
            .iter()
            .find(|other| {
                other.link == found.link
                    && other.prefix() == found.prefix()
                    && !other.temporary
                    && !other.deprecated
                    && !other.tentative
            })
            .map_or(source, |other| other.address)
    }
}

impl Address {
    /// The subnet; `None` if the prefix length does not fit the family.
    fn prefix(&self) -> Option<IpNet> {
        IpNet::new(self.address, self.prefix_len).ok().map(|net| net.trunc())
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
