//! The configuration: YAML text to [`Config`], or every error in it with its line, column and field.
//!
//! `docs/config.md` is the reference for users. The way of a file: `yaml` reads the text into a tree of values with
//! places; `native`, with `datapath`, `admin`, `access_log`, `listener` and `cluster` (with `discovery`,
//! `hosts`, `health_check`, `probe`, `outlier` and `slow_start`), reads the sections of the native form (by means of
//! `tree`, `scalar`, `address`, `dns_name`, `http` and `payload`), `envoy` those of an Envoy bootstrap; both end in
//! `sections`, and `cross` checks what spans them. `convert` writes the native form. A file of endpoints, which a
//! `discovery` names, is read by `envoy` too.
//! But for `probes`, which looks at the files that a file names, nothing here asks the host: whether an interface
//! exists or a port is free is for the caller, who reports it by [`Loaded::error_at`].

mod access_log;
mod address;
mod admin;
mod cluster;
mod convert;
mod cross;
mod datapath;
mod discovery;
mod dns_name;
mod envoy;
mod error;
mod finding;
mod health_check;
mod hosts;
mod http;
mod listener;
mod native;
mod outlier;
mod payload;
mod places;
mod probe;
mod probes;
mod scalar;
mod sections;
mod slow_start;
#[cfg(test)]
mod tests;
mod tree;
mod yaml;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use self::convert::{Converted, convert};
pub use self::envoy::Assigned;
pub use self::error::{ConfigError, ConfigErrors};
pub use self::finding::{Finding, Verdict};
pub use self::places::{Place, Places};
use self::tree::{Entry, Report};
use self::yaml::{MergeKeys, Node, SyntaxError};
use crate::model::Config;

/// A valid configuration and where its parts stand in the file.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub places: Places,
    /// What is legal and may not be what was meant.
    pub warnings: Vec<ConfigError>,
    /// What became of each key of an Envoy bootstrap, in the order of the file; nothing for a native file.
    pub findings: Vec<Finding>,
    /// Clusters of an Envoy bootstrap that say nothing about their limit of connections.
    silent_limits: Vec<String>,
    file: String,
}

impl Loaded {
    /// An error that the host showed (no such interface, a port in use), in the form of the file's own errors.
    pub fn error_at(
        &self,
        place: Place,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> ConfigError {
        ConfigError::new(&self.file, place, field, message)
    }
}

/// Reads and checks the file at `path`, of the native form or an Envoy bootstrap, and the files that it names.
pub fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
    let file = path.display().to_string();
    let text =
        read_text(path).map_err(|message| ConfigErrors::from(ConfigError::unreadable(&file, message)))?;
    let loaded = parse(&text, &file)?;
    let errors = probes::errors(&loaded);
    if errors.is_empty() { Ok(loaded) } else { Err(errors.into()) }
}

/// The endpoints that the file at `path` has for a cluster, see [`parse_endpoints`].
pub fn load_endpoints(path: &Path, cluster: &str) -> Result<Assigned, ConfigErrors> {
    let file = path.display().to_string();
    let text =
        read_text(path).map_err(|message| ConfigErrors::from(ConfigError::unreadable(&file, message)))?;
    parse_endpoints(&text, &file, cluster)
}

/// Reads endpoints in the form of Envoy's endpoint discovery (EDS), YAML or JSON; `file` names the text in the errors.
/// That it has nothing of the cluster is one.
pub fn parse_endpoints(text: &str, file: &str, cluster: &str) -> Result<Assigned, ConfigErrors> {
    let mut report = Report::new(file);
    let assigned = match yaml::read(text, MergeKeys::Kept) {
        Ok(root) => envoy::read_assignment(&Entry::root(&root), cluster, &mut report),
        Err(error) => {
            report.add(error.place, "", error.message);
            None
        }
    };
    match assigned {
        Some(assigned) if report.is_empty() => Ok(assigned),
        _ => Err(report.into_errors()),
    }
}

/// The file at `path`, written as a native file, see [`convert`].
pub fn convert_file(path: &Path) -> Result<Converted, ConfigErrors> {
    let file = path.display().to_string();
    let text =
        read_text(path).map_err(|message| ConfigErrors::from(ConfigError::unreadable(&file, message)))?;
    convert(&text, &file)
}

/// The text at `path`; of a file that is too long, no more is read than shows that it is.
fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(yaml::MAX_TEXT as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read: {error}"))?;
    if bytes.len() > yaml::MAX_TEXT {
        return Err(yaml::too_long());
    }
    String::from_utf8(bytes).map_err(|error| format!("cannot read: {error}"))
}

/// Checks a configuration text; `file` names it in the errors. All errors are found in one go, unless the text
/// is no YAML.
pub fn parse(text: &str, file: &str) -> Result<Loaded, ConfigErrors> {
    let mut report = Report::new(file);
    let root = match read_tree(text) {
        Ok(root) => root,
        Err(error) => {
            report.add(error.place, "", error.message);
            return Err(report.into_errors());
        }
    };
    let root = Entry::root(&root);
    let read = if envoy::is_bootstrap(&root) {
        Some(envoy::read_bootstrap(&root, &mut report))
    } else {
        native::read(&root, &mut report).map(envoy::Imported::native)
    };
    let Some(read) = read else { return Err(report.into_errors()) };
    cross::check(&read.sections, &mut report);
    let places = Places::new(&read.sections);
    match read.sections.finish() {
        Some(config) if report.is_empty() => Ok(Loaded {
            config,
            places,
            warnings: read
                .warnings
                .into_iter()
                .map(|warning| ConfigError::new(file, warning.place, warning.path, warning.value))
                .collect(),
            findings: read.findings,
            silent_limits: read.silent_limits,
            file: file.to_owned(),
        }),
        _ => Err(report.into_errors()),
    }
}

/// The text as a tree, by the YAML of its form: Envoy knows no merge keys.
fn read_tree(text: &str) -> Result<Node, SyntaxError> {
    let root = yaml::read(text, MergeKeys::Merged)?;
    if text.contains("<<") && envoy::is_bootstrap(&Entry::root(&root)) {
        return yaml::read(text, MergeKeys::Kept);
    }
    Ok(root)
}
