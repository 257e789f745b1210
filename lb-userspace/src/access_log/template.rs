//! Text with operators in it: `%NAME%`, `%NAME(PARAMETERS)%`, `%NAME(PARAMETERS):LENGTH%`, and `%%`.

use super::compile::{Compiled, compile};
use super::operator::{Operator, Written};
use super::{FormatError, Record};

/// A compiled text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Operator(Operator),
}

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, FormatError> {
        let mut parts = Vec::new();
        let mut at = 0;
        while let Some(found) = text[at..].find('%') {
            push_literal(&mut parts, &text[at..at + found]);
            at += found;
            let rest = &text[at..];
            if rest.starts_with("%%") {
                push_literal(&mut parts, "%");
                at += 2;
                continue;
            }
            let reference = Reference::read(rest).ok_or_else(|| FormatError::malformed(at))?;
            let Reference { text: whole, name, parameters, length } = reference;
            match compile(name, parameters, length) {
                Ok(Compiled::Operator(operator)) => parts.push(Part::Operator(operator)),
                Ok(Compiled::Text(text)) => push_literal(&mut parts, &text),
                Err(message) => return Err(FormatError::operator(at, whole, message)),
            }
            at += whole.len();
        }
        push_literal(&mut parts, &text[at..]);
        Ok(Self(parts))
    }

    /// The text, if there is no operator in it whose value depends on the record.
    pub(super) fn constant(&self) -> Option<&str> {
        match &self.0[..] {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The operator, if there is nothing else.
    pub(super) fn only_operator(&self) -> Option<&Operator> {
        match &self.0[..] {
            [Part::Operator(operator)] => Some(operator),
            _ => None,
        }
    }

    /// Appends the text; `unset` stands for a value that does not exist.
    pub(super) fn write(&self, record: &Record, unset: &str, out: &mut Vec<u8>) {
        for part in &self.0 {
            match part {
                Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Part::Operator(operator) => {
                    if operator.write(record, out) == Written::Unset {
                        out.extend_from_slice(unset.as_bytes());
                    }
                }
            }
        }
    }
}

fn push_literal(parts: &mut Vec<Part>, text: &str) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Literal(before)) => before.push_str(text),
        _ => parts.push(Part::Literal(text.to_owned())),
    }
}

/// An operator as it is written.
struct Reference<'a> {
    /// From `%` to `%`.
    text: &'a str,
    name: &'a str,
    /// Empty without any.
    parameters: &'a str,
    length: Option<usize>,
}

impl<'a> Reference<'a> {
    /// `text` starts with `%`; `None`: this is no operator. As in Envoy, parameters reach to the first `)` that the
    /// operator can end with, and have no newline in them.
    fn read(text: &'a str) -> Option<Self> {
        let after = &text[1..];
        let rest =
            after.trim_start_matches(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        let name = &after[..after.len() - rest.len()];
        if name.is_empty() {
            return None;
        }
        let ended = |parameters, length, rest: &str| {
            Some(Self { text: &text[..text.len() - rest.len()], name, parameters, length })
        };
        let Some(inside) = rest.strip_prefix('(') else {
            let (length, rest) = end(rest)?;
            return ended("", length, rest);
        };
        for (at, byte) in inside.bytes().enumerate() {
            match byte {
                b'\n' => break,
                b')' => {
                    if let Some((length, rest)) = end(&inside[at + 1..]) {
                        return ended(&inside[..at], length, rest);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// `%` or `:LENGTH%`: the length, and what follows.
fn end(text: &str) -> Option<(Option<usize>, &str)> {
    if let Some(rest) = text.strip_prefix('%') {
        return Some((None, rest));
    }
    let digits = text.strip_prefix(':')?;
    let rest = digits.trim_start_matches(|c: char| c.is_ascii_digit());
    let length = digits[..digits.len() - rest.len()].parse().ok()?;
    Some((Some(length), rest.strip_prefix('%')?))
}
