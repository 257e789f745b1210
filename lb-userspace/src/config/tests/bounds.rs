//! Texts that are too large in one way or another: refused at once, with what is too large.

use std::fmt::Write as _;

use super::{MINIMAL, errors, load, ok};
use crate::config::yaml::{self, MergeKeys, Node, Value};

#[track_caller]
fn refused_with(text: &str, phrase: &str) {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].message.contains(phrase), "{phrase:?} not in {}", errors[0]);
}

/// Values and keys of the tree.
fn nodes(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(nodes).sum(),
        Value::Map(entries) => entries.iter().map(|(_, value)| 1 + nodes(value)).sum(),
        _ => 0,
    }
}

/// A list of `width` aliases of the list before, `levels` times.
fn bomb(levels: usize, width: usize) -> String {
    let mut text = "l0: &l0 [x, x]\n".to_owned();
    for level in 1..=levels {
        let aliases = vec![format!("*l{}", level - 1); width].join(", ");
        writeln!(text, "l{level}: &l{level} [{aliases}]").unwrap();
    }
    text
}

#[test]
fn a_long_text_is_refused_before_it_is_read() {
    // It is no YAML either, but nobody gets to see that.
    refused_with(&"[".repeat(yaml::MAX_TEXT + 1), "more than 4 MiB");
    refused_with(&"x".repeat(5 << 20), "more than 4 MiB");
}

#[test]
fn a_hundred_thousand_lines_are_refused() {
    let mut lists = "static_resources:\n  listeners:\n".to_owned();
    let mut mappings = String::new();
    for line in 0..100_000 {
        lists.push_str("  - x\n");
        writeln!(mappings, "key{line}: value").unwrap();
    }
    refused_with(&lists, "more than 100000 keys and values");
    refused_with(&mappings, "more than 100000 keys and values");
}

#[test]
fn alias_bombs_are_refused() {
    refused_with(&bomb(9, 9), "more than 100000");
    refused_with(&format!("static_resources: {{}}\n{}", bomb(9, 9)), "more than 100000");
    refused_with(&bomb(60, 2), "more than");
    // Few values, but much text.
    let aliases = vec!["*t"; 1000].join(", ");
    refused_with(&format!("t: &t {}\nl: [{aliases}]\n", "x".repeat(1 << 20)), "of text, aliases written out");
    refused_with("a: &a [*a]\n", "");
}

#[test]
fn aliases_within_the_budget_are_read() {
    let root = yaml::read(&bomb(3, 9), MergeKeys::Merged).unwrap_or_else(|error| panic!("{}", error.message));
    assert_eq!(nodes(&root), 1 + 4 + 3 + 28 + 253 + 2278);
    // One anchor that is used often is no bomb.
    let mut text = MINIMAL.replace("[\"10.0.0.7:8080\"]", "[").trim_end_matches(" }\n").to_owned();
    for host in 0..1000 {
        let weight = if host == 0 { "&w 2" } else { "*w" };
        let (high, low) = (host / 250, host % 250);
        write!(text, "{{ address: \"10.0.{high}.{low}:80\", weight: {weight} }}, ").unwrap();
    }
    text.push_str("] }\n");
    ok(&text);
}

#[test]
fn deep_nesting_is_refused() {
    for depth in [100, 10_000] {
        refused_with(&format!("a: {}{}\n", "[".repeat(depth), "]".repeat(depth)), "");
        let block: String = (0..depth.min(1000)).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
        refused_with(&block, "more than 64 lists and mappings inside each other");
    }
    let deep = format!("a: {}{}\n", "[".repeat(70), "]".repeat(70));
    refused_with(&deep, "more than 64 lists and mappings inside each other");
}

#[test]
fn errors_beyond_a_hundred_are_counted() {
    let keys: String = (0..20_000).map(|key| format!("unknown_{key}: 1\n")).collect();
    let errors = errors(&format!("{MINIMAL}{keys}"));
    assert_eq!(errors.len(), 101);
    assert_eq!(errors[100].message, "19900 more errors are not shown");
    let listeners: String = (0..3000)
        .map(|index| {
            format!("  - {{ name: l{index}, address: \"10.0.0.1:{}\", cluster: none }}\n", index + 1000)
        })
        .collect();
    let text = MINIMAL.replace("clusters:", &format!("{listeners}clusters:"));
    assert_eq!(super::errors(&text)[100].message, "2900 more errors are not shown");
}

#[test]
fn a_long_file_is_not_read_to_its_end() {
    let path = std::env::temp_dir().join(format!("headgate-long-{}.yaml", std::process::id()));
    std::fs::write(&path, "é".repeat(3 << 20)).unwrap();
    let errors = load(&path).unwrap_err().to_string();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(errors, format!("{}: more than 4 MiB: a configuration is shorter", path.display()));
}
