//! The objects and their history. Every change has a version of its own, as in etcd.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::resource::Resource;

/// Where versions start: not near 0, which means something of its own in requests.
const FIRST_VERSION: u64 = 1000;

/// What an object is found by. The namespace is empty where the resource has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) resource: Resource,
    pub(super) namespace: String,
    pub(super) name: String,
}

pub(super) type Objects = BTreeMap<Key, Arc<Value>>;

/// One object before and after a change; `None` where it was not there.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) key: Key,
    pub(super) before: Option<Arc<Value>>,
    pub(super) after: Option<Arc<Value>>,
}

#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    objects: Objects,
    /// Those after version `oldest`, in order.
    changes: Vec<Change>,
    oldest: u64,
}

impl Store {
    pub(super) fn new() -> Self {
        Self { version: FIRST_VERSION, objects: Objects::new(), changes: Vec::new(), oldest: FIRST_VERSION }
    }

    /// Of the newest change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The oldest version that is remembered.
    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Creates or replaces an object, which needs `metadata.name`, and a namespace if it is of a kind that has one.
    /// Each call is a change.
    pub(super) fn put(&mut self, resource: Resource, mut object: Value) -> Result<&Change> {
        let metadata = object["metadata"].as_object_mut().context("an object without metadata")?;
        let text = |field: &str| metadata.get(field).and_then(Value::as_str).map(str::to_owned);
        let name = text("name").context("an object without a name")?;
        let namespace = text("namespace").unwrap_or_default();
        anyhow::ensure!(resource.namespaced() != namespace.is_empty(), "{name}: namespace {namespace:?}");
        let key = Key { resource, namespace, name };
        self.version += 1;
        let before = self.objects.get(&key).cloned();
        let metadata_before = before.as_ref().map(|before| &before["metadata"]);
        let kept = |field: &str| metadata_before.map(|before| before[field].clone());
        let uid =
            kept("uid").unwrap_or_else(|| format!("7a0c1e52-0000-4000-8000-{:012x}", self.version).into());
        let created = kept("creationTimestamp")
            .unwrap_or_else(|| humantime::format_rfc3339_seconds(SystemTime::now()).to_string().into());
        let generation = metadata_before.and_then(|before| before["generation"].as_u64()).unwrap_or(0) + 1;
        metadata.insert("uid".to_owned(), uid);
        metadata.insert("creationTimestamp".to_owned(), created);
        metadata.insert("generation".to_owned(), generation.into());
        metadata.insert("resourceVersion".to_owned(), self.version.to_string().into());
        object["kind"] = resource.kind().into();
        object["apiVersion"] = resource.api_version().into();
        let after = Arc::new(object);
        self.objects.insert(key.clone(), after.clone());
        Ok(self.remember(Change { version: self.version, key, before, after: Some(after) }))
    }

    /// Fails if there is no such object.
    pub(super) fn delete(&mut self, key: Key) -> Result<&Change> {
        let before = self.objects.remove(&key).with_context(|| format!("there is no {key:?}"))?;
        self.version += 1;
        Ok(self.remember(Change { version: self.version, key, before: Some(before), after: None }))
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// All objects as they were at this version; `None` if that is forgotten or not there yet.
    pub(super) fn at(&self, version: u64) -> Option<Objects> {
        let changes = self.since(version)?;
        let mut objects = self.objects.clone();
        for change in changes.iter().rev() {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), before.clone()),
                None => objects.remove(&change.key),
            };
        }
        Some(objects)
    }

    /// The changes after this version; `None` if some of them are forgotten, or if it is not there yet.
    pub(super) fn since(&self, version: u64) -> Option<&[Change]> {
        if !(self.oldest..=self.version).contains(&version) {
            return None;
        }
        let first = self.changes.partition_point(|change| change.version <= version);
        Some(&self.changes[first..])
    }

    /// Forgets every version but the newest.
    pub(super) fn compact(&mut self) {
        self.changes.clear();
        self.oldest = self.version;
    }

    /// So many changes of objects of other kinds.
    pub(super) fn pass(&mut self, changes: u64) {
        self.version += changes;
    }

    fn remember(&mut self, change: Change) -> &Change {
        self.changes.push(change);
        self.changes.last().expect("just pushed")
    }
}

impl Change {
    /// What an object was before it went, with the version at which it did: so watches tell of it.
    pub(super) fn gone(&self, before: &Value) -> Value {
        let mut object = before.clone();
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        object
    }
}
