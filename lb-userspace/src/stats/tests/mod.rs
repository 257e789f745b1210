//! The pages against those that Envoy 1.40 printed in the same state (`fixtures/`, shortened to what matters).

mod config_dump;
mod listing;
mod pages;
mod prometheus;
mod sample;

use serde_json::Value;

use crate::stats::{Page, Query};

fn query(text: &str) -> Query {
    Query::parse(text)
}

fn body(page: Page) -> String {
    assert_eq!(page.status, 200, "{page:?}");
    page.body
}

fn json(page: Page) -> Value {
    assert_eq!(page.content_type, "application/json");
    serde_json::from_str(&body(page)).unwrap()
}

fn without_ours(page: &str) -> Vec<&str> {
    page.lines().filter(|line| !line.contains("headgate")).collect()
}

/// Every line is one of Envoy's page, and they come in its order.
fn assert_in_order(ours: &[&str], envoys: &str) {
    let mut lines = envoys.lines();
    for line in ours {
        assert!(lines.any(|envoys| envoys == *line), "not there, or out of order: {line}");
    }
}

/// What is in ours is in Envoy's, and equal; lists have as many items.
fn assert_within(ours: &Value, envoys: &Value, path: &str) {
    match (ours, envoys) {
        (Value::Object(ours), Value::Object(envoys)) => {
            for (key, value) in ours {
                let envoys = envoys.get(key).unwrap_or_else(|| panic!("{path}: no {key} in Envoy's"));
                assert_within(value, envoys, &format!("{path}.{key}"));
            }
        }
        (Value::Array(ours), Value::Array(envoys)) => {
            assert_eq!(ours.len(), envoys.len(), "{path}");
            for (index, (ours, envoys)) in ours.iter().zip(envoys).enumerate() {
                assert_within(ours, envoys, &format!("{path}[{index}]"));
            }
        }
        _ => assert_eq!(ours, envoys, "{path}"),
    }
}

fn by_name<'a>(list: &'a Value, key: &str, name: &str) -> &'a Value {
    let mut items = list.as_array().unwrap().iter();
    items.find(|item| item[key] == name).unwrap_or_else(|| panic!("no {name}"))
}
