//! Statistics and the pages that show them: plain data in, text out. The agent fills in a [`View`]; `admin_http`
//! serves what is made of it here. Shapes and names are those of Envoy 1.40 (`docs/admin.md`).

mod clusters;
mod config_dump;
mod envoy;
mod histogram;
mod listeners;
mod listing;
mod own;
mod page;
mod prometheus;
mod query;
mod selection;
mod server_info;
mod stat;
#[cfg(test)]
mod tests;
mod view;

pub use clusters::clusters;
pub use config_dump::config_dump;
pub use histogram::{Histogram, HistogramSnapshot};
pub use listeners::listeners;
pub use listing::stats;
pub use page::Page;
pub use prometheus::prometheus;
pub use query::Query;
pub use server_info::{ready, server_info};
pub use view::*;
