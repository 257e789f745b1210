//! `/listeners`.

use serde::Serialize;

use crate::stats::clusters::Address;
use crate::stats::page::Page;
use crate::stats::query::Query;
use crate::stats::view::View;

#[derive(Serialize)]
struct Listeners<'a> {
    /// Absent without any, as protobuf has it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    listener_statuses: Vec<ListenerStatus<'a>>,
}

#[derive(Serialize)]
struct ListenerStatus<'a> {
    name: &'a str,
    local_address: Address,
}

/// Lines of `name::address`, or with `format=json` Envoy's `admin.v3.Listeners`.
pub fn listeners(view: &View, query: &Query) -> Page {
    let listeners = view.listeners.iter();
    if query.get("format") == Some("json") {
        let statuses = listeners
            .map(|listener| ListenerStatus { name: &listener.name, local_address: listener.address.into() });
        return Page::json(&Listeners { listener_statuses: statuses.collect() });
    }
    Page::text(
        listeners.map(|listener| format!("{}::{}\n", listener.name, listener.address)).collect::<String>(),
    )
}
