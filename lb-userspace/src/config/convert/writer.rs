//! Writes the little of YAML that a configuration needs: block mappings and lists, with one scalar a line.

use std::fmt::Write as _;
use std::net::SocketAddrV4;
use std::time::Duration;

use serde_json::Value;

/// Words that are not text to some YAML readers.
const RESERVED: [&str; 12] =
    ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf", "default"];

#[derive(Default)]
pub(super) struct Writer {
    text: String,
    depth: usize,
    /// The next line begins an element of a list.
    element: bool,
}

impl Writer {
    pub(super) fn finish(self) -> String {
        self.text
    }

    pub(super) fn comment(&mut self, comment: &str) {
        self.line(format_args!("# {comment}"));
    }

    pub(super) fn text(&mut self, key: &str, text: &str) {
        self.line(format_args!("{key}: {}", scalar(text)));
    }

    pub(super) fn number(&mut self, key: &str, number: u32) {
        self.line(format_args!("{key}: {number}"));
    }

    pub(super) fn boolean(&mut self, key: &str, value: bool) {
        self.line(format_args!("{key}: {value}"));
    }

    pub(super) fn duration(&mut self, key: &str, duration: Duration) {
        let ms = duration.as_millis();
        let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
        // The largest unit that says it in whole numbers.
        let unit = units.into_iter().find(|(_, length)| ms > 0 && ms.is_multiple_of(*length));
        let text = match unit {
            Some((unit, length)) => format!("{}{unit}", ms / length),
            None => "0s".to_owned(),
        };
        self.line(format_args!("{key}: {text}"));
    }

    /// In thousandths.
    pub(super) fn thousandths(&mut self, key: &str, number: u32) {
        let (whole, rest) = (number / 1000, number % 1000);
        let text = format!("{whole}.{rest:03}");
        self.written(key, text.trim_end_matches('0').trim_end_matches('.'));
    }

    pub(super) fn json(&mut self, key: &str, value: &Value) {
        let mut text = String::new();
        flow(&mut text, value);
        self.line(format_args!("{key}: {text}"));
    }

    pub(super) fn mapping(&mut self, key: &str, content: impl FnOnce(&mut Self)) {
        self.line(format_args!("{key}:"));
        self.depth += 1;
        content(self);
        self.depth -= 1;
    }

    pub(super) fn list<T>(&mut self, key: &str, items: &[T], mut content: impl FnMut(&mut Self, &T)) {
        if items.is_empty() {
            self.line(format_args!("{key}: []"));
            return;
        }
        self.line(format_args!("{key}:"));
        self.depth += 2;
        for item in items {
            self.element = true;
            content(self, item);
        }
        self.depth -= 2;
    }

    /// A list with an element a line, each written already.
    pub(super) fn lines(&mut self, key: &str, items: &[String]) {
        self.list(key, items, |writer, item| writer.line(format_args!("{item}")));
    }

    /// A value that is written already, as by [`quoted`].
    pub(super) fn written(&mut self, key: &str, value: &str) {
        self.line(format_args!("{key}: {value}"));
    }

    fn line(&mut self, content: std::fmt::Arguments<'_>) {
        let mut indent = "  ".repeat(self.depth);
        if std::mem::take(&mut self.element) {
            indent.truncate(indent.len() - 2);
            indent.push_str("- ");
        }
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{indent}{content}");
    }
}

/// Plain where every YAML reader takes it for the same text, else in quotes.
pub(super) fn scalar(text: &str) -> String {
    let plain = text.bytes().next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'/')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte))
        && (text == "default" || !RESERVED.contains(&text.to_ascii_lowercase().as_str()));
    if plain || text.parse::<SocketAddrV4>().is_ok() { text.to_owned() } else { quoted(text) }
}

/// In double quotes, so that every reader takes it for this text.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            // What YAML does not take as it is, or takes for a break of the line.
            c if c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') =>
            {
                // Writing to a String cannot fail.
                let _ = write!(quoted, "\\U{:08X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// JSON in one line, which is YAML too.
fn flow(text: &mut String, value: &Value) {
    match value {
        Value::String(string) => text.push_str(&quoted(string)),
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                separate(text, index);
                flow(text, item);
            }
            text.push(']');
        }
        Value::Object(members) => {
            text.push('{');
            for (index, (key, member)) in members.iter().enumerate() {
                separate(text, index);
                text.push_str(&quoted(key));
                text.push_str(": ");
                flow(text, member);
            }
            text.push('}');
        }
        plain => text.push_str(&plain.to_string()),
    }
}

fn separate(text: &mut String, index: usize) {
    if index > 0 {
        text.push_str(", ");
    }
}
