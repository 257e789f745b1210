//! What goes into outlier detection and what comes out.

use std::time::Instant;

/// An endpoint's attempts to connect, as of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Failed ones in a row; a success sets it to 0.
    pub consecutive: u32,
    /// Failed ones ever.
    pub failed: u64,
    /// Those that succeeded ever.
    pub succeeded: u64,
}

/// What a look brought for an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<K> {
    /// It gets no new connections.
    Ejected {
        key: K,
        cause: Cause,
        until: Instant,
        /// Ejections in a row; those beyond `max_ejection_time` are not counted on.
        times: u32,
    },
    /// It gets new connections again.
    Returned { key: K, why: ReturnedBy },
    /// It would have been ejected, but for `max_ejection_percent`.
    Overflow { key: K, cause: Cause },
    /// It would have been ejected, but chance (the percentage enforced) was against it.
    NotEnforced { key: K, cause: Cause },
}

/// Why an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cause {
    /// Failed attempts in a row: `consecutive_local_origin_failure`.
    ConsecutiveFailures(u32),
    /// Percent of the attempts that succeeded in the interval, and less than which is too few:
    /// `local_origin_success_rate`.
    SuccessRate { percent: f64, threshold: f64 },
    /// Percent of the attempts that failed in the interval: `local_origin_failure_percentage`.
    FailurePercentage { percent: f64 },
}

/// Why an endpoint is not ejected any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnedBy {
    /// Its time is over.
    Time,
    /// An active check succeeded.
    Probe,
    /// Outlier detection was turned off.
    TurnedOff,
}

/// Statistics; the names are Envoy's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Endpoints that are ejected now.
    pub ejections_active: usize,
    pub ejections_enforced_total: u64,
    /// Those that `max_ejection_percent` was against.
    pub ejections_overflow: u64,
    pub consecutive_local_origin_failure: Tally,
    pub local_origin_success_rate: Tally,
    pub local_origin_failure_percentage: Tally,
}

/// Counts of one cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// `ejections_detected_…`: enforced or not.
    pub detected: u64,
    /// `ejections_enforced_…`
    pub enforced: u64,
}
