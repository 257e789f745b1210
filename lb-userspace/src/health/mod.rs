//! The health of endpoints: `checker` asks them (`probe`) and counts what they say (`machine`), `outlier` judges by what
//! becomes of connections to them. Who gets connections then is decided elsewhere ([`crate::selection`]).

mod checker;
mod machine;
pub mod outlier;
mod probe;

pub use checker::{Change, Check, Checker, Counts, Endpoint};
pub use probe::Prober;
