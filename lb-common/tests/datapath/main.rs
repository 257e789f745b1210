//! The datapath on the host: frames in, frames and tables out.

mod balancing;
mod formats;
mod handshake;
mod interleaving;
mod lifecycle;
mod pass_up;
mod random;
mod world;
