//! How often each value occurs.

use std::collections::BTreeMap;
use std::fmt;

/// Values and how often they occur.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally(BTreeMap<String, u64>);

impl Tally {
    pub(super) fn add(&mut self, value: String, times: u64) {
        *self.0.entry(value).or_default() += times;
    }

    /// The same values, each once: for numbers that are left to chance.
    pub(super) fn once(&self) -> Self {
        Self(self.0.keys().map(|value| (value.clone(), 1)).collect())
    }
}

impl fmt::Display for Tally {
    /// `-`, `2 × UO, 3 × -`: how often, unless it is the only value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (value, times)) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match times {
                1 => f.write_str(value)?,
                _ => write!(f, "{times} × {value}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_prints() {
        let mut tally = Tally::default();
        tally.add("UO".to_owned(), 3);
        tally.add("-".to_owned(), 1);
        tally.add("-".to_owned(), 1);
        tally.add("UF".to_owned(), 1);
        assert_eq!(tally.to_string(), "2 × -, UF, 3 × UO");
        assert_eq!(tally.once().to_string(), "-, UF, UO");
    }
}
