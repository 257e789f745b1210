//! Indices into maps for named things: the same thing keeps its index as long as it is wanted.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::hash::Hash;

/// Indices from 1 (0 means none) below a limit.
#[derive(Clone)]
pub struct Ids<T> {
    of: HashMap<T, u32>,
    taken: BTreeSet<u32>,
    /// None below is free.
    first_free: u32,
    limit: u32,
}

impl<T: Eq + Hash + Clone> Ids<T> {
    /// Nothing has an index yet.
    pub fn new(limit: u32) -> Self {
        Self { of: HashMap::new(), taken: BTreeSet::new(), first_free: 1, limit }
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
        let index = (self.first_free..self.limit).find(|index| !self.taken.contains(index))?;
        self.first_free = index + 1;
        self.adopt(thing.clone(), index);
        Some(index)
    }

    /// The index of `thing`, if it has one.
    pub fn find(&self, thing: &T) -> Option<u32> {
        self.of.get(thing).copied()
    }

    /// All that have a name, with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (&T, u32)> {
        self.of.iter().map(|(thing, &index)| (thing, index))
    }

    /// Whether an index is that of something, with a name or without.
    pub fn is_taken(&self, index: u32) -> bool {
        self.taken.contains(&index)
    }

    /// Gives back the indices that `keep` does not want, named or reserved: nothing may refer to them any more, they
    /// are used again. Whether there were any.
    pub fn retain(&mut self, mut keep: impl FnMut(Option<&T>, u32) -> bool) -> bool {
        let before = self.taken.len();
        let mut kept = BTreeSet::new();
        self.of.retain(|thing, &mut index| {
            self.taken.remove(&index);
            let wanted = keep(Some(thing), index);
            if wanted {
                kept.insert(index);
            }
            wanted
        });
        kept.extend(self.taken.iter().copied().filter(|&index| keep(None, index)));
        self.taken = kept;
        self.first_free = 1;
        self.taken.len() != before
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

    #[test]
    fn what_is_not_kept_is_used_again() {
        let mut ids = Ids::new(5);
        ids.reserve(2);
        ids.reserve(4);
        assert_eq!(ids.get(&"a"), Some(1));
        assert_eq!(ids.get(&"b"), Some(3));
        assert!(ids.retain(|thing, index| thing == Some(&"b") || index == 4));
        assert!(ids.is_taken(4) && !ids.is_taken(2));
        assert_eq!(ids.find(&"a"), None);
        assert_eq!(ids.get(&"c"), Some(1));
        assert_eq!(ids.get(&"d"), Some(2));
        assert_eq!(ids.get(&"e"), None, "b and the reserved 4 are still there");
    }
}
