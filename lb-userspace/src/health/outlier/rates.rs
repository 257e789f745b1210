//! Outliers by the rates of an interval.

use crate::model::{FailurePercentage, SuccessRate};

use super::judge::Judge;
use super::member::Member;
use super::{Cause, Change, Seen};

/// An endpoint with attempts in the interval, not ejected.
pub(super) struct Rated<'a, K> {
    key: &'a K,
    member: &'a mut Member,
    /// Of the attempts that succeeded.
    percent: f64,
    attempts: u64,
}

impl<'a, K> Rated<'a, K> {
    /// Ends the member's interval.
    pub(super) fn new(key: &'a K, member: &'a mut Member, seen: Seen) -> Option<Self> {
        let (failed, succeeded) = member.end_interval(seen);
        let attempts = failed + succeeded;
        if attempts == 0 || member.ejected_until().is_some() {
            return None;
        }
        let percent = succeeded as f64 * 100.0 / attempts as f64;
        Some(Self { key, member, percent, attempts })
    }

    fn has(&self, volume: u32) -> bool {
        self.attempts >= u64::from(volume)
    }
}

/// Ejects outliers, the worst ones first.
pub(super) fn judge<K: Clone>(
    rated: &mut [Rated<'_, K>],
    judge: &mut Judge<'_>,
    changes: &mut Vec<Change<K>>,
) {
    rated.sort_by(|one, other| one.percent.total_cmp(&other.percent));
    if let Some(rule) = judge.outlier.success_rate
        && let Some(threshold) = threshold(rated, &rule)
    {
        for outlier in rated.iter_mut().filter(|one| one.has(rule.request_volume) && one.percent < threshold)
        {
            let cause = Cause::SuccessRate { percent: outlier.percent, threshold };
            changes.push(judge.detected(outlier.key, outlier.member, cause, rule.enforcing));
        }
    }
    if let Some(rule) = judge.outlier.failure_percentage {
        for outlier in failing(rated, &rule) {
            let cause = Cause::FailurePercentage { percent: 100.0 - outlier.percent };
            changes.push(judge.detected(outlier.key, outlier.member, cause, rule.enforcing));
        }
    }
}

/// A success rate below this is an outlier's: so many standard deviations below the mean.
fn threshold<K>(rated: &[Rated<'_, K>], rule: &SuccessRate) -> Option<f64> {
    let rates = || rated.iter().filter(|one| one.has(rule.request_volume)).map(|one| one.percent);
    let hosts = rates().count();
    if hosts == 0 || hosts < rule.minimum_hosts as usize {
        return None;
    }
    let mean = rates().sum::<f64>() / hosts as f64;
    let variance = rates().map(|rate| (rate - mean).powi(2)).sum::<f64>() / hosts as f64;
    Some(mean - f64::from(rule.stdev_factor) / 1000.0 * variance.sqrt())
}

fn failing<'a, 'b, K>(
    rated: &'a mut [Rated<'b, K>],
    rule: &FailurePercentage,
) -> impl Iterator<Item = &'a mut Rated<'b, K>> {
    let hosts = rated.iter().filter(|one| one.has(rule.request_volume)).count();
    let judged = hosts >= rule.minimum_hosts as usize;
    rated.iter_mut().filter(move |one| {
        let fails = 100.0 - one.percent >= f64::from(rule.threshold);
        // The success rate may have ejected it just now.
        judged && fails && one.has(rule.request_volume) && one.member.ejected_until().is_none()
    })
}
