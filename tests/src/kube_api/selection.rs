//! Which objects a list or a watch is about: resource, namespace, labels and fields.

use serde_json::Value;

use super::resource::Resource;
use super::status::Status;
use super::store::{Change, Key};

/// The objects that a request is about.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub(super) resource: Resource,
    /// `None`: all of them.
    pub(super) namespace: Option<String>,
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

/// One term of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Is(String, String),
    IsNot(String, String),
    Exists(String),
    Absent(String),
}

impl Selection {
    /// The selectors are those of the request, empty if it has none.
    pub(super) fn new(
        resource: Resource,
        namespace: Option<String>,
        label_selector: &str,
        field_selector: &str,
    ) -> Result<Self, Status> {
        let labels = requirements(label_selector)?;
        let fields = requirements(field_selector)?;
        for field in &fields {
            match field {
                Requirement::Is(key, _) | Requirement::IsNot(key, _)
                    if key == "metadata.name" || key == "metadata.namespace" => {}
                _ => {
                    let why = format!("field label not supported: {field_selector}");
                    return Err(Status::bad_request(why));
                }
            }
        }
        Ok(Self { resource, namespace, labels, fields })
    }

    /// Whether there is a selector: only without one a list tells how much remains.
    pub(super) fn is_selective(&self) -> bool {
        !(self.labels.is_empty() && self.fields.is_empty())
    }

    pub(super) fn has(&self, key: &Key, object: &Value) -> bool {
        let field = |name: &str| match name {
            "metadata.name" => Some(key.name.as_str()),
            _ => Some(key.namespace.as_str()),
        };
        let label = |name: &str| object["metadata"]["labels"][name].as_str();
        key.resource == self.resource
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            && self.fields.iter().all(|requirement| requirement.holds(field))
            && self.labels.iter().all(|requirement| requirement.holds(label))
    }

    /// What a change is to a watch of this selection: the event's type and object. An object that stops being selected
    /// is deleted as far as such a watch can tell.
    pub(super) fn event(&self, change: &Change) -> Option<(&'static str, Value)> {
        let before = change.before.as_ref().filter(|before| self.has(&change.key, before));
        let after = change.after.as_ref().filter(|after| self.has(&change.key, after));
        match (before, after) {
            (None, None) => None,
            (None, Some(after)) => Some(("ADDED", Value::clone(after))),
            (Some(_), Some(after)) => Some(("MODIFIED", Value::clone(after))),
            (Some(before), None) => Some(("DELETED", change.gone(before))),
        }
    }
}

impl Requirement {
    fn holds<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Is(key, wanted) => value(key) == Some(wanted),
            Self::IsNot(key, unwanted) => value(key) != Some(unwanted),
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
        }
    }
}

/// `a=b,c==d,e!=f,g,!h`; the set-based terms (`in`, `notin`) are refused.
fn requirements(selector: &str) -> Result<Vec<Requirement>, Status> {
    selector.split(',').filter(|term| !term.is_empty()).map(requirement).collect()
}

fn requirement(term: &str) -> Result<Requirement, Status> {
    if term.contains([' ', '(', ')', '<', '>']) {
        return Err(Status::bad_request(format!("unable to parse requirement: {term:?} is not supported")));
    }
    let own = str::to_owned;
    Ok(if let Some((key, value)) = term.split_once("!=") {
        Requirement::IsNot(own(key), own(value))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        Requirement::Is(own(key), own(value))
    } else if let Some(key) = term.strip_prefix('!') {
        Requirement::Absent(own(key))
    } else {
        Requirement::Exists(own(term))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Selection;
    use crate::kube_api::resource::Resource;
    use crate::kube_api::store::Key;

    #[test]
    fn selectors_select() {
        let key = Key { resource: Resource::Services, namespace: "istio-system".into(), name: "web".into() };
        let object = json!({ "metadata": { "labels": { "app": "web", "kubernetes.io/name": "w" } } });
        let has = |labels: &str, fields: &str| {
            Selection::new(Resource::Services, None, labels, fields).unwrap().has(&key, &object)
        };
        for labels in ["", "app=web", "app==web,kubernetes.io/name=w", "app!=x,!tier", "app", "tier!=x"] {
            assert!(has(labels, ""), "{labels}");
        }
        for labels in ["app=x", "app!=web", "tier", "!app", "app=web,tier"] {
            assert!(!has(labels, ""), "{labels}");
        }
        assert!(has("", "metadata.name=web,metadata.namespace!=default"));
        assert!(!has("", "metadata.name=web,metadata.namespace=default"));
        for (labels, fields) in [("app in (a,b)", ""), ("", "spec.nodeName=a")] {
            let refusal = Selection::new(Resource::Services, None, labels, fields).unwrap_err();
            assert_eq!(refusal.code, 400, "{labels} {fields}");
        }
    }
}
