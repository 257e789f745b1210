//! Access logs: the loggers that write text to files and standard streams.

use std::path::PathBuf;

use super::extension;
use super::import::Import;
use super::message::{self, Message};
use super::schema::{Field, Kind, Rule, checked, ignored, read, refused};
use super::value;
use crate::access_log::Format;
use crate::config::access_log;
use crate::config::tree::Entry;

const ACCESS_LOG: &[Field] = &[
    read("name"),
    read("typed_config"),
    read("config"),
    refused("filter", "Headgate logs every connection: log filters are not supported yet"),
];

const FILE: &[Field] =
    &[read("path"), read("format"), read("json_format"), read("typed_json_format"), read("log_format")];

const STREAM: &[Field] = &[read("log_format")];

const LOG_FORMAT: &[Field] = &[
    read("text_format"),
    read("text_format_source"),
    read("json_format"),
    read("omit_empty_values"),
    ignored("content_type", Kind::Text, "of HTTP replies only"),
    refused("formatters", "extensions of the format are not supported"),
    ignored(
        "json_format_options",
        Kind::Message(&[checked("sort_properties", Kind::Bool)]),
        "the order of a JSON object's keys has no meaning",
    ),
];

const SOURCE: &[Field] = &[
    read("inline_string"),
    read("filename"),
    read("inline_bytes"),
    read("environment_variable"),
    Field {
        name: "watched_directory",
        rule: Rule::Ignored(Kind::Mapping, "the format is in the file itself"),
    },
];

/// A log that a connection is to be written to.
pub(super) struct Log {
    pub(super) path: PathBuf,
    pub(super) format: Format,
}

/// `access_log:`, a list of loggers.
pub(super) fn read_all(entry: &Entry<'_>, import: &mut Import<'_>) -> Vec<Log> {
    message::repeated(entry, import).iter().filter_map(|item| log(item, import)).collect()
}

fn log(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Log> {
    let message = message::read(entry, ACCESS_LOG, import)?;
    let extension = extension::read(entry, &message, import)?;
    let stream = match extension.kind {
        "envoy.file_access_log"
        | "envoy.access_loggers.file"
        | "envoy.config.accesslog.v2.FileAccessLog"
        | "envoy.extensions.access_loggers.file.v3.FileAccessLog" => None,
        "envoy.access_loggers.stdout" | "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog" => {
            Some("/dev/stdout")
        }
        "envoy.access_loggers.stderr" | "envoy.extensions.access_loggers.stream.v3.StderrAccessLog" => {
            Some("/dev/stderr")
        }
        other => {
            let why = format!("the access logger {other} is not supported: file, stdout and stderr are");
            import.refuse(&extension.place, why);
            return None;
        }
    };
    import.honour(&extension.place);
    let Some(path) = stream else { return file(&extension, import) };
    let format = match &extension.config {
        Some(config) => stream_format(&message::read(config, STREAM, import)?, import)?,
        None => Format::envoy_default(),
    };
    Some(Log { path: path.into(), format })
}

fn file(extension: &extension::Extension<'_>, import: &mut Import<'_>) -> Option<Log> {
    let Some(config) = &extension.config else {
        import.error(&extension.place, "needs a path");
        return None;
    };
    let fields = message::read(config, FILE, import)?;
    let formats = ["format", "json_format", "typed_json_format", "log_format"];
    let format = match fields.one_of(&formats, import) {
        None => Some(Format::envoy_default()),
        // In this old key an empty text is none.
        Some(entry) if fields.get("format").is_some() => match value::text(entry, import)? {
            "" => Some(Format::envoy_default()),
            text => text_format(entry, text, import),
        },
        Some(entry) if fields.get("log_format").is_some() => log_format(entry, import),
        Some(entry) => json_format(entry, import),
    };
    let Some(path) = fields.get("path") else {
        import.error(config, "needs a path");
        return None;
    };
    let file = access_log::file(path, import.report)?;
    import.honour(path);
    Some(Log { path: file, format: format? })
}

fn stream_format(fields: &Message<'_>, import: &mut Import<'_>) -> Option<Format> {
    match fields.get("log_format") {
        None => Some(Format::envoy_default()),
        Some(entry) => log_format(entry, import),
    }
}

fn log_format(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Format> {
    let fields = message::read(entry, LOG_FORMAT, import)?;
    let omits_empty = match fields.get("omit_empty_values") {
        Some(entry) => {
            import.honour(entry);
            value::boolean(entry, import)?
        }
        None => false,
    };
    let Some(format) = fields.one_of(&["text_format", "text_format_source", "json_format"], import) else {
        import.error(entry, "needs text_format_source or json_format");
        return None;
    };
    let format = if fields.get("json_format").is_some() {
        json_format(format, import)
    } else if fields.get("text_format").is_some() {
        text_format(format, value::text(format, import)?, import)
    } else {
        text_source(format, import)
    };
    Some(format?.omit_empty(omits_empty))
}

fn text_source(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Format> {
    let fields = message::read(entry, SOURCE, import)?;
    let sources = ["inline_string", "filename", "inline_bytes", "environment_variable"];
    let Some(source) = fields.one_of(&sources, import) else {
        import.error(entry, "needs inline_string");
        return None;
    };
    let text = value::text(source, import)?;
    if fields.get("inline_string").is_none() {
        import.refuse(source, "a format is read from the configuration alone: write it as inline_string");
        return None;
    }
    text_format(source, text, import)
}

/// The text as it is: Envoy adds no newline.
fn text_format(entry: &Entry<'_>, text: &str, import: &mut Import<'_>) -> Option<Format> {
    let format = access_log::text_format(entry, text, import.report)?;
    import.honour(entry);
    if !text.ends_with('\n') {
        import.warn(
            entry,
            "the format does not end with a newline, so the records of all connections are one line",
        );
    }
    Some(format)
}

fn json_format(entry: &Entry<'_>, import: &mut Import<'_>) -> Option<Format> {
    if !entry.is_map() {
        entry.refuse_type("a mapping", import.report);
        return None;
    }
    let format = access_log::json_format(entry, import.report)?;
    import.honour(entry);
    Some(format)
}
