//! What of a request over HTTP is written in a file: paths, hosts and headers of probes.

use super::tree::{Entry, Report};
use super::yaml::Value;

/// The methods of Envoy's probes.
pub(super) const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"];

/// Those whose requests have no body.
pub(super) const BODILESS: [&str; 4] = ["GET", "HEAD", "DELETE", "TRACE"];

/// Headers that say how the message itself is carried, and the host.
const OWN: [&str; 9] = [
    "host",
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What is wrong with the target of a request line.
pub(super) fn path_problem(path: &str) -> Option<String> {
    if !path.starts_with('/') {
        return Some(format!("`{path}` is no path: it begins with /, as in /healthz/ready"));
    }
    let bad = path.chars().find(|c| !c.is_ascii_graphic() || *c == '#')?;
    let rule = "a path has no space, # or control characters, and others in their %XX form";
    Some(format!("`{}` in the path: {rule}", bad.escape_default()))
}

/// What is wrong with the name of a header of a probe.
pub(super) fn header_problem(name: &str) -> Option<String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Some(format!("`{}` is no name of a header", name.escape_default()));
    }
    let own = OWN.iter().find(|own| own.eq_ignore_ascii_case(name))?;
    Some(format!("`{own}` is written by the probe itself: remove it"))
}

/// Whether the text can be the value of a header.
pub(super) fn is_header_value(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t'))
}

impl<'a> Entry<'a> {
    /// A value of a header, as a host is too.
    pub(super) fn header_value(&self, report: &mut Report) -> Option<&'a str> {
        let text = self.text("the value of a header", report)?;
        if !is_header_value(text) {
            self.refuse("the value of a header is ASCII without control characters", report);
            return None;
        }
        Some(text)
    }

    /// A mapping of names to a value or a list of values; the names in lower case.
    pub(super) fn headers(&self, report: &mut Report) -> Vec<(String, String)> {
        let Value::Map(_) = self.value() else {
            self.refuse_type("a mapping of names to values", report);
            return Vec::new();
        };
        let mut headers: Vec<(String, String)> = Vec::new();
        for (key, entry) in self.members() {
            let name = key.name.to_ascii_lowercase();
            if let Some(problem) = header_problem(&name) {
                report.add(key.place, entry.path(), problem);
            } else if headers.iter().any(|(known, _)| *known == name) {
                report.add(key.place, entry.path(), "written twice: give one header a list of values");
            } else {
                let values = if entry.is_list() { entry.items("value", report) } else { vec![entry] };
                let values = values.iter().filter_map(|value| value.header_value(report));
                headers.extend(values.map(|value| (name.clone(), value.to_owned())));
            }
        }
        headers
    }
}
