//! The loaded programs, one packet at a time, against the same code on the host: action, bytes, counters and flow
//! tables have to be the same.

mod frags;
mod handshake;
mod headers;
mod icmp;
mod lockstep;
mod outcomes;
mod random;
mod statistics;
mod wire;
