//! How often listeners, clusters and their endpoints have changed.

use std::collections::HashMap;
use std::time::SystemTime;

use crate::model::Config;

/// Changes of listeners and clusters, as Envoy counts them, and of the configuration as a whole.
pub(super) struct ConfigChanges {
    pub(super) listeners: Changed,
    pub(super) clusters: Changed,
    /// Changes of the endpoints of a cluster.
    pub(super) membership: HashMap<String, u64>,
    pub(super) reloads_applied: u64,
    pub(super) reloads_refused: u64,
    /// When the configuration that runs was taken.
    pub(super) configured: SystemTime,
}

impl ConfigChanges {
    pub(super) fn new() -> Self {
        Self {
            listeners: Changed::default(),
            clusters: Changed::default(),
            membership: HashMap::new(),
            reloads_applied: 0,
            reloads_refused: 0,
            configured: SystemTime::now(),
        }
    }

    /// Another configuration is in force.
    pub(super) fn count(&mut self, old: &Config, new: &Config) {
        self.listeners.count(&old.listeners, &new.listeners, |listener| &listener.name);
        self.clusters.count(&old.clusters, &new.clusters, |cluster| &cluster.name);
        self.configured = SystemTime::now();
    }
}

/// How many of a kind have come, changed and gone.
#[derive(Default)]
pub(super) struct Changed {
    pub(super) added: u64,
    pub(super) modified: u64,
    pub(super) removed: u64,
}

impl Changed {
    /// Counts the differences of two lists, of which `name` tells what stays what it is.
    fn count<T: PartialEq>(&mut self, old: &[T], new: &[T], name: impl Fn(&T) -> &str) {
        let find = |all: &'_ [T], of: &T| all.iter().position(|one| name(one) == name(of));
        for item in new {
            match find(old, item) {
                None => self.added += 1,
                Some(at) if old[at] != *item => self.modified += 1,
                Some(_) => {}
            }
        }
        self.removed += old.iter().filter(|item| find(new, item).is_none()).count() as u64;
    }
}
