//! The health of one endpoint under active checks, as Envoy's health checkers decide it.

use std::mem;
use std::time::Duration;

use crate::model::HealthCheck;

/// No wait between probes is shorter.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// What the probes of an endpoint say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Verdict {
    /// None has come to an end.
    #[default]
    Unknown,
    Healthy,
    Unhealthy,
}

/// What follows from a probe's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The verdict before and after, if it is another.
    pub(super) changed: Option<(Verdict, Verdict)>,
    /// From the end of this probe to the begin of the next.
    pub(super) next: Duration,
}

/// Counts the results of an endpoint's probes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Machine {
    verdict: Verdict,
    /// A probe of this agent has come to an end.
    probed: bool,
    /// Results in a row against the verdict.
    against: u32,
}

impl Machine {
    /// Of an endpoint that nothing is known of.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Goes on from what was known before. A first success decides alone all the same.
    pub(super) fn adopted(healthy: bool) -> Self {
        let verdict = if healthy { Verdict::Healthy } else { Verdict::Unhealthy };
        Self { verdict, ..Self::default() }
    }

    /// Wait until the first probe begins: `initial_jitter`.
    pub(super) fn first_wait(&self, check: &HealthCheck, random: &mut fastrand::Rng) -> Duration {
        up_to(check.jitter.initial, random)
    }

    /// What the probes say so far.
    pub(super) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// A probe succeeded. `traffic`: the cluster has had a connection at some time.
    pub(super) fn success(
        &mut self,
        check: &HealthCheck,
        traffic: bool,
        random: &mut fastrand::Rng,
    ) -> Outcome {
        self.result(Verdict::Healthy, check.healthy, check, traffic, random)
    }

    /// A probe failed; `immediate`: whatever `unhealthy_threshold` is. `traffic`: the cluster has had a
    /// connection at some time.
    pub(super) fn failure(
        &mut self,
        immediate: bool,
        check: &HealthCheck,
        traffic: bool,
        random: &mut fastrand::Rng,
    ) -> Outcome {
        let threshold = if immediate { 1 } else { check.unhealthy };
        self.result(Verdict::Unhealthy, threshold, check, traffic, random)
    }

    fn result(
        &mut self,
        result: Verdict,
        threshold: u32,
        check: &HealthCheck,
        traffic: bool,
        random: &mut fastrand::Rng,
    ) -> Outcome {
        let changed = self.count(result, threshold);
        let edge = self.verdict != result;
        Outcome { changed, next: jittered(interval(check, result, edge, traffic), check, random) }
    }

    fn count(&mut self, result: Verdict, threshold: u32) -> Option<(Verdict, Verdict)> {
        let first = !mem::replace(&mut self.probed, true);
        if result == self.verdict {
            self.against = 0;
            return None;
        }
        self.against += 1;
        // One that was good so far is not given up for one lost packet.
        let decides_alone = first && (self.verdict == Verdict::Unknown || result == Verdict::Healthy);
        if !decides_alone && self.against < threshold {
            return None;
        }
        self.against = 0;
        Some((mem::replace(&mut self.verdict, result), result))
    }
}

/// Envoy's interval after `result`; `edge`: the verdict is still another.
fn interval(check: &HealthCheck, result: Verdict, edge: bool, traffic: bool) -> Duration {
    let pace = &check.pace;
    let instead = match (traffic, result == Verdict::Healthy, edge) {
        (true, true, false) => None,
        (true, true, true) => pace.healthy_edge,
        (true, false, false) => pace.unhealthy,
        (true, false, true) => pace.unhealthy_edge.or(pace.unhealthy),
        (false, true, false) => pace.no_traffic_healthy.or(pace.no_traffic),
        (false, ..) => pace.no_traffic,
    };
    instead.unwrap_or(check.interval)
}

fn jittered(interval: Duration, check: &HealthCheck, random: &mut fastrand::Rng) -> Duration {
    let percent = interval.saturating_mul(check.jitter.percent) / 100;
    let jitter = up_to(percent, random).saturating_add(up_to(check.jitter.interval, random));
    interval.saturating_add(jitter).max(MIN_WAIT)
}

fn up_to(most: Duration, random: &mut fastrand::Rng) -> Duration {
    let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random.u64(0..=nanos))
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
