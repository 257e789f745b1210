//! Single values by the rules of protobuf's JSON form, as Envoy reads them: a number may be a text, a wrapped
//! value a mapping `{ value: … }`, a word a number. Each reader gives `None` after it has reported what is wrong.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::import::Import;
use crate::config::scalar::MAX_DURATION;
use crate::config::tree::Entry;
use crate::config::yaml::Value;

/// The longest that Envoy takes: a 64-bit count of nanoseconds.
const MAX_SECONDS: u64 = i64::MAX as u64 / 1_000_000_000;

/// The value inside of `{ value: … }`, the long form of a wrapper.
fn unwrapped<'a>(entry: &Entry<'a>) -> Entry<'a> {
    let mut members = entry.members();
    match (members.next(), members.next()) {
        (Some((key, inner)), None) if key.name == "value" => inner,
        _ => entry.clone(),
    }
}

pub(super) fn text<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<&'a str> {
    match unwrapped(entry).value() {
        Value::Text(text) => Some(text),
        Value::Number(_) | Value::Bool(_) => {
            entry.refuse_type("text (in quotes)", import.report);
            None
        }
        _ => {
            entry.refuse_type("text", import.report);
            None
        }
    }
}

/// A text that is not empty.
pub(super) fn nonempty<'a>(entry: &Entry<'a>, import: &mut Import<'_>) -> Option<&'a str> {
    let text = text(entry, import)?;
    if text.is_empty() {
        import.error(entry, "empty: Envoy needs at least one character here");
        return None;
    }
    Some(text)
}

pub(super) fn boolean(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<bool> {
    // Envoy's YAML library takes the words of YAML 1.1.
    let word = match unwrapped(entry).value() {
        Value::Bool(value) => return Some(*value),
        Value::Text(text) => text.to_ascii_lowercase(),
        _ => String::new(),
    };
    match word.as_str() {
        "true" | "yes" | "on" | "y" => Some(true),
        "false" | "no" | "off" | "n" => Some(false),
        _ => {
            entry.refuse_type("true or false", import.report);
            None
        }
    }
}

/// A whole number, which may have a fraction of zero or an exponent.
pub(super) fn number(entry: &Entry<'_>, range: RangeInclusive<u64>, import: &mut Import<'_>) -> Option<u64> {
    let expected = format!("a whole number from {} to {}", range.start(), range.end());
    let inner = unwrapped(entry);
    let (Value::Number(digits) | Value::Text(digits)) = inner.value() else {
        entry.refuse_type(&expected, import.report);
        return None;
    };
    let number = whole_number(digits).filter(|number| range.contains(number));
    if number.is_none() {
        import.error(entry, format!("`{digits}` is not accepted: {expected}"));
    }
    number
}

fn whole_number(digits: &str) -> Option<u64> {
    // Envoy's YAML library reads 010 in another base than its JSON library.
    if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if let Ok(number) = digits.parse() {
        return Some(number);
    }
    let number: f64 = digits.parse().ok()?;
    // Exactly representable, so that nothing is lost.
    let exact = number.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&number);
    exact.then_some(number as u64)
}

pub(super) fn u32(entry: &Entry<'_>, range: RangeInclusive<u32>, import: &mut Import<'_>) -> Option<u32> {
    let number = number(entry, u64::from(*range.start())..=u64::from(*range.end()), import)?;
    u32::try_from(number).ok()
}

pub(super) fn fraction(
    entry: &Entry<'_>,
    range: RangeInclusive<f64>,
    import: &mut Import<'_>,
) -> Option<f64> {
    let expected = format!("a number from {} to {}", range.start(), range.end());
    let inner = unwrapped(entry);
    let (Value::Number(digits) | Value::Text(digits)) = inner.value() else {
        entry.refuse_type(&expected, import.report);
        return None;
    };
    let number = digits.parse().ok().filter(|number| range.contains(number));
    if number.is_none() {
        import.error(entry, format!("`{digits}` is not accepted: {expected}"));
    }
    number
}

