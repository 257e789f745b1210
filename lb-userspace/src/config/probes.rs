//! What the host says of the probes of a configuration: the one check of a file that looks beyond its text.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{ConfigError, Loaded};
use crate::model::{Probe, ProbeTls};

/// One error for each health check that cannot work here.
pub(super) fn errors(loaded: &Loaded) -> Vec<ConfigError> {
    let clusters = loaded.config.clusters.iter();
    let checked = clusters.filter_map(|cluster| {
        let (place, path) = loaded.places.health_check(&cluster.name)?;
        let problem = problem(&cluster.health_check.as_ref()?.probe)?;
        Some(loaded.error_at(place, path, problem))
    });
    checked.collect()
}

/// What keeps the probe from working.
fn problem(probe: &Probe) -> Option<String> {
    let tls = match probe {
        Probe::Tcp(_) => None,
        Probe::Http(http) => http.tls.as_ref(),
        Probe::Grpc(grpc) => grpc.tls.as_ref(),
    };
    let Some(ProbeTls { ca: Some(ca), .. }) = tls else { return None };
    let error = readable(ca).err()?;
    Some(format!("cannot read the ca {}: {error}", ca.display()))
}

fn readable(path: &Path) -> std::io::Result<()> {
    let mut byte = [0];
    File::open(path)?.read(&mut byte).map(|_| ())
}
