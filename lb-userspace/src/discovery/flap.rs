//! Damping of endpoints that keep coming and going, as where each answer holds another part of the whole.
//!
//! An endpoint that came back into the answers [`RETURNS`] times within [`WINDOW`] stays in the set for [`HOLD`]
//! after an answer without it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

pub(super) const RETURNS: usize = 3;
pub(super) const WINDOW: Duration = Duration::from_secs(60);
pub(super) const HOLD: Duration = Duration::from_secs(30);

/// Endpoints remembered at most, present and gone ones.
const MAX_HISTORIES: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct FlapGuard {
    /// In the answers now, with their weights.
    present: BTreeMap<SocketAddr, u32>,
    histories: BTreeMap<SocketAddr, History>,
}

#[derive(Debug, Default)]
struct History {
    gone_at: Option<Duration>,
    /// When it came back, within the window.
    returns: VecDeque<Duration>,
    /// Held until then, with this weight.
    held: Option<(Duration, u32)>,
    /// Its holding was told of.
    told: bool,
}

impl FlapGuard {
    /// Takes what the answers say now; gives the endpoints whose holding begins, with the times they came back.
    pub(super) fn update(
        &mut self,
        now: Duration,
        answered: &BTreeMap<SocketAddr, u32>,
    ) -> Vec<(SocketAddr, usize)> {
        for (address, history) in &mut self.histories {
            history.returns.retain(|at| now.saturating_sub(*at) < WINDOW);
            history.told &= history.returns.len() >= RETURNS;
            history.held = history.held.filter(|(until, _)| now < *until);
            if answered.contains_key(address) && history.gone_at.take().is_some() {
                history.returns.push_back(now);
                history.held = None;
            }
        }
        let mut begun = Vec::new();
        for (address, weight) in self.present.iter().filter(|(address, _)| !answered.contains_key(address)) {
            if self.histories.len() >= MAX_HISTORIES && !self.histories.contains_key(address) {
                continue;
            }
            let history = self.histories.entry(*address).or_default();
            history.gone_at = Some(now);
            if history.returns.len() >= RETURNS {
                history.held = Some((now + HOLD, *weight));
                if !history.told {
                    history.told = true;
                    begun.push((*address, history.returns.len()));
                }
            }
        }
        self.histories.retain(|_, history| {
            let left_lately = history.gone_at.is_some_and(|at| now.saturating_sub(at) < WINDOW);
            left_lately || !history.returns.is_empty() || history.held.is_some()
        });
        self.present.clone_from(answered);
        begun
    }

    /// The endpoints that are held, with their weights.
    pub(super) fn held(&self) -> impl Iterator<Item = (SocketAddr, u32)> + '_ {
        self.histories.iter().filter_map(|(address, history)| Some((*address, history.held?.1)))
    }

    /// When the first holding ends.
    pub(super) fn next_release(&self) -> Option<Duration> {
        self.histories.values().filter_map(|history| history.held).map(|(until, _)| until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn answer(there: bool) -> BTreeMap<SocketAddr, u32> {
        let address = "192.0.2.1:80".parse().unwrap();
        if there { BTreeMap::from([(address, 7)]) } else { BTreeMap::new() }
    }

    #[test]
    fn three_returns_within_a_minute_hold_for_half_a_minute() {
        let mut guard = FlapGuard::default();
        for second in 0..6 {
            assert_eq!(guard.update(S * second, &answer(second % 2 == 0)), []);
            assert_eq!(guard.held().count(), 0, "{second}");
        }
        assert_eq!(guard.update(S * 6, &answer(true)), []);
        assert_eq!(guard.update(S * 7, &answer(false)).len(), 1);
        assert_eq!(guard.held().map(|(_, weight)| weight).collect::<Vec<_>>(), [7]);
        // The same episode goes on without being told again.
        guard.update(S * 8, &answer(true));
        assert_eq!(guard.held().count(), 0);
        assert_eq!(guard.update(S * 9, &answer(false)), []);
        assert_eq!(guard.next_release(), Some(S * 39));
        guard.update(S * 38, &answer(false));
        assert_eq!(guard.held().count(), 1);
        guard.update(S * 39, &answer(false));
        assert_eq!(guard.held().count(), 0);
        // A minute later nothing is remembered.
        guard.update(S * 70, &answer(false));
        assert!(guard.histories.is_empty());
    }

    #[test]
    fn slow_changes_are_not_held() {
        let mut guard = FlapGuard::default();
        for round in 0..20 {
            guard.update(S * 25 * round, &answer(round % 2 == 0));
            assert_eq!(guard.held().count(), 0);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut guard = FlapGuard::default();
        for round in 0..20_u32 {
            let many = (0..4096_u32)
                .map(|n| (SocketAddr::new(std::net::Ipv4Addr::from(round << 16 | n).into(), 80), 1))
                .collect();
            guard.update(S / 10 * round, &many);
        }
        assert!(guard.histories.len() <= MAX_HISTORIES);
    }
}
