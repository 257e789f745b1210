//! The datapath on the host: frames in, frames and tables out.

mod answers;
mod balancing;
mod equal;
mod events;
mod formats;
mod handshake;
mod icmp;
mod interleaving;
mod lifecycle;
mod links;
mod pass_up;
mod random;
mod schedule;
mod table;
mod table_at_once;
mod world;
