//! What the server says when it does not do what it was asked for: `Status` of meta/v1.

use serde_json::{Value, json};

use super::resource::{Resource, Verb};

/// Whom a right token belongs to.
pub const USER: &str = "system:serviceaccount:headgate-system:headgate";
/// Who asks without any token.
pub(super) const ANONYMOUS: &str = "system:anonymous";

/// A refusal. `code` is also the status of the HTTP answer.
#[derive(Clone, Debug)]
pub(super) struct Status {
    pub(super) code: u16,
    reason: &'static str,
    message: String,
    details: Value,
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// As the RBAC authorizer says it. Without a namespace the scope is the cluster.
    pub(super) fn forbidden(
        user: &str,
        verb: Verb,
        resource: Resource,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Self {
        let what = resource.qualified();
        let what = name.map_or_else(|| what.clone(), |name| format!("{what} {name:?}"));
        let scope = namespace
            .map_or_else(|| "at the cluster scope".to_owned(), |name| format!("in the namespace {name:?}"));
        let message = format!(
            "{what} is forbidden: User {user:?} cannot {} resource {:?} in API group {:?} {scope}",
            verb.name(),
            resource.plural(),
            resource.group()
        );
        Self { details: details(resource, name), ..Self::new(403, "Forbidden", message) }
    }

    pub(super) fn not_found(resource: Resource, name: &str) -> Self {
        let message = format!("{} {name:?} not found", resource.qualified());
        Self { details: details(resource, Some(name)), ..Self::new(404, "NotFound", message) }
    }

    pub(super) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message)
    }

    /// History before the `oldest` version is forgotten. In a watch this comes as an event.
    pub(super) fn too_old(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// The same for a page of a list.
    pub(super) fn continue_too_old() -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. \
                       You can start a new list without the continue parameter.";
        Self::new(410, "Expired", message)
    }

    /// A parameter of a list or a watch that may not be given.
    pub(super) fn invalid_option(field: &str, why: &str) -> Self {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {why}");
        Self::new(422, "Invalid", message)
    }

    pub(super) fn internal() -> Self {
        let cause = "etcdserver: leader changed";
        Self {
            details: json!({ "causes": [{ "message": cause }] }),
            ..Self::new(500, "InternalError", format!("Internal error occurred: {cause}"))
        }
    }

    /// A version that is not there yet.
    pub(super) fn too_large(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let cause = json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" });
        Self {
            details: json!({ "causes": [cause], "retryAfterSeconds": 1 }),
            ..Self::new(504, "Timeout", message)
        }
    }

    pub(super) fn json(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

fn details(resource: Resource, name: Option<&str>) -> Value {
    let mut details = json!({ "kind": resource.plural() });
    if let Some(name) = name {
        details["name"] = name.into();
    }
    if !resource.group().is_empty() {
        details["group"] = resource.group().into();
    }
    details
}
