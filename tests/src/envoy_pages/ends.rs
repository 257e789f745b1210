//! How connections end, and what is said of that.

use super::Page;
use super::accepted::{ALL, Accepted, KERNEL, Topic, Value};
use crate::rung::Rung;

const fn ends(
    page: Page,
    items: &'static [&'static str],
    rungs: &'static [Rung],
    envoy: &'static str,
    headgate: &'static str,
    reason: &'static str,
) -> Accepted {
    let (envoy, headgate) = (Value::Like(envoy), Value::Like(headgate));
    Accepted { topic: Topic::Ends, page, items, rungs, envoy, headgate, reason }
}

pub(super) const ENDS: &[Accepted] = &[
    ends(
        Page::Client,
        &["dead: connected", "refused: connected"],
        KERNEL,
        "*true",
        "*false",
        "the client's handshake is with the backend, which did not answer or refused",
    ),
    ends(
        Page::Client,
        &["dead: end", "refused: end"],
        KERNEL,
        "*fin",
        "*refused",
        "the same: the answer to its SYN is a RST, at once or after `connect_timeout`",
    ),
    ends(
        Page::Client,
        &["dead: end", "duration: end", "empty: end", "idle: end", "overflow: end", "refused: end"],
        ALL,
        "*fin",
        "*reset",
        "a connection that Headgate ends itself is reset, on every rung alike",
    ),
    ends(
        Page::AccessLog,
        &["*_retry: upstream_hosts_attempted when retried"],
        KERNEL,
        "several",
        "10.202.0.11:9000",
        "a kernel flow remembers how many backends it tried, but only the last address",
    ),
    ends(
        Page::AccessLog,
        &["refused_retry: upstream_transport_failure_reason when retried"],
        KERNEL,
        "delayed_connect_error:_Connection_refused",
        "null",
        "nor does it remember what became of the attempts before the last",
    ),
];
