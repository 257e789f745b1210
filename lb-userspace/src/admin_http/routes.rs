//! Which page a path is.

use hyper::Method;

use crate::admin_http::{help, refused};
use crate::stats::{self, Page, Query, View};

/// How a request is answered.
pub(super) enum Route {
    /// With this, whatever the agent does.
    Page(Page),
    View {
        render: fn(&View, &Query) -> Page,
        /// It looks at [`View::server`] alone.
        only_server: bool,
    },
}

/// Pages that read are the same for every method, as in Envoy.
pub(super) fn route(method: &Method, path: &str) -> Route {
    let all = |render| Route::View { render, only_server: false };
    match path {
        "/" | "/help" => Route::Page(help::help()),
        "/ready" => Route::View { render: |view, _| stats::ready(&view.server), only_server: true },
        "/server_info" => {
            Route::View { render: |view, _| stats::server_info(&view.server), only_server: true }
        }
        "/clusters" => all(stats::clusters),
        "/listeners" => all(stats::listeners),
        "/stats" => all(stats::stats),
        "/stats/prometheus" => all(stats::prometheus),
        "/config_dump" => all(|view, query| stats::config_dump(&view.config, query)),
        _ => Route::Page(refused::mutation(method, path).unwrap_or_else(help::unknown_path)),
    }
}
