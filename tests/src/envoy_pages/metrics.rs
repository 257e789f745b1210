//! The page `/stats/prometheus`, read.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

use super::scale::Scale;

/// What a page has of Envoy's metrics.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// `counter`, `gauge` or `histogram`, by name.
    pub(super) types: BTreeMap<String, String>,
    /// By name and labels. A histogram has only its `_count` here: what is in which bucket, and so the sum, depends on
    /// how fast the machine is.
    pub(super) values: BTreeMap<String, BTreeMap<Labels, String>>,
    /// The bounds of a histogram's buckets.
    pub(super) bounds: BTreeMap<String, BTreeSet<String>>,
}

/// Sorted by name.
pub(super) type Labels = Vec<(String, String)>;

impl Metrics {
    /// Of the cluster's numbers.
    pub(super) fn scale(&self, cluster: &str) -> Scale {
        let labels = vec![("envoy_cluster_name".to_owned(), cluster.to_owned())];
        let count = |name: &str| self.values.get(name)?.get(&labels)?.parse().ok();
        Scale {
            attempts: count("envoy_cluster_upstream_cx_total").unwrap_or_default(),
            failed: count("envoy_cluster_upstream_cx_connect_fail").unwrap_or_default(),
        }
    }
}

pub(super) fn parse(page: &str) -> Result<Metrics> {
    let mut metrics = Metrics::default();
    for (index, line) in page.lines().enumerate() {
        let at = || format!("line {}: {line}", index + 1);
        if let Some(comment) = line.strip_prefix('#') {
            let words: Vec<&str> = comment.split_whitespace().collect();
            if let ["TYPE", name, of] = words[..]
                && name.starts_with("envoy_")
            {
                let again = metrics.types.insert(name.to_owned(), of.to_owned()).is_some();
                ensure!(!again, "{}: this metric already has a type", at());
            }
        } else if line.starts_with("envoy_") {
            add(&mut metrics, line).with_context(at)?;
        }
    }
    Ok(metrics)
}

fn add(metrics: &mut Metrics, line: &str) -> Result<()> {
    let (name, mut labels, value) = sample(line)?;
    value.parse::<f64>().ok().context("the value is no number")?;
    let of_histogram = |suffix: &str| {
        let base = name.strip_suffix(suffix)?;
        metrics.types.get(base).is_some_and(|of| of == "histogram").then_some(base)
    };
    if of_histogram("_sum").is_some() {
        return Ok(());
    }
    if let Some(base) = of_histogram("_bucket") {
        let place = labels.iter().position(|(name, _)| name == "le").context("a bucket without `le`")?;
        let (_, bound) = labels.swap_remove(place);
        metrics.bounds.entry(base.to_owned()).or_default().insert(bound);
        return Ok(());
    }
    labels.sort();
    let again = metrics.values.entry(name.to_owned()).or_default().insert(labels, value.to_owned()).is_some();
    ensure!(!again, "this series was there before");
    Ok(())
}

/// `name{label="value",…} value`
fn sample(line: &str) -> Result<(&str, Labels, &str)> {
    let end = line.find(['{', ' ']).context("no value")?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.strip_prefix(',').unwrap_or(rest);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"").context("a label without a value")?;
            let (value, after) = quoted(after)?;
            labels.push((label.to_owned(), value));
            rest = after;
        }
    }
    match rest.strip_prefix(' ') {
        Some(value) => Ok((name, labels, value)),
        None => bail!("no value"),
    }
}

/// The text before the closing quote, and what follows that.
fn quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next().context("a label's value has no end")?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    bail!("a label's value has no end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        let (name, labels, value) = sample(r#"a{b="c,\"d\\e\n",f="}"} 1.5"#).unwrap();
        assert_eq!((name, value), ("a", "1.5"));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(labels, [pair("b", "c,\"d\\e\n"), pair("f", "}")]);
        assert_eq!(sample("a{} 1").unwrap(), ("a", Labels::new(), "1"));
        assert_eq!(sample("a 1").unwrap(), ("a", Labels::new(), "1"));
        for bad in ["a", "a{", "a{b} 1", "a{b=\"c} 1", "a{b=\"c\"}1", "a{b=\"\\"] {
            assert!(sample(bad).is_err(), "{bad}");
        }
    }
}
