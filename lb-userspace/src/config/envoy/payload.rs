//! `Payload`: bytes of a probe, as hexadecimal `text` or `binary` in base64.

use super::import::Import;
use super::message;
use super::schema::{Field, read};
use super::value;
use crate::config::payload::from_hex;
use crate::config::tree::Entry;

const PAYLOAD: &[Field] = &[read("text"), read("binary")];

/// The bytes; their key is judged.
pub(super) fn bytes(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Vec<u8>> {
    let fields = message::read(entry, PAYLOAD, import)?;
    let Some(payload) = fields.one_of(&["text", "binary"], import) else {
        import.error(entry, "needs text or binary");
        return None;
    };
    let (bytes, rule) = if fields.get("text").is_some() {
        (from_hex(value::nonempty(payload, import)?), "two hexadecimal digits for each byte, as in 00ff")
    } else {
        (from_base64(value::text(payload, import)?), "base64, as in AP8=")
    };
    if bytes.is_none() {
        import.error(payload, format!("not what it has to be: {rule}"));
    }
    import.honour(payload);
    bytes
}

/// Those of a list that are not empty, which would be found everywhere.
pub(super) fn list(entry: &Entry<'_>, import: &mut Import<'_>) -> Vec<Vec<u8>> {
    let items = message::repeated(entry, import);
    items.iter().filter_map(|item| bytes(item, import)).filter(|bytes| !bytes.is_empty()).collect()
}

/// Of the standard's alphabet or that for URLs, with or without `=` at the end, as protobuf takes both.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if text.len() - digits.len() > 2 || digits.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::new();
    for digits in digits.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for digit in digits {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' | b'-' => 62,
                b'/' | b'_' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - digits.len());
        let [_, decoded @ ..] = bits.to_be_bytes();
        bytes.extend(decoded.iter().take(digits.len() - 1));
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::from_base64;

    #[test]
    fn base64_of_either_alphabet() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("AA==", b"\0"),
            ("AP8=", b"\0\xff"),
            ("AP8", b"\0\xff"),
            ("+/+_", b"\xfb\xff\xbf"),
            ("-_-_YWI", b"\xfb\xff\xbfab"),
        ] {
            assert_eq!(from_base64(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["A", "AAAAA", "A===", "A!==", "AA=A"] {
            assert_eq!(from_base64(text), None, "{text}");
        }
    }
}
