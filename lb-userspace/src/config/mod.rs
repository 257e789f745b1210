//! The native configuration: YAML text to [`Config`], or every error in it with its line, column and field.
//!
//! `docs/config.md` is the reference for users. The way of a file: `yaml` reads the text into a tree of
//! values with places, `datapath`, `listener` and `cluster` (with `discovery` and `dns_name`) each read one
//! section of the tree (by means of `tree`, `scalar` and `address`), `cross` checks what spans sections. Nothing
//! here asks the host: whether an interface exists or a port is free is for the caller, who reports it by
//! [`Loaded::error_at`].

mod address;
mod cluster;
mod cross;
mod datapath;
mod discovery;
mod dns_name;
mod error;
mod listener;
mod places;
mod scalar;
#[cfg(test)]
mod tests;
mod tree;
mod yaml;

use std::fs;
use std::path::Path;

use self::cluster::ClusterDraft;
use self::datapath::DatapathDraft;
pub use self::error::{ConfigError, ConfigErrors};
use self::listener::ListenerDraft;
pub use self::places::{Place, Places};
use self::tree::{Entry, Report};
use crate::model::Config;

/// A valid configuration and where its parts stand in the file.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub places: Places,
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

/// Reads and checks the file at `path`.
pub fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| {
        ConfigErrors::from(ConfigError::unreadable(&file, format!("cannot read: {error}")))
    })?;
    parse(&text, &file)
}

/// Checks a configuration text; `file` names it in the errors. All errors are found in one go, unless the text
/// is no YAML.
pub fn parse(text: &str, file: &str) -> Result<Loaded, ConfigErrors> {
    let mut report = Report::new(file);
    let root = match yaml::read(text) {
        Ok(root) => root,
        Err(error) => {
            report.add(error.place, "", error.message);
            return Err(report.into_errors());
        }
    };
    let sections = read_sections(&Entry::root(&root), &mut report);
    let errors = report.into_errors();
    match sections {
        Some((config, places)) if errors.is_empty() => Ok(Loaded { config, places, file: file.to_owned() }),
        _ => Err(errors),
    }
}

/// `None` only with something in `report`.
fn read_sections(root: &Entry<'_>, report: &mut Report) -> Option<(Config, Places)> {
    if let Some(place) = root.key_place("static_resources") {
        report.add(place, "static_resources", "an Envoy bootstrap: not supported yet");
        return None;
    }
    let fields = root.fields(&["datapath", "listeners", "clusters"], &["admin", "access_log"], report)?;
    let datapath = match fields.get("datapath") {
        Some(entry) => datapath::read(&entry, report),
        None => DatapathDraft::default(),
    };
    let listeners: Vec<ListenerDraft> = fields
        .require("listeners", "the addresses to serve", report)
        .map(|entry| {
            entry.items("listener", report).iter().map(|item| listener::read(item, report)).collect()
        })
        .unwrap_or_default();
    let clusters: Vec<ClusterDraft> = fields
        .require("clusters", "the backends of the listeners", report)
        .map(|entry| entry.items("cluster", report).iter().map(|item| cluster::read(item, report)).collect())
        .unwrap_or_default();
    cross::check(&datapath, &listeners, &clusters, report);

    let places = Places::new(&datapath, &listeners);
    let config = Config {
        datapath: datapath.finish(),
        admin: None,
        imported: false,
        listeners: listeners.into_iter().map(ListenerDraft::finish).collect::<Option<_>>()?,
        clusters: clusters.into_iter().map(ClusterDraft::finish).collect::<Option<_>>()?,
    };
    Some((config, places))
}
