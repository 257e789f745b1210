//! The slot windows of a cluster: Maglev tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network
//! Load Balancer", NSDI 2016, section 3.4) and smooth weighted orders.

use crate::balance::mix;

/// Slots of a Maglev table: a prime above 65,536 and, with 655 backends, still a hundred slots for each.
pub const TABLE_SIZE: u32 = 65_537;
/// Slots of a smooth weighted order at the most; weights are scaled down to fit.
pub const MAX_ORDER: u32 = 65_536;

/// A backend to place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What is written into its slots.
    pub index: u32,
    /// Names the backend alike on every node and over restarts: a hash of its address and port.
    pub identity: u64,
    /// Share of the slots, at least 1.
    pub weight: u32,
}

/// [`Candidate::identity`] of an address (see [`crate::Address::to_words`]) and a port (host order).
pub fn identity(address: [u32; 4], port: u16) -> u64 {
    address.iter().fold(port as u64, |hash, word| mix(hash ^ u32::from_be(*word) as u64))
}

/// A Maglev table of [`TABLE_SIZE`] slots; empty without candidates. The order of `candidates` does not matter.
///
/// A backend of weight w takes w slots where one of weight 1 takes one (as fractions of the largest weight, so
/// that every round of the paper's loop fills at most one slot for each).
pub fn table(candidates: &[Candidate]) -> Vec<u32> {
    if candidates.is_empty() {
        return Vec::new();
    }
    let mut candidates = candidates.to_vec();
    candidates.sort_by_key(|candidate| candidate.identity);
    let size = TABLE_SIZE as u64;
    let largest = candidates.iter().map(|candidate| candidate.weight).max().unwrap_or(1).max(1) as u64;

    struct Cursor {
        index: u32,
        position: u32,
        skip: u32,
        weight: u64,
        credit: u64,
    }
    let mut cursors: Vec<Cursor> = candidates
        .iter()
        .map(|candidate| Cursor {
            index: candidate.index,
            position: (candidate.identity % size) as u32,
            skip: (mix(candidate.identity ^ 0x5bd1_e995) % (size - 1) + 1) as u32,
            weight: candidate.weight.max(1) as u64,
            credit: 0,
        })
        .collect();

    let mut slots = vec![0; TABLE_SIZE as usize];
    // A bit for each slot that is filled: a slot is looked at eleven times, and this is small enough for the first cache.
    let mut taken = vec![0u64; (TABLE_SIZE as usize).div_ceil(64)];
    let mut filled = 0;
    loop {
        for cursor in &mut cursors {
            cursor.credit += cursor.weight;
            if cursor.credit < largest {
                continue;
            }
            cursor.credit -= largest;
            while taken[cursor.position as usize / 64] >> (cursor.position % 64) & 1 == 1 {
                cursor.position += cursor.skip;
                if cursor.position >= TABLE_SIZE {
                    cursor.position -= TABLE_SIZE;
                }
            }
            taken[cursor.position as usize / 64] |= 1 << (cursor.position % 64);
            slots[cursor.position as usize] = cursor.index;
            filled += 1;
            if filled == TABLE_SIZE {
                return slots;
            }
        }
    }
}

