//! The cases of the traffic script, and what about each is left to chance.

/// A listener of `front.yaml`.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) port: u16,
    pub(super) chance: Chance,
    /// Whether the time that a connection takes is the point of the case.
    pub(super) timed: bool,
}

/// What two runs of the same balancer may do differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chance {
    Nothing,
    /// Which of several like endpoints got how many connections.
    Endpoint,
    /// How many connections needed a second attempt.
    Retries,
    /// How many connections each of two clusters got.
    Cluster,
}

const fn case(name: &'static str, port: u16, chance: Chance) -> Case {
    Case { name, port, chance, timed: false }
}

const fn timed(name: &'static str, port: u16, chance: Chance) -> Case {
    Case { name, port, chance, timed: true }
}

pub(super) const CASES: &[Case] = &[
    case("ok", 10001, Chance::Endpoint),
    case("bytes", 10002, Chance::Nothing),
    case("half", 10003, Chance::Nothing),
    case("client_reset", 10004, Chance::Nothing),
    case("backend_reset", 10005, Chance::Nothing),
    timed("dead", 10006, Chance::Nothing),
    timed("dead_retry", 10007, Chance::Retries),
    case("refused", 10008, Chance::Nothing),
    case("refused_retry", 10009, Chance::Retries),
    case("empty", 10010, Chance::Nothing),
    case("overflow", 10011, Chance::Nothing),
    timed("idle", 10012, Chance::Nothing),
    timed("duration", 10013, Chance::Nothing),
    case("weighted", 10014, Chance::Cluster),
    case("least_request", 10015, Chance::Endpoint),
];

/// Whether a cluster's numbers are [relative](super::scale).
pub(super) fn is_loose(cluster: &str) -> bool {
    CASES.iter().any(|case| match case.chance {
        Chance::Retries => case.name == cluster,
        // Its clusters are named after it.
        Chance::Cluster => cluster.strip_prefix(case.name).is_some_and(|rest| rest.starts_with('_')),
        Chance::Nothing | Chance::Endpoint => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_left_to_chance() {
        assert!(is_loose("refused_retry"));
        assert!(is_loose("weighted_heavy"));
        assert!(!is_loose("weighted"), "the listener's own numbers are exact");
        assert!(!is_loose("refused"));
        assert!(!is_loose("ok"));
    }
}
