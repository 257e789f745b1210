//! Bytes of a probe: text, or `{ hex: "00ff" }`.

use super::tree::{Entry, Report};

/// The bytes, at least one.
pub(super) fn read(entry: &Entry<'_>, report: &mut Report) -> Option<Vec<u8>> {
    if entry.is_map() {
        let fields = entry.fields(&["hex"], report)?;
        let entry = fields.require("hex", "the bytes, as in 00ff", report)?;
        let digits = entry.text("the bytes, as in \"00ff\"", report)?;
        let bytes = from_hex(digits).filter(|bytes| !bytes.is_empty());
        if bytes.is_none() {
            entry.refuse(format!("`{digits}`: two hexadecimal digits for each byte, as in 00ff"), report);
        }
        return bytes;
    }
    let text = entry.text("text, or bytes as in { hex: \"00ff\" }", report)?;
    if text.is_empty() {
        entry.refuse("empty: give at least one byte, or leave the key out", report);
        return None;
    }
    Some(text.as_bytes().to_vec())
}

/// One of them, or a list.
pub(super) fn list(entry: &Entry<'_>, report: &mut Report) -> Vec<Vec<u8>> {
    let items = if entry.is_list() { entry.items("text", report) } else { vec![entry.clone()] };
    items.iter().filter_map(|item| read(item, report)).collect()
}

pub(super) fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let nibble = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(nibble(high)? << 4 | nibble(low)?)).collect()
}
