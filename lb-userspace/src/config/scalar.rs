//! Single values: names, choices, numbers, durations and port ranges. Each reader gives `None` after it has
//! reported what is wrong and what would be right.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::tree::{Entry, Located, Report, did_you_mean};
use super::yaml::Value;

/// Longer ones are mistakes, and would overflow the coarse clocks of the datapath.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const MAX_NAME: usize = 128;

/// The kernel's IFNAMSIZ, less the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;

impl<'a> Entry<'a> {
    pub(super) fn text(&self, expected: &str, report: &mut Report) -> Option<&'a str> {
        match self.value() {
            Value::Text(text) => Some(text),
            Value::Number(_) | Value::Bool(_) => {
                self.refuse_type(&format!("{expected}, as text (in quotes)"), report);
                None
            }
            _ => {
                self.refuse_type(expected, report);
                None
            }
        }
    }

    /// A name of a listener or cluster.
    pub(super) fn name(&self, report: &mut Report) -> Option<Located<String>> {
        let name = self.text("a name", report)?;
        if name.is_empty()
            || name.len() > MAX_NAME
            || name.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            self.refuse(format!("a name has 1 to {MAX_NAME} bytes, none of them space or control"), report);
            return None;
        }
        Some(self.at(name.to_owned()))
    }

    /// What statistics are named by.
    pub(super) fn stat_name(&self, report: &mut Report) -> Option<String> {
        let name = self.text("a name for the statistics", report)?;
        if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
            let rule = format!("1 to {MAX_NAME} bytes, none of them a control character");
            self.refuse(format!("a name in the statistics has {rule}"), report);
            return None;
        }
        Some(name.to_owned())
    }

    pub(super) fn interface_name(&self, report: &mut Report) -> Option<Located<String>> {
        let name = self.text("an interface name", report)?;
        let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':');
        if name.is_empty()
            || name.len() > MAX_INTERFACE_NAME
            || name.contains(bad)
            || matches!(name, "." | "..")
        {
            let rule = format!("1 to {MAX_INTERFACE_NAME} bytes, none of them / : or space");
            self.refuse(format!("`{name}` is no interface name: {rule}"), report);
            return None;
        }
        Some(self.at(name.to_owned()))
    }

    /// Whether the value is the word `auto`.
    pub(super) fn is_auto(&self) -> bool {
        matches!(self.value(), Value::Text(text) if text == "auto")
    }

    /// One of the words `accepted`; those of `later` are refused as not supported yet.
    pub(super) fn choice<T: Copy>(
        &self,
        accepted: &[(&str, T)],
        later: &[&str],
        report: &mut Report,
    ) -> Option<T> {
        let words = accepted.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let text = self.text(&format!("one of {words}"), report)?;
        if let Some((_, value)) = accepted.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        if later.contains(&text) {
            self.refuse(format!("`{text}`: not supported yet; accepted: {words}"), report);
        } else {
            let hint =
                did_you_mean(text, accepted.iter().map(|(word, _)| *word).chain(later.iter().copied()));
            self.refuse(format!("`{text}` is not accepted{hint}; accepted: {words}"), report);
        }
        None
    }

    /// A whole number; `others` begins the text of what is accepted, as in `"auto, or "`.
    pub(super) fn number(
        &self,
        others: &str,
        range: RangeInclusive<u32>,
        report: &mut Report,
    ) -> Option<u32> {
        let expected = format!("{others}a whole number from {} to {}", range.start(), range.end());
        let Value::Number(digits) = self.value() else {
            self.refuse_type(&expected, report);
            return None;
        };
        let number = digits.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            self.refuse(format!("{digits} is not accepted: {expected}"), report);
        }
        number
    }

    pub(super) fn boolean(&self, report: &mut Report) -> Option<bool> {
        let Value::Bool(value) = self.value() else {
            self.refuse_type("true or false", report);
            return None;
        };
        Some(*value)
    }

    /// `max_connections`: this version knows only 0, no limit.
    pub(super) fn no_limit(&self, report: &mut Report) {
        if !matches!(self.value(), Value::Number(number) if number == "0") {
            self.refuse("a limit is not supported yet; accepted: 0 (no limit)", report);
        }
    }

    pub(super) fn duration(&self, report: &mut Report) -> Option<Duration> {
        const EXAMPLES: &str = "a number and a unit (ms, s, m, h, d), as in 250ms, 5s, 1h";
        if let Value::Number(number) = self.value() {
            let amount = number.trim_start_matches('-');
            self.refuse(format!("{number} has no unit, write {amount}s for seconds: {EXAMPLES}"), report);
            return None;
        }
        let text = self.text(&format!("a duration: {EXAMPLES}"), report)?;
        match humantime::parse_duration(text).ok().filter(|_| has_known_units(text)) {
            Some(duration) if duration <= MAX_DURATION => Some(duration),
            Some(_) => {
                self.refuse(format!("`{text}` is too long: at most 365d"), report);
                None
            }
            None => {
                self.refuse(format!("`{text}` is no duration: {EXAMPLES}"), report);
                None
            }
        }
    }

    /// A duration of at least `least`; `why` says what shorter ones would do.
    pub(super) fn duration_from(&self, least: Duration, why: &str, report: &mut Report) -> Option<Duration> {
        let duration = self.duration(report)?;
        if duration < least {
            let least = humantime::format_duration(least);
            self.refuse(format!("at least {least}, {why}"), report);
            return None;
        }
        Some(duration)
    }

    /// More than nothing; `zero` says what 0s would mean.
    pub(super) fn positive_duration(&self, zero: &str, report: &mut Report) -> Option<Duration> {
        let duration = self.duration(report)?;
        if duration.is_zero() {
            self.refuse(format!("0s {zero}"), report);
            return None;
        }
        Some(duration)
    }

    pub(super) fn port(&self, report: &mut Report) -> Option<u16> {
        let port = self.number("", 1..=u32::from(u16::MAX), report)?;
        u16::try_from(port).ok()
    }

    /// A number with up to three decimals, above 0, in thousandths.
    pub(super) fn thousandths(&self, report: &mut Report) -> Option<u32> {
        const EXPECTED: &str = "a number from 0.001 to 1000000, with up to three decimals";
        let Value::Number(digits) = self.value() else {
            self.refuse_type(EXPECTED, report);
            return None;
        };
        let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
        let thousandths = match decimals.len() {
            0..=3 => format!("{whole}{decimals:0<3}").parse().ok(),
            _ => None,
        };
        let thousandths = thousandths.filter(|number| (1..=1_000_000_000).contains(number));
        if thousandths.is_none() {
            self.refuse(format!("{digits} is not accepted: {EXPECTED}"), report);
        }
        thousandths
    }

    /// `A-B`, both included.
    pub(super) fn port_range(&self, report: &mut Report) -> Option<RangeInclusive<u16>> {
        const EXPECTED: &str = "auto, or a range of ports from 1024 to 65535, as in 20000-29999";
        let text = self.text(EXPECTED, report)?;
        let ends = text.split_once('-').and_then(|(first, last)| {
            Some((first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?))
        });
        match ends {
            None => self.refuse(format!("`{text}` is not accepted: {EXPECTED}"), report),
            Some((first, last)) if first.min(last) < 1024 => self.refuse(
                format!("`{text}` holds ports below 1024, those of the system's services: {EXPECTED}"),
                report,
            ),
            Some((first, last)) if first > last => {
                self.refuse(format!("{first} is above {last}: write {last}-{first}"), report);
            }
            Some((first, last)) => return Some(first..=last),
        }
        None
    }
}

/// Of the units that humantime takes, those that cannot be misread (its `M` is a month); at least one.
fn has_known_units(text: &str) -> bool {
    let mut units = text.split(|c: char| !c.is_alphabetic()).filter(|unit| !unit.is_empty()).peekable();
    units.peek().is_some() && units.all(|unit| matches!(unit, "ms" | "s" | "m" | "h" | "d"))
}