/// One of the words, in any case, or its index; the index is returned.
pub(super) fn word(entry: &Entry<'_>, words: &[&str], import: &mut Import<'_>) -> Option<usize> {
    let index = match entry.value() {
        Value::Text(text) | Value::Number(text) => words
            .iter()
            .position(|word| !word.is_empty() && word.eq_ignore_ascii_case(text))
            .or_else(|| whole_number(text).and_then(|number| usize::try_from(number).ok()))
            .filter(|index| words.get(*index).is_some_and(|word| !word.is_empty())),
        _ => None,
    };
    if index.is_none() {
        let accepted: Vec<&str> = words.iter().copied().filter(|word| !word.is_empty()).collect();
        let accepted = accepted.join(", ");
        match entry.value() {
            Value::Text(text) | Value::Number(text) => {
                let hint = import.report.hint(&text.to_ascii_uppercase(), words.iter().copied());
                import.error(entry, format!("`{text}` is not accepted{hint}; accepted: {accepted}"));
            }
            _ => entry.refuse_type(&format!("one of {accepted}"), import.report),
        }
    }
    index
}

/// A duration as Envoy takes it: seconds with a fraction and `s`, or `{ seconds, nanos }`.
pub(super) fn duration(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Duration> {
    const EXAMPLES: &str = "a number of seconds with an s, as in 0.25s, 5s, 3600s";
    match entry.value() {
        Value::Text(text) => match parse_duration(text) {
            Some(duration) => return Some(duration),
            None if text.starts_with('-') => {
                import.error(entry, format!("`{text}`: no duration is negative"))
            }
            None => import.error(entry, format!("`{text}` is no duration: {EXAMPLES}")),
        },
        Value::Map(_) => return duration_message(entry, import),
        Value::Number(number) => {
            import.error(entry, format!("{number} has no unit: {EXAMPLES}"));
        }
        _ => entry.refuse_type(&format!("a duration: {EXAMPLES}"), import.report),
    }
    None
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.strip_suffix('s')?;
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (digits, "0"),
    };
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let seconds = whole.parse().ok().filter(|seconds| *seconds <= MAX_SECONDS)?;
    let nanos = format!("{fraction:0<9}").parse().ok()?;
    Some(Duration::new(seconds, nanos))
}

fn duration_message(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Duration> {
    let (mut seconds, mut nanos) = (0, 0);
    for (key, member) in entry.members() {
        match key.name.as_str() {
            "seconds" => seconds = number(&member, 0..=MAX_SECONDS, import)?,
            "nanos" => nanos = u32(&member, 0..=999_999_999, import)?,
            _ => {
                import.error(&member, "unknown key; a duration has seconds and nanos");
                return None;
            }
        }
    }
    Some(Duration::new(seconds, nanos))
}

/// Of at least so many milliseconds.
pub(super) fn duration_from(entry: &Entry<'_>, least_ms: u64, import: &mut Import<'_>) -> Option<Duration> {
    let duration = duration(entry, import)?;
    if duration < Duration::from_millis(least_ms) {
        import.error(entry, format!("too short: Envoy takes {least_ms} ms or more"));
        return None;
    }
    Some(duration)
}

pub(super) fn positive_duration(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Duration> {
    let duration = duration(entry, import)?;
    if duration.is_zero() {
        import.error(entry, "0s: Envoy takes only more than that");
        return None;
    }
    Some(duration)
}

/// Whole milliseconds within Headgate's limits, which is all that Envoy counts in too; judges the key.
pub(super) fn settle(entry: &Entry<'_>, duration: Duration, import: &mut Import<'_>) -> Duration {
    if duration > MAX_DURATION {
        import.approximate(entry, "365 days, the longest that Headgate takes");
        return MAX_DURATION;
    }
    import.honour(entry);
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// The same, and no less than `least`.
pub(super) fn settle_from(
    entry: &Entry<'_>,
    duration: Duration,
    least: Duration,
    import: &mut Import<'_>,
) -> Duration {
    if duration < least {
        let shown = humantime::format_duration(least);
        import.approximate(entry, format!("{shown}, the shortest that Headgate takes"));
        return least;
    }
    settle(entry, duration, import)
}
