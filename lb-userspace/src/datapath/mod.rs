//! The kernel side: loading, attaching, and the maps.

pub mod attach;
pub mod batch;
pub mod bpffs;
pub mod connection;
pub mod contents;
pub mod drift;
pub mod events;
pub mod flow_table;
pub mod kernel;
pub mod mapped;
pub mod object;
pub mod resize;
pub mod slots;
pub mod sweep;

#[cfg(test)]
mod resize_tests;
