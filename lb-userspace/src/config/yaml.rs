//! A YAML text as a tree of values that know their line and column. The only file that knows the YAML library.
//!
//! The tree keeps everything the text says (duplicate and unknown keys too), so that one reading finds all
//! that is wrong. Plain scalars are typed by the YAML 1.2 core schema: `on` is text, `80` a number.

use std::fmt;
use std::thread;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{DefaultMessageFormatter, Error, MessageFormatter, Spanned};

use super::Place;

/// A value and where it begins.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// In decimal, whatever the file's notation.
    Number(String),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file, repeated keys included.
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) name: String,
}

/// What the YAML library says about a text that is no single YAML document.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) place: Place,
    pub(super) message: String,
}

/// The longest text that is read, in bytes.
pub(super) const MAX_TEXT: usize = 4 << 20;

/// Values and keys of a text, each copy that an alias makes included.
const MAX_NODES: usize = 100_000;

/// Of the values and keys together, in bytes, each copy that an alias makes included.
const MAX_SCALARS: usize = 2 * MAX_TEXT;

/// Lists and mappings inside each other.
const MAX_DEPTH: usize = 64;

/// A level takes up to 50 KiB of it in debug builds.
const STACK: usize = 16 << 20;

/// What the key `<<` is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MergeKeys {
    /// The mapping that is its value is merged into the one that it stands in.
    Merged,
    /// A key like any other.
    Kept,
}

/// Reads one document; an empty text is `Null`. Time and memory are bounded by the limits above, whatever the text.
fn read_here(text: &str, merge_keys: MergeKeys) -> Result<Node, SyntaxError> {
    if text.len() > MAX_TEXT {
        return Err(SyntaxError { place: Place::START, message: too_long() });
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            max_total_scalar_bytes: MAX_SCALARS,
            max_documents: 2,
            // One anchor that is used a thousand times is fine: the copies are counted as nodes.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_NODES,
            max_replay_stack_depth: MAX_DEPTH,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: match merge_keys {
            MergeKeys::Merged => MergeKeyPolicy::Merge,
            MergeKeys::Kept => MergeKeyPolicy::AsOrdinary,
        },
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        null_as_string: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let place = error.location().map_or(Place::START, Place::from);
        SyntaxError { place, message: explain(&error, text, place) }
    })
}

/// [`read_here`] on a stack that lasts for [`MAX_DEPTH`] in every build, whatever thread this is.
pub(super) fn read(text: &str, merge_keys: MergeKeys) -> Result<Node, SyntaxError> {
    thread::scope(|scope| {
        let thread =
            thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || read_here(text, merge_keys));
        match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => {
                Err(SyntaxError { place: Place::START, message: format!("no thread to read it on: {error}") })
            }
        }
    })
}

const SECOND_DOCUMENT: &str = "a second YAML document (after `---`): one document a file is read";

/// The library's words, with what to do where a configuration file is likely to meet them.
fn explain(error: &Error, text: &str, place: Place) -> String {
    if let Error::MultipleDocuments { .. } = error {
        return SECOND_DOCUMENT.to_owned();
    }
    if let Some(limit) = exceeded(error) {
        return limit;
    }
    let message = DefaultMessageFormatter.format_message(error);
    let line = usize::try_from(place.line).ok().and_then(|line| text.lines().nth(line.saturating_sub(1)));
    if line.is_some_and(|line| line.contains("]:")) {
        format!("not YAML: {message}; an IPv6 address with a port goes in quotes: \"[::]:80\"")
    } else {
        format!("not YAML: {message}")
    }
}

pub(super) fn too_long() -> String {
    format!("more than {} MiB: a configuration is shorter", MAX_TEXT >> 20)
}

/// Which of the limits the text breaks, if that is the error.
fn exceeded(error: &Error) -> Option<String> {
    Some(match error.without_snippet() {
        Error::AliasError { error, .. } => return exceeded(error),
        Error::AliasReplayLimitExceeded { .. } => {
            format!("aliases make more than {MAX_NODES} values: write less with fewer aliases")
        }
        Error::AliasReplayStackDepthExceeded { .. } => too_deep(),
        Error::Budget { breach, .. } => match breach {
            BudgetBreach::Depth { .. } => too_deep(),
            BudgetBreach::ScalarBytes { .. } => {
                format!("more than {} MiB of text, aliases written out: shorten it", MAX_SCALARS >> 20)
            }
            BudgetBreach::Documents { .. } => SECOND_DOCUMENT.to_owned(),
            _ => format!(
                "more than {MAX_NODES} keys and values, aliases written out: split the file or shorten it"
            ),
        },
        _ => return None,
    })
}

fn too_deep() -> String {
    format!("more than {MAX_DEPTH} lists and mappings inside each other: no configuration needs that")
}

impl From<serde_saphyr::Location> for Place {
    fn from(location: serde_saphyr::Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { place: spanned.defined.into(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { place: spanned.defined.into(), name: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = access.next_element()? {
            nodes.push(node);
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}
