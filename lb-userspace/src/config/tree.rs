//! Walking the tree of a file: each value with its path (as in `listeners[0].cluster`), each error into one
//! report, so that the reading goes on after it.

use std::collections::HashMap;

use super::yaml::{Key, Node, Value};
use super::{ConfigError, ConfigErrors, Place};

/// Errors that are shown of one file; the rest is counted.
const MAX_ERRORS: usize = 100;

/// A longer name is no near miss of a key, and comparing takes time.
const MAX_HINTED: usize = 64;

/// Collects the errors of one file.
pub(super) struct Report {
    file: String,
    errors: Vec<ConfigError>,
    left_out: usize,
}

impl Report {
    pub(super) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), errors: Vec::new(), left_out: 0 }
    }

    pub(super) fn add(&mut self, place: Place, field: &str, message: impl Into<String>) {
        if self.is_full() {
            self.left_out += 1;
        } else {
            self.errors.push(ConfigError::new(&self.file, place, field, message));
        }
    }

    /// Whether another error would only be counted, so that its text need not be made.
    fn is_full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    pub(super) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// The errors so far, shown or not.
    pub(super) fn count(&self) -> usize {
        self.errors.len() + self.left_out
    }

    /// [`did_you_mean`], unless nobody would see it.
    pub(super) fn hint<'c>(&self, name: &str, candidates: impl Iterator<Item = &'c str>) -> String {
        if self.is_full() { String::new() } else { did_you_mean(name, candidates) }
    }

    pub(super) fn into_errors(self) -> ConfigErrors {
        let mut errors = ConfigErrors::from(self.errors);
        if self.left_out > 0 {
            let message = format!("{} more errors are not shown", self.left_out);
            errors.push(ConfigError::unreadable(&self.file, message));
        }
        errors
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
#[derive(Clone)]
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

    pub(super) fn path(&self) -> &str {
        &self.path
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

    /// The value as a mapping with the keys `known`. Every other key is refused.
    pub(super) fn fields(&self, known: &[&str], report: &mut Report) -> Option<Fields<'a>> {
        let Value::Map(entries) = self.value else {
            self.refuse_type(&format!("a mapping with the keys {}", known.join(", ")), report);
            return None;
        };
        let mut first_places = HashMap::new();
        for (key, _) in entries {
            let (name, path) = (key.name.as_str(), join(&self.path, &key.name));
            if let Some(first) = first_places.get(name) {
                report.add(key.place, &path, written_twice(*first));
                continue;
            }
            first_places.insert(name, key.place);
            if !known.contains(&name) {
                let hint = report.hint(name, known.iter().copied());
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
        self.elements()
    }

    pub(super) fn is_empty_list(&self) -> bool {
        matches!(self.value, Value::List(nodes) if nodes.is_empty())
    }

    /// The elements, if this is a list.
    pub(super) fn elements(&self) -> Vec<Self> {
        let Value::List(nodes) = self.value else { return Vec::new() };
        let element = |(index, node): (usize, &'a Node)| Self {
            value: &node.value,
            place: node.place,
            path: format!("{}[{index}]", self.path),
        };
        nodes.iter().enumerate().map(element).collect()
    }

    /// The keys and values, if this is a mapping.
    pub(super) fn members(&self) -> impl Iterator<Item = (&'a Key, Self)> + use<'a, '_> {
        let entries: &'a [(Key, Node)] = match self.value {
            Value::Map(entries) => entries,
            _ => &[],
        };
        entries.iter().map(|(key, node)| (key, Self::member(&self.path, key, node)))
    }

    fn member(path: &str, key: &Key, node: &'a Node) -> Self {
        let place = if matches!(node.value, Value::Null) { key.place } else { node.place };
        Self { value: &node.value, place, path: join(path, &key.name) }
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
        Some(Entry::member(&self.path, key, node))
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
    if name.len() > MAX_HINTED {
        return String::new();
    }
    let farthest = (name.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= farthest)
        .min()
        .map(|(_, candidate)| format!(", did you mean `{candidate}`?"))
        .unwrap_or_default()
}

pub(super) fn written_twice(first: Place) -> String {
    format!("written twice, first on line {}: keep one", first.line)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
