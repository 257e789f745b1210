//! What became of a key of an Envoy bootstrap.

use std::fmt;

use super::Place;

/// One key, or a mapping of keys that have the same fate; shown as `line LINE: PATH: VERDICT: WHY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub place: Place,
    /// As in `static_resources.listeners[0].name`.
    pub path: String,
    pub verdict: Verdict,
}

/// A key that would be unsafe to leave out is none of these: it is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It means what it means to Envoy.
    Honoured,
    /// It has an effect, but not exactly Envoy's; the text says which.
    Approximated(String),
    /// It has no effect; the text says why that does no harm.
    Ignored(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {}", self.place.line, self.path, self.verdict)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Honoured => f.write_str("honoured"),
            Self::Approximated(why) => write!(f, "approximated: {why}"),
            Self::Ignored(why) => write!(f, "ignored: {why}"),
        }
    }
}
