//! The access logs: a line of JSON for each connection, and for one listener Envoy's default format.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};

use super::cases::{CASES, Case, Chance};
use super::tally::Tally;
use super::{Difference, Page};

/// Milliseconds that the slowest connections of a timed case may be apart: the kernel's timeouts are looked at every
/// 250 ms, and both may share a busy machine.
const TOLERANCE: u64 = 900;

/// What the lines of one case have in common with those of the other log.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lines {
    count: u64,
    /// The values of each field, by `field`, or `field of a retried connection`.
    fields: BTreeMap<String, Tally>,
    slowest: u64,
}

type Log = BTreeMap<&'static str, Lines>;

pub(super) fn compare(envoy: &str, headgate: &str) -> Result<Vec<Difference>> {
    let envoy = parse(envoy).context("Envoy's access log")?;
    let headgate = parse(headgate).context("Headgate's access log")?;
    let none = Lines::default();
    let mut differences = Vec::new();
    for case in CASES {
        let (envoy, headgate) =
            (envoy.get(case.name).unwrap_or(&none), headgate.get(case.name).unwrap_or(&none));
        let mut differ = |item: &str, envoy: Option<String>, headgate: Option<String>| {
            let item = format!("{}: {item}", case.name);
            differences.push(Difference { page: Page::AccessLog, item, envoy, headgate });
        };
        if envoy.count != headgate.count {
            differ("lines", Some(envoy.count.to_string()), Some(headgate.count.to_string()));
        }
        if case.timed && envoy.slowest.abs_diff(headgate.slowest) > TOLERANCE {
            differ("duration", Some(half_seconds(envoy.slowest)), Some(half_seconds(headgate.slowest)));
        }
        let names = envoy
            .fields
            .keys()
            .chain(headgate.fields.keys().filter(|name| !envoy.fields.contains_key(*name)));
        for name in names {
            // With retries, whether a connection got through at once is chance.
            if case.chance == Chance::Retries
                && name.ends_with(AT_ONCE)
                && envoy.fields.contains_key(name) != headgate.fields.contains_key(name)
            {
                continue;
            }
            let value = |log: &Lines| {
                let tally = log.fields.get(name)?;
                let exact = matches!(case.chance, Chance::Nothing | Chance::Endpoint);
                Some(if exact { tally.clone() } else { tally.once() })
            };
            let (envoy, headgate) = (value(envoy), value(headgate));
            if envoy != headgate {
                differ(name, envoy.map(|tally| tally.to_string()), headgate.map(|tally| tally.to_string()));
            }
        }
    }
    Ok(differences)
}

/// About how long: both logs' exact values are never the same.
fn half_seconds(milliseconds: u64) -> String {
    format!("{:.1} s", (milliseconds as f64 / 500.0).round() / 2.0)
}

const AT_ONCE: &str = " at the first attempt";

fn parse(log: &str) -> Result<Log> {
    let mut parsed = Log::new();
    for (index, line) in log.lines().enumerate() {
        add(&mut parsed, line).with_context(|| format!("line {}: {line}", index + 1))?;
    }
    Ok(parsed)
}

fn add(log: &mut Log, line: &str) -> Result<()> {
    let line: Map<String, Value> = serde_json::from_str(line)?;
    let address = line.get("downstream_local_address").and_then(Value::as_str).unwrap_or_default();
    let Some(case) = CASES.iter().find(|case| address.ends_with(&format!(":{}", case.port))) else {
        bail!("no listener has the downstream_local_address {address:?}");
    };
    let attempts = line.get("upstream_request_attempt_count").and_then(Value::as_u64).unwrap_or_default();
    let class = match case.chance {
        Chance::Retries if attempts > 1 => " when retried",
        Chance::Retries => AT_ONCE,
        _ => "",
    };
    let lines = log.entry(case.name).or_default();
    lines.count += 1;
    for (field, value) in &line {
        if field == "duration" {
            lines.slowest = lines.slowest.max(value.as_u64().context("a duration that is no number")?);
        } else {
            lines.fields.entry(format!("{field}{class}")).or_default().add(normal(case, field, value), 1);
        }
    }
    Ok(())
}

