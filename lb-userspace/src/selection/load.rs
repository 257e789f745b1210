//! How connections are spread over levels of endpoints, the first of which takes as many as it is healthy enough
//! for. Percentages are whole numbers, rounded as Envoy does.

use super::Candidate;

/// Endpoints of a level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    pub(super) endpoints: u64,
    pub(super) healthy: u64,
}

/// A level's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) percent: u32,
    /// All its endpoints are used, whatever their health.
    pub(super) panic: bool,
}

impl Level {
    pub(super) fn of<K>(members: &[&Candidate<K>]) -> Self {
        let healthy = members.iter().filter(|candidate| candidate.healthy).count();
        Self { endpoints: members.len() as u64, healthy: healthy as u64 }
    }

    /// Percent of the connections that it is healthy enough for.
    pub(super) fn available(&self, overprovisioning_percent: u32) -> u32 {
        let percent = self.healthy * u64::from(overprovisioning_percent) / self.endpoints.max(1);
        percent.min(100) as u32
    }

    fn is_below(&self, percent: u32) -> bool {
        self.healthy * 100 < self.endpoints * u64::from(percent)
    }
}

/// The parts of levels of priority. They add up to 100, or to 0 if there is nothing to use.
pub(super) fn across(levels: &[Level], panic_threshold: u32, overprovisioning_percent: u32) -> Vec<Load> {
    let available: Vec<_> = levels.iter().map(|level| level.available(overprovisioning_percent)).collect();
    let enough = available.iter().sum::<u32>() >= 100;
    let panics = |level: &Level| !enough && level.is_below(panic_threshold.min(100));
    let percentages = if levels.iter().all(panics) {
        by_size(levels)
    } else {
        by_health(&available).unwrap_or_else(|| first_healthy(levels))
    };
    let load = |(level, percent)| Load { percent, panic: panics(level) };
    levels.iter().zip(percentages).map(load).collect()
}

/// Parts of 100 by what is available in each level; `None` if that is nothing.
pub(super) fn by_health(available: &[u32]) -> Option<Vec<u32>> {
    let all = available.iter().sum::<u32>().min(100);
    let first = available.iter().position(|available| *available > 0)?;
    let mut rest = 100;
    let mut percentages: Vec<_> = available
        .iter()
        .map(|available| {
            let percent = rest.min(available * 100 / all);
            rest -= percent;
            percent
        })
        .collect();
    percentages[first] += rest;
    Some(percentages)
}

/// Parts of 100 by the number of endpoints.
fn by_size(levels: &[Level]) -> Vec<u32> {
    let all: u64 = levels.iter().map(|level| level.endpoints).sum();
    let mut percentages: Vec<_> =
        levels.iter().map(|level| (level.endpoints * 100 / all.max(1)) as u32).collect();
    let rest = 100 - percentages.iter().sum::<u32>();
    if let Some(first) = percentages.first_mut() {
        *first += rest;
    }
    percentages
}

