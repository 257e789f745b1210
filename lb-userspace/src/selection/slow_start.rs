//! The weight of an endpoint that has been in service for a short time, in tenths.

use std::time::Duration;

use crate::model::SlowStart;

/// Steps that are closer together are taken as one.
const MIN_REST: Duration = Duration::from_millis(100);

/// Where an endpoint that has less than its full weight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Of its weight: 1 to 9.
    pub(super) tenths: u32,
    /// Until it has more.
    pub(super) rest: Duration,
}

impl Step {
    /// Tenths of a full weight.
    pub(super) const FULL: u32 = 10;

    /// The step at this age; `None`: it has its full weight.
    pub(super) fn at(slow_start: &SlowStart, age: Duration) -> Option<Self> {
        if age >= slow_start.window {
            return None;
        }
        let aggression = aggression(slow_start);
        let grown = age.div_duration_f64(slow_start.window);
        let least = f64::from(slow_start.min_weight_percent) / 100.0;
        let factor = grown.powf(aggression.recip()).max(least);
        let tenths = (factor * f64::from(Self::FULL)).round().max(1.0);
        if tenths >= f64::from(Self::FULL) {
            return None;
        }
        let next = (tenths + 0.5) / f64::from(Self::FULL);
        let rest = slow_start.window.mul_f64(next.powf(aggression)).saturating_sub(age).max(MIN_REST);
        Some(Self { tenths: tenths as u32, rest })
    }
}

/// As Envoy, 1 instead of 0.
fn aggression(slow_start: &SlowStart) -> f64 {
    match slow_start.aggression {
        0 => 1.0,
        thousandths => f64::from(thousandths) / 1000.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn slow_start(aggression: u32, min_weight_percent: u32) -> SlowStart {
        SlowStart { window: 100 * SECOND, aggression, min_weight_percent }
    }

    fn tenths(rule: &SlowStart, age: Duration) -> u32 {
        Step::at(rule, age).map_or(Step::FULL, |step| step.tenths)
    }

    fn rest(rule: &SlowStart, age: Duration) -> Option<Duration> {
        Step::at(rule, age).map(|step| step.rest)
    }

    #[test]
    fn grows_evenly() {
        let even = slow_start(1_000, 10);
        let at = |seconds: u32| tenths(&even, seconds * SECOND);
        assert_eq!([0, 14, 15, 24, 25, 94, 95, 100, 1_000].map(at), [1, 1, 2, 2, 3, 9, 10, 10, 10]);
        let rests = [0, 20, 90, 95].map(|seconds| rest(&even, seconds * SECOND));
        assert_eq!(rests, [Some(15 * SECOND), Some(5 * SECOND), Some(5 * SECOND), None]);
    }

    /// Half the window's time to the power of 1, of 1/2 and of 2.
    #[test]
    fn aggression_hastens() {
        let half = 50 * SECOND;
        assert_eq!([1_000, 2_000, 500].map(|it| tenths(&slow_start(it, 10), half)), [5, 7, 3]);
        assert_eq!(tenths(&slow_start(0, 10), half), 5);
        assert_eq!(rest(&slow_start(2_000, 10), half), Some((100 * SECOND).mul_f64(0.5625) - half));
    }

    #[test]
    fn least_weight() {
        assert_eq!(tenths(&slow_start(1_000, 30), SECOND), 3);
        assert_eq!(rest(&slow_start(1_000, 30), SECOND), Some(34 * SECOND));
        assert_eq!(tenths(&slow_start(1_000, 0), SECOND), 1);
        assert_eq!(Step::at(&slow_start(1_000, 100), Duration::ZERO), None);
    }

    #[test]
    fn no_window_is_no_slow_start() {
        let none = SlowStart { window: Duration::ZERO, ..slow_start(1_000, 10) };
        assert_eq!(Step::at(&none, Duration::ZERO), None);
    }

    proptest! {
        #[test]
        fn never_shrinks_and_steps_in_time(
            aggression in 100u32..10_000,
            min_weight_percent in 0u32..=100,
            millis in 0u64..100_000,
        ) {
            let rule = slow_start(aggression, min_weight_percent);
            let age = Duration::from_millis(millis);
            prop_assert!(tenths(&rule, age + Duration::from_millis(7)) >= tenths(&rule, age));
            if let Some(Step { tenths: now, rest }) = Step::at(&rule, age) {
                let hair = Duration::from_micros(1);
                prop_assert!((1..Step::FULL).contains(&now));
                prop_assert!(rest == MIN_REST || tenths(&rule, age + rest - hair) == now);
                prop_assert!(tenths(&rule, age + rest + hair) > now);
            }
        }
    }
}