/// The value, with what no two runs have in common replaced.
fn normal(case: &Case, field: &str, value: &Value) -> String {
    let Value::String(text) = value else {
        return match (case.chance, field, value.as_u64()) {
            // Two or three, as the choice of the backend has it.
            (Chance::Retries, "upstream_request_attempt_count", Some(2..)) => "several".to_owned(),
            _ => value.to_string(),
        };
    };
    match field {
        "start_time" if is_time(text) => "a time".to_owned(),
        "downstream_remote_address" | "upstream_local_address" => without_port(text),
        "upstream_hosts_attempted" if text.contains(',') => "several".to_owned(),
        "upstream_host" | "upstream_remote_address" | "upstream_hosts_attempted"
            if case.chance == Chance::Endpoint =>
        {
            any_endpoint(text)
        }
        _ => text.clone(),
    }
}

/// `2026-11-30T12:47:09.434Z`
fn is_time(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00.000Z"
}

/// `10.201.0.2:41424` as `10.201.0.2:PORT`
fn without_port(address: &str) -> String {
    match address.rsplit_once(':') {
        Some((ip, port)) if port.parse::<u16>().is_ok() => format!("{ip}:PORT"),
        _ => address.to_owned(),
    }
}

/// `10.202.0.12:9000` as `10.202.0.N:9000`
fn any_endpoint(address: &str) -> String {
    ["11", "12", "13"]
        .iter()
        .find_map(|last| address.strip_prefix(&format!("10.202.0.{last}:")))
        .map_or_else(|| address.to_owned(), |port| format!("10.202.0.N:{port}"))
}

/// Compares lines of the default format, in which the time, the duration and the backend vary.
pub(super) fn compare_text(envoy: &str, headgate: &str) -> Vec<Difference> {
    let tally = |log: &str| {
        let mut tally = Tally::default();
        for line in log.lines() {
            tally.add(normal_text(line), 1);
        }
        tally
    };
    let (envoy, headgate) = (tally(envoy), tally(headgate));
    if envoy == headgate {
        return Vec::new();
    }
    vec![Difference {
        page: Page::AccessLog,
        item: "default format".to_owned(),
        envoy: Some(envoy.to_string()),
        headgate: Some(headgate.to_string()),
    }]
}

