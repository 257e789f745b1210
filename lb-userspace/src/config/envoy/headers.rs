//! `HeaderValueOption`: headers that are added to a probe.

use super::import::Import;
use super::message;
use super::schema::{Field, read, refused};
use super::value;
use crate::config::http::{header_problem, is_header_value};
use crate::config::tree::Entry;

const OPTION: &[Field] = &[read("header"), read("append"), read("append_action"), read("keep_empty_value")];

const HEADER: &[Field] =
    &[read("key"), read("value"), refused("raw_value", "write it as value, which is text")];

/// In the order of their numbers.
const ACTIONS: [&str; 4] =
    ["APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS"];

/// The headers as they go out, those of one name beside each other.
pub(super) fn headers(entry: &Entry<'_>, import: &mut Import<'_>) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::new();
    for item in message::repeated(entry, import) {
        let Some((action, name, value)) = header(&item, import) else { continue };
        import.honour(&item);
        let last = headers.iter().rposition(|(known, _)| *known == name);
        match (action, last) {
            ("ADD_IF_ABSENT", Some(_)) | ("OVERWRITE_IF_EXISTS", None) => continue,
            ("OVERWRITE_IF_EXISTS" | "OVERWRITE_IF_EXISTS_OR_ADD", _) => {
                headers.retain(|(known, _)| *known != name);
                headers.push((name, value));
            }
            (_, Some(index)) => headers.insert(index + 1, (name, value)),
            (_, None) => headers.push((name, value)),
        }
    }
    headers
}

/// The action, the name and the value; `None` also for an empty one, which Envoy does not add.
fn header(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<(&'static str, String, String)> {
    let fields = message::read(entry, OPTION, import)?;
    let keeps_empty = match fields.get("keep_empty_value") {
        None => false,
        Some(entry) => value::boolean(entry, import)?,
    };
    let action = match fields.one_of(&["append", "append_action"], import) {
        None => ACTIONS[0],
        Some(append) if fields.get("append").is_some() => match value::boolean(append, import)? {
            true => ACTIONS[0],
            false => "OVERWRITE_IF_EXISTS_OR_ADD",
        },
        Some(action) => ACTIONS[value::word(action, &ACTIONS, import)?],
    };
    let Some(header) = fields.get("header") else {
        import.error(entry, "needs header");
        return None;
    };
    let fields = message::read(header, HEADER, import)?;
    let Some(key) = fields.get("key") else {
        import.error(header, "needs key");
        return None;
    };
    let name = value::nonempty(key, import)?.to_ascii_lowercase();
    if name.starts_with(':') || name == "host" {
        import.error(key, format!("Envoy lets nobody add {name}: write host of the health check"));
        return None;
    }
    if let Some(problem) = header_problem(&name) {
        import.refuse(key, problem);
        return None;
    }
    let (entry, text) = match fields.get("value") {
        None => (header, String::new()),
        Some(entry) => (entry, literal(value::text(entry, import)?, entry, import)?),
    };
    if text.is_empty() && !keeps_empty {
        return None;
    }
    if !is_header_value(&text) {
        import.refuse(entry, "the value of a header is ASCII without control characters, and not empty");
        return None;
    }
    Some((action, name, text))
}

/// The text that the value stands for, in which a `%%` is a `%`.
fn literal(text: &str, entry: &Entry<'_>, import: &mut Import<'_>) -> Option<String> {
    let literal = text.replace("%%", "\0");
    if literal.contains('%') {
        import.refuse(entry, "operators (%...%) in headers of health checks are not supported");
        return None;
    }
    Some(literal.replace('\0', "%"))
}