/// Everything to the first level with a healthy endpoint: so few are healthy that it is 0 percent of each level.
fn first_healthy(levels: &[Level]) -> Vec<u32> {
    let first = levels.iter().position(|level| level.healthy > 0);
    (0..levels.len()).map(|index| if Some(index) == first { 100 } else { 0 }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn level(healthy: u64, endpoints: u64) -> Level {
        Level { endpoints, healthy }
    }

    fn percentages(levels: &[Level], panic_threshold: u32) -> Vec<u32> {
        across(levels, panic_threshold, 140).into_iter().map(|load| load.percent).collect()
    }

    fn panics(levels: &[Level], panic_threshold: u32) -> Vec<bool> {
        across(levels, panic_threshold, 140).into_iter().map(|load| load.panic).collect()
    }

    /// Values of Envoy's documentation, "Priority levels".
    #[test]
    fn two_levels_as_documented() {
        let loads = |first, second| percentages(&[level(first, 100), level(second, 100)], 0);
        for (first, second, expected) in [
            (100, 100, [100, 0]),
            (72, 72, [100, 0]),
            (71, 71, [99, 1]),
            (50, 50, [70, 30]),
            (25, 100, [35, 65]),
            (25, 25, [50, 50]),
            (0, 100, [0, 100]),
        ] {
            assert_eq!(loads(first, second), expected, "{first} {second}");
        }
    }

    /// Values of Envoy's documentation, "Priority levels", of three.
    #[test]
    fn three_levels_as_documented() {
        let loads = |first, second, third| {
            percentages(&[level(first, 100), level(second, 100), level(third, 100)], 0)
        };
        for (healthy, expected) in [
            ((100, 100, 100), [100, 0, 0]),
            ((72, 72, 100), [100, 0, 0]),
            ((71, 71, 100), [99, 1, 0]),
            ((50, 50, 100), [70, 30, 0]),
            ((25, 100, 100), [35, 65, 0]),
            ((25, 25, 100), [35, 35, 30]),
            // There, whole numbers are rounded otherwise than in its source.
            ((25, 25, 20), [37, 35, 28]),
        ] {
            assert_eq!(loads(healthy.0, healthy.1, healthy.2), expected, "{healthy:?}");
        }
    }

    /// The cases of Envoy's documentation, "Panic threshold", with the loads of its source.
    #[test]
    fn panic_as_documented() {
        for (healthy, loads, panic) in [
            ((72, 72), [100, 0], [false, false]),
            ((71, 71), [99, 1], [false, false]),
            ((50, 60), [70, 30], [false, false]),
            ((50, 50), [70, 30], [false, false]),
            ((25, 100), [35, 65], [false, false]),
            ((25, 25), [50, 50], [true, true]),
            ((5, 65), [8, 92], [true, false]),
        ] {
            let levels = [level(healthy.0, 100), level(healthy.1, 100)];
            assert_eq!(percentages(&levels, 50), loads, "{healthy:?}");
            assert_eq!(panics(&levels, 50), panic, "{healthy:?}");
        }
    }

    #[test]
    fn total_panic_spreads_by_size() {
        assert_eq!(percentages(&[level(0, 1), level(0, 2)], 50), [34, 66]);
        assert_eq!(percentages(&[level(1, 4), level(0, 12)], 50), [25, 75]);
        assert_eq!(panics(&[level(1, 4), level(0, 12)], 50), [true, true]);
    }

    #[test]
    fn nothing_healthy_without_panic() {
        assert_eq!(percentages(&[level(0, 3), level(0, 1)], 0), [0, 0]);
        assert_eq!(percentages(&[], 0), [0; 0]);
        assert_eq!(percentages(&[], 50), [0; 0]);
    }

    /// A share that rounds to nothing is one all the same.
    #[test]
    fn last_healthy_endpoint_is_found() {
        assert_eq!(percentages(&[level(0, 3), level(1, 1_000)], 0), [0, 100]);
    }

    proptest! {
        #[test]
        fn parts_are_whole(
            levels in proptest::collection::vec((1u64..2_000, 0.0..=1.0), 1..6),
            panic_threshold in 0u32..=100,
            overprovisioning in 1u32..1_000,
        ) {
            let levels: Vec<_> = levels
                .into_iter()
                .map(|(endpoints, share)| level((endpoints as f64 * share) as u64, endpoints))
                .collect();
            let loads = across(&levels, panic_threshold, overprovisioning);
            let usable = panic_threshold > 0 || levels.iter().any(|level| level.healthy > 0);
            prop_assert_eq!(loads.iter().map(|load| load.percent).sum::<u32>(), if usable { 100 } else { 0 });
            for (load, level) in loads.iter().zip(&levels) {
                prop_assert!(load.percent == 0 || load.panic || level.healthy > 0);
                prop_assert!(!load.panic || level.healthy * 100 < level.endpoints * u64::from(panic_threshold));
            }
        }

        /// More health of a level never means fewer connections to it, but for roundings.
        #[test]
        fn health_attracts(others in proptest::collection::vec(0u32..=100, 0..4), available in 0u32..100) {
            let first = |available| {
                by_health(&[&[available][..], &others].concat()).map_or(0, |percentages| percentages[0])
            };
            prop_assert!(first(available + 1) + others.len() as u32 + 1 >= first(available));
        }
    }
}
