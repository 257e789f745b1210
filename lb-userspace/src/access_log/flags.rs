//! Envoy's response flags, as far as they exist for TCP.

use std::ops::{BitOr, BitOrAssign};

/// What was amiss with a connection: any of the constants, joined by `|`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// Nothing was amiss.
    pub const NONE: Self = Self(0);
    /// No backend is eligible.
    pub const UH: Self = Self(1 << 0);
    /// The backend refused, did not answer in time, or cannot be reached.
    pub const UF: Self = Self(1 << 1);
    /// The circuit breaker is open: the cluster has `max_connections`.
    pub const UO: Self = Self(1 << 2);
    /// The listener has no cluster.
    pub const NR: Self = Self(1 << 3);
    /// The backend has reset an established connection.
    pub const UR: Self = Self(1 << 4);
    /// All attempts to connect have failed; always with `UF`.
    pub const URX: Self = Self(1 << 5);
    /// The listener's cluster does not exist.
    pub const NC: Self = Self(1 << 6);
    /// The connection reached `max_connection_duration`.
    pub const DT: Self = Self(1 << 7);

    /// Flag, short name, long name, in the order in which Envoy writes them.
    const NAMES: [(Self, &str, &str); 8] = [
        (Self::UH, "UH", "NoHealthyUpstream"),
        (Self::UR, "UR", "UpstreamRemoteReset"),
        (Self::UF, "UF", "UpstreamConnectionFailure"),
        (Self::UO, "UO", "UpstreamOverflow"),
        (Self::NR, "NR", "NoRouteFound"),
        (Self::URX, "URX", "UpstreamRetryLimitExceeded"),
        (Self::DT, "DT", "DurationTimeout"),
        (Self::NC, "NC", "NoClusterFound"),
    ];

    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// `UF,URX`, or `-` without any.
    pub(super) fn write_short(self, out: &mut Vec<u8>) {
        self.write(out, |(_, short, _)| short);
    }

    /// `UpstreamConnectionFailure,UpstreamRetryLimitExceeded`, or `-` without any.
    pub(super) fn write_long(self, out: &mut Vec<u8>) {
        self.write(out, |(_, _, long)| long);
    }

    fn write(self, out: &mut Vec<u8>, name: impl Fn((Self, &'static str, &'static str)) -> &'static str) {
        let start = out.len();
        for entry in Self::NAMES.into_iter().filter(|(flag, ..)| self.contains(*flag)) {
            if out.len() > start {
                out.push(b',');
            }
            out.extend_from_slice(name(entry).as_bytes());
        }
        if out.len() == start {
            out.push(b'-');
        }
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(flags: Flags) -> (String, String) {
        let (mut short, mut long) = (Vec::new(), Vec::new());
        flags.write_short(&mut short);
        flags.write_long(&mut long);
        (String::from_utf8(short).unwrap(), String::from_utf8(long).unwrap())
    }

    #[test]
    fn are_written_as_envoy_does() {
        assert_eq!(written(Flags::NONE), ("-".into(), "-".into()));
        assert_eq!(written(Flags::UH), ("UH".into(), "NoHealthyUpstream".into()));
        let mut failed = Flags::URX;
        failed |= Flags::UF;
        let long = "UpstreamConnectionFailure,UpstreamRetryLimitExceeded";
        assert_eq!(written(failed), ("UF,URX".into(), long.into()));
    }
}
