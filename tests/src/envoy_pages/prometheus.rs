//! `/stats/prometheus`: names, labels and, after the traffic has ended, values.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};

use super::accepted::NOT_COMPARED;
use super::cases::is_loose;
use super::glob;
use super::metrics::{Labels, Metrics, parse};
use super::scale::alike;
use super::{Difference, Page};

pub(super) fn compare(envoy: &str, headgate: &str) -> Result<Vec<Difference>> {
    let envoy = parse(envoy).context("Envoy's /stats/prometheus")?;
    let headgate = parse(headgate).context("Headgate's /stats/prometheus")?;
    let mut differences = Vec::new();
    let mut differ = |item: String, envoy: Option<String>, headgate: Option<String>| {
        differences.push(Difference { page: Page::Stats, item, envoy, headgate });
    };
    for (name, series) in &envoy.values {
        match headgate.values.get(name) {
            // One difference, however many clusters and listeners there are.
            None => differ(name.clone(), Some(number_of_series(series.len())), None),
            Some(_) => compare_series(name, (&envoy, &headgate), &mut differ),
        }
    }
    for (name, series) in headgate.values.iter().filter(|(name, _)| !envoy.values.contains_key(*name)) {
        differ(name.clone(), None, Some(number_of_series(series.len())));
    }
    for (name, of_envoy) in &envoy.types {
        if let Some(other) = headgate.types.get(name)
            && other != of_envoy
        {
            differ(format!("type of {name}"), Some(of_envoy.clone()), Some(other.clone()));
        }
    }
    for (name, of_envoy) in &envoy.bounds {
        if let Some(other) = headgate.bounds.get(name)
            && other != of_envoy
        {
            let list = |bounds: &BTreeSet<String>| bounds.iter().cloned().collect::<Vec<_>>().join(" ");
            differ(format!("buckets of {name}"), Some(list(of_envoy)), Some(list(other)));
        }
    }
    Ok(differences)
}

fn number_of_series(number: usize) -> String {
    format!("{number} series")
}

fn compare_series(
    name: &str,
    (envoy, headgate): (&Metrics, &Metrics),
    differ: &mut impl FnMut(String, Option<String>, Option<String>),
) {
    let compared = !NOT_COMPARED.iter().flat_map(|one| one.names).any(|pattern| glob::matches(pattern, name));
    let none = BTreeMap::new();
    let of_envoy = envoy.values.get(name).unwrap_or(&none);
    let of_headgate = headgate.values.get(name).unwrap_or(&none);
    for labels in of_envoy.keys().chain(of_headgate.keys().filter(|labels| !of_envoy.contains_key(*labels))) {
        let (value, other) = (of_envoy.get(labels), of_headgate.get(labels));
        let same = match (value, other) {
            (Some(value), Some(other)) => {
                !compared || value == other || alike_by_chance(labels, (value, envoy), (other, headgate))
            }
            _ => false,
        };
        if !same {
            differ(item(name, labels), value.cloned(), other.cloned());
        }
    }
}

/// Whether two values mean the same of a cluster whose numbers are chance.
fn alike_by_chance(
    labels: &Labels,
    (value, envoy): (&str, &Metrics),
    (other, headgate): (&str, &Metrics),
) -> bool {
    let Some((_, cluster)) = labels.iter().find(|(name, _)| name == "envoy_cluster_name") else {
        return false;
    };
    let numbers = (value.parse::<u64>(), other.parse::<u64>());
    let (Ok(value), Ok(other)) = numbers else { return false };
    is_loose(cluster) && alike((value, envoy.scale(cluster)), (other, headgate.scale(cluster)))
}

