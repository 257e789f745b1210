//! Measurements. No figure of theirs decides anything.

mod driver;
pub mod packet;
