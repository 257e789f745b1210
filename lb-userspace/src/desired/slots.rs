//! The slots of a window, and those that were made before.

use std::collections::HashMap;
use std::sync::Arc;

use lb_common::maglev::{self, Candidate};

use crate::model::LbPolicy;

/// The slots of a cluster, in the order of its policy, of whatever stands for its backends.
pub fn slots(policy: LbPolicy, candidates: &[Candidate]) -> Vec<u32> {
    match policy {
        LbPolicy::RoundRobin | LbPolicy::Random | LbPolicy::LeastRequest => maglev::order(candidates),
        LbPolicy::Maglev | LbPolicy::SourceIp => maglev::table(candidates),
    }
}

/// The slots of windows, which are made anew only where the candidates are others: a Maglev table takes milliseconds.
#[derive(Default)]
pub struct Slots {
    made: HashMap<u32, Made>,
}

struct Made {
    policy: LbPolicy,
    candidates: Vec<Candidate>,
    slots: Arc<[u32]>,
}

impl Slots {
    /// Those of a window.
    pub fn get(&mut self, window: u32, policy: LbPolicy, candidates: Vec<Candidate>) -> Arc<[u32]> {
        if let Some(made) = self.made.get(&window)
            && made.policy == policy
            && made.candidates == candidates
        {
            return Arc::clone(&made.slots);
        }
        let slots: Arc<[u32]> = slots(policy, &candidates).into();
        self.made.insert(window, Made { policy, candidates, slots: Arc::clone(&slots) });
        slots
    }

    /// Forgets all but these windows.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.made.retain(|window, _| keep(*window));
    }
}