fn item(name: &str, labels: &Labels) -> String {
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    format!("{name}{{{}}}", labels.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(envoy: &str, headgate: &str) -> Vec<String> {
        compare(envoy, headgate).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_only_one_has_is_one_difference() {
        let envoy = "# TYPE envoy_x counter\nenvoy_x{a=\"1\"} 0\nenvoy_x{a=\"2\"} 0\n";
        assert_eq!(items(envoy, ""), ["stats: envoy_x: Envoy 2 series, Headgate nothing"]);
        assert_eq!(items("", envoy), ["stats: envoy_x: Envoy nothing, Headgate 2 series"]);
        let headgate = "envoy_x{a=\"1\"} 0\n";
        assert_eq!(items(envoy, headgate), ["stats: envoy_x{a=\"2\"}: Envoy 0, Headgate nothing"]);
        assert_eq!(items("", "headgate_x 1\n"), [""; 0], "its own metrics are not Envoy's");
    }

    #[test]
    fn values_and_types() {
        let envoy = "# TYPE envoy_x counter\nenvoy_x{a=\"1\",b=\"2\"} 5\n";
        assert_eq!(items(envoy, "# TYPE envoy_x counter\nenvoy_x{b=\"2\",a=\"1\"} 5\n"), [""; 0]);
        assert_eq!(
            items(envoy, "# TYPE envoy_x gauge\nenvoy_x{a=\"1\",b=\"2\"} 6\n"),
            [
                "stats: envoy_x{a=\"1\",b=\"2\"}: Envoy 5, Headgate 6",
                "stats: type of envoy_x: Envoy counter, Headgate gauge"
            ]
        );
    }

    #[test]
    fn of_chance_only_what_it_means() {
        let page = |cluster: &str, attempts: u64, failed: u64, bytes: u64| {
            ["upstream_cx_total", "upstream_cx_connect_fail", "bytes"]
                .iter()
                .zip([attempts, failed, bytes])
                .map(|(name, value)| {
                    format!("envoy_cluster_{name}{{envoy_cluster_name=\"{cluster}\"}} {value}\n")
                })
                .collect::<String>()
        };
        let retry = |attempts, failed, bytes| page("refused_retry", attempts, failed, bytes);
        assert_eq!(items(&retry(7, 3, 48), &retry(6, 2, 48)), [""; 0]);
        assert_eq!(items(&retry(7, 3, 48), &retry(6, 2, 47)).len(), 1);
        assert_eq!(items(&retry(7, 3, 48), &retry(4, 0, 48)).len(), 1, "there was no failure");
        assert_eq!(items(&page("refused", 7, 3, 48), &page("refused", 6, 2, 48)).len(), 2);
    }

    #[test]
    fn what_differs_between_any_two_processes_is_not_compared() {
        assert_eq!(items("envoy_server_uptime{} 5\n", "envoy_server_uptime{} 6\n"), [""; 0]);
        assert_eq!(items("envoy_server_uptime{} 5\n", "").len(), 1, "but it has to be there");
    }

    #[test]
    fn histograms_by_count_and_bounds() {
        let histogram = |bound: &str, count: u64| {
            format!(
                "# TYPE envoy_h histogram\nenvoy_h_bucket{{le=\"{bound}\"}} 1\nenvoy_h_bucket{{le=\"+Inf\"}} {count}\n\
                 envoy_h_sum{{}} {count}.5\nenvoy_h_count{{}} {count}\n"
            )
        };
        assert_eq!(items(&histogram("1", 2), &histogram("1", 2)), [""; 0]);
        assert_eq!(
            items(&histogram("1", 2), &histogram("1", 3)),
            ["stats: envoy_h_count{}: Envoy 2, Headgate 3"]
        );
        assert_eq!(
            items(&histogram("1", 2), &histogram("5", 2)),
            ["stats: buckets of envoy_h: Envoy +Inf 1, Headgate +Inf 5"]
        );
    }

    #[test]
    fn pages_that_cannot_be_read() {
        for bad in [
            "envoy_x{} many\n",
            "envoy_x{} 1\nenvoy_x{} 1\n",
            "envoy_x\n",
            "# TYPE envoy_x counter\n# TYPE envoy_x counter\n",
        ] {
            let error = compare("", bad).unwrap_err();
            assert!(format!("{error:#}").starts_with("Headgate's /stats/prometheus: line "), "{error:#}");
        }
    }
}
