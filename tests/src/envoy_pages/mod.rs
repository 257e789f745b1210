//! What Envoy and Headgate say of the same traffic, and where they differ.
//!
//! `tests/envoy/compare/` has the configuration that both read, and the traffic. What the client saw, the access logs
//! and the admin port's pages of both are read here and compared; [`accepted`] has the differences that remain and
//! why, and `docs/envoy-differences.md` is [made](markdown) of it.

mod absent;
mod accepted;
mod access_log;
mod cases;
mod client;
mod clusters;
mod counts;
mod ends;
mod glob;
mod judge;
pub mod markdown;
mod metrics;
mod prometheus;
mod scale;
mod tally;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

pub use judge::{Report, Run, judge};

/// Where something is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Page {
    /// What the client of the traffic script saw.
    Client,
    AccessLog,
    /// `/stats/prometheus`
    Stats,
    /// `/clusters`
    Clusters,
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::AccessLog => "access log",
            Self::Stats => "stats",
            Self::Clusters => "clusters",
        })
    }
}

/// Something that the two say differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub page: Page,
    /// `refused: end`, `envoy_server_version`, `envoy_cluster_upstream_cx_total{envoy_cluster_name="ok"}`, …
    pub item: String,
    /// What Envoy says; nothing if it does not have the item.
    pub envoy: Option<String>,
    /// The same of Headgate.
    pub headgate: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |value: &Option<String>| value.as_deref().unwrap_or("nothing").to_owned();
        let (envoy, headgate) = (said(&self.envoy), said(&self.headgate));
        write!(f, "{}: {}: Envoy {envoy}, Headgate {headgate}", self.page, self.item)
    }
}

/// All that one of them said.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    /// Lines of JSON, of `traffic.py client`.
    pub client: String,
    /// Lines of JSON.
    pub access_log: String,
    /// Lines of Envoy's default format.
    pub text_log: String,
    pub prometheus: String,
    pub clusters: String,
}

impl Pages {
    /// Reads what `by-hand.sh` leaves in a directory.
    pub fn read(directory: &Path) -> Result<Self> {
        let file = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(Self {
            client: file("client.jsonl")?,
            access_log: file("access.json")?,
            text_log: file("access.txt")?,
            prometheus: file("prometheus.txt")?,
            clusters: file("clusters.txt")?,
        })
    }
}

/// Every difference, whether it is accepted or not. An error is a page that cannot be read.
pub fn compare(envoy: &Pages, headgate: &Pages) -> Result<Vec<Difference>> {
    let mut differences = client::compare(&envoy.client, &headgate.client)?;
    differences.extend(access_log::compare(&envoy.access_log, &headgate.access_log)?);
    differences.extend(access_log::compare_text(&envoy.text_log, &headgate.text_log));
    differences.extend(prometheus::compare(&envoy.prometheus, &headgate.prometheus)?);
    differences.extend(clusters::compare(&envoy.clusters, &headgate.clusters)?);
    Ok(differences)
}
