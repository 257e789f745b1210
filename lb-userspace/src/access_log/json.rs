//! JSON formats: an object whose strings are templates.

use std::io::Write as _;

use serde_json::{Number, Value};

use super::operator::Written;
use super::template::Template;
use super::{FormatError, Record};

/// A value of a format.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// JSON as it stands in the line.
    Constant(String),
    Null,
    Template(Template),
    /// `"KEY":` of each member in JSON, in the order of the keys' bytes.
    Object(Vec<(String, Self)>),
    List(Vec<Self>),
}

/// Far deeper than any log is, and not so deep that it exhausts the stack.
const MAX_DEPTH: usize = 64;

impl Node {
    /// `format` has to be an object.
    pub(super) fn parse(format: &Value) -> Result<Self, FormatError> {
        match format {
            Value::Object(_) => Self::parse_at(format, 1),
            _ => Err(FormatError::new("a JSON format has to be an object")),
        }
    }

    fn parse_at(value: &Value, depth: usize) -> Result<Self, FormatError> {
        if depth > MAX_DEPTH {
            return Err(FormatError::new(format!("is nested more than {MAX_DEPTH} levels deep")));
        }
        Ok(match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Constant(value.to_string()),
            Value::Number(number) => Self::Constant(double(number)),
            Value::String(text) => {
                let template = Template::parse(text)?;
                match template.constant() {
                    Some(text) => Self::Constant(quoted(text)),
                    None => Self::Template(template),
                }
            }
            Value::Array(items) => {
                let item = |(index, item)| {
                    Self::parse_at(item, depth + 1).map_err(|error| error.within(&format!("[{index}]")))
                };
                Self::List(items.iter().enumerate().map(item).collect::<Result<_, _>>()?)
            }
            Value::Object(members) => {
                // The map of serde_json keeps the order of the file if some crate asks it to.
                let mut members: Vec<_> = members.iter().collect();
                members.sort_unstable_by_key(|(key, _)| *key);
                let member = |(key, value): (&String, &Value)| {
                    let node = Self::parse_at(value, depth + 1).map_err(|error| error.within(key))?;
                    Ok((quoted(key) + ":", node))
                };
                Self::Object(members.into_iter().map(member).collect::<Result<_, _>>()?)
            }
        })
    }

    /// Appends the line without its newline.
    pub(super) fn write_line(&self, record: &Record, omits_empty: bool, out: &mut Vec<u8>) {
        if !self.write(record, omits_empty, out) {
            out.extend_from_slice(b"{}");
        }
    }

    /// Appends the value, unless `omits_empty` and there is none: whether there is one.
    fn write(&self, record: &Record, omits_empty: bool, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Constant(json) => out.extend_from_slice(json.as_bytes()),
            Self::Null => return write_null(omits_empty, out),
            Self::Template(template) => return write_template(template, record, omits_empty, out),
            Self::Object(members) => {
                let start = out.len();
                out.push(b'{');
                let mut any = false;
                for (key, node) in members {
                    let before = out.len();
                    if any {
                        out.push(b',');
                    }
                    out.extend_from_slice(key.as_bytes());
                    if node.write(record, omits_empty, out) {
                        any = true;
                    } else {
                        out.truncate(before);
                    }
                }
                if omits_empty && !any {
                    out.truncate(start);
                    return false;
                }
                out.push(b'}');
            }
            Self::List(items) => {
                out.push(b'[');
                let mut any = false;
                for node in items {
                    let before = out.len();
                    if any {
                        out.push(b',');
                    }
                    if node.write(record, omits_empty, out) {
                        any = true;
                    } else {
                        out.truncate(before);
                    }
                }
                out.push(b']');
            }
        }
        true
    }
}

fn write_null(omits_empty: bool, out: &mut Vec<u8>) -> bool {
    if !omits_empty {
        out.extend_from_slice(b"null");
    }
    !omits_empty
}

fn write_template(template: &Template, record: &Record, omits_empty: bool, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let written = match template.only_operator() {
        Some(operator) => operator.write(record, out),
        None => {
            template.write(record, if omits_empty { "" } else { "-" }, out);
            Written::Text
        }
    };
    match written {
        Written::Number => {}
        Written::Unset => return write_null(omits_empty, out),
        Written::Text => quote(start, out),
    }
    true
}

/// Makes a JSON string of what `out` has from `start` on.
fn quote(start: usize, out: &mut Vec<u8>) {
    let needs_escape = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    if !out[start..].iter().any(|byte| needs_escape(*byte)) {
        out.insert(start, b'"');
        out.push(b'"');
        return;
    }
    let text = out.split_off(start);
    out.push(b'"');
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            byte if byte < b' ' => write!(out, "\\u{byte:04x}").expect("writing to memory does not fail"),
            byte => out.push(byte),
        }
    }
    out.push(b'"');
}

fn quoted(text: &str) -> String {
    let mut out = text.as_bytes().to_vec();
    quote(0, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// A number as Envoy writes it, to which all numbers are doubles: the fewest digits that give the same double, all of
/// those of an integer, with an exponent where that is shorter.
fn double(number: &Number) -> String {
    let value = number.as_f64().unwrap_or_default();
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    let scientific = format!("{digits}e{sign}{:02}", exponent.unsigned_abs());
    let is_integer = value != 0.0 && value.fract() == 0.0 && value.abs() < 1e30;
    let fixed = if is_integer { (value as i128).to_string() } else { value.to_string() };
    if fixed.len() <= scientific.len() { fixed } else { scientific }
}
