//! What the client saw: a line of JSON for each case.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::cases::CASES;
use super::tally::Tally;
use super::{Difference, Page};

/// By item, such as `refused: end`.
type Seen = BTreeMap<String, Tally>;

/// The members that are compared. Its seconds are not: the access log has them in milliseconds.
const MEMBERS: &[&str] = &["connected", "sent", "received", "end"];

pub(super) fn compare(envoy: &str, headgate: &str) -> Result<Vec<Difference>> {
    let envoy = parse(envoy).context("what Envoy's client saw")?;
    let headgate = parse(headgate).context("what Headgate's client saw")?;
    let mut differences = Vec::new();
    for (item, value) in &envoy {
        if headgate.get(item) != Some(value) {
            differences.push(Difference {
                page: Page::Client,
                item: item.clone(),
                envoy: Some(value.to_string()),
                headgate: headgate.get(item).map(ToString::to_string),
            });
        }
    }
    for (item, value) in headgate.iter().filter(|(item, _)| !envoy.contains_key(*item)) {
        differences.push(Difference {
            page: Page::Client,
            item: item.clone(),
            envoy: None,
            headgate: Some(value.to_string()),
        });
    }
    Ok(differences)
}

/// Each case has to be there, once. What went wrong in one is an item of it.
fn parse(lines: &str) -> Result<Seen> {
    let mut seen = Seen::new();
    let mut cases = Vec::new();
    for (index, line) in lines.lines().enumerate() {
        let at = || format!("line {}", index + 1);
        let line: Value = serde_json::from_str(line).with_context(at)?;
        let case = line["case"].as_str().with_context(at).context("no `case`")?.to_owned();
        if let Some(wrong) = line["wrong"].as_str() {
            seen.entry(format!("{case}: wrong")).or_default().add(wrong.to_owned(), 1);
        }
        for group in line["connections"].as_array().with_context(at).context("no `connections`")? {
            let times = group["times"].as_u64().with_context(at).context("no `times`")?;
            for member in MEMBERS {
                let value = match &group[member] {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                seen.entry(format!("{case}: {member}")).or_default().add(value, times);
            }
        }
        cases.push(case);
    }
    let expected: Vec<&str> = CASES.iter().map(|case| case.name).collect();
    ensure!(cases == expected, "the cases are {cases:?}, not {expected:?}");
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(refused_end: &str) -> String {
        CASES
            .iter()
            .map(|case| {
                let end = if case.name == "refused" { refused_end } else { "fin" };
                format!(
                    "{{\"case\": \"{}\", \"wrong\": null, \"connections\": [{{\"times\": 2, \"connected\": true, \
                     \"sent\": 0, \"received\": 0, \"end\": \"{end}\", \"seconds\": 0}}]}}\n",
                    case.name
                )
            })
            .collect()
    }

    #[test]
    fn the_same_is_no_difference() {
        assert_eq!(compare(&lines("fin"), &lines("fin")).unwrap(), []);
    }

    #[test]
    fn another_end() {
        let differences = compare(&lines("fin"), &lines("reset")).unwrap();
        assert_eq!(
            differences,
            [Difference {
                page: Page::Client,
                item: "refused: end".to_owned(),
                envoy: Some("2 × fin".to_owned()),
                headgate: Some("2 × reset".to_owned()),
            }]
        );
    }

    #[test]
    fn a_case_that_is_missing() {
        let short = lines("fin").lines().skip(1).collect::<Vec<_>>().join("\n");
        assert!(compare(&lines("fin"), &short).is_err());
    }

    #[test]
    fn a_case_that_went_wrong() {
        let wrong = lines("fin").replacen("\"wrong\": null", "\"wrong\": \"no answer\"", 1);
        let differences = compare(&lines("fin"), &wrong).unwrap();
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].to_string(), "client: ok: wrong: Envoy nothing, Headgate no answer");
    }
}
