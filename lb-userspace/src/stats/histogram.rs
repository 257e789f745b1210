//! Histograms with Envoy's buckets and quantiles: counted in fine buckets of two significant decimal digits, from
//! which quantiles and the coarse buckets of the pages are worked out.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the coarse buckets, Envoy's default ones, with their texts in `/stats`.
pub(super) const BOUNDS: [(f64, &str); 19] = [
    (0.5, "0.5"),
    (1.0, "1"),
    (5.0, "5"),
    (10.0, "10"),
    (25.0, "25"),
    (50.0, "50"),
    (100.0, "100"),
    (250.0, "250"),
    (500.0, "500"),
    (1000.0, "1000"),
    (2500.0, "2500"),
    (5000.0, "5000"),
    (10000.0, "10000"),
    (30000.0, "30000"),
    (60000.0, "60000"),
    (300000.0, "300000"),
    (600000.0, "600000"),
    (1800000.0, "1.8e+06"),
    (3600000.0, "3.6e+06"),
];

/// The quantiles that the pages show, in percent, with their texts.
pub(super) const QUANTILES: [(f64, &str); 10] = [
    (0.0, "0"),
    (25.0, "25"),
    (50.0, "50"),
    (75.0, "75"),
    (90.0, "90"),
    (95.0, "95"),
    (99.0, "99"),
    (99.5, "99.5"),
    (99.9, "99.9"),
    (100.0, "100"),
];

/// Values below this have a fine bucket of their own.
const SINGLES: u64 = 100;
/// Fine buckets of a decade: two digits, the first of them not zero.
const PER_DECADE: usize = 90;
/// Decades above the single values: up to 10^10 ms, 115 days. What is larger counts in the last bucket.
const DECADES: usize = 8;
const FINE: usize = SINGLES as usize + PER_DECADE * DECADES;

/// Counts whole numbers, usually milliseconds. Any thread may record; about 7 KiB.
pub struct Histogram {
    fine: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { fine: (0..FINE).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }
}

impl Histogram {
    pub fn record(&self, value_ms: u64) {
        self.fine[fine_index(value_ms)].fetch_add(1, Relaxed);
        self.sum.fetch_add(value_ms, Relaxed);
    }

    /// The counts at this moment. A value that is being recorded meanwhile may be in the counts and not in the sum.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let counts = self.fine.iter().map(|count| count.load(Relaxed)).enumerate();
        HistogramSnapshot {
            fine: counts
                .filter(|(_, count)| *count > 0)
                .map(|(index, count)| (index as u16, count))
                .collect(),
            sum: self.sum.load(Relaxed),
        }
    }
}

/// A histogram at one moment; only the buckets that are not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// Index and count, by rising index.
    fine: Vec<(u16, u64)>,
    sum: u64,
}

impl HistogramSnapshot {
    /// That of a single value.
    pub fn of(value_ms: u64) -> Self {
        Self { fine: vec![(fine_index(value_ms) as u16, 1)], sum: value_ms }
    }

    pub fn count(&self) -> u64 {
        self.fine.iter().map(|(_, count)| count).sum()
    }

