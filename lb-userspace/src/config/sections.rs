//! The sections of a file, as far as they could be read: what the native form and Envoy's have in common.

use std::net::SocketAddr;

use super::cluster::ClusterDraft;
use super::datapath::DatapathDraft;
use super::listener::ListenerDraft;
use super::tree::Located;
use crate::model::{AccessLog, Admin, Config};

#[derive(Default)]
pub(super) struct Sections {
    pub(super) datapath: DatapathDraft,
    pub(super) admin: Option<Located<SocketAddr>>,
    /// Of the listeners that say nothing about it.
    pub(super) access_logs: Vec<AccessLog>,
    pub(super) listeners: Vec<ListenerDraft>,
    pub(super) clusters: Vec<ClusterDraft>,
    pub(super) imported: bool,
}

impl Sections {
    /// `None` if something was refused that the configuration cannot be without.
    pub(super) fn finish(self) -> Option<Config> {
        let Self { datapath, admin, access_logs, listeners, clusters, imported } = self;
        Some(Config {
            datapath: datapath.finish(),
            admin: admin.map(|address| Admin { address: address.value }),
            listeners: listeners
                .into_iter()
                .map(|listener| listener.finish(&access_logs))
                .collect::<Option<_>>()?,
            clusters: clusters.into_iter().map(ClusterDraft::finish).collect::<Option<_>>()?,
            imported,
        })
    }
}
