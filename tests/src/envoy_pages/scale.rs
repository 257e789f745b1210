//! Numbers of clusters whose connections or failed attempts are a matter of chance: such a number is read as so many
//! for each of those.

/// What the numbers of a cluster are multiples of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scale {
    /// Attempts to connect.
    pub(super) attempts: u64,
    /// Of these, the ones that failed.
    pub(super) failed: u64,
}

/// What a number can mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Exactly(u64),
    EachAttempt,
    EachFailure,
    /// So many for each connection that was made.
    EachConnection(u64),
}

impl Scale {
    fn readings(self, value: u64) -> impl Iterator<Item = Reading> {
        let made = self.attempts.saturating_sub(self.failed);
        [
            Some(Reading::Exactly(value)),
            (value == self.attempts).then_some(Reading::EachAttempt),
            (value == self.failed).then_some(Reading::EachFailure),
            (made > 0 && value.is_multiple_of(made)).then(|| Reading::EachConnection(value / made)),
        ]
        .into_iter()
        // Nothing is not one for each of none.
        .take(if value == 0 { 1 } else { 4 })
        .flatten()
    }
}

/// Whether two numbers can mean the same, each on its own scale.
pub(super) fn alike((value, scale): (u64, Scale), (other, of_other): (u64, Scale)) -> bool {
    scale.readings(value).any(|reading| of_other.readings(other).any(|another| reading == another))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEVEN: Scale = Scale { attempts: 7, failed: 3 };
    const SIX: Scale = Scale { attempts: 6, failed: 2 };

    #[test]
    fn numbers_that_mean_the_same() {
        for (value, other) in [(7, 6), (3, 2), (4, 4), (48, 48), (1, 1), (0, 0)] {
            assert!(alike((value, SEVEN), (other, SIX)), "{value} and {other}");
        }
        let (light, heavy) = (Scale { attempts: 7, failed: 0 }, Scale { attempts: 33, failed: 0 });
        assert!(alike((7, light), (33, heavy)));
        assert!(alike((84, light), (396, heavy)), "12 bytes for each");
    }

    #[test]
    fn numbers_that_do_not() {
        for (value, other) in [(7, 4), (3, 0), (0, 2), (48, 49), (4, 6), (48, 44)] {
            assert!(!alike((value, SEVEN), (other, SIX)), "{value} and {other}");
        }
        let (none, some) = (Scale { attempts: 7, failed: 0 }, Scale { attempts: 7, failed: 3 });
        assert!(!alike((0, none), (3, some)), "no failure is not a failure");
    }
}
