//! `envoy.type.v3.Percent`: `{ value: 50 }`.

use super::import::Import;
use super::message;
use super::schema::{Field, read};
use super::value;
use crate::config::tree::Entry;

const FIELDS: &[Field] = &[read("value")];

pub(super) fn percent(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<f64> {
    let fields = message::read(entry, FIELDS, import)?;
    match fields.get("value") {
        None => Some(0.0),
        Some(value) => value::fraction(value, 0.0..=100.0, import),
    }
}
