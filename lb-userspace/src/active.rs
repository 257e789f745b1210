//! How many connections are open to a backend or a cluster, over all rungs together, and the limit that they have.
//!
//! Where there is a kernel datapath, the proxy's connections are counted in its map, beside the kernel's own and in the
//! same word: so the two never exceed a limit together that neither exceeds alone.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use lb_common::tables::Active;

use crate::datapath::kernel::{BOTH_WORD, FAILING_WORD};
use crate::datapath::mapped::Mapped;

/// The count of one backend or cluster.
#[derive(Default)]
pub struct ActiveCount {
    /// The proxy's.
    proxied: AtomicU64,
    /// 0: none.
    limit: AtomicU64,
    /// Of a backend: attempts that failed since the last one that did not, where there is no map.
    failing: AtomicU64,
    shared: RwLock<Option<Place>>,
}

/// Where it is in the kernel's map.
#[derive(Clone)]
pub struct Place {
    pub map: Arc<Mapped<Active>>,
    pub index: u32,
}

impl Place {
    fn word(&self) -> &AtomicU64 {
        self.map.word(self.index, BOTH_WORD)
    }

    fn failing(&self) -> &AtomicU64 {
        self.map.word(self.index, FAILING_WORD)
    }

    fn is(&self, other: &Self) -> bool {
        self.index == other.index && Arc::ptr_eq(&self.map, &other.map)
    }
}

impl std::fmt::Debug for ActiveCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ActiveCount").field(&self.sum()).finish()
    }
}

impl ActiveCount {
    /// Sets how many there may be; open ones stay.
    pub fn set_limit(&self, limit: Option<u32>) {
        self.limit.store(limit.map_or(0, u64::from), Relaxed);
    }

    /// Counts at that place from here on, those that are open included.
    pub fn move_to(&self, place: Option<Place>) {
        let mut shared = self.shared.write().unwrap_or_else(PoisonError::into_inner);
        if let (Some(old), Some(new)) = (&*shared, &place)
            && old.is(new)
        {
            return;
        }
        // Nobody enters or leaves meanwhile.
        let open = self.proxied.load(Relaxed) * Active::PROXIED;
        if let Some(old) = &*shared {
            old.word().fetch_sub(open, Relaxed);
        }
        if let Some(new) = &place {
            new.word().fetch_add(open, Relaxed);
        }
        *shared = place;
    }

    /// Counts a connection of the proxy, if there may be another one; whether there may.
    #[must_use]
    pub fn enter(&self) -> bool {
        let shared = self.shared.read().unwrap_or_else(PoisonError::into_inner);
        let limit = self.limit.load(Relaxed);
        let proxied = self.proxied.fetch_add(1, Relaxed);
        let before = match &*shared {
            Some(place) => Active::sum(place.word().fetch_add(Active::PROXIED, Relaxed)),
            None => proxied,
        };
        let may = limit == 0 || before < limit;
        if !may {
            self.take_off(shared.as_ref());
        }
        may
    }

    /// Takes one off that entered.
    pub fn leave(&self) {
        self.take_off(self.shared.read().unwrap_or_else(PoisonError::into_inner).as_ref());
    }

    fn take_off(&self, shared: Option<&Place>) {
        self.proxied.fetch_sub(1, Relaxed);
        if let Some(place) = shared {
            place.word().fetch_sub(Active::PROXIED, Relaxed);
        }
    }

    /// Counts an attempt to reach the backend that failed.
    pub fn attempt_failed(&self) {
        self.with_failing(|failing| failing.fetch_add(1, Relaxed));
    }

    /// Counts one that did not: none has failed since.
    pub fn attempt_succeeded(&self) {
        self.with_failing(|failing| {
            if failing.load(Relaxed) != 0 {
                failing.store(0, Relaxed);
            }
        });
    }

    /// Attempts of all rungs that failed since the last one that did not.
    pub fn failing(&self) -> u32 {
        self.with_failing(|failing| failing.load(Relaxed).min(u32::MAX.into()) as u32)
    }

    fn with_failing<T>(&self, with: impl FnOnce(&AtomicU64) -> T) -> T {
        match &*self.shared.read().unwrap_or_else(PoisonError::into_inner) {
            Some(place) => with(place.failing()),
            None => with(&self.failing),
        }
    }

    /// The proxy's alone.
    pub fn proxied(&self) -> u64 {
        self.proxied.load(Relaxed)
    }

    /// All.
    pub fn sum(&self) -> u64 {
        match &*self.shared.read().unwrap_or_else(PoisonError::into_inner) {
            Some(place) => Active::sum(place.word().load(Relaxed)),
            None => self.proxied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_enter_than_may() {
        let count = ActiveCount::default();
        assert!(count.enter() && count.enter());
        count.set_limit(Some(2));
        assert!(!count.enter(), "there are two");
        count.leave();
        assert!(count.enter());
        assert_eq!((count.sum(), count.proxied()), (2, 2));
        count.set_limit(Some(1));
        assert!(!count.enter());
        assert_eq!(count.sum(), 2, "open ones stay");
        count.set_limit(None);
        assert!(count.enter());
    }
}
