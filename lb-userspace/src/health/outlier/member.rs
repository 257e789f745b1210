//! What outlier detection remembers of an endpoint.

use std::time::{Duration, Instant};

use crate::model::Outlier;

use super::Seen;

#[derive(Debug, Default)]
pub(super) struct Member {
    ejected_until: Option<Instant>,
    /// The end of the last ejection.
    returned: Option<Instant>,
    /// Ejections in a row, with one less for each interval without.
    times: u32,
    /// This much of the failures in a row counts no more.
    spent: u32,
    /// Failed and successful attempts when the interval began; `None`: as at the next look.
    base: Option<(u64, u64)>,
}

impl Member {
    pub(super) fn ejected_until(&self) -> Option<Instant> {
        self.ejected_until
    }

    /// Whether it is as any that no attempt to reach has failed.
    pub(super) fn is_at_rest(&self) -> bool {
        self.ejected_until.is_none() && self.spent == 0 && self.base.is_some()
    }

    /// Ejects it; gives the ejection's end, and how many there were in a row.
    pub(super) fn eject(
        &mut self,
        now: Instant,
        outlier: &Outlier,
        random: &mut fastrand::Rng,
    ) -> (Instant, u32) {
        let Outlier { base_ejection: base, max_ejection: max, ejection_jitter: jitter, .. } = *outlier;
        // One step beyond the maximum, as Envoy.
        if base.saturating_mul(self.times) < max.saturating_add(base) {
            self.times = self.times.saturating_add(1);
        }
        let jitter = u64::try_from(jitter.as_nanos()).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(random.u64(0..=jitter));
        let until = now + base.saturating_mul(self.times).min(max) + jitter;
        self.ejected_until = Some(until);
        (until, self.times)
    }

    pub(super) fn take_back(&mut self, now: Instant) {
        self.ejected_until = None;
        self.returned = Some(now);
        self.base = None;
    }

    /// Nothing up to now counts.
    pub(super) fn restart(&mut self, seen: Seen) {
        self.spent = seen.consecutive;
        self.base = Some((seen.failed, seen.succeeded));
    }

    /// The numbers of attempts are others from the next look on.
    pub(super) fn restart_rates(&mut self) {
        self.base = None;
    }

    /// Failures in a row that count.
    pub(super) fn failures_in_a_row(&mut self, seen: Seen) -> u32 {
        if self.base.is_none() {
            self.restart(seen);
        }
        if seen.consecutive < self.spent {
            self.spent = 0;
        }
        seen.consecutive - self.spent
    }

    /// Failures in a row have had their consequence.
    pub(super) fn spend(&mut self, seen: Seen) {
        self.spent = seen.consecutive;
    }

    /// Failed and successful attempts of the interval, which ends.
    pub(super) fn end_interval(&mut self, seen: Seen) -> (u64, u64) {
        let (failed, succeeded) = self.base.unwrap_or((seen.failed, seen.succeeded));
        self.base = Some((seen.failed, seen.succeeded));
        (seen.failed.saturating_sub(failed), seen.succeeded.saturating_sub(succeeded))
    }

    /// After an interval without an ejection the next one is shorter.
    pub(super) fn calm_down(&mut self, now: Instant, interval: Duration) {
        let calm = |at: Instant| now.saturating_duration_since(at) >= interval;
        if self.ejected_until.is_none() && self.returned.is_some_and(calm) {
            self.times = self.times.saturating_sub(1);
        }
    }
}
