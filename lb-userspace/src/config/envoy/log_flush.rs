//! The access logs of `tcp_proxy`, with when they are written.

use std::time::Duration;

use super::access_log;
use super::import::Import;
use super::message::{self, Message};
use super::schema::{Field, read};
use super::value;
use crate::config::tree::Entry;
use crate::model::AccessLog;

const LOG_OPTIONS: &[Field] = &[
    read("access_log_flush_interval"),
    read("flush_access_log_on_connected"),
    read("flush_access_log_on_start"),
];
/// When a record is written besides the end of the connection.
#[derive(Default)]
struct Flush {
    interval: Option<Duration>,
    on_connect: bool,
    on_start: bool,
}

pub(super) fn access_logs(fields: &Message<'_>, import: &mut Import<'_>) -> Vec<AccessLog> {
    let flush = flush(fields, import);
    let logs = fields.get("access_log").map(|entry| access_log::read_all(entry, import)).unwrap_or_default();
    logs.into_iter()
        .map(|log| AccessLog {
            path: log.path,
            format: log.format,
            flush_interval: flush.interval,
            on_connect: flush.on_connect,
            on_start: flush.on_start,
        })
        .collect()
}

fn flush(fields: &Message<'_>, import: &mut Import<'_>) -> Flush {
    let old = [fields.get("access_log_flush_interval"), fields.get("flush_access_log_on_connected")];
    let Some(options) = fields.get("access_log_options") else {
        return Flush {
            interval: interval(old[0], import),
            on_connect: flag(old[1], import),
            on_start: false,
        };
    };
    if let Some(entry) = old[0] {
        import.error(entry, "stands beside access_log_options: keep one of the two");
    }
    if let Some(entry) = old[1]
        && value::boolean(entry, import) == Some(true)
    {
        import.error(entry, "stands beside access_log_options: keep one of the two");
    }
    let Some(options) = message::read(options, LOG_OPTIONS, import) else { return Flush::default() };
    Flush {
        interval: interval(options.get("access_log_flush_interval"), import),
        on_connect: flag(options.get("flush_access_log_on_connected"), import),
        on_start: flag(options.get("flush_access_log_on_start"), import),
    }
}

fn interval(entry: Option<&Entry<'_>>, import: &mut Import<'_>) -> Option<Duration> {
    let entry = entry?;
    let duration = value::duration_from(entry, 1, import)?;
    Some(value::settle(entry, duration, import))
}

fn flag(entry: Option<&Entry<'_>>, import: &mut Import<'_>) -> bool {
    let Some(entry) = entry else { return false };
    let flag = value::boolean(entry, import);
    import.honour(entry);
    flag.unwrap_or(false)
}
