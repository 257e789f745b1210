//! The differences between Envoy and Headgate that are accepted, and why.

use super::Page;
use super::absent::ABSENT;
use super::counts::COUNTS;
use super::ends::ENDS;
use crate::rung::Rung;

/// Differences that have one reason.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) topic: Topic,
    pub(super) page: Page,
    /// [Patterns](super::glob) of items. Each has to match a difference on some rung.
    pub(super) items: &'static [&'static str],
    pub(super) rungs: &'static [Rung],
    pub(super) envoy: Value,
    pub(super) headgate: Value,
    /// A clause that ends without a full stop.
    pub(super) reason: &'static str,
}

/// What one of the two says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// Anything, but something.
    Some,
    Nothing,
    /// A [pattern](super::glob).
    Like(&'static str),
}

/// A section of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    /// How connections end, and what is said of that.
    Ends,
    /// What is counted differently.
    Counts,
    /// What Headgate does not have.
    Absent,
}

pub(super) const ALL: &[Rung] = &[Rung::Xdp, Rung::Tc, Rung::Proxy];
pub(super) const KERNEL: &[Rung] = &[Rung::Xdp, Rung::Tc];

/// Statistics that are on both pages, but whose values no two processes have in common.
#[derive(Debug)]
pub(super) struct NotCompared {
    /// [Patterns](super::glob) of names.
    pub(super) names: &'static [&'static str],
    pub(super) reason: &'static str,
}

pub(super) const NOT_COMPARED: &[NotCompared] = &[
    NotCompared {
        names: &["envoy_server_uptime", "envoy_server_initialization_time_ms_count"],
        reason: "times of the process",
    },
    NotCompared { names: &["envoy_server_memory_physical_size"], reason: "memory of the process" },
    NotCompared {
        names: &["envoy_server_concurrency"],
        reason: "the number of worker threads; Headgate says the number of its own threads",
    },
    NotCompared {
        names: &["envoy_server_state"],
        reason: "Envoy's follows the state after up to five seconds",
    },
];

/// The whole table.
pub(super) fn accepted() -> impl Iterator<Item = &'static Accepted> {
    ENDS.iter().chain(COUNTS).chain(ABSENT)
}
