//! An answer of the admin port, before it is sent.

use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::PrettyFormatter;

const TEXT: &str = "text/plain; charset=UTF-8";
const JSON: &str = "application/json";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// HTTP's.
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
}

impl Page {
    pub fn text(body: impl Into<String>) -> Self {
        Self::refusal(200, body)
    }

    pub fn refusal(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: TEXT, body: body.into() }
    }

    /// JSON on one line.
    pub fn compact_json(value: &impl Serialize) -> Self {
        let body = serde_json::to_string(value).expect("the pages' types have string keys alone");
        Self { status: 200, content_type: JSON, body }
    }

    /// JSON as Envoy prints messages: indented by one column, and with a line end.
    pub fn json(value: &impl Serialize) -> Self {
        let mut body = Vec::new();
        let mut serializer = Serializer::with_formatter(&mut body, PrettyFormatter::with_indent(b" "));
        value.serialize(&mut serializer).expect("the pages' types have string keys alone");
        body.push(b'\n');
        let body = String::from_utf8(body).expect("JSON is UTF-8");
        Self { status: 200, content_type: JSON, body }
    }
}
