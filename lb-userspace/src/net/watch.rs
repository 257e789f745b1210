//! Notices that the network has changed.

use std::mem;
use std::time::Duration;

use anyhow::{Context, Result};
use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::time::{Instant, timeout_at};

use super::netlink::Netlink;

/// Multicast groups, as `RTNLGRP_*` numbers: LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR,
/// IPV6_ROUTE, IPV6_RULE, NEXTHOP.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];

/// Bytes that the kernel may queue before it drops messages.
const RECEIVE_BUFFER: i32 = 1 << 20;

/// A burst counts as over when nothing came for this long (at once where it changes addresses, see
/// [`Changes::quiet`]),
const QUIET: Duration = Duration::from_millis(20);
/// and is reported after this long even if it goes on.
const LONGEST: Duration = Duration::from_millis(200);

/// What changed. Without content: read a new [`snapshot`](fn@super::snapshot).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub links: bool,
    pub addresses: bool,
    /// Routes, next hop objects or policy rules: answers of [`route_to`](super::route_to) may differ.
    pub routes: bool,
    /// Also set by mere changes of state, which a busy node has many of; [`neighbours`](super::neighbours)
    /// reads this part alone.
    pub neighbours: bool,
}

impl Changes {
    /// Everything may have changed.
    pub const ALL: Self = Self { links: true, addresses: true, routes: true, neighbours: true };

    /// How long nothing more may come before these are reported.
    ///
    /// An address that has moved to another node must not be answered for, and one that has come is waited
    /// for: both are reported with what is in the queue already, and what follows from them separately.
    fn quiet(&self) -> Duration {
        if self.addresses { Duration::ZERO } else { QUIET }
    }

    fn add(&mut self, message_type: u16) {
        match message_type {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => self.links = true,
            libc::RTM_NEWADDR | libc::RTM_DELADDR => self.addresses = true,
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE | libc::RTM_NEWRULE | libc::RTM_DELRULE => {
                self.routes = true
            }
            RTM_NEWNEXTHOP | RTM_DELNEXTHOP => self.routes = true,
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => self.neighbours = true,
            _ => {}
        }
    }
}

/// `<linux/rtnetlink.h>`; not in the `libc` crate.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

/// A subscription to the changes of one network namespace; see [`watch`](fn@super::watch).
pub struct Watch {
    netlink: Netlink,
    /// Seen, but not yet returned.
    pending: Changes,
}

/// Begins to watch the calling thread's network namespace. Take the first snapshot after this call, so that no
/// change falls between the two.
pub async fn watch() -> Result<Watch> {
    let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    let netlink = Netlink::subscribe(NETLINK_ROUTE, groups, RECEIVE_BUFFER)
        .context("cannot watch the network for changes through netlink")?;
    Ok(Watch { netlink, pending: Changes::default() })
}

impl Watch {
    /// Waits for a change and for the burst it belongs to; a change of addresses does not wait.
    /// Messages lost to an overrun (`ENOBUFS`) count as a change of everything. Cancel safe: what a cancelled call has seen, the next one returns.
    pub async fn changed(&mut self) -> Result<Changes> {
        while self.pending == Changes::default() {
            self.receive().await?;
        }
        let end = Instant::now() + LONGEST;
        while Instant::now() < end {
            match timeout_at(end.min(Instant::now() + self.pending.quiet()), self.receive()).await {
                Ok(received) => received?,
                Err(_quiet) => break,
            }
        }
        Ok(mem::take(&mut self.pending))
    }

    async fn receive(&mut self) -> Result<()> {
        match self.netlink.next_types().await {
            Ok(types) => types.into_iter().for_each(|kind| self.pending.add(kind)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.pending = Changes::ALL,
            Err(error) => return Err(error).context("cannot go on watching the network through netlink"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_marks_its_part() {
        let of = |kind| {
            let mut changes = Changes::default();
            changes.add(kind);
            changes
        };
        let nothing = Changes::default();
        assert_eq!(of(libc::RTM_DELLINK), Changes { links: true, ..nothing });
        assert_eq!(of(libc::RTM_NEWADDR), Changes { addresses: true, ..nothing });
        assert_eq!(of(libc::RTM_DELROUTE), Changes { routes: true, ..nothing });
        assert_eq!(of(libc::RTM_NEWRULE), Changes { routes: true, ..nothing });
        assert_eq!(of(RTM_NEWNEXTHOP), Changes { routes: true, ..nothing });
        assert_eq!(of(libc::RTM_NEWNEIGH), Changes { neighbours: true, ..nothing });
        assert_eq!(of(libc::RTM_NEWTFILTER), nothing);
    }

    #[test]
    fn addresses_do_not_wait_for_the_end_of_a_burst() {
        let mut changes = Changes::default();
        changes.add(libc::RTM_NEWROUTE);
        assert_eq!(changes.quiet(), QUIET);
        changes.add(libc::RTM_DELADDR);
        assert_eq!(changes.quiet(), Duration::ZERO);
    }
}
