//! Having the kernel keep the hardware address of a next hop.
//!
//! A packet that a BPF program sends never touches the kernel's neighbour entry, so that nothing would notice
//! a changed or vanished next hop. `NTF_EXT_MANAGED` (Linux 5.16) has the kernel probe the entry by itself.

use std::io;
use std::net::IpAddr;

use anyhow::{Context, Result};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState as Nud,
};
use netlink_packet_route::route::RouteProtocol;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::Netlink;
use super::route::family;

/// The origin that entries of this agent carry (`NDA_PROTOCOL`), to tell them from those of others after a
/// restart. A number that `/etc/iproute2/rt_protos` gives to nobody.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(72);

/// An entry may appear or go between the look at it and the change.
const ATTEMPTS: usize = 4;

/// What became of a request to keep a neighbour resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The kernel keeps it resolved by itself.
    Managed,
    /// The kernel was told once that the entry is in use (before Linux 5.16). Ask again every few seconds.
    Probed,
    /// The entry belongs to somebody else (permanent, learned by a routing daemon, managed by another
    /// program) and was left as it is.
    Foreign,
}

/// Has the kernel resolve a neighbour and keep it so. Not for links without link layer addresses.
///
/// A repetition changes nothing, except that a neighbour that has failed is asked for again at once (the kernel
/// does so every 5 s). The kernel forgets it when the link goes down, so ask again after a change of links;
/// [`unmanage`] takes it back. The answer does not wait for the resolution: that is a change of
/// neighbours for [`watch`](fn@super::watch).
pub async fn resolve(link: u32, address: IpAddr) -> Result<Resolution> {
    try_resolve(link, address).await.with_context(|| {
        format!(
            "cannot have the kernel resolve {address} on link {link} through netlink (needs CAP_NET_ADMIN)"
        )
    })
}

/// Has the kernel ask a neighbour that was resolved by [`resolve`] whether it is still there; nothing happens to
/// entries of others, and to one that is being asked already.
///
/// By itself the kernel trusts an answer for `base_reachable_time` (15 to 45 s), so that a hardware address that
/// changed without an announcement stays wrong for that long and the 8 s after it. A call costs one unicast
/// packet. The entry stays usable meanwhile; after three packets without an answer (3 s) it has failed, which is
/// a change of neighbours, and [`resolve`] then asks everybody.
pub async fn probe(link: u32, address: IpAddr) -> Result<()> {
    try_probe(link, address).await.with_context(|| {
        format!("cannot have the kernel probe {address} on link {link} through netlink (needs CAP_NET_ADMIN)")
    })
}

/// Takes back a [`resolve`], of this agent or an earlier one; nothing happens to entries of others. The entry
/// stays in the cache as an ordinary one, so that the host's own traffic does not notice.
pub async fn unmanage(link: u32, address: IpAddr) -> Result<()> {
    try_unmanage(link, address).await.with_context(|| {
        format!("cannot release the neighbour {address} on link {link} through netlink (needs CAP_NET_ADMIN)")
    })
}

async fn try_resolve(link: u32, address: IpAddr) -> io::Result<Resolution> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let existence = match look(&mut netlink, link, address).await? {
            Some(entry) if is_foreign(&entry) => return Ok(Resolution::Foreign),
            Some(entry) if is_managed(&entry) && entry.header.state != Nud::Failed => {
                return Ok(Resolution::Managed);
            }
            Some(_) => 0,
            None => NLM_F_CREATE | NLM_F_EXCL,
        };
        match use_entry(&mut netlink, link, address, true, existence).await {
            Ok(()) => {
                let entry = look(&mut netlink, link, address).await?;
                let managed = entry.as_ref().is_some_and(is_managed);
                return Ok(if managed { Resolution::Managed } else { Resolution::Probed });
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) => {
                last = Some(error)
            }
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::ResourceBusy.into()))
}

async fn try_probe(link: u32, address: IpAddr) -> io::Result<()> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let Some(entry) = look(&mut netlink, link, address).await? else { return Ok(()) };
    let trusted = matches!(entry.header.state, Nud::Reachable | Nud::Stale | Nud::Delay);
    if is_foreign(&entry) || !is_ours(&entry) || !trusted {
        return Ok(());
    }
    let mut probe = message(link, address);
    probe.header.state = Nud::Probe;
    probe.attributes.push(NeighbourAttribute::Protocol(PROTOCOL));
    // A message with the mark of a managed entry leaves the state alone, and one without takes the mark away
    // (`__neigh_update` in the kernel's net/core/neighbour.c): hence two.
    let changed = async {
        netlink.request(RouteNetlinkMessage::NewNeighbour(probe), 0).await?;
        use_entry(&mut netlink, link, address, true, 0).await
    };
    match changed.await {
        // Gone since the look.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

async fn try_unmanage(link: u32, address: IpAddr) -> io::Result<()> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let Some(entry) = look(&mut netlink, link, address).await? else { return Ok(()) };
    if is_foreign(&entry) || !is_managed(&entry) {
        return Ok(());
    }
    match use_entry(&mut netlink, link, address, false, 0).await {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// One entry, or `None` if there is none or no such link.
async fn look(netlink: &mut Netlink, link: u32, address: IpAddr) -> io::Result<Option<NeighbourMessage>> {
    let question = RouteNetlinkMessage::GetNeighbour(message(link, address));
    match netlink.request(question, 0).await {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(entry) => Some(entry),
            _ => None,
        })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Marks an entry as in use, and as managed or not.
///
/// `NTF_USE` keeps every kernel from taking the absent state of this message for a new state of the entry; a
/// kernel before 5.16 ignores `NDA_FLAGS_EXT`. Both take PERMANENT away from an entry, hence the look first.
async fn use_entry(
    netlink: &mut Netlink,
    link: u32,
    address: IpAddr,
    managed: bool,
    existence: u16,
) -> io::Result<()> {
    let mut message = message(link, address);
    message.header.flags = NeighbourFlags::Use;
    if managed {
        message.attributes.push(NeighbourAttribute::Protocol(PROTOCOL));
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
    }
    netlink.request(RouteNetlinkMessage::NewNeighbour(message), existence).await?;
    Ok(())
}

fn message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(address)));
    message
}

/// Set by hand, or kept by another program: a change would take its marks away.
fn is_foreign(entry: &NeighbourMessage) -> bool {
    let fixed = matches!(entry.header.state, Nud::Permanent | Nud::Noarp);
    let learned = entry.header.flags.contains(NeighbourFlags::ExtLearned);
    fixed || learned || (is_managed(entry) && !is_ours(entry))
}

fn is_ours(entry: &NeighbourMessage) -> bool {
    entry.attributes.contains(&NeighbourAttribute::Protocol(PROTOCOL))
}

fn is_managed(entry: &NeighbourMessage) -> bool {
    entry.attributes.iter().any(|attribute| {
        matches!(attribute, NeighbourAttribute::ExtFlags(flags) if flags.contains(NeighbourExtFlags::Managed))
    })
}
