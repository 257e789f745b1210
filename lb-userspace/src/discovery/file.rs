//! Endpoints from a file (`discovery: { type: file }`) in the form of Envoy's endpoint discovery, which is watched.
//!
//! A file that is broken, missing or silent about the cluster is a failure, so that the last good endpoints are kept.
//! An empty list of endpoints is what it says.

use super::feed::{Feed, Report};
use crate::config::{self, Assigned};
use crate::file_watch::FileWatch;
use crate::model::EndpointFile;

/// Tells what is in the file now, and each time that it has changed; for ever.
pub(super) async fn run(settings: EndpointFile, feed: Feed) {
    // Before the file is read, so that no change of it is missed.
    let mut watch = FileWatch::new(settings.path.clone());
    loop {
        let wanted = settings.clone();
        // A long file takes longer than others of this thread should have to wait.
        let report = tokio::task::spawn_blocking(move || read(&wanted)).await;
        feed.tell(report.unwrap_or_else(|error| Report::Failed(error.to_string()))).await;
        watch.changed().await;
    }
}

fn read(EndpointFile { path, cluster_name }: &EndpointFile) -> Report {
    let file = path.display();
    match config::load_endpoints(path, cluster_name) {
        Ok(Assigned { endpoints, draining }) => {
            let why = format!("in {file}");
            let left = draining.into_iter().map(|address| (address, format!("DRAINING in {file}"))).collect();
            Report::Endpoints { endpoints, left, why }
        }
        Err(errors) => {
            let count = errors.iter().count();
            let first = errors.iter().next().map(ToString::to_string).unwrap_or_default();
            let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
            Report::Failed(format!("{first}{more}"))
        }
    }
}
