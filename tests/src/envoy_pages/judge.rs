//! Which differences are accepted, and which accepted ones do not exist any more.

use std::fmt;

use super::accepted::{Accepted, Value, accepted};
use super::{Difference, glob};
use crate::rung::Rung;

/// The differences of one rung from Envoy.
#[derive(Debug)]
pub struct Run {
    pub rung: Rung,
    pub differences: Vec<Difference>,
}

/// What does not agree with the table of accepted differences.
#[derive(Debug, Default)]
pub struct Report {
    /// Differences of which the table says nothing.
    pub unexplained: Vec<(Rung, Difference)>,
    /// Patterns of the table, with their reasons, that no difference matched.
    pub unused: Vec<String>,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.unexplained.is_empty() && self.unused.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rung, difference) in &self.unexplained {
            writeln!(f, "not accepted, on {rung}: {difference}")?;
        }
        for unused in &self.unused {
            writeln!(f, "accepted, but no rung differs so: {unused}")?;
        }
        Ok(())
    }
}

/// Holds the runs against the table. What is unused can be told only of runs on all rungs.
pub fn judge(runs: &[Run]) -> Report {
    judge_by(&accepted().collect::<Vec<_>>(), runs)
}

fn judge_by(accepted: &[&Accepted], runs: &[Run]) -> Report {
    let mut report = Report::default();
    let mut used: Vec<Vec<bool>> = accepted.iter().map(|entry| vec![false; entry.items.len()]).collect();
    for run in runs {
        for difference in &run.differences {
            let mut explained = false;
            for (entry, used) in accepted.iter().zip(&mut used) {
                for (pattern, used) in entry.items.iter().zip(used) {
                    if entry.explains(pattern, run.rung, difference) {
                        *used = true;
                        explained = true;
                    }
                }
            }
            if !explained {
                report.unexplained.push((run.rung, difference.clone()));
            }
        }
    }
    for (entry, used) in accepted.iter().zip(used) {
        let unused = entry.items.iter().zip(used).filter(|(_, used)| !used);
        report
            .unused
            .extend(unused.map(|(pattern, _)| format!("{}: {pattern} ({})", entry.page, entry.reason)));
    }
    report
}

impl Accepted {
    fn explains(&self, pattern: &str, rung: Rung, difference: &Difference) -> bool {
        self.page == difference.page
            && self.rungs.contains(&rung)
            && glob::matches(pattern, &difference.item)
            && self.envoy.fits(difference.envoy.as_deref())
            && self.headgate.fits(difference.headgate.as_deref())
    }
}

impl Value {
    fn fits(self, said: Option<&str>) -> bool {
        match self {
            Self::Some => said.is_some(),
            Self::Nothing => said.is_none(),
            Self::Like(pattern) => said.is_some_and(|said| glob::matches(pattern, said)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Page;
    use super::super::accepted::{ALL, KERNEL, Topic};
    use super::*;

    const TABLE: &[&Accepted] = &[
        &Accepted {
            topic: Topic::Ends,
            page: Page::Client,
            items: &["*: end"],
            rungs: KERNEL,
            envoy: Value::Like("*fin"),
            headgate: Value::Like("*reset"),
            reason: "because",
        },
        &Accepted {
            topic: Topic::Absent,
            page: Page::Stats,
            items: &["envoy_a*", "envoy_b*"],
            rungs: ALL,
            envoy: Value::Some,
            headgate: Value::Nothing,
            reason: "why",
        },
    ];

    fn difference(page: Page, item: &str, envoy: Option<&str>, headgate: Option<&str>) -> Difference {
        Difference {
            page,
            item: item.to_owned(),
            envoy: envoy.map(ToOwned::to_owned),
            headgate: headgate.map(ToOwned::to_owned),
        }
    }

    fn run(rung: Rung, differences: Vec<Difference>) -> Run {
        Run { rung, differences }
    }

    #[test]
    fn all_accepted_and_all_used() {
        let end = difference(Page::Client, "refused: end", Some("2 × fin"), Some("2 × reset"));
        let a = difference(Page::Stats, "envoy_a_total", Some("1 series"), None);
        let b = difference(Page::Stats, "envoy_b", Some("1 series"), None);
        let report = judge_by(TABLE, &[run(Rung::Tc, vec![end]), run(Rung::Proxy, vec![a, b])]);
        assert!(report.is_clean(), "{report}");
    }

    #[test]
    fn what_the_table_does_not_say() {
        let unexplained = [
            (Rung::Proxy, difference(Page::Client, "refused: end", Some("fin"), Some("reset"))),
            (Rung::Tc, difference(Page::AccessLog, "refused: end", Some("fin"), Some("reset"))),
            (Rung::Tc, difference(Page::Client, "refused: end", Some("fin"), Some("refused"))),
            (Rung::Tc, difference(Page::Client, "refused: sent", Some("fin"), Some("reset"))),
            (Rung::Tc, difference(Page::Stats, "envoy_a", Some("1"), Some("2"))),
            (Rung::Tc, difference(Page::Stats, "envoy_a", None, Some("1 series"))),
        ];
        for (rung, difference) in unexplained {
            let report = judge_by(TABLE, &[run(rung, vec![difference.clone()])]);
            assert_eq!(report.unexplained, [(rung, difference)]);
        }
    }

    #[test]
    fn every_pattern_has_to_match_something() {
        let a = difference(Page::Stats, "envoy_a_total", Some("1 series"), None);
        let report = judge_by(TABLE, &[run(Rung::Proxy, vec![a])]);
        assert_eq!(report.unused, ["client: *: end (because)", "stats: envoy_b* (why)"]);
        assert!(report.to_string().contains("accepted, but no rung differs so: stats: envoy_b*"), "{report}");
    }
}
