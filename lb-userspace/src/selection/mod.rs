//! Which endpoints of a cluster get new connections, and how many of them.
//!
//! Levels of priority, panic and slow start are those of Envoy's load balancers, of whose hosts there are healthy
//! ones and others. What is random there is a weight here.

mod load;
mod mix;
mod slow_start;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::SlowStart;

use load::Level;
pub use mix::mix;
use slow_start::Step;

/// An endpoint that may take connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<K> {
    pub key: K,
    /// `load_balancing_weight`: 1 to 256.
    pub weight: u32,
    /// Level of priority; 0 is the first to be used.
    pub priority: u32,
    pub healthy: bool,
    /// Close to the load balancer.
    pub local: bool,
    /// How long it has been in service; `None`: long enough for its full weight.
    pub fresh: Option<Duration>,
}

/// How a cluster selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules<'a> {
    /// With less than this percentage of healthy endpoints a level uses all: `healthy_panic_threshold`; 0: never.
    pub panic_threshold: u32,
    /// Connections leave a level when this times its healthy share is below 100: `overprovisioning_factor`.
    pub overprovisioning_percent: u32,
    pub slow_start: Option<&'a SlowStart>,
    /// Endpoints of a level that are not local get what its local ones are not healthy enough for.
    pub prefer_local: bool,
}

/// Who gets new connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection<K> {
    /// Percent of the connections and the endpoints that get them, each with its weight among them: ten times
    /// as large where one has a slow start. The percentages add up to 100; there are none if nothing is healthy
    /// and there is no panic.
    pub shares: Vec<(u32, Vec<(K, u32)>)>,
    /// Priorities whose endpoints get connections whatever their health: `lb_healthy_panic`.
    pub panic: Vec<u32>,
    /// Connections go past the first level of priority, or past the local endpoints of a level.
    pub spilling: bool,
    /// Until slow start changes the weights; 100 ms at least.
    pub again: Option<Duration>,
}

/// Selects among the endpoints of a cluster.
pub fn select<K: Clone>(candidates: &[Candidate<K>], rules: &Rules<'_>) -> Selection<K> {
    let mut priorities: BTreeMap<u32, Vec<&Candidate<K>>> = BTreeMap::new();
    for candidate in candidates {
        priorities.entry(candidate.priority).or_default().push(candidate);
    }
    let levels: Vec<_> = priorities.values().map(|members| Level::of(members)).collect();
    let loads = load::across(&levels, rules.panic_threshold, rules.overprovisioning_percent);
    let mut selection = Selection { shares: Vec::new(), panic: Vec::new(), spilling: false, again: None };
    for (index, ((priority, members), load)) in priorities.into_iter().zip(loads).enumerate() {
        selection.spilling |= index > 0 && load.percent > 0;
        if !load.panic {
            selection.add_healthy(load.percent, members, rules);
        } else if load.percent > 0 {
            selection.panic.push(priority);
            selection.add(load.percent, &members, rules);
        }
    }
    selection
}

impl<K: Clone> Selection<K> {
    /// Adds the healthy ones of a level of priority.
    fn add_healthy(&mut self, percent: u32, mut members: Vec<&Candidate<K>>, rules: &Rules<'_>) {
        let preferred = local_percent(&members, rules);
        members.retain(|candidate| candidate.healthy);
        let Some(preferred) = preferred else {
            self.add(percent, &members, rules);
            return;
        };
        let (local, other): (Vec<_>, Vec<_>) = members.into_iter().partition(|candidate| candidate.local);
        let preferred = (percent * preferred + 50) / 100;
        self.spilling |= preferred < percent;
        self.add(preferred, &local, rules);
        self.add(percent - preferred, &other, rules);
    }

    /// Adds a share, with weights as slow start has them.
    fn add(&mut self, percent: u32, members: &[&Candidate<K>], rules: &Rules<'_>) {
        if percent == 0 {
            return;
        }
        // As in Envoy only healthy ones have a slow start: in panic the others have their full weight.
        let step = |candidate: &&Candidate<K>| {
            let rule = rules.slow_start.filter(|_| candidate.healthy)?;
            Step::at(rule, candidate.fresh?)
        };
        let steps: Vec<_> = members.iter().map(step).collect();
        let full = if steps.iter().any(Option::is_some) { Step::FULL } else { 1 };
        let weighted = members.iter().zip(&steps).map(|(candidate, step)| {
            let tenths = step.as_ref().map_or(full, |step| step.tenths);
            (candidate.key.clone(), candidate.weight * tenths)
        });
        self.shares.push((percent, weighted.collect()));
        self.again = self.again.into_iter().chain(steps.iter().flatten().map(|step| step.rest)).min();
    }
}

/// Percent of a level's connections that its local endpoints get; `None`: they are not told from the others.
fn local_percent<K>(members: &[&Candidate<K>], rules: &Rules<'_>) -> Option<u32> {
    let (local, other): (Vec<_>, Vec<_>) = members.iter().copied().partition(|candidate| candidate.local);
    if !rules.prefer_local || local.is_empty() {
        return None;
    }
    let available = [local, other].map(|part| Level::of(&part).available(rules.overprovisioning_percent));
    Some(load::by_health(&available)?[0])
}

#[cfg(test)]
mod tests;
