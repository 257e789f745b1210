//! What went wrong, in one line that says what to do.

use std::error::Error;
use std::io;

use kube::client::AuthError;
use kube::core::Status;
use rustls::CertificateError;

use super::access::{Server, Source};

/// A proxy on the way may answer with a page.
const MAX_TEXT: usize = 300;

/// What was asked for.
#[derive(Clone, Copy)]
pub(super) struct Request<'r> {
    /// As RBAC has it.
    pub(super) verb: &'r str,
    pub(super) resource: &'r str,
    pub(super) namespace: &'r str,
}

/// Why a request failed, or a watch broke off.
pub(super) fn of_request(error: &kube::Error, request: Request<'_>, server: &Server) -> String {
    match error {
        kube::Error::Api(status) => of_status(status, request, server),
        kube::Error::SerdeError(error) => no_sense(&error.to_string(), server),
        kube::Error::ReadEvents(error) => {
            format!("the connection to {server} broke off: {}", cause(error))
        }
        kube::Error::HyperError(error) => of_connection(error, server),
        kube::Error::Service(error) => of_connection(error.as_ref(), server),
        kube::Error::Auth(_) => of_setup(error, &server.source),
        error => format!("{server}: {}", one_line(&error.to_string())),
    }
}

/// What the server itself says.
pub(super) fn of_status(status: &Status, request: Request<'_>, server: &Server) -> String {
    let Request { verb, resource, namespace } = request;
    // "endpointslices.discovery.k8s.io is forbidden: User ...": what comes before is said already.
    let message = one_line(&status.message);
    let message = message.split_once(" is forbidden: ").map_or(message.as_str(), |(_, user)| user);
    match status.code {
        401 => format!(
            "{server} does not accept the credentials of {} (401 {}): expired, or of another cluster?",
            server.source,
            reason(status)
        ),
        403 => format!(
            "not allowed to {verb} {resource} in {namespace}: {message}: add a Role with get, list, watch on \
             endpointslices and get on services (deploy/kubernetes/base/rbac.yaml)"
        ),
        404 => {
            format!("{server} knows no {resource} of discovery.k8s.io/v1: Kubernetes 1.21 or later has them")
        }
        // Not the server's, but what is left of an answer that is something else.
        0 => no_sense("neither what was asked for nor an error", server),
        code => format!("{server} answered {code} {}: {message}", reason(status)),
    }
}

fn no_sense(why: &str, server: &Server) -> String {
    format!("the answer of {server} makes no sense: {}", one_line(why))
}

fn reason(status: &Status) -> &str {
    if status.reason.is_empty() { "without a reason" } else { &status.reason }
}

/// Why there is no client.
pub(super) fn of_setup(error: &kube::Error, source: &Source) -> String {
    match error {
        kube::Error::Auth(error) => of_credentials(error, source),
        kube::Error::ProxyProtocolDisabled { .. } | kube::Error::ProxyProtocolUnsupported { .. } => {
            format!("{source}: an API server behind a proxy (proxy-url, HTTPS_PROXY) is not supported")
        }
        error => format!("{source}: {}", cause(error)),
    }
}

/// Leaves out what was read or printed: it may be a token.
fn of_credentials(error: &AuthError, source: &Source) -> String {
    match error {
        AuthError::AuthExecRun { cmd, out } => {
            format!("{source}: its command {} ended with {}", one_line(cmd), out.status)
        }
        AuthError::AuthExecParse(_) => format!("{source}: its command printed no ExecCredential"),
        AuthError::InvalidBearerToken(_) => {
            format!("{source}: its token is no word: is there a line break in it?")
        }
        error => format!("{source}: {}", one_line(&error.to_string())),
    }
}

fn of_connection(error: &(dyn Error + 'static), server: &Server) -> String {
    if let Some(error) = chain(error).find_map(|error| error.downcast_ref::<AuthError>()) {
        return of_credentials(error, &server.source);
    }
    if let Some(rustls::Error::InvalidCertificate(invalid)) =
        chain(error).find_map(|error| error.downcast_ref())
    {
        return match invalid {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "{server} is not trusted: its certificate is not of the authority that {} names",
                server.source
            ),
            error => format!("{server} is not trusted: {}", one_line(&error.to_string())),
        };
    }
    format!("no connection to {server}: {}", cause(error))
}

/// An error and what is behind it. Behind an [`io::Error`] is what it wraps, which `source` passes over.
fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    })
}

/// The last of the chain, which says most.
fn cause(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(|error| one_line(&error.to_string())).unwrap_or_default()
}

/// Text of others, without line breaks and not too long.
pub(super) fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
