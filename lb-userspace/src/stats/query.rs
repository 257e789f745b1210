//! The parameters of a request: what comes after the question mark.

use regex::bytes::{Regex, RegexBuilder};

/// Longest regular expression, bytes.
const MAX_PATTERN: usize = 1024;
/// Memory that a compiled one may take, bytes. Its states are looked at for each byte of each name, at worst.
const MAX_REGEX: usize = 64 << 10;
/// Memory to match by, bytes.
const MAX_CACHE: usize = 1 << 20;

/// Names and values, decoded, in the order they came.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The regular expression in a parameter; none if it is not there or empty. The error is for the one who asked.
    pub fn pattern(&self, name: &str) -> Result<Option<Pattern>, String> {
        let Some(pattern) = self.get(name).filter(|pattern| !pattern.is_empty()) else { return Ok(None) };
        compile(name, pattern, "", "").map(Some)
    }

    /// The same for one that has to match from start to end.
    pub fn whole_pattern(&self, name: &str) -> Result<Option<Pattern>, String> {
        let Some(pattern) = self.get(name).filter(|pattern| !pattern.is_empty()) else { return Ok(None) };
        compile(name, pattern, "^(?:", ")$").map(Some)
    }
}

/// A regular expression, with the classes of RE2: `\w`, `\d`, `\s` and `\b` know ASCII alone.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name.as_bytes())
    }
}

fn compile(name: &str, pattern: &str, before: &str, after: &str) -> Result<Pattern, String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("Invalid regex in {name}: longer than {MAX_PATTERN} bytes"));
    }
    let whole = format!("{before}{pattern}{after}");
    let mut builder = RegexBuilder::new(&whole);
    let built = builder.unicode(false).size_limit(MAX_REGEX).dfa_size_limit(MAX_CACHE).build();
    built.map(Pattern).map_err(|error| format!("Invalid regex in {name}: {error}"))
}

/// Replaces `%XX`. A plus sign stays one, as in Envoy: it is of use in a regular expression.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.filter(|two| two.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match byte.and_then(|two| u8::from_str_radix(two, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let query = Query::parse("usedonly&filter=%5Ecluster%2eweb+%7c%zz%4&format=json&&=");
        assert!(query.has("usedonly") && !query.has("used"));
        assert_eq!(query.get("filter"), Some("^cluster.web+|%zz%4"));
        assert_eq!(query.get("format"), Some("json"));
        assert!(!Query::parse("").has(""));
    }

    #[test]
    fn patterns_are_found_anywhere_or_are_whole() {
        assert!(Query::parse("filter=").pattern("filter").unwrap().is_none());
        assert!(Query::parse("").whole_pattern("filter").unwrap().is_none());
        let query = Query::parse("filter=a.c|é");
        let (anywhere, whole) = (query.pattern("filter"), query.whole_pattern("filter"));
        let (anywhere, whole) = (anywhere.unwrap().unwrap(), whole.unwrap().unwrap());
        assert_eq!(["xabcx", "xéx", "ab"].map(|name| anywhere.matches(name)), [true, true, false]);
        assert_eq!(["xabc", "abc", "é", "éx"].map(|name| whole.matches(name)), [false, true, true, false]);
    }

    #[test]
    fn patterns_are_bounded() {
        let error = |pattern: &str| Query(vec![("filter".into(), pattern.into())]).pattern("filter").err();
        let bad = error("*").unwrap();
        assert!(bad.starts_with("Invalid regex in filter: "), "{bad}");
        let huge = error("((a{1000}){1000}){1000}").unwrap();
        assert!(huge.contains("size"), "{huge}");
        assert!(error(&"a".repeat(1025)).is_some());
        // One that somebody may well ask for.
        let names: Vec<String> = (0..40).map(|index| format!(r"^cluster\.web-{index}\.\w+$")).collect();
        assert_eq!(error(&names.join("|")), None);
    }
}
