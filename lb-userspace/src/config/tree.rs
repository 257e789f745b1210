//! Walking the tree of a file: each value with its path (as in `listeners[0].cluster`), each error into one
//! report, so that the reading goes on after it.

use super::yaml::{Key, Node, Value};
use super::{ConfigError, ConfigErrors, Place};

/// Collects the errors of one file.
pub(super) struct Report {
    file: String,
    errors: Vec<ConfigError>,
}

impl Report {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), errors: Vec::new() }
    }

    pub(super) fn add(&mut self, place: Place, field: &str, message: impl Into<String>) {
        self.errors.push(ConfigError::new(&self.file, place, field, message));
    }

    pub(super) fn into_errors(self) -> ConfigErrors {
        self.errors.into()
    }
}

/// A value that was read, with its place and path for checks that come later.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
    pub(super) path: String,
}

/// A value of the file, not yet read.
pub(super) struct Entry<'a> {
    value: &'a Value,
    /// Of the value; of its key where there is no value.
    place: Place,
    path: String,
}

impl<'a> Entry<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self { value: &node.value, place: node.place, path: String::new() }
    }

    pub(super) fn value(&self) -> &'a Value {
        self.value
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.value, Value::List(_))
    }

    pub(super) fn at<T>(&self, value: T) -> Located<T> {
        Located { value, place: self.place, path: self.path.clone() }
    }

    pub(super) fn refuse(&self, message: impl Into<String>, report: &mut Report) {
        report.add(self.place, &self.path, message);
    }

    /// Refuses a value of the wrong type.
    pub(super) fn refuse_type(&self, expected: &str, report: &mut Report) {
        let found = match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        };
        self.refuse(format!("needs {expected}; found {found}"), report);
    }

    /// Where the key stands, if this is a mapping that has it.
    pub(super) fn key_place(&self, name: &str) -> Option<Place> {
        let Value::Map(entries) = self.value else { return None };
        entries.iter().find(|(key, _)| key.name == name).map(|(key, _)| key.place)
    }

    /// The value as a mapping with the keys `known`. Every other key is refused: those of `later` as not
    /// supported yet, the rest as unknown.
    pub(super) fn fields(&self, known: &[&str], later: &[&str], report: &mut Report) -> Option<Fields<'a>> {
        let Value::Map(entries) = self.value else {
            self.refuse_type(&format!("a mapping with the keys {}", known.join(", ")), report);
            return None;
        };
        for (index, (key, _)) in entries.iter().enumerate() {
            let path = join(&self.path, &key.name);
            if let Some((first, _)) = entries[..index].iter().find(|(earlier, _)| earlier.name == key.name) {
                let line = first.place.line;
                report.add(key.place, &path, format!("written twice, first on line {line}: keep one"));
            } else if later.contains(&key.name.as_str()) {
                report.add(key.place, &path, "not supported yet: remove the key");
            } else if !known.contains(&key.name.as_str()) {
                let hint = did_you_mean(&key.name, known.iter().chain(later).copied());
                let known = known.join(", ");
                report.add(key.place, &path, format!("unknown key{hint}; the keys here: {known}"));
            }
        }
        Some(Fields { entries, place: self.place, path: self.path.clone() })
    }

    /// The elements of a list, which may not be empty; nothing if it is refused.
    pub(super) fn items(&self, what: &str, report: &mut Report) -> Vec<Self> {
        let Value::List(nodes) = self.value else {
            self.refuse_type(&format!("a list with at least one {what}"), report);
            return Vec::new();
        };
        if nodes.is_empty() {
            self.refuse(format!("an empty list: give at least one {what}"), report);
        }
        nodes
            .iter()
            .enumerate()
            .map(|(index, node)| Self {
                value: &node.value,
                place: node.place,
                path: format!("{}[{index}]", self.path),
            })
            .collect()
    }
}

/// A mapping of the file.
pub(super) struct Fields<'a> {
    entries: &'a [(Key, Node)],
    place: Place,
    path: String,
}

impl<'a> Fields<'a> {
    pub(super) fn get(&self, name: &str) -> Option<Entry<'a>> {
        let (key, node) = self.entries.iter().find(|(key, _)| key.name == name)?;
        let place = if matches!(node.value, Value::Null) { key.place } else { node.place };
        Some(Entry { value: &node.value, place, path: join(&self.path, name) })
    }

    /// Refuses a mapping without the key; `meaning` says what it is for.
    pub(super) fn require(&self, name: &str, meaning: &str, report: &mut Report) -> Option<Entry<'a>> {
        let entry = self.get(name);
        if entry.is_none() {
            report.add(self.place, &join(&self.path, name), format!("missing: {meaning}"));
        }
        entry
    }
}

/// `", did you mean …?"`, or nothing where no candidate is near.
pub(super) fn did_you_mean<'c>(name: &str, candidates: impl Iterator<Item = &'c str>) -> String {
    let farthest = (name.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= farthest)
        .min()
        .map(|(_, candidate)| format!(", did you mean `{candidate}`?"))
        .unwrap_or_default()
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
