//! What DNS said about a host.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// An address family as DNS knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "A",
            Self::V6 => "AAAA",
        })
    }
}

/// For one host and family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Records {
        /// At least one; usable, sorted, each once.
        addresses: Vec<IpAddr>,
        /// The least of the records and of the aliases that led to them.
        ttl: Duration,
        /// Addresses of the answer that no endpoint can have.
        refused: Vec<IpAddr>,
    },
    /// The name has no address of the family.
    NoData,
    /// There is no such name.
    NxDomain,
    Failure(Failure),
}

/// No usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    /// For people: which server did what.
    pub(super) why: String,
}

/// Ordered by what says most about the name: the last is the least certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FailureKind {
    Refused,
    ServFail,
    Malformed,
    Network,
    Timeout,
}

/// The answers for one host; `None` for a family that was not asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostAnswer {
    pub(super) v4: Option<Answer>,
    pub(super) v6: Option<Answer>,
    /// The absolute name they are about.
    pub(super) name: Option<String>,
}

impl HostAnswer {
    pub(super) fn of(&self, family: Family) -> Option<&Answer> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }
}

/// An SRV record (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service {
    /// The lowest is to be used first.
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    /// Absolute, in lower case; `.`: the service is not available.
    pub(super) target: String,
}

/// The SRV records of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Services {
    /// At least one; sorted, each once.
    pub(super) records: Vec<Service>,
    /// The least of the records and of the aliases that led to them.
    pub(super) ttl: Duration,
    /// Of targets, what the answer has of their addresses. That there is nothing of a family says nothing.
    pub(super) along: BTreeMap<String, HostAnswer>,
}

/// For a name and its SRV records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SrvAnswer {
    Records {
        services: Services,
        /// The absolute name that has them.
        name: String,
    },
    /// Anything but records.
    None(Answer),
}

/// Why no endpoint can have the address.
pub(super) fn unusable(address: IpAddr) -> Option<&'static str> {
    let embedded = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("the broadcast address")
    } else if embedded {
        Some("an IPv4 address in an AAAA record")
    } else if link_local {
        Some("a link-local address, of no known interface")
    } else {
        None
    }
}
