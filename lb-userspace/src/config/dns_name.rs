//! Host names, by the rules of DNS (RFC 1035, section 2.3.4; RFC 1123, section 2.1), with `_` as well.

const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// What keeps a text from being a host name, and what to write; `None` if it is one. A dot at its end is accepted.
pub(super) fn problem(name: &str) -> Option<String> {
    const RULE: &str = "a host name has labels of letters, digits, - and _ between dots, as in \
                        gateway.istio-system";
    let relative = name.strip_suffix('.').unwrap_or(name);
    if relative.len() > MAX_NAME {
        return Some(format!("a host name has at most {MAX_NAME} characters, this has {}", relative.len()));
    }
    if !name.is_ascii() {
        return Some("a host name is ASCII: write the name in its xn-- form".to_owned());
    }
    for label in relative.split('.') {
        if label.is_empty() {
            return Some(format!("an empty label: {RULE}"));
        }
        if label.len() > MAX_LABEL {
            return Some(format!(
                "a label has at most {MAX_LABEL} characters, `{label}` has {}",
                label.len()
            ));
        }
        if let Some(bad) = label.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_')) {
            return Some(format!("`{bad}` is not accepted: {RULE}"));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Some(format!("`{label}` begins or ends with -: {RULE}"));
        }
    }
    // No top-level domain is a number; such a text is an address gone wrong.
    if relative.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
        return Some(
            "neither an IP address, as in 192.0.2.1, nor a host name, whose last label is no number".into(),
        );
    }
    None
}
