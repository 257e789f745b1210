//! `/help`, and what an unknown path is answered with: the list of pages, in Envoy's layout.

use crate::stats::Page;

const PAGES: &str = "  /: print out list of admin commands
  /clusters: upstream cluster status
      filter: Regular expression for filtering clusters by name
      format: Format to use; One of (text, json)
  /config_dump: dump current configs in the shape of Envoy's v3 API
      resource: The resource to dump; One of (static_clusters, static_listeners)
      mask: Only part of the dump; One of (bootstrap)
      name_regex: Dump only the configurations whose whole names match the regular expression
  /help: print out list of admin commands
  /listeners: print listener info
      format: File format to use; One of (text, json)
  /ready: print server state, return 200 if LIVE, otherwise return 503
  /server_info: print server version/status information
  /stats: print server stats
      usedonly: Only include stats that have been written by system since restart
      filter: Regular expression for filtering stats
      invert_filter: Invert the filter regex
      format: Format to use; One of (text, json, prometheus)
      type: Stat types to include.; One of (All, Counters, Histograms, Gauges, TextReadouts)
      histogram_buckets: Histogram bucket display mode; One of (cumulative, disjoint, summary)
  /stats/prometheus: print server stats in prometheus format
      usedonly: Only include stats that have been written by system since restart
      filter: Regular expression for filtering stats
      invert_filter: Invert the filter regex
";

pub(super) fn help() -> Page {
    Page::text(format!("admin commands are:\n{PAGES}"))
}

pub(super) fn unknown_path() -> Page {
    Page::refusal(404, format!("invalid path. admin commands are:\n{PAGES}"))
}
