//! What a line of an access log looks like.

use std::fmt;

use super::Record;
use super::json::Node;
use super::template::Template;

/// A compiled format. Two are equal if they were made of the same.
#[derive(Clone, Debug)]
pub struct Format {
    source: Source,
    omits_empty: bool,
    body: Body,
}

/// What a [`Format`] was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    Text(String),
    Json(serde_json::Value),
}

#[derive(Clone, Debug)]
enum Body {
    Text(Template),
    Json(Node),
}

/// Envoy's format where none is given.
const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Longer formats are a mistake. What a line may grow to follows from it.
const MAX_LENGTH: usize = 64 << 10;

impl Format {
    pub fn envoy_default() -> Self {
        let template = Template::parse(DEFAULT).expect("the default format is right");
        Self { source: Source::Default, omits_empty: false, body: Body::Text(template) }
    }

    /// Taken literally: the line ends with a newline only if `source` does.
    pub fn text(source: &str) -> Result<Self, FormatError> {
        check_length(source.len())?;
        let body = Body::Text(Template::parse(source)?);
        Ok(Self { source: Source::Text(source.to_owned()), omits_empty: false, body })
    }

    /// An object, whose strings may have operators in them, at any depth; with a newline at the end. A string that
    /// is one operator and nothing else becomes a number where the value is one, and null where there is no value.
    pub fn json(source: &serde_json::Value) -> Result<Self, FormatError> {
        let node = Node::parse(source)?;
        check_length(source.to_string().len())?;
        let body = Body::Json(node);
        Ok(Self { source: Source::Json(source.clone()), omits_empty: false, body })
    }

    /// Envoy's `omit_empty_values`: what has no value is left out of JSON, and is nothing in a text instead of `-`.
    #[must_use]
    pub fn omit_empty(self, omits_empty: bool) -> Self {
        Self { omits_empty, ..self }
    }

    /// What it was made of.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// See [`Format::omit_empty`].
    pub fn omits_empty(&self) -> bool {
        self.omits_empty
    }

    /// Appends a line.
    pub fn render(&self, record: &Record, out: &mut Vec<u8>) {
        match &self.body {
            Body::Text(template) => template.write(record, if self.omits_empty { "" } else { "-" }, out),
            Body::Json(node) => {
                node.write_line(record, self.omits_empty, out);
                out.push(b'\n');
            }
        }
    }
}

fn check_length(length: usize) -> Result<(), FormatError> {
    if length > MAX_LENGTH {
        return Err(FormatError::new(format!("has {length} bytes; up to {MAX_LENGTH} are possible")));
    }
    Ok(())
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        let Self { source, omits_empty, body: _ } = self;
        *source == other.source && *omits_empty == other.omits_empty
    }
}

impl Eq for Format {}

/// Why a format is refused: which operator, where, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// Of a JSON format, the member that is wrong, as in `a.b[1]`; empty: the whole.
    member: String,
    message: String,
}

impl FormatError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { member: String::new(), message: message.into() }
    }

    /// `offset` is in bytes, from 0, as in Envoy's errors.
    pub(super) fn malformed(offset: usize) -> Self {
        Self::new(format!(
            "the `%` at offset {offset} begins no operator; write `%NAME%`, `%NAME(PARAMETERS)%` or \
             `%NAME(PARAMETERS):LENGTH%`, and `%%` for a percent sign"
        ))
    }

    /// `message` continues a sentence that begins with the operator.
    pub(super) fn operator(offset: usize, operator: &str, message: String) -> Self {
        const SHOWN: usize = 120;
        let shown = &operator[..operator.floor_char_boundary(SHOWN)];
        let cut = if shown.len() < operator.len() { "…" } else { "" };
        Self::new(format!("`{shown}{cut}` at offset {offset} {message}"))
    }

    pub(super) fn within(mut self, member: &str) -> Self {
        let dot = if self.member.is_empty() || self.member.starts_with('[') { "" } else { "." };
        self.member = format!("{member}{dot}{}", self.member);
        self
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.member.is_empty() {
            write!(f, "{}: ", self.member)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for FormatError {}
