//! Access logs: a line for each connection, in Envoy's formats.

mod address;
mod civil;
mod compile;
mod flags;
mod format;
mod json;
mod logs;
mod names;
mod open;
mod operator;
mod queue;
mod record;
mod template;
mod time_format;
mod timestamp;
mod writer;

#[cfg(test)]
mod tests;

pub use flags::Flags;
pub use format::{Format, FormatError, Source};
pub use logs::AccessLogs;
pub use open::{OpenError, check_writable};
pub use record::{Close, Kind, Record, Rung, reason};
