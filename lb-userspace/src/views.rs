//! `status` and `backends` for people, from the JSON that scripts get.

use serde_json::Value;

use crate::table::{Column, Table, left, right};

/// Events that people are shown; scripts get all that are kept.
const EVENTS: usize = 10;

/// `headgate status`.
pub fn status(status: &Value) -> String {
    let mut text = String::new();
    for cluster in status["clusters"].as_array().into_iter().flatten() {
        if cluster["panic"].as_array().is_some_and(|levels| !levels.is_empty()) {
            text += &format!(
                "PANIC: {} of {} endpoints of cluster {} are healthy, so all are used\n",
                cluster["healthy"],
                cluster["endpoints"],
                string(&cluster["name"])
            );
        }
    }
    text += &format!(
        "headgate {}, up {} s, mode {}{}\n",
        string(&status["version"]),
        string(&status["uptime_s"]),
        string(&status["mode"]),
        if status["draining"] == true { ", draining" } else { "" },
    );
    if let Some(drain) = status["drain"].as_object() {
        text += &format!(
            "the node is drained since {} s: what was open then is reset in {} s\n",
            drain["age_s"], drain["resets_in_s"]
        );
    }
    if let Some(why) = status["why"].as_str() {
        text += &format!("no kernel rung: {why}\n");
    }
    let flows = &status["flows"];
    if flows["max"].is_number() {
        text += &format!(
            "flows: {} IPv4 and {} IPv6 in the kernel, of {} each ({} MiB of kernel memory); {} proxied; {} SNAT ports\n",
            flows["kernel_v4"],
            flows["kernel_v6"],
            flows["max"],
            flows["bytes"].as_u64().unwrap_or_default() >> 20,
            flows["proxied"],
            flows["snat_ports"],
        );
    } else {
        text += &format!("flows: {} proxied\n", flows["proxied"]);
    }
    let columns = [left("INTERFACE"), left("RUNG"), left("WHY")];
    text += &section(columns, &status["interfaces"], ["name", "rung", "why"]);
    let columns = [left("LISTENER"), left("ADDRESS"), left("CLUSTER"), left("RUNG"), left("SERVES")];
    text += &section(columns, &status["listeners"], ["name", "address", "cluster", "rung", "serves"]);
    let columns =
        [left("CLUSTER"), right("ENDPOINTS"), right("HEALTHY"), right("DRAINING"), left("DISCOVERY")];
    let mut clusters = status["clusters"].clone();
    for cluster in clusters.as_array_mut().into_iter().flatten() {
        cluster["discovery"] = discovery(&cluster["discovery"]).into();
    }
    text += &section(columns, &clusters, ["name", "endpoints", "healthy", "draining", "discovery"]);
    if let Some(reasons) = status["reasons"].as_object().filter(|reasons| !reasons.is_empty()) {
        let mut table = Table::new([left("REASON"), right("COUNT")]);
        for (name, count) in reasons {
            table.row([name.clone(), string(count)]);
        }
        text += &format!("\n{table}");
    }
    let events = status["events"].as_array().map(Vec::as_slice).unwrap_or_default();
    let last = Value::from(&events[events.len().saturating_sub(EVENTS)..]);
    let columns = [left("AT"), left("CLUSTER"), left("ENDPOINT"), left("FROM"), left("TO"), left("WHY")];
    text += &section(columns, &last, ["at", "cluster", "endpoint", "from", "to", "why"]);
    if let Some(error) = status["reload"]["error"].as_str() {
        text += &format!("\nthe reload at {} was refused: {error}\n", string(&status["reload"]["at"]));
    }
    for finding in status["findings"].as_array().into_iter().flatten() {
        let interface = finding["interface"].as_str().map(|name| format!("{name}: ")).unwrap_or_default();
        text += &format!("\nnote: {interface}{}; {}\n", string(&finding["what"]), string(&finding["remedy"]));
    }
    text
}

/// `headgate backends`.
pub fn backends(backends: &Value) -> String {
    let mut table = Table::new([
        left("CLUSTER"),
        left("ADDRESS"),
        left("STATE"),
        right("WEIGHT"),
        right("ACTIVE"),
        right("XDP"),
        right("TC"),
        right("PROXY"),
        left("WHY"),
    ]);
    for backend in backends.as_array().into_iter().flatten() {
        let total = &backend["total"];
        let mut notes = vec![string(&backend["why"])];
        if let Some(seconds) = backend["resets_in_s"].as_u64() {
            notes.push(format!("open connections are reset in {seconds} s"));
        }
        if let Some(why) = backend["proxy_only"].as_str() {
            notes.push(format!("proxy only: {why}"));
        }
        table.row([
            string(&backend["cluster"]),
            string(&backend["address"]),
            string(&backend["state"]),
            string(&backend["weight"]),
            string(&backend["active"]),
            string(&total["xdp"]),
            string(&total["tc"]),
            string(&total["proxy"]),
            notes.join("; "),
        ]);
    }
    table.to_string()
}

/// What discovery says of a cluster, in a word or two.
fn discovery(of: &Value) -> String {
    match (of["state"].as_str(), of["last_failure"].as_str()) {
        (None, _) => "static".to_owned(),
        (Some(state), None) => format!("dns, {state}"),
        (Some(state), Some(failure)) => format!("dns, {state}: {failure}"),
    }
}

fn section<const N: usize>(columns: [Column; N], rows: &Value, fields: [&str; N]) -> String {
    let Some(rows) = rows.as_array().filter(|rows| !rows.is_empty()) else { return String::new() };
    let mut table = Table::new(columns);
    for row in rows {
        table.row(fields.map(|field| string(&row[field])));
    }
    format!("\n{table}")
}

/// A value without JSON's quotes.
fn string(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Array(items) => items.iter().map(string).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
