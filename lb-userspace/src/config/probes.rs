//! What the host says of the probes of a configuration: the one check of a file that looks beyond its text.

use super::{ConfigError, Loaded};
use crate::health::Prober;

/// One error for each health check that cannot work here.
pub(super) fn errors(loaded: &Loaded) -> Vec<ConfigError> {
    let clusters = loaded.config.clusters.iter();
    let checked = clusters.filter_map(|cluster| {
        let (place, path) = loaded.places.health_check(&cluster.name)?;
        let error = Prober::new(&cluster.health_check.as_ref()?.probe).err()?;
        Some(loaded.error_at(place, path, format!("{error:#}")))
    });
    checked.collect()
}
