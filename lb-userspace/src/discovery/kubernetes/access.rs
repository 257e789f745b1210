//! Where the API server is, and how to ask it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use kube::config::{Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use super::failure::{self, one_line};
use crate::model::Kubernetes;

/// Set in every container of a Pod.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// The API server, as it is named in what is told.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) url: String,
    pub(super) source: Source,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the API server {}", self.url)
    }
}

/// What says where the server is and who asks.
#[derive(Clone, Debug)]
pub(super) enum Source {
    ServiceAccount,
    /// A file, or `None` for those of the environment.
    Kubeconfig(Option<PathBuf>),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServiceAccount => f.write_str("the Pod's service account"),
            Self::Kubeconfig(Some(path)) => write!(f, "the kubeconfig {}", path.display()),
            Self::Kubeconfig(None) => f.write_str("the kubeconfig"),
        }
    }
}

/// A client with what the files say now. May run the command that a kubeconfig names, so it blocks.
pub(super) fn client(of: &Kubernetes, connect_timeout: Duration) -> Result<(Client, Server), String> {
    let (mut config, source) = config(of)?;
    config.connect_timeout = Some(connect_timeout);
    // It would ask 15 times, for minutes, before it says that the server is overloaded.
    config.default_retry = false;
    let server = Server { url: config.cluster_url.to_string().trim_end_matches('/').to_owned(), source };
    // The client takes the process's own; fails where there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::try_from(config).map_err(|error| failure::of_setup(&error, &server.source))?;
    Ok((client, server))
}

fn config(of: &Kubernetes) -> Result<(Config, Source), String> {
    let in_cluster = std::env::var_os(IN_CLUSTER).is_some();
    if of.kubeconfig.is_none() && of.context.is_none() && in_cluster {
        let config = Config::incluster().map_err(|error| {
            let error = one_line(&error.to_string());
            format!("the Pod's service account cannot be used: {error}: is automountServiceAccountToken off?")
        })?;
        return Ok((config, Source::ServiceAccount));
    }
    let source = Source::Kubeconfig(of.kubeconfig.clone());
    let read = match &of.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let config = read.and_then(|mut kubeconfig| {
        if of.context.is_some() {
            kubeconfig.current_context.clone_from(&of.context);
        }
        Config::try_from(kubeconfig)
    });
    let config = config.map_err(|error| match error {
        KubeconfigError::FindPath | KubeconfigError::ReadConfig(..) if of.kubeconfig.is_none() => format!(
            "no API server known: this is no Pod ({IN_CLUSTER} is not set), and there is no kubeconfig ({}): set \
             `kubeconfig`",
            one_line(&error.to_string())
        ),
        KubeconfigError::LoadContext(name) => format!("{source} has no context `{name}`"),
        KubeconfigError::CurrentContextNotSet => format!("{source} has no current context: set `context`"),
        // Its text quotes the file, which may have secrets.
        KubeconfigError::Parse(error) => match error.location() {
            Some(at) => format!("{source} is none: line {}, column {} cannot be read", at.line(), at.column()),
            None => format!("{source} is none"),
        },
        error => format!("{source}: {}", one_line(&error.to_string())),
    })?;
    Ok((config, source))
}
