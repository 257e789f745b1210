//! What is counted or shown differently.

use super::Page;
use super::accepted::{Accepted, KERNEL, Topic, Value};

pub(super) const COUNTS: &[Accepted] = &[Accepted {
    topic: Topic::Counts,
    page: Page::Stats,
    items: &["envoy_cluster_upstream_cx_length_ms_count{envoy_cluster_name=\"*_retry\"}"],
    rungs: KERNEL,
    envoy: Value::Some,
    headgate: Value::Some,
    reason: "Envoy has the time that each failed attempt took, too; the programs only count those before the last",
}];
