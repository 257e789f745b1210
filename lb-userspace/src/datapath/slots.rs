//! Room in the slot table: a new window is written beside the old one, which rests before its place is used again.

use std::time::{Duration, Instant};

use lb_common::tables::Window;

/// How long a packet may still read a window that was switched away; a program runs for microseconds.
pub const REST: Duration = Duration::from_secs(1);

/// Which parts of the slot table are taken.
pub struct SlotSpace {
    size: u32,
    /// In use, or at rest since.
    taken: Vec<(Window, Option<Instant>)>,
}

impl SlotSpace {
    /// A table of `size` slots, of which `windows` are in use.
    pub fn new(size: u32, windows: impl IntoIterator<Item = Window>) -> Self {
        let taken =
            windows.into_iter().filter(|window| window.count > 0).map(|window| (window, None)).collect();
        Self { size, taken }
    }

    /// The lowest place for `count` slots; `None`: the table is too full or too fragmented.
    pub fn take(&mut self, count: u32, now: Instant) -> Option<Window> {
        self.taken.retain(|(_, resting)| resting.is_none_or(|since| now.duration_since(since) < REST));
        self.taken.sort_by_key(|(window, _)| window.first);
        let mut first = 0;
        for (window, _) in &self.taken {
            if window.first - first >= count {
                break;
            }
            first = window.first + window.count;
        }
        if self.size - first < count {
            return None;
        }
        let window = Window { first, count };
        self.taken.push((window, None));
        Some(window)
    }

    /// Gives a window's place back, after a rest.
    pub fn release(&mut self, window: Window, now: Instant) {
        if let Some(entry) = self.taken.iter_mut().find(|(taken, _)| *taken == window) {
            entry.1 = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_place_rests_and_then_is_used_again() {
        let start = Instant::now();
        let mut space = SlotSpace::new(100, []);
        let first = space.take(60, start).unwrap();
        assert_eq!(first, Window { first: 0, count: 60 });
        space.release(first, start);
        assert_eq!(space.take(60, start), None, "still at rest");
        assert_eq!(space.take(40, start).unwrap().first, 60);
        assert_eq!(space.take(60, start + REST).unwrap().first, 0);
    }

    #[test]
    fn gaps_are_filled() {
        let now = Instant::now();
        let taken = [Window { first: 10, count: 10 }, Window { first: 40, count: 60 }];
        let mut space = SlotSpace::new(100, taken);
        assert_eq!(space.take(20, now).unwrap().first, 20);
        assert_eq!(space.take(10, now).unwrap().first, 0);
        assert_eq!(space.take(1, now), None);
    }
}
