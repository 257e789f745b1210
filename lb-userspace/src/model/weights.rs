//! Weights of other systems are larger numbers than Headgate's, which are 1 to 256.

const MOST: u64 = 256;

/// The weights in Headgate's range with the same proportions, and whether that is exact.
pub fn fit(weights: &[u64]) -> (Vec<u32>, bool) {
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    let most = weights.iter().copied().max().unwrap_or(1);
    let exact = most / divisor <= MOST;
    // As they are written, where that is possible.
    let divisor = if most <= MOST { 1 } else { divisor };
    let fit = |weight: &u64| {
        let fitted = if exact {
            weight / divisor
        } else {
            // In 128 bits, nothing overflows.
            let scaled = (u128::from(*weight) * u128::from(MOST) + u128::from(most) / 2) / u128::from(most);
            u64::try_from(scaled).unwrap_or(MOST)
        };
        u32::try_from(fitted.clamp(1, MOST)).unwrap_or(1)
    };
    (weights.iter().map(fit).collect(), exact)
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn weights_in_range_stay() {
        assert_eq!(fit(&[1, 2, 256]), (vec![1, 2, 256], true));
        assert_eq!(fit(&[100, 200]), (vec![100, 200], true));
        assert_eq!(fit(&[]), (vec![], true));
    }

    #[test]
    fn a_common_divisor_is_exact() {
        assert_eq!(fit(&[1000, 2000, 500]), (vec![2, 4, 1], true));
        assert_eq!(fit(&[4_294_967_295, 4_294_967_295]), (vec![1, 1], true));
    }

    #[test]
    fn others_are_rounded_and_never_nothing() {
        assert_eq!(fit(&[1000, 1, 501]), (vec![256, 1, 128], false));
        assert_eq!(fit(&[8_589_934_590, 1]), (vec![256, 1], false));
    }
}
