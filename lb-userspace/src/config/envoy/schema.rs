//! The keys of a message of Envoy's configuration, and what becomes of each.

/// One key of a message, in snake_case.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) rule: Rule,
}

pub(super) enum Rule {
    /// The reader of the message asks for it.
    Read,
    /// It has no effect: the kind of its value, and why that does no harm.
    Ignored(Kind, &'static str),
    /// Only its form is checked, as something is said about the message that it is in.
    Checked(Kind),
    /// It would be unsafe to ignore, but for its default: why.
    Refused(&'static str),
}

/// What a value may be, by the rules of protobuf's JSON form.
pub(super) enum Kind {
    Bool,
    Text,
    U32,
    U64,
    /// A whole number from the first to the second.
    Range(u64, u64),
    /// A fraction from the first to the second.
    Fraction(f64, f64),
    /// At least so many milliseconds, but never negative.
    Duration {
        least_ms: u64,
    },
    /// More than nothing.
    PositiveDuration,
    /// The words, by their numbers.
    Word(&'static [&'static str]),
    Message(&'static [Field]),
    List(&'static Self),
    /// Not looked into: what it may hold is not Headgate's to judge.
    Mapping,
    Any,
}

/// Keys that only Envoy's v2 has, wherever they stand.
pub(super) const V2_ONLY: [&str; 9] = [
    "config",
    "hosts",
    "tls_context",
    "runtime",
    "extension_protocol_options",
    "drain_connections_on_host_removal",
    "disable_overprovisioning",
    "build_version",
    "use_http2",
];

pub(super) const DURATION: Kind = Kind::Duration { least_ms: 0 };
pub(super) const MAPPINGS: Kind = Kind::List(&Kind::Mapping);

/// `envoy.type.v3.Percent`.
pub(super) const PERCENT: Kind = Kind::Message(&[checked("value", Kind::Fraction(0.0, 100.0))]);

/// `envoy.config.core.v3.TcpKeepalive`.
pub(super) const KEEPALIVE: Kind = Kind::Message(&[
    checked("keepalive_probes", Kind::U32),
    checked("keepalive_time", Kind::U32),
    checked("keepalive_interval", Kind::U32),
]);

/// `envoy.config.core.v3.SocketOption`.
pub(super) const SOCKET_OPTIONS: Kind = Kind::List(&Kind::Message(&[
    checked("description", Kind::Text),
    checked("level", Kind::Any),
    checked("name", Kind::Any),
    checked("int_value", Kind::Any),
    checked("buf_value", Kind::Text),
    checked("state", Kind::Word(&["STATE_PREBIND", "STATE_BOUND", "STATE_LISTENING"])),
    checked("type", Kind::Mapping),
    checked("ip_version", Kind::Any),
]));

/// `envoy.config.core.v3.Node`.
pub(super) const NODE: Kind = Kind::Message(&[
    checked("id", Kind::Text),
    checked("cluster", Kind::Text),
    checked("metadata", Kind::Mapping),
    checked("dynamic_parameters", Kind::Mapping),
    checked("locality", LOCALITY),
    checked("build_version", Kind::Text),
    checked("user_agent_name", Kind::Text),
    checked("user_agent_version", Kind::Text),
    checked("user_agent_build_version", Kind::Mapping),
    checked("extensions", MAPPINGS),
    checked("client_features", Kind::List(&Kind::Text)),
    checked("listening_addresses", MAPPINGS),
]);

/// `envoy.config.core.v3.Locality`.
pub(super) const LOCALITY: Kind = Kind::Message(&[
    checked("region", Kind::Text),
    checked("zone", Kind::Text),
    checked("sub_zone", Kind::Text),
]);

pub(super) const fn read(name: &'static str) -> Field {
    Field { name, rule: Rule::Read }
}

pub(super) const fn ignored(name: &'static str, kind: Kind, why: &'static str) -> Field {
    Field { name, rule: Rule::Ignored(kind, why) }
}

pub(super) const fn checked(name: &'static str, kind: Kind) -> Field {
    Field { name, rule: Rule::Checked(kind) }
}

pub(super) const fn refused(name: &'static str, why: &'static str) -> Field {
    Field { name, rule: Rule::Refused(why) }
}

impl Field {
    /// Whether `key` is the name, in snake_case or lowerCamelCase.
    pub(super) fn is(&self, key: &str) -> bool {
        if self.name == key {
            return true;
        }
        let mut key = key.bytes();
        let mut raised = false;
        for byte in self.name.bytes() {
            if byte == b'_' {
                raised = true;
                continue;
            }
            let expected = if raised { byte.to_ascii_uppercase() } else { byte };
            raised = false;
            if key.next() != Some(expected) {
                return false;
            }
        }
        key.next().is_none()
    }
}