    /// The sum of all recorded values, exactly; Envoy has one from the middles of its buckets.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Adds another one's counts.
    pub fn merge(&mut self, other: &Self) {
        for (index, count) in &other.fine {
            match self.fine.binary_search_by_key(index, |(index, _)| *index) {
                Ok(at) => self.fine[at].1 += count,
                Err(at) => self.fine.insert(at, (*index, *count)),
            }
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// How many values are at most so large, by their fine buckets' lower bounds, as Envoy counts them.
    pub(super) fn at_most(&self, bound: f64) -> u64 {
        self.fine.iter().filter(|(index, _)| fine_bounds(*index).0 <= bound).map(|(_, count)| count).sum()
    }

    /// The quantile of `percent`, spread evenly within its fine bucket; none without values.
    pub(super) fn quantile(&self, percent: f64) -> Option<f64> {
        let total = self.count();
        // Of n values in order, the one that at least so many percent of them are not above.
        let rank = ((total as f64 * percent / 100.0).ceil() as u64).clamp(1, total.max(1));
        let mut below = 0;
        for (index, count) in &self.fine {
            if rank <= below + count {
                let (left, width) = fine_bounds(*index);
                return Some(left + width * ((rank - below) as f64 / (count + 1) as f64));
            }
            below += count;
        }
        None
    }
}

fn fine_index(value: u64) -> usize {
    let (mut digits, mut decade) = (value, 0);
    while digits >= SINGLES {
        digits /= 10;
        decade += 1;
    }
    match decade {
        0 => digits as usize,
        1..=DECADES => digits as usize + PER_DECADE * decade,
        _ => FINE - 1,
    }
}

/// Lower bound and width of a fine bucket. Zero is exact, 1 to 9 have one more digit as in Envoy.
fn fine_bounds(index: u16) -> (f64, f64) {
    let index = usize::from(index);
    match index {
        0 => (0.0, 0.0),
        1..10 => (index as f64, 0.1),
        10..100 => (index as f64, 1.0),
        _ => {
            let decade = (index - 10) / PER_DECADE;
            let width = 10f64.powi(decade as i32);
            ((index - PER_DECADE * decade) as f64 * width, width)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[u64]) -> HistogramSnapshot {
        let histogram = Histogram::default();
        values.iter().for_each(|value| histogram.record(*value));
        histogram.snapshot()
    }

    fn quantiles(of: &HistogramSnapshot) -> Vec<f64> {
        QUANTILES.iter().map(|(percent, _)| of.quantile(*percent).unwrap()).collect()
    }

    /// What Envoy 1.40 printed for these thirty connections.
    #[test]
    fn quantiles_are_those_of_envoy() {
        let lengths = [
            0, 4, 6, 9, 13, 16, 19, 22, 25, 28, 31, 34, 37, 41, 43, 46, 49, 53, 55, 58, 61, 64, 68, 71, 73,
            77, 80, 83, 85, 89,
        ];
        let snapshot = of(&lengths);
        assert_eq!(quantiles(&snapshot), [0.0, 22.5, 43.5, 68.5, 80.5, 85.5, 89.5, 89.5, 89.5, 89.5]);
        let ones = of(&[1; 31]);
        let rounded = quantiles(&ones).iter().map(|value| (value * 1e6).round() / 1e6).collect::<Vec<_>>();
        assert_eq!(
            rounded,
            [1.003125, 1.025, 1.05, 1.075, 1.0875, 1.09375, 1.096875, 1.096875, 1.096875, 1.096875]
        );
    }

    #[test]
    fn coarse_buckets_are_those_of_envoy() {
        let lengths = [
            0, 4, 6, 9, 13, 16, 19, 22, 25, 28, 31, 34, 37, 41, 43, 46, 49, 53, 55, 58, 61, 64, 68, 71, 73,
            77, 80, 83, 85, 89,
        ];
        let snapshot = of(&lengths);
        let counts = BOUNDS.map(|(bound, _)| snapshot.at_most(bound));
        assert_eq!(counts[..7], [1, 1, 2, 4, 9, 17, 30]);
        assert_eq!(of(&[1; 31]).at_most(1.0), 31);
        assert_eq!((snapshot.count(), snapshot.sum()), (30, lengths.iter().sum()));
    }

    #[test]
    fn every_value_is_in_its_bucket() {
        let values =
            (0..100_000).chain((0..60).map(|shift| 1u64 << shift)).filter(|value| *value < 10u64.pow(10));
        for value in values {
            let (left, width) = fine_bounds(fine_index(value) as u16);
            assert!(
                left <= value as f64 && (value as f64) < left + width.max(0.1),
                "{value}: {left}+{width}"
            );
        }
        assert_eq!(fine_index(u64::MAX), FINE - 1);
        assert_eq!(fine_index(10u64.pow(10) - 1), FINE - 1);
    }

    #[test]
    fn merging_adds() {
        let mut one = of(&[1, 50, 7000]);
        one.merge(&of(&[0, 50, 1 << 40]));
        assert_eq!(one, of(&[0, 1, 50, 50, 7000, 1 << 40]));
        assert_eq!(HistogramSnapshot::default().quantile(50.0), None);
        assert_eq!(HistogramSnapshot::of(15), of(&[15]));
    }
}
