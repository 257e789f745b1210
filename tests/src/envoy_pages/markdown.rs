//! `docs/envoy-differences.md`, made of the table of accepted differences.

use std::fmt::Write as _;

use super::accepted::{ALL, Accepted, KERNEL, NOT_COMPARED, Topic, Value, accepted};
use crate::rung::Rung;

const INTRODUCTION: &str = "\
# Where Headgate differs from Envoy

A test (`e2e_envoy`) runs one Envoy configuration file and one traffic script through the real Envoy 1.40 and through
Headgate on `xdp`, `tc` and `proxy`, and compares what the client saw, the access logs, `/stats/prometheus` and
`/clusters`. This page lists every difference that it finds, with the reason. It fails when there is another one, and
also when one of these is gone. **The tables are generated** from `tests/src/envoy_pages/`;
`HEADGATE_WRITE_DOCS=1 cargo test -p lb-tests --lib envoy_pages` writes them.

The traffic: connections one after the other and at once over three backends, 5 MiB up and 7 MiB down, a half-closed
client, resets from either side, a backend that does not answer and one that refuses, alone and beside a good one with
retries, a cluster without endpoints, a circuit breaker's overflow, an idle timeout, a maximum duration, weighted
clusters, and least request.

By hand, as root, with the files in `tests/envoy/compare/`:

```
tests/envoy/compare/by-hand.sh envoy PATH-OF-ENVOY
OUT=compare-tc tests/envoy/compare/by-hand.sh headgate PATH-OF-HEADGATE --datapath tc
cargo run -p lb-tests --bin envoy-differences -- compare-envoy tc=compare-tc
```

## How it is compared

- Access logs by listener, and each field with how often its values occur. Times, client ports and source ports are not
  compared, the duration only where it is the point of the case (within 0.9 s).
- Where the balancer is free to choose, only what does not depend on the choice: of endpoints with equal weights their
  sum; of retries and of weighted clusters how often for each connection, each attempt or each failed attempt.
- Statistics by name, type and labels, counters and gauges by value once the traffic has ended, histograms by their
  buckets' bounds and the number of values. The following have to be there but have values of their own:
";

/// The whole document.
pub fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    for one in NOT_COMPARED {
        let _ = writeln!(text, "  - {}: {}", names(one.names), one.reason);
    }
    for (topic, title, words) in [
        (Topic::Ends, "How connections end", ENDS),
        (Topic::Counts, "What is counted or shown differently", ""),
        (Topic::Absent, "What Headgate does not have", ABSENT),
    ] {
        let entries: Vec<&Accepted> = accepted().filter(|entry| entry.topic == topic).collect();
        let _ = write!(text, "\n## {title}\n\n{words}");
        text.push_str(if topic == Topic::Absent {
            "| where | what | why |\n|---|---|---|\n"
        } else {
            "| where | what | on | Envoy | Headgate | why |\n|---|---|---|---|---|---|\n"
        });
        for entry in entries {
            row(&mut text, entry);
        }
    }
    text
}

const ENDS: &str = "\
On the kernel rungs the client's handshake is with the backend itself, so a client whose connection cannot be made sees
it refused, where Envoy has already accepted it and closes it. And where Headgate ends a kernel flow it has no socket
to close: it resets both sides. The proxy does the same, so that clients see one behaviour.
A retry on the kernel rungs waits for the client to repeat its SYN, after a second, and `START_TIME` and `DURATION`
begin with the SYN that was answered.

";

const ABSENT: &str = "A `*` stands for any text.\n\n";

fn row(text: &mut String, entry: &Accepted) {
    let (page, what, why) = (entry.page, names(entry.items), entry.reason);
    let _ = if entry.topic == Topic::Absent {
        writeln!(text, "| {page} | {what} | {why} |")
    } else {
        let (envoy, headgate) = (value(entry.envoy), value(entry.headgate));
        writeln!(text, "| {page} | {what} | {} | {envoy} | {headgate} | {why} |", rungs(entry.rungs))
    };
}

fn names(patterns: &[&str]) -> String {
    patterns.iter().map(|pattern| format!("`{pattern}`")).collect::<Vec<_>>().join(", ")
}

fn value(value: Value) -> String {
    match value {
        Value::Some => "a value".to_owned(),
        Value::Nothing => "nothing".to_owned(),
        Value::Like(pattern) => format!("`{}`", pattern.trim_start_matches('*').trim_start()),
    }
}

fn rungs(rungs: &[Rung]) -> String {
    match rungs {
        _ if rungs == ALL => "all".to_owned(),
        _ if rungs == KERNEL => "xdp, tc".to_owned(),
        _ => rungs.iter().map(|rung| rung.name()).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_document_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/envoy-differences.md");
        let document = document();
        if std::env::var_os("HEADGATE_WRITE_DOCS").is_some() {
            fs::write(&path, &document).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == document,
            "{} is not what the table gives: HEADGATE_WRITE_DOCS=1 with this test writes it",
            path.display()
        );
    }

    #[test]
    fn every_entry_fits_into_a_table() {
        for entry in accepted() {
            let reason = entry.reason;
            assert!(!entry.items.is_empty() && !entry.rungs.is_empty(), "{reason}");
            assert!(!reason.is_empty() && !reason.ends_with('.'), "{reason}");
            let values = [entry.envoy, entry.headgate].map(value);
            let texts = entry.items.iter().copied().chain([reason]).chain(values.iter().map(String::as_str));
            for text in texts {
                assert!(!text.contains(['|', '\n']), "{text} would break the table");
            }
        }
    }

    #[test]
    fn rows() {
        let document = document();
        assert!(
            document.contains("\n| clusters | `high_priority::*` | connections have no priority |\n"),
            "{document}"
        );
        let first = "\n| client | `dead: end`, `refused: end` | xdp, tc | `fin` | `refused` | the same";
        assert!(document.contains(first), "{document}");
    }
}
