//! `discovery: { type: kubernetes }`.

use std::path::PathBuf;

use super::dns::FAMILIES;
use crate::config::tree::{Entry, Fields, Report};
use crate::config::yaml::Value;
use crate::model::{DnsFamily, Kubernetes, KubernetesPort};

const MAX_LABEL: usize = 63;
const MAX_CONTEXT: usize = 256;

/// `None` with something in `report`.
pub(super) fn read(fields: &Fields<'_>, report: &mut Report) -> Option<Kubernetes> {
    let namespace = fields.require("namespace", "the namespace of the Service", report);
    let namespace = namespace.and_then(|entry| label(&entry, "a namespace", report));
    let service = fields.require("service", "the name of the Service", report);
    let service = service.and_then(|entry| label(&entry, "the name of a Service", report));
    let port = fields.get("port").map_or(Some(None), |entry| port(&entry, report).map(Some));
    let family =
        fields.get("family").map_or(Some(DnsFamily::Auto), |entry| entry.choice(&FAMILIES, &[], report));
    let kubeconfig = fields.get("kubeconfig").map_or(Some(None), |entry| path(&entry, report).map(Some));
    let context = fields.get("context").map_or(Some(None), |entry| context(&entry, report).map(Some));
    Some(Kubernetes {
        namespace: namespace?,
        service: service?,
        port: port?,
        family: family?,
        kubeconfig: kubeconfig?,
        context: context?,
    })
}

/// A label of RFC 1123, section 2.1, in lower case, which is what Kubernetes names namespaces, Services and ports by.
fn label(entry: &Entry<'_>, what: &str, report: &mut Report) -> Option<String> {
    let text = entry.text(what, report)?;
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty()
        || text.len() > MAX_LABEL
        || !text.bytes().all(known)
        || text.starts_with('-')
        || text.ends_with('-')
    {
        let rule = format!("1 to {MAX_LABEL} of a-z, 0-9 and -, with - neither first nor last");
        entry.refuse(format!("`{text}` is not {what}: {rule}"), report);
        return None;
    }
    Some(text.to_owned())
}

fn port(entry: &Entry<'_>, report: &mut Report) -> Option<KubernetesPort> {
    match entry.value() {
        Value::Number(_) => entry.port(report).map(KubernetesPort::Number),
        Value::Text(_) => label(entry, "the name of a port", report).map(KubernetesPort::Name),
        _ => {
            entry.refuse_type("the name of a port of the EndpointSlices, or its number", report);
            None
        }
    }
}

fn path(entry: &Entry<'_>, report: &mut Report) -> Option<PathBuf> {
    let path = entry.text("the path of a kubeconfig", report)?;
    if path.is_empty() || path.contains('\0') {
        entry.refuse("not a path: name a file, as in /etc/headgate/kubeconfig", report);
        return None;
    }
    Some(PathBuf::from(path))
}

fn context(entry: &Entry<'_>, report: &mut Report) -> Option<String> {
    let name = entry.text("the name of a context of the kubeconfig", report)?;
    if name.is_empty() || name.len() > MAX_CONTEXT || name.contains(char::is_control) {
        let rule = format!("1 to {MAX_CONTEXT} bytes, none of them a control character");
        entry.refuse(format!("a context has {rule}"), report);
        return None;
    }
    Some(name.to_owned())
}
