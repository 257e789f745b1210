//! The agent of Headgate, its proxy, and the views of its command line.

pub mod access_log;
pub mod active;
pub mod admin_http;
pub mod agent;
pub mod balancer;
pub mod cli;
pub mod config;
pub mod connections;
pub mod datapath;
pub mod desired;
pub mod discovery;
pub mod endpoints;
pub mod explain;
pub mod file_watch;
pub mod flows;
pub mod health;
pub mod ids;
pub mod listing;
pub mod maps;
pub mod model;
pub mod moved;
pub mod net;
pub mod port_owner;
pub mod proxy;
pub mod selection;
pub mod stats;
pub mod table;
#[cfg(test)]
mod test_tables;
pub mod views;
