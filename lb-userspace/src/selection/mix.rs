//! Shares of connections as weights of one order.

/// What the weights of a mixture add up to: so much for each item, within bounds.
const FOR_EACH: u64 = 100;
const LEAST: u64 = 1_000;
const MOST: u64 = 50_000;

/// The items of all shares, each with a weight, so that each share has its own, however many items it has. A share without
/// any leaves the connections to the others.
pub fn mix<T>(shares: Vec<(u32, Vec<(T, u32)>)>) -> Vec<(T, u32)> {
    if shares.len() == 1 {
        return shares.into_iter().flat_map(|(_, items)| items).collect();
    }
    let used = shares.iter().filter(|(_, items)| !items.is_empty());
    let all: u64 = used.map(|(weight, _)| u64::from(*weight)).sum();
    let count: usize = shares.iter().map(|(_, items)| items.len()).sum();
    let total = (FOR_EACH * count as u64).clamp(LEAST, MOST);
    let mut mixed = Vec::with_capacity(count);
    for (weight, items) in shares {
        let share = (total * u64::from(weight) / all.max(1)).max(1);
        let sum: u64 = items.iter().map(|(_, weight)| u64::from(*weight)).sum();
        // Rounded so that they add up to the share; some of very many in a small one have none.
        let (mut before, mut given) = (0, 0);
        for (item, weight) in items {
            before += u64::from(weight);
            let weight = share * before / sum - given;
            given += weight;
            if weight > 0 {
                mixed.push((item, weight as u32));
            }
        }
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(first: u32, weights: &[u32]) -> Vec<(u32, u32)> {
        weights.iter().enumerate().map(|(at, &weight)| (first + at as u32, weight)).collect()
    }

    fn sum(mixed: &[(u32, u32)], of: std::ops::Range<u32>) -> u64 {
        mixed.iter().filter(|(item, _)| of.contains(item)).map(|(_, weight)| u64::from(*weight)).sum()
    }

    #[test]
    fn shares_have_their_weights_however_many_they_have() {
        for (many, few, weights) in
            [(1, 1, (1, 3)), (500, 1, (1, 99)), (2_000, 2_000, (90, 10)), (3, 0, (1, 9))]
        {
            let shares =
                vec![(weights.0, items(0, &vec![1; many])), (weights.1, items(10_000, &vec![1; few]))];
            let mixed = mix(shares);
            let (first, second) = (sum(&mixed, 0..10_000), sum(&mixed, 10_000..20_000));
            if few == 0 {
                assert_eq!(second, 0);
                continue;
            }
            let share = first as f64 / (first + second) as f64;
            let wanted = f64::from(weights.0) / f64::from(weights.0 + weights.1);
            assert!((share - wanted).abs() < 0.002, "{share} instead of {wanted}");
        }
    }

    #[test]
    fn within_a_share_weights_hold() {
        let mixed = mix(vec![(1, items(0, &[1, 3])), (1, items(10, &[1]))]);
        assert_eq!(sum(&mixed, 1..2), 3 * sum(&mixed, 0..1));
        assert_eq!(sum(&mixed, 0..2), sum(&mixed, 10..11));
    }

    #[test]
    fn one_share_is_left_as_it_is() {
        let alone = items(0, &[1, 200]);
        assert_eq!(mix(vec![(7, alone.clone())]), alone);
    }
}
