//! Every outcome of a packet, named: the one registry that the datapath counts by and the agent shows.

/// What becomes of the packet, by its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Rewritten and sent on.
    Forwarded,
    /// Left to the network stack as it came.
    Passed,
    /// Left as it came to the TC program of the same interface.
    HandedOver,
    /// Dropped, and its sender told why by an ICMP error.
    Answered,
    /// Dropped.
    Dropped,
}

/// Why a packet went where it went. Numbers are part of the map layout and are not reused.
///
/// A number rather than an enum: it comes back from functions of the kernel program as one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Reason(u8);

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $constant:ident = $number:literal, $name:literal, $fate:ident;)+) => {
        impl Reason {
            $($(#[doc = $doc])+ pub const $constant: Self = Self($number);)+

            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$(Self::$constant,)+];

            /// The name in counters and output.
            pub const fn name(self) -> &'static str {
                match self.0 { $($number => $name,)+ _ => "unknown" }
            }

            /// What becomes of the packet.
            pub const fn fate(self) -> Fate {
                match self.0 { $($number => Fate::$fate,)+ _ => Fate::Dropped }
            }

            /// What it means, for people.
            pub const fn help(self) -> &'static str {
                match self.0 { $($number => concat!($($doc),+).trim_ascii(),)+ _ => "" }
            }
        }
    };
}

impl Reason {
    /// The reason of that number.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        Self(number as u8)
    }

    /// Its number.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0 as u32
    }
}

reasons! {
    /// A packet of an established flow, from the client.
    FORWARD = 0, "forward", Forwarded;
    /// A packet of an established flow, from the backend.
    REVERSE = 1, "reverse", Forwarded;
    /// A SYN that opened a flow to a backend.
    NEW_FLOW = 2, "new_flow", Forwarded;
    /// A repeated SYN, sent to the same backend again.
    SYN_REPEATED = 3, "syn_repeated", Forwarded;
    /// A repeated SYN, sent to another backend because the first had not answered.
    SYN_RETRIED = 4, "syn_retried", Forwarded;
    /// A SYN-ACK of the backend.
    SYN_ACK = 5, "syn_ack", Forwarded;
    /// The client's part of the handshake: the flow is established.
    ESTABLISHED = 6, "established", Forwarded;
    /// A backend's bare ACK to a SYN (it holds TIME_WAIT), passed to the client.
    CHALLENGE = 7, "challenge", Forwarded;
    /// A RST in a half-open flow, passed on.
    HALF_OPEN_RESET = 8, "half_open_reset", Forwarded;
    /// An ICMP error about a packet of an established flow, translated like the packet that it quotes.
    ICMP_TRANSLATED = 9, "icmp_translated", Forwarded;

    /// Shorter than its headers say.
    TRUNCATED = 16, "truncated", Passed;
    /// Header fields that contradict each other.
    MALFORMED = 17, "malformed", Passed;
    /// Neither IPv4 nor IPv6.
    NOT_IP = 18, "not_ip", Passed;
    /// Not TCP, or TCP behind headers that are not followed.
    NOT_TCP = 19, "not_tcp", Passed;
    /// To a multicast or broadcast MAC address.
    NOT_UNICAST = 20, "not_unicast", Passed;
    /// A later fragment; alone it is never reassembled, so the stack cannot answer it.
    LATER_FRAGMENT = 21, "later_fragment", Passed;
    /// TCP of no flow, and no SYN to a served address.
    NO_FLOW = 22, "no_flow", Passed;
    /// To a tuple whose SYN went up to the proxy before.
    TOMBSTONE = 23, "tombstone", Passed;
    /// An answer from a backend that was given up for another; the stack resets it.
    ABANDONED = 24, "abandoned", Passed;
    /// A SYN for the proxy: the agent takes no new flows.
    DRAINING = 25, "draining", Passed;
    /// A SYN for the proxy: the flow table is full.
    TABLE_FULL = 26, "table_full", Passed;
    /// A SYN for the proxy: the cluster has no backend.
    NO_BACKEND = 27, "no_backend", Passed;
    /// A SYN for the proxy: it drew a backend that only the proxy can reach.
    PROXY_BACKEND = 28, "proxy_backend", Passed;
    /// A SYN for the proxy: no next hop to the backend.
    NO_NEXT_HOP = 29, "no_next_hop", Passed;
    /// A SYN for the proxy: no route back to the client.
    NO_ROUTE = 30, "no_route", Passed;
    /// A SYN for the proxy: no free SNAT port among those tried.
    NO_PORT = 31, "no_port", Passed;
    /// ICMP that is no error about a packet of an established flow.
    ICMP_OTHER = 32, "icmp_other", Passed;
    /// A SYN for the proxy, which tells the client: the cluster has as many connections as it may have. Or the end of a
    /// handshake during which it got them; the stack resets it.
    OVERFLOW = 33, "overflow", Passed;

    /// XDP cannot send this packet, or not by this next hop; TC will, or answers it.
    TO_TC = 40, "to_tc", HandedOver;

    /// Larger than the next hop's MTU: its sender is told that (fragmentation needed, packet too big).
    TOO_BIG = 44, "too_big", Answered;
    /// TTL or hop limit used up: its sender is told (time exceeded).
    TTL_ANSWERED = 45, "ttl_answered", Answered;

    /// TTL or hop limit used up, of a packet whose sender cannot be told.
    TTL_EXPIRED = 48, "ttl_expired", Dropped;
    /// A fragment of a kernel flow, or to a served address.
    FRAGMENT = 49, "fragment", Dropped;
    /// Two copies of one SYN at once; the other one was sent on.
    SYN_RACED = 50, "syn_raced", Dropped;
    /// A backend refused, and attempts remain for the client's next SYN.
    REFUSED_RETRY = 51, "refused_retry", Dropped;
    /// The next hop is gone.
    HOP_GONE = 52, "hop_gone", Dropped;
    /// The frame could not be rewritten.
    REWRITE_FAILED = 53, "rewrite_failed", Dropped;
    /// The flow ended while a packet of it was being rewritten.
    FLOW_GONE = 55, "flow_gone", Dropped;
}

/// Slots of the counters; one more than the highest number.
pub const REASONS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_numbers_are_unique_and_fit() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        let numbers: HashSet<_> = Reason::ALL.iter().map(|reason| reason.number()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert_eq!(numbers.len(), Reason::ALL.len());
        assert!(numbers.iter().all(|&number| (number as usize) < REASONS));
    }
}
