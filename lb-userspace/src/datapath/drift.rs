//! Counts of open connections that have gone wrong, by what the tables hold: where two CPUs do not agree on how a flow ended,
//! where it ended while the tables were being counted, where an entry gave way.

use std::collections::HashMap;

/// Looks after which a difference that was always there is an error, and no flow that just came or went.
const LOOKS: u32 = 20;

/// The differences between what was counted in the tables and what the counts say, of late.
#[derive(Default)]
pub struct Drift {
    of: HashMap<u32, Seen>,
}

#[derive(Clone, Copy)]
struct Seen {
    least: i64,
    most: i64,
    looks: u32,
}

impl Drift {
    /// Notes a difference at an index; what the count is to be corrected by, mostly 0.
    pub fn note(&mut self, index: u32, difference: i64) -> i64 {
        if difference == 0 {
            // As it should be: what was before is over.
            if !self.of.is_empty() {
                self.of.remove(&index);
            }
            return 0;
        }
        let seen = self.of.entry(index).or_insert(Seen { least: difference, most: difference, looks: 0 });
        seen.least = seen.least.min(difference);
        seen.most = seen.most.max(difference);
        seen.looks += 1;
        if seen.looks < LOOKS {
            return 0;
        }
        let Seen { least, most, .. } = *seen;
        self.of.remove(&index);
        match (least, most) {
            (1.., _) => least,
            (_, ..=-1) => most,
            _ => 0,
        }
    }

    /// Only these indices are of interest.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.of.retain(|&index, _| keep(index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_always_there_is_corrected_and_what_comes_and_goes_is_not() {
        let mut drift = Drift::default();
        let corrections = |drift: &mut Drift, differences: &dyn Fn(u32) -> i64| -> Vec<i64> {
            (0..LOOKS).map(|look| drift.note(7, differences(look))).collect()
        };
        assert_eq!(corrections(&mut drift, &|look| i64::from(look % 3) - 1), [0; LOOKS as usize]);
        let up = corrections(&mut drift, &|look| 2 + i64::from(look % 5));
        assert_eq!((up[..LOOKS as usize - 1].iter().sum::<i64>(), up[LOOKS as usize - 1]), (0, 2));
        let gone = corrections(&mut drift, &|look| if look == 10 { 0 } else { 5 });
        assert_eq!(gone, [0; LOOKS as usize], "it was as it should be meanwhile");
        drift.note(7, 0);
        let down = corrections(&mut drift, &|look| -3 - i64::from(look % 2));
        assert_eq!(down.last(), Some(&-3));
    }
}
