//! What is known of one host: the last good addresses of each family, and how they were come by.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::answer::{Answer, Failure, Family, HostAnswer};
use crate::model::DnsHost;

/// A host of a cluster.
#[derive(Clone, Debug)]
pub(super) struct HostState {
    pub(super) host: DnsHost,
    /// An address needs no query.
    pub(super) literal: Option<IpAddr>,
    v4: Known,
    v6: Known,
    /// The absolute name of the last addresses.
    pub(super) name: Option<String>,
    /// DNS has answered, if only that there is nothing.
    pub(super) answered: bool,
    /// The addresses are of before the cluster's own first answer: of the saved file, or remembered.
    pub(super) saved: bool,
}

/// Of one family.
#[derive(Clone, Debug, Default)]
struct Known {
    addresses: BTreeSet<IpAddr>,
    last: Last,
}

/// The last answer.
#[derive(Clone, Debug, Default)]
enum Last {
    #[default]
    None,
    Records,
    /// NXDOMAIN or no data, as the text says, without interruption since then.
    Nothing(&'static str, Duration),
    Failure(Failure),
}

/// How a host stands after an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not asked yet.
    Unknown,
    Answered,
    /// The text says which answer.
    Nothing(&'static str),
    /// As `Nothing`, with addresses that are kept until the hold, which ends then.
    Holding(&'static str, Duration),
    Failed(Failure),
}

/// What an answer changed in one host; reasons are for people.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) gone: Vec<(SocketAddr, String)>,
    pub(super) refused: Vec<SocketAddr>,
    /// Of the records, if there were any.
    pub(super) ttl: Option<Duration>,
    /// Not one family was answered.
    pub(super) failed: bool,
}

impl HostState {
    pub(super) fn new(host: &DnsHost) -> Self {
        Self {
            literal: host.name.parse().ok(),
            host: host.clone(),
            v4: Known::default(),
            v6: Known::default(),
            name: None,
            answered: false,
            saved: false,
        }
    }

    /// The same name with another port or weight.
    pub(super) fn renewed(&self, host: &DnsHost) -> Self {
        Self { host: host.clone(), ..self.clone() }
    }

    /// Begins with addresses of before.
    pub(super) fn restore(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        for address in addresses {
            let known = if address.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
            self.saved |= known.addresses.insert(address);
        }
    }

    /// Forgets a family that is no longer asked for.
    pub(super) fn forget(&mut self, family: Family) {
        *self.known(family) = Known::default();
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.literal.into_iter().chain(self.v4.addresses.iter().chain(&self.v6.addresses).copied())
    }

    pub(super) fn endpoints(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.addresses().map(|address| SocketAddr::new(address, self.host.port))
    }

    /// The last answer for some family was one, be it that there is nothing.
    pub(super) fn is_answered_now(&self) -> bool {
        [&self.v4, &self.v6].iter().any(|known| matches!(known.last, Last::Records | Last::Nothing(..)))
    }

    fn known(&mut self, family: Family) -> &mut Known {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    pub(super) fn absorb(&mut self, now: Duration, hold_nx: Duration, answer: &HostAnswer) -> Change {
        let mut change = Change { failed: true, ..Change::default() };
        let is_records = |family| matches!(answer.of(family), Some(Answer::Records { .. }));
        let found = is_records(Family::V4) || is_records(Family::V6);
        let (name, port) = (self.host.name.clone(), self.host.port);
        for family in [Family::V4, Family::V6] {
            let known = self.known(family);
            let (after, why) = match answer.of(family) {
                None => continue,
                Some(Answer::Failure(failure)) => {
                    known.last = Last::Failure(failure.clone());
                    continue;
                }
                Some(Answer::Records { addresses, ttl, refused }) => {
                    change.ttl = Some(change.ttl.map_or(*ttl, |least| least.min(*ttl)));
                    change.refused.extend(refused.iter().map(|ip| SocketAddr::new(*ip, port)));
                    known.last = Last::Records;
                    (addresses.iter().copied().collect(), format!("not in the answer for {name} any more"))
                }
                // The name is there, only not for this family.
                Some(Answer::NoData | Answer::NxDomain) if found => {
                    known.last = Last::Records;
                    (BTreeSet::new(), format!("{name} has no {family} record any more"))
                }
                Some(nothing) => {
                    let text = if *nothing == Answer::NxDomain { "NXDOMAIN" } else { "no records" };
                    let since = match known.last {
                        Last::Nothing(_, since) => since,
                        _ => now,
                    };
                    known.last = Last::Nothing(text, since);
                    let lasted = now.saturating_sub(since);
                    let held = lasted < hold_nx;
                    let after = if held { known.addresses.clone() } else { BTreeSet::new() };
                    let for_long = if hold_nx.is_zero() {
                        String::new()
                    } else {
                        format!(" for more than hold_nx, {}", humantime::format_duration(hold_nx))
                    };
                    (after, format!("{text} for {name}{for_long}"))
                }
            };
            let gone = known.addresses.difference(&after);
            change.gone.extend(gone.map(|ip| (SocketAddr::new(*ip, port), why.clone())));
            known.addresses = after;
            change.failed = false;
            self.answered = true;
        }
        if found {
            self.name = answer.name.clone();
        }
        change
    }

    pub(super) fn verdict(&self, hold_nx: Duration) -> Verdict {
        if self.literal.is_some() {
            return Verdict::Answered;
        }
        let families = [&self.v4, &self.v6];
        let found = families.iter().any(|known| matches!(known.last, Last::Records));
        for known in families {
            // A family that fails while the other answers matters if something of it is kept.
            if let Last::Failure(failure) = &known.last
                && (!found || !known.addresses.is_empty())
            {
                return Verdict::Failed(failure.clone());
            }
        }
        if found {
            return Verdict::Answered;
        }
        let nothing = |known: &&Known| match known.last {
            Last::Nothing(text, since) => Some((text, since)),
            _ => None,
        };
        // Only a family that keeps addresses holds: the other one's time may long be over.
        let kept = families.iter().filter(|known| !known.addresses.is_empty());
        if let Some((text, since)) = kept.filter_map(nothing).min_by_key(|(_, since)| *since) {
            return Verdict::Holding(text, since + hold_nx);
        }
        families.iter().find_map(nothing).map_or(Verdict::Unknown, |(text, _)| Verdict::Nothing(text))
    }
}
