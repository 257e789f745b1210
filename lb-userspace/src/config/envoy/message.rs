//! A mapping of the file as a message of Envoy's configuration.

use super::import::Import;
use super::schema::{Field, Kind, Rule, V2_ONLY};
use super::value;
use crate::config::Place;
use crate::config::tree::{Entry, written_twice};
use crate::config::yaml::Value;

/// The keys of a message that are for its reader, `null` left out.
pub(super) struct Message<'a> {
    entries: Vec<(&'static str, Entry<'a>)>,
}

impl<'a> Message<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&Entry<'a>> {
        self.entries.iter().find(|(known, _)| *known == name).map(|(_, entry)| entry)
    }

    /// Of keys that exclude each other, the one that is there; more than one is an error.
    pub(super) fn one_of(&self, names: &[&str], import: &mut Import<'_>) -> Option<&Entry<'a>> {
        let mut found = names.iter().filter_map(|name| self.get(name));
        let first = found.next()?;
        for entry in found {
            import.error(entry, format!("only one of {} may be given: keep one", names.join(", ")));
        }
        Some(first)
    }
}

/// Reads the mapping; every key that is not for its reader is judged here.
pub(super) fn read<'a>(
    entry: &Entry<'a>,
    fields: &'static [Field],
    import: &mut Import<'_>,
) -> Option<Message<'a>> {
    if !entry.is_map() {
        entry.refuse_type("a mapping", import.report);
        return None;
    }
    let mut seen: Vec<(&'static str, Place)> = Vec::new();
    let mut entries = Vec::new();
    for (key, member) in entry.members() {
        // The type of an Any, which its reader has looked at.
        if key.name == "@type" {
            continue;
        }
        let Some(field) = fields.iter().find(|field| field.is(&key.name)) else {
            let hint = import.report.hint(&snake_case(&key.name), fields.iter().map(|field| field.name));
            let path = member.path().to_owned();
            import.report.add(
                key.place,
                &path,
                format!("unknown key{hint}; Envoy has none of this name here"),
            );
            continue;
        };
        if let Some((_, first)) = seen.iter().find(|(name, _)| *name == field.name) {
            let path = member.path().to_owned();
            import.report.add(key.place, &path, written_twice(*first));
            continue;
        }
        seen.push((field.name, key.place));
        if matches!(member.value(), Value::Null) {
            continue;
        }
        if V2_ONLY.contains(&field.name) {
            import.is_v2(&member);
        }
        match &field.rule {
            Rule::Read => entries.push((field.name, member)),
            Rule::Ignored(kind, why) => {
                if check(&member, kind, import) {
                    import.ignore(&member, *why);
                }
            }
            Rule::Checked(kind) => {
                check(&member, kind, import);
            }
            Rule::Refused(why) => {
                if is_default(&member) {
                    import.ignore(&member, "it has its default");
                } else {
                    import.refuse(&member, *why);
                }
            }
        }
    }
    Some(Message { entries })
}

/// The key as Envoy's documentation writes it.
fn snake_case(key: &str) -> String {
    let mut snake = String::new();
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// The elements of a repeated field, which may be written as one element alone.
pub(super) fn repeated<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Vec<Entry<'a>> {
    match entry.value() {
        Value::List(_) => entry.elements(),
        Value::Map(_) => vec![entry.clone()],
        _ => {
            entry.refuse_type("a list", import.report);
            Vec::new()
        }
    }
}

/// What says of a switch or a list the same as leaving the key out. Of other kinds nobody writes the default.
fn is_default(entry: &Entry<'_>) -> bool {
    match entry.value() {
        Value::Bool(value) => !value,
        Value::List(nodes) => nodes.is_empty(),
        _ => false,
    }
}

pub(super) fn is_empty_text(entry: &Entry<'_>) -> bool {
    matches!(entry.value(), Value::Text(text) if text.is_empty())
}

/// Whether the value is of the kind, or what is wrong is reported.
fn check(entry: &Entry<'_>, kind: &'static Kind, import: &mut Import<'_>) -> bool {
    match kind {
        Kind::Bool => value::boolean(entry, import).is_some(),
        Kind::Text => value::text(entry, import).is_some(),
        Kind::U32 => value::number(entry, 0..=u64::from(u32::MAX), import).is_some(),
        Kind::U64 => value::number(entry, 0..=u64::MAX, import).is_some(),
        Kind::Range(least, most) => value::number(entry, *least..=*most, import).is_some(),
        Kind::Fraction(least, most) => value::fraction(entry, *least..=*most, import).is_some(),
        Kind::Duration { least_ms } => value::duration_from(entry, *least_ms, import).is_some(),
        Kind::PositiveDuration => value::positive_duration(entry, import).is_some(),
        Kind::Word(words) => value::word(entry, words, import).is_some(),
        Kind::Message(fields) => read(entry, fields, import).is_some(),
        Kind::List(kind) => {
            let items = match entry.value() {
                // Envoy takes one element alone for a list of it.
                Value::List(_) => entry.elements(),
                _ => vec![entry.clone()],
            };
            // Every element is looked at, so that all that is wrong is found.
            items.iter().filter(|item| !check(item, kind, import)).count() == 0
        }
        Kind::Mapping => {
            if !entry.is_map() {
                entry.refuse_type("a mapping", import.report);
            }
            entry.is_map()
        }
        Kind::Any => true,
    }
}
