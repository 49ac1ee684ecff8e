//! What a sample shows of the rest.

/// The rule of three: of `n` pages none missed leaves at most `3 / n`, with 95 % confidence (`-ln 0.05` is 2.996).
const RULE_OF_THREE: f64 = 3.0;
/// The 95 % point of the normal distribution.
const NORMAL_95: f64 = 1.644_854;

/// The share of missed pages that would show so few misses only one time in twenty: the one-sided upper bound of 95 %.
///
/// Without a miss it is the rule of three. With some it is Byar's approximation of the exact bound of a Poisson count,
/// which lies within 1 % of it. It takes pages to be missed independently of each other, and does not pass 1.
#[must_use]
#[allow(
    clippy::cast_precision_loss,
    reason = "counts of pages stay far below what a 64-bit float holds exactly"
)]
pub fn upper_bound(misses: u64, pages: u64) -> f64 {
    if pages == 0 {
        return 1.0;
    }
    let bound = if misses == 0 {
        RULE_OF_THREE
    } else {
        let next = (misses + 1) as f64;
        next * (1.0 - 1.0 / (9.0 * next) + NORMAL_95 / (3.0 * next.sqrt())).powi(3)
    };
    (bound / pages as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chance of at most so many, if that many are expected.
    fn poisson_up_to(misses: u32, expected: f64) -> f64 {
        let mut term = (-expected).exp();
        let mut sum = term;
        for count in 1..=misses {
            term *= expected / f64::from(count);
            sum += term;
        }
        sum
    }

    #[test]
    fn it_is_the_exact_bound_within_a_hundredth() {
        for misses in [0, 1, 2, 5, 20, 100] {
            let expected = upper_bound(u64::from(misses), 1_000_000) * 1e6;
            // The exact bound is where this chance is 0.05: above it less likely, below it likelier.
            assert!(poisson_up_to(misses, expected * 1.01) < 0.05, "{misses}");
            assert!(poisson_up_to(misses, expected * 0.99) > 0.05, "{misses}");
        }
    }

    #[test]
    fn without_pages_nothing_is_known_and_a_share_is_at_most_all() {
        assert!((upper_bound(0, 0) - 1.0).abs() < f64::EPSILON);
        assert!((upper_bound(64, 64) - 1.0).abs() < f64::EPSILON);
        assert!((upper_bound(0, 300) - 0.01).abs() < 1e-9);
    }
}