/// A smooth weighted order: over one round each backend appears as often as its weight says, in even steps (the turns of
/// earliest deadline first scheduling). Backends begin at different places of their first step, or light ones would follow
/// each other.
pub fn order(candidates: &[Candidate]) -> Vec<u32> {
    /// The golden ratio as a fraction of 2^32: multiples of it spread over a step, however many they are.
    const SPREAD: u32 = 0x9e37_79b9;
    let divisor =
        candidates.iter().fold(0, |divisor, candidate| gcd(divisor, candidate.weight.max(1))).max(1);
    let mut weights: Vec<u64> =
        candidates.iter().map(|candidate| (candidate.weight.max(1) / divisor).into()).collect();
    if weights.iter().all(|weight| *weight == 1) {
        return candidates.iter().map(|candidate| candidate.index).collect();
    }
    let total: u64 = weights.iter().sum();
    if total > MAX_ORDER as u64 {
        let scale = MAX_ORDER as u64 - candidates.len() as u64;
        for weight in &mut weights {
            *weight = (*weight * scale / total).max(1);
        }
    }
    let mut turns = Vec::with_capacity(total.min(MAX_ORDER.into()) as usize);
    for (at, (candidate, &weight)) in candidates.iter().zip(&weights).enumerate() {
        let begin: u64 = (1u32 << 31).wrapping_add(SPREAD.wrapping_mul(at as u32)).into();
        turns.extend((0..weight).map(|turn| ((turn << 32 | begin) / weight, candidate.index)));
    }
    // Stable: of those that come at the same time the first candidate is first.
    turns.sort_by_key(|(deadline, _)| *deadline);
    turns.into_iter().map(|(_, index)| index).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backends(count: u32) -> Vec<Candidate> {
        (0..count)
            .map(|n| {
                let address = [(0x0a00_0000 + n).to_be(), 0, 0, 0];
                Candidate { index: n + 1, identity: identity(address, 8080), weight: 1 }
            })
            .collect()
    }

    fn shares(slots: &[u32], count: u32) -> Vec<u32> {
        let mut shares = vec![0; count as usize + 1];
        for &slot in slots {
            shares[slot as usize] += 1;
        }
        shares.remove(0);
        shares
    }

    #[test]
    fn equal_weights_share_alike() {
        // The paper: with M > 100 N the imbalance stays within 1 %; the turns differ by one slot at the most.
        for count in [1, 2, 3, 10, 100, 600] {
            let shares = shares(&table(&backends(count)), count);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{count} backends: {least} to {most}");
        }
    }

    #[test]
    fn weights_are_kept() {
        let mut candidates = backends(3);
        candidates[0].weight = 1;
        candidates[1].weight = 2;
        candidates[2].weight = 5;
        let shares = shares(&table(&candidates), 3);
        for (share, weight) in shares.iter().zip([1.0, 2.0, 5.0]) {
            let wanted = TABLE_SIZE as f64 * weight / 8.0;
            assert!((*share as f64 - wanted).abs() < wanted * 0.01, "{share} instead of {wanted}");
        }
    }

    #[test]
    fn one_backend_less_moves_little_more_than_its_own_share() {
        // Figure 11 of the paper: a few percent of the entries change besides those of the backend that left.
        let before = table(&backends(100));
        let after = table(&backends(99));
        let moved = before.iter().zip(&after).filter(|(b, a)| **b != 100 && b != a).count();
        assert!(moved < TABLE_SIZE as usize / 20, "{moved} slots of other backends moved");
        assert!(after.iter().all(|&slot| slot != 100));
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let forward = backends(20);
        let mut backward = forward.clone();
        backward.reverse();
        assert_eq!(table(&forward), table(&backward));
    }

    #[test]
    fn light_ones_come_apart() {
        let mut candidates = backends(3);
        candidates[0].weight = 5;
        assert_eq!(order(&candidates), [1, 2, 1, 1, 1, 3, 1]);
    }

    #[test]
    fn heavy_weights_fit() {
        let mut candidates = backends(1000);
        for (n, candidate) in candidates.iter_mut().enumerate() {
            candidate.weight = 1 + (n as u32 * 7) % 256;
        }
        let order = order(&candidates);
        assert!(order.len() <= MAX_ORDER as usize);
        assert!(shares(&order, 1000).iter().all(|&share| share > 0));
    }

    proptest! {
        #[test]
        fn smooth_order_keeps_weights(weights in proptest::collection::vec(1u32..=256, 1..12)) {
            let mut candidates = backends(weights.len() as u32);
            for (candidate, weight) in candidates.iter_mut().zip(&weights) {
                candidate.weight = *weight;
            }
            let order = order(&candidates);
            let shares = shares(&order, weights.len() as u32);
            for (share, weight) in shares.iter().zip(&weights) {
                prop_assert_eq!(*share as u64 * weights.iter().sum::<u32>() as u64,
                    *weight as u64 * order.len() as u64);
            }
        }
    }
}
