//! TCP and UDP ports that the host keeps for itself, from `/proc/sys/net` (`Documentation/networking/ip-sysctl.rst`).

use std::fs;
use std::ops::RangeInclusive;

use anyhow::{Context, Result};

/// The ports that `connect()` chooses from (`ip_local_port_range`), both ends included.
pub fn local_port_range() -> Result<(u16, u16)> {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    parse_pair(&text).with_context(|| format!("{path} does not hold two ports: {text:?}"))
}

/// The ports that `connect()` and `bind(0)` leave out (`ip_local_reserved_ports`), in ascending order.
pub fn reserved_ports() -> Result<Vec<RangeInclusive<u16>>> {
    let path = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    parse_ranges(&text).with_context(|| format!("{path} does not hold a list of port ranges: {text:?}"))
}

fn parse_pair(text: &str) -> Option<(u16, u16)> {
    let mut words = text.split_whitespace().map(str::parse);
    let pair = (words.next()?.ok()?, words.next()?.ok()?);
    words.next().is_none().then_some(pair)
}

/// `8080,9148-9150`; an empty line for none.
fn parse_ranges(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',')
        .map(|item| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_range() {
        assert_eq!(parse_pair("32768\t60999\n"), Some((32768, 60999)));
        for bad in ["", "1", "1 2 3", "a b", "1 65536"] {
            assert_eq!(parse_pair(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn reserved() {
        assert_eq!(parse_ranges("\n"), Some(vec![]));
        assert_eq!(parse_ranges("8080\n"), Some(vec![8080..=8080]));
        assert_eq!(parse_ranges("1,8080,9148-9150\n"), Some(vec![1..=1, 8080..=8080, 9148..=9150]));
        for bad in ["a", "1,", "1-", "70000", "1--2"] {
            assert_eq!(parse_ranges(bad), None, "{bad:?}");
        }
    }
}
