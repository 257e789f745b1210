//! Envoy's paths that change something: refused here, with what to do instead.

use hyper::Method;

use crate::stats::Page;

/// Paths that Envoy takes a POST for, and what does that here.
const MUTATIONS: [(&str, &str); 14] = [
    ("/allocprofiler", NOTHING),
    ("/cpuprofiler", NOTHING),
    (
        "/drain_listeners",
        "use `headgate drain --all` on the node, or send SIGTERM to the agent: it drains and ends",
    ),
    ("/healthcheck/fail", "use `headgate drain --all` on the node"),
    ("/healthcheck/ok", "use `headgate undrain --all` on the node"),
    ("/heapprofiler", NOTHING),
    ("/logging", "set RUST_LOG in the environment that the agent is started with"),
    ("/quitquitquit", "send SIGTERM to the agent: it drains and ends"),
    ("/reopen_logs", "use `headgate reopen-logs` on the node, or send SIGUSR1 to the agent"),
    ("/reset_counters", NOTHING),
    ("/runtime_modify", NOTHING),
    ("/stats/recentlookups/clear", NOTHING),
    ("/stats/recentlookups/disable", NOTHING),
    ("/stats/recentlookups/enable", NOTHING),
];
const NOTHING: &str = "Headgate has nothing like it";

/// The answer to a request for such a path; none if it is none. What is no POST gets Envoy's answer.
pub(super) fn mutation(method: &Method, path: &str) -> Option<Page> {
    let (_, instead) = MUTATIONS.iter().find(|(known, _)| *known == path)?;
    Some(if method == Method::POST {
        Page::refusal(403, format!("nothing can be changed over HTTP ({path}): {instead}\n"))
    } else {
        Page::refusal(405, format!("Method {method} not allowed, POST required."))
    })
}
