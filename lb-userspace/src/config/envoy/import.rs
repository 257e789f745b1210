//! What an import gathers besides the configuration: errors, what became of each key, and warnings.

use crate::config::finding::{Finding, Verdict};
use crate::config::tree::{Entry, Located, Report};

pub(super) struct Import<'r> {
    pub(super) report: &'r mut Report,
    pub(super) findings: Vec<Finding>,
    /// Keys that would be unsafe to ignore.
    refusals: Vec<Located<String>>,
    pub(super) warnings: Vec<Located<String>>,
    /// The first thing that only Envoy's v2 has, and the first that only v3 has.
    v2: Option<Located<()>>,
    v3: Option<Located<()>>,
}

/// How much was found, to come back to.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    errors: usize,
    refusals: usize,
}

impl<'r> Import<'r> {
    pub(super) fn new(report: &'r mut Report) -> Self {
        Self { report, findings: Vec::new(), refusals: Vec::new(), warnings: Vec::new(), v2: None, v3: None }
    }

    /// An error that Envoy has too, or a value that cannot be carried over.
    pub(super) fn error(&mut self, entry: &Entry<'_>, message: impl Into<String>) {
        entry.refuse(message, self.report);
    }

    /// The key is good, and would be unsafe to ignore.
    pub(super) fn refuse(&mut self, entry: &Entry<'_>, why: impl Into<String>) {
        self.refusals.push(entry.at(why.into()));
    }

    pub(super) fn honour(&mut self, entry: &Entry<'_>) {
        self.find(entry, Verdict::Honoured);
    }

    pub(super) fn approximate(&mut self, entry: &Entry<'_>, why: impl Into<String>) {
        self.find(entry, Verdict::Approximated(why.into()));
    }

    pub(super) fn ignore(&mut self, entry: &Entry<'_>, why: impl Into<String>) {
        self.find(entry, Verdict::Ignored(why.into()));
    }

    pub(super) fn warn(&mut self, entry: &Entry<'_>, message: impl Into<String>) {
        self.warnings.push(entry.at(message.into()));
    }

    fn find(&mut self, entry: &Entry<'_>, verdict: Verdict) {
        let Located { value, place, path } = entry.at(verdict);
        self.findings.push(Finding { place, path, verdict: value });
    }

    pub(super) fn is_v2(&mut self, entry: &Entry<'_>) {
        self.v2.get_or_insert_with(|| entry.at(()));
    }

    pub(super) fn is_v3(&mut self, entry: &Entry<'_>) {
        self.v3.get_or_insert_with(|| entry.at(()));
    }

    /// Whether the file is of Envoy's v2, as far as it was read.
    pub(super) fn speaks_v2(&self) -> bool {
        self.v2.is_some()
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { errors: self.report.count(), refusals: self.refusals.len() }
    }

    pub(super) fn refused_since(&self, mark: Mark) -> bool {
        self.refusals.len() > mark.refusals
    }

    /// Whether anything is wrong that came up since.
    pub(super) fn failed_since(&self, mark: Mark) -> bool {
        self.refused_since(mark) || self.report.count() > mark.errors
    }

    /// Turns what was refused since into what is ignored, as the part of the file that it is in is without use.
    pub(super) fn forgive_since(&mut self, mark: Mark, why: &str) {
        for Located { value, place, path } in self.refusals.drain(mark.refusals..) {
            let verdict = Verdict::Ignored(format!("{why}, else refused: {value}"));
            self.findings.push(Finding { place, path, verdict });
        }
    }

    /// Reports what was refused, and a mix of both versions, which no Envoy reads.
    pub(super) fn finish(mut self) -> (Vec<Finding>, Vec<Located<String>>) {
        for Located { value, place, path } in &self.refusals {
            self.report.add(*place, path, format!("refused: {value}"));
        }
        if let (Some(v2), Some(v3)) = (&self.v2, &self.v3) {
            let (line, path) = (v3.place.line, &v3.path);
            let message = format!(
                "is of Envoy's v2, and {path} on line {line} of v3: write the whole file for one of the two"
            );
            self.report.add(v2.place, &v2.path, message);
        }
        self.findings.sort_by(|a, b| (a.place, &a.path).cmp(&(b.place, &b.path)));
        // What was said of a key last is the more exact.
        self.findings.dedup_by(|later, earlier| {
            let same = later.path == earlier.path;
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        (self.findings, self.warnings)
    }
}
