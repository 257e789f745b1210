//! `/clusters`: lines of `cluster::key::value`, `cluster::priority::key::value` and `cluster::endpoint::key::value`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

use super::cases::is_loose;
use super::scale::{Scale, alike};
use super::{Difference, Page};

#[derive(Debug, Default)]
struct Clusters {
    values: BTreeMap<Item, String>,
    /// The kinds of keys that occur.
    kinds: BTreeSet<String>,
}

/// A cluster, a priority or an endpoint or nothing, and a key.
type Item = (String, String, String);

/// Stands for all endpoints of a cluster: which of them got how many connections is chance.
const SUM: &str = "endpoints";

pub(super) fn compare(envoy: &str, headgate: &str) -> Result<Vec<Difference>> {
    let envoy = parse(envoy).context("Envoy's /clusters")?;
    let headgate = parse(headgate).context("Headgate's /clusters")?;
    let mut differences = Vec::new();
    let mut differ = |item: String, envoy: Option<String>, headgate: Option<String>| {
        differences.push(Difference { page: Page::Clusters, item, envoy, headgate });
    };
    for kind in envoy.kinds.difference(&headgate.kinds) {
        differ(kind.clone(), Some("in each cluster".to_owned()), None);
    }
    for kind in headgate.kinds.difference(&envoy.kinds) {
        differ(kind.clone(), None, Some("in each cluster".to_owned()));
    }
    let items =
        envoy.values.keys().chain(headgate.values.keys().filter(|item| !envoy.values.contains_key(*item)));
    for item @ (cluster, place, key) in items {
        let kind = kind(place, key);
        if !envoy.kinds.contains(&kind) || !headgate.kinds.contains(&kind) {
            continue;
        }
        let (value, other) = (envoy.values.get(item), headgate.values.get(item));
        let number = |of: &Clusters| Some((of.sum(cluster, key)?, of.scale(cluster)));
        let alike_by_chance = is_loose(cluster)
            && place == SUM
            && number(&envoy).zip(number(&headgate)).is_some_and(|(number, other)| alike(number, other));
        if value != other && !alike_by_chance {
            let place = if place.is_empty() { String::new() } else { format!("{place}::") };
            differ(format!("{cluster}::{place}{key}"), value.cloned(), other.cloned());
        }
    }
    Ok(differences)
}

impl Clusters {
    /// Of all endpoints.
    fn sum(&self, cluster: &str, key: &str) -> Option<u64> {
        self.values.get(&(cluster.to_owned(), SUM.to_owned(), key.to_owned()))?.parse().ok()
    }

    fn scale(&self, cluster: &str) -> Scale {
        Scale {
            attempts: self.sum(cluster, "cx_total").unwrap_or_default(),
            failed: self.sum(cluster, "cx_connect_fail").unwrap_or_default(),
        }
    }
}

/// `added_via_api`, `high_priority::max_retries`, `endpoint::weight`
fn kind(place: &str, key: &str) -> String {
    match place {
        "" => key.to_owned(),
        _ if place.ends_with("_priority") => format!("{place}::{key}"),
        _ => format!("endpoint::{key}"),
    }
}

fn parse(page: &str) -> Result<Clusters> {
    let mut clusters = Clusters::default();
    for (index, line) in page.lines().enumerate() {
        add(&mut clusters, line).with_context(|| format!("line {}: {line}", index + 1))?;
    }
    Ok(clusters)
}

fn add(clusters: &mut Clusters, line: &str) -> Result<()> {
    let parts: Vec<&str> = line.split("::").collect();
    let (cluster, place, key, value) = match parts[..] {
        [cluster, key, value] => (cluster, "", key, value),
        [cluster, place, key, value] => (cluster, place, key, value),
        _ => bail!("not `cluster::key::value` or `cluster::place::key::value`"),
    };
    clusters.kinds.insert(kind(place, key));
    let is_count = place.contains(':') && (key.starts_with("cx_") || key.starts_with("rq_"));
    if is_count {
        let sum = clusters.values.entry((cluster.to_owned(), SUM.to_owned(), key.to_owned())).or_default();
        let so_far: u64 = if sum.is_empty() { 0 } else { sum.parse().context("the sum so far")? };
        let more: u64 = value.parse().context("the count is no number")?;
        *sum = so_far.saturating_add(more).to_string();
        return Ok(());
    }
    let item = (cluster.to_owned(), place.to_owned(), key.to_owned());
    ensure!(clusters.values.insert(item, value.to_owned()).is_none(), "this line was there before");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(envoy: &str, headgate: &str) -> Vec<String> {
        compare(envoy, headgate).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_key_that_only_one_has_is_one_difference() {
        let envoy =
            "a::high_priority::max_retries::3\nb::high_priority::max_retries::3\na::1.2.3.4:5::canary::no\n";
        assert_eq!(
            items(envoy, ""),
            [
                "clusters: endpoint::canary: Envoy in each cluster, Headgate nothing",
                "clusters: high_priority::max_retries: Envoy in each cluster, Headgate nothing"
            ]
        );
    }

    #[test]
    fn values() {
        let page = "a::added_via_api::false\na::default_priority::max_connections::1024\na::10.0.0.1:80::hostname::\n";
        assert_eq!(items(page, page), [""; 0]);
        assert_eq!(
            items(page, &page.replace("1024", "2").replace("hostname::", "hostname::x")),
            [
                "clusters: a::10.0.0.1:80::hostname: Envoy , Headgate x",
                "clusters: a::default_priority::max_connections: Envoy 1024, Headgate 2"
            ]
        );
    }

    #[test]
    fn an_endpoint_that_only_one_has() {
        let page = "a::10.0.0.1:80::weight::1\n";
        let both = format!("{page}a::10.0.0.2:80::weight::1\n");
        assert_eq!(items(page, &both), ["clusters: a::10.0.0.2:80::weight: Envoy nothing, Headgate 1"]);
    }

    #[test]
    fn counts_are_those_of_all_endpoints() {
        let page = |first: u64, second: u64| {
            format!("ok::10.0.0.1:80::cx_total::{first}\nok::10.0.0.2:80::cx_total::{second}\n")
        };
        assert_eq!(items(&page(4, 4), &page(3, 5)), [""; 0]);
        assert_eq!(
            items(&page(4, 4), &page(4, 5)),
            ["clusters: ok::endpoints::cx_total: Envoy 8, Headgate 9"]
        );
        let loose = |first, second| page(first, second).replace("ok::", "weighted_light::");
        assert_eq!(items(&loose(0, 4), &loose(2, 3)), [""; 0]);
        assert_eq!(items(&loose(0, 4), &loose(0, 0)).len(), 1);
    }

    #[test]
    fn pages_that_cannot_be_read() {
        for bad in ["a::b\n", "a::b::c::d::e\n", "a::b::c\na::b::c\n", "a::1.2.3.4:5::cx_total::x\n"] {
            let error = compare("", bad).unwrap_err();
            assert!(format!("{error:#}").starts_with("Headgate's /clusters: line "), "{error:#}");
        }
    }
}
