//! Indices into maps for named things: the same thing keeps its index as long as it is wanted.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::hash::Hash;

/// Indices from 1 (0 means none) below a limit.
pub struct Ids<T> {
    of: HashMap<T, u32>,
    taken: BTreeSet<u32>,
    limit: u32,
}

impl<T: Eq + Hash + Clone> Ids<T> {
    /// Nothing has an index yet.
    pub fn new(limit: u32) -> Self {
        Self { of: HashMap::new(), taken: BTreeSet::new(), limit }
    }

    /// `thing` already has `index`, from an earlier agent.
    pub fn adopt(&mut self, thing: T, index: u32) {
        self.of.insert(thing, index);
        self.taken.insert(index);
    }

    /// `index` is in use for something that has no name here.
    pub fn reserve(&mut self, index: u32) {
        self.taken.insert(index);
    }

    /// The index of `thing`, a new one if it has none; `None`: all are taken.
    pub fn get(&mut self, thing: &T) -> Option<u32> {
        if let Some(&index) = self.of.get(thing) {
            return Some(index);
        }
        let index = (1..self.limit).find(|index| !self.taken.contains(index))?;
        self.adopt(thing.clone(), index);
        Some(index)
    }

    /// The index of `thing`, if it has one.
    pub fn find(&self, thing: &T) -> Option<u32> {
        self.of.get(thing).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_kept_and_start_at_one() {
        let mut ids = Ids::new(4);
        ids.adopt("old", 2);
        assert_eq!(ids.get(&"a"), Some(1));
        assert_eq!(ids.get(&"old"), Some(2));
        assert_eq!(ids.get(&"b"), Some(3));
        assert_eq!(ids.get(&"a"), Some(1));
        assert_eq!(ids.get(&"c"), None);
        assert_eq!(ids.find(&"b"), Some(3));
    }
}
