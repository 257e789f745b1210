//! `access_log:`, of the whole file and of a listener.

use std::path::PathBuf;

use super::tree::{Entry, Report};
use super::yaml::{Node, Value};
use crate::access_log::Format;
use crate::model::AccessLog;

pub(super) const PATH: &str = "/dev/stdout";

const KNOWN: [&str; 7] =
    ["path", "format", "newline", "omit_empty_values", "flush_interval", "on_connect", "on_start"];

/// One log, or a list of them; an empty list is none.
pub(super) fn read(entry: &Entry<'_>, report: &mut Report) -> Vec<AccessLog> {
    if entry.is_list() {
        entry.elements().iter().filter_map(|item| log(item, report)).collect()
    } else {
        log(entry, report).into_iter().collect()
    }
}

fn log(entry: &Entry<'_>, report: &mut Report) -> Option<AccessLog> {
    let fields = entry.fields(&KNOWN, report)?;
    let newline = fields.get("newline").map_or(Some(true), |entry| entry.boolean(report));
    let path = fields.get("path").map_or_else(|| Some(PathBuf::from(PATH)), |entry| file(&entry, report));
    let format = match fields.get("format") {
        None => Some(Format::envoy_default()),
        Some(entry) => format(&entry, newline.unwrap_or(true), report),
    };
    let omits_empty = fields.get("omit_empty_values").map_or(Some(false), |entry| entry.boolean(report));
    let flush_interval = fields.get("flush_interval").and_then(|entry| entry.duration(report));
    let on_connect = fields.get("on_connect").map_or(Some(false), |entry| entry.boolean(report));
    let on_start = fields.get("on_start").map_or(Some(false), |entry| entry.boolean(report));
    Some(AccessLog {
        path: path?,
        format: format?.omit_empty(omits_empty?),
        flush_interval: flush_interval.filter(|interval| !interval.is_zero()),
        on_connect: on_connect?,
        on_start: on_start?,
    })
}

/// Where lines are appended to.
pub(super) fn file(entry: &Entry<'_>, report: &mut Report) -> Option<PathBuf> {
    let path = entry.text("a path, as in /dev/stdout", report)?;
    if path.is_empty() || path.contains('\0') {
        entry.refuse("not a path: name a file, as in /dev/stdout", report);
        return None;
    }
    Some(PathBuf::from(path))
}

/// `default`, a text or a mapping. A text is a line: it gets the newline that it lacks, if `newline`.
fn format(entry: &Entry<'_>, newline: bool, report: &mut Report) -> Option<Format> {
    if entry.is_map() {
        return json_format(entry, report);
    }
    let text =
        entry.text("default, a text with operators as in \"%UPSTREAM_HOST%\", or a mapping", report)?;
    match text {
        "default" => Some(Format::envoy_default()),
        text if newline && !text.ends_with('\n') => text_format(entry, &format!("{text}\n"), report),
        text => text_format(entry, text, report),
    }
}

/// `text` as it is; `entry` is where it stands.
pub(super) fn text_format(entry: &Entry<'_>, text: &str, report: &mut Report) -> Option<Format> {
    Format::text(text).map_err(|error| entry.refuse(error.to_string(), report)).ok()
}

/// A line with a JSON object for each connection.
pub(super) fn json_format(entry: &Entry<'_>, report: &mut Report) -> Option<Format> {
    Format::json(&json(entry.value())).map_err(|error| entry.refuse(error.to_string(), report)).ok()
}

/// The value as JSON; of a key that is there twice, the last.
fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Number(digits) => number(digits),
        Value::Text(text) => text.as_str().into(),
        Value::List(nodes) => nodes.iter().map(|node: &Node| json(&node.value)).collect(),
        Value::Map(entries) => {
            entries.iter().map(|(key, node)| (key.name.clone(), json(&node.value))).collect()
        }
    }
}

fn number(digits: &str) -> serde_json::Value {
    if let Ok(whole) = digits.parse::<i64>() {
        return whole.into();
    }
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.into();
    }
    // Numbers of the file are finite; a text says what no number can.
    digits.parse::<f64>().map_or_else(|_| digits.into(), Into::into)
}
