//! When to ask again.

use std::time::Duration;

use crate::model::DnsRefresh;

/// No wait is shorter.
pub(super) const MIN_WAIT: Duration = Duration::from_millis(100);

/// A TTL beyond this is taken for it: nobody means a year.
pub(super) const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How the hosts of a refresh fared.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) answered: usize,
    pub(super) failed: usize,
    ttl: Option<Duration>,
}

impl Outcome {
    /// Adds a host; `ttl` of its records, if there are any.
    pub(super) fn add(&mut self, failed: bool, ttl: Option<Duration>) {
        if failed {
            self.failed += 1
        } else {
            self.answered += 1
        }
        self.ttl = self.ttl.into_iter().chain(ttl).min();
    }
}

/// The wait after a refresh; `failures`: how many in a row failed entirely, `random` of [0, 1).
pub(super) fn wait(settings: &DnsRefresh, outcome: &Outcome, failures: u32, random: f64) -> Duration {
    let backoff = |failures: u32| {
        let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
        settings.failure_backoff.base.saturating_mul(doubled).min(settings.failure_backoff.max)
    };
    let regular = match outcome.ttl {
        // As in Envoy, a TTL of 0 does not count.
        Some(ttl) if settings.respect_ttl && !ttl.is_zero() => ttl.min(MAX_TTL),
        _ => settings.rate,
    };
    let wait = match (outcome.answered, outcome.failed) {
        (0, 1..) => backoff(failures),
        (_, 1..) => regular.min(backoff(1)),
        (_, 0) => regular,
    };
    (wait + settings.jitter.mul_f64(random)).max(MIN_WAIT)
}