/// `[TIME] "- - -" 0 - 5 12 MS - "-" "-" "-" "-" "10.202.0.N:9000"`
fn normal_text(line: &str) -> String {
    const DURATION: usize = 8;
    let words = line.split(' ').enumerate().map(|(index, word)| {
        let unquoted = |left, right| word.strip_prefix(left).and_then(|rest: &str| rest.strip_suffix(right));
        if unquoted('[', ']').is_some_and(is_time) {
            "[TIME]".to_owned()
        } else if index == DURATION && word.parse::<u64>().is_ok() {
            "MS".to_owned()
        } else if let Some(address) = unquoted('"', '"') {
            format!("\"{}\"", any_endpoint(address))
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(port: u16, more: &str) -> String {
        format!(
            "{{\"downstream_local_address\":\"10.201.0.1:{port}\",\"duration\":3,\
             \"start_time\":\"2026-11-30T13:17:10.556Z\",\"downstream_remote_address\":\"10.201.0.2:5344\"{more}}}\n"
        )
    }

    fn items(envoy: &str, headgate: &str) -> Vec<(String, Option<String>, Option<String>)> {
        let differences = compare(envoy, headgate).unwrap();
        differences.into_iter().map(|one| (one.item, one.envoy, one.headgate)).collect()
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn times_ports_and_durations_may_differ() {
        let one = line(10002, "");
        let other =
            one.replace("13:17:10.556", "14:18:11.000").replace("5344", "6000").replace(":3,", ":90000,");
        assert_ne!(one, other);
        assert_eq!(items(&one, &other), []);
    }

    #[test]
    fn a_time_of_another_shape() {
        let other = line(10002, "").replace("10.556Z", "10.556123Z");
        let difference =
            ("bytes: start_time".to_owned(), some("a time"), some("2026-11-30T13:17:10.556123Z"));
        assert_eq!(items(&line(10002, ""), &other), [difference]);
    }

    #[test]
    fn a_field_is_compared_with_how_often_it_occurs() {
        let envoy =
            [line(10011, r#","response_flags":"UO""#), line(10011, r#","response_flags":"-""#)].concat();
        let headgate = line(10011, r#","response_flags":"UO""#).repeat(2);
        let difference = ("overflow: response_flags".to_owned(), some("-, UO"), some("2 × UO"));
        assert_eq!(items(&envoy, &headgate), [difference]);
    }

    #[test]
    fn a_line_less_and_a_field_less() {
        let found = items(&line(10011, r#","protocol":null"#).repeat(2), &line(10011, ""));
        assert_eq!(found[0], ("overflow: lines".to_owned(), some("2"), some("1")));
        assert!(found.contains(&("overflow: protocol".to_owned(), some("2 × null"), None)), "{found:?}");
    }

    #[test]
    fn null_and_the_text_are_told_apart() {
        let found = items(&line(10002, r#","protocol":null"#), &line(10002, r#","protocol":"-""#));
        assert_eq!(found, [("bytes: protocol".to_owned(), some("null"), some("-"))]);
    }

    #[test]
    fn which_endpoint_it_was_is_chance_where_there_are_several() {
        let host = |port, last| line(port, &format!(r#","upstream_host":"10.202.0.{last}:9000""#));
        assert_eq!(items(&host(10001, 11), &host(10001, 13)), []);
        assert_eq!(items(&host(10002, 11), &host(10002, 13)).len(), 1);
        assert_eq!(items(&host(10001, 11), &host(10001, 14)).len(), 1, "no endpoint of the cluster");
    }

    #[test]
    fn how_many_were_retried_is_chance_but_not_what_is_said_of_them() {
        let at_once = line(10009, r#","response_flags":"-","upstream_request_attempt_count":1"#);
        let retried = line(10009, r#","response_flags":"UF","upstream_request_attempt_count":2"#);
        let thrice = retried.replace(":2}", ":3}");
        let envoy = [at_once, retried.clone(), retried.clone()].concat();
        assert_eq!(items(&envoy, &[retried.clone(), retried.clone(), thrice].concat()), []);
        let clean = retried.replace("UF", "-");
        let difference = ("refused_retry: response_flags when retried".to_owned(), some("UF"), some("-"));
        assert_eq!(items(&envoy, &clean.repeat(3)), [difference]);
    }

    #[test]
    fn durations_matter_where_time_is_the_point() {
        let slow = |ms: u64| line(10012, "").replace(":3,", &format!(":{ms},"));
        assert_eq!(items(&slow(2001), &slow(2250)), []);
        assert_eq!(
            items(&slow(2001), &slow(3100)),
            [("idle: duration".to_owned(), some("2.0 s"), some("3.0 s"))]
        );
    }

    #[test]
    fn lines_that_cannot_be_read() {
        for bad in ["nonsense\n".to_owned(), line(10099, ""), line(10002, "").replace(":3,", ":null,")] {
            let error = compare(&line(10002, ""), &bad).unwrap_err();
            assert!(format!("{error:#}").starts_with("Headgate's access log: line 1: "), "{error:#}");
        }
    }

    #[test]
    fn the_default_format() {
        let one = "[2026-11-30T13:17:10.556Z] \"- - -\" 0 - 5 12 2 - \"-\" \"-\" \"-\" \"-\" \"10.202.0.11:9000\"\n";
        let other = one.replace("10.556", "11.001").replace("12 2 -", "12 77 -").replace("0.11:", "0.12:");
        assert_eq!(compare_text(one, &other), []);
        let differences = compare_text(one, &one.replace(" 5 12", " 5 13"));
        assert_eq!(differences.len(), 1);
        let envoy = differences[0].envoy.as_deref().unwrap();
        assert_eq!(envoy, "[TIME] \"- - -\" 0 - 5 12 MS - \"-\" \"-\" \"-\" \"-\" \"10.202.0.N:9000\"");
    }
}
