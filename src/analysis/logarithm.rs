//! ln(1 + x) of many numbers at once: most of what a tick costs.
//!
//! The one of the system's library takes one number at a time, and its last bits depend on the system. This
//! one is additions, multiplications and a division without a branch, so that a compiler does several side by
//! side and the same bits come out everywhere.
//!
//! `1 + x` is `2^k · m` with `m` between √½ and √2, and with `s = (m − 1)/(m + 1)`
//!
//! `ln(1 + x) = k·ln 2 + 2·(s + s³/3 + s⁵/5 + …)`
//!
//! (Abramowitz & Stegun, *Handbook of Mathematical Functions*, 4.1.27), where |s| < 0.172, so that what comes after
//! ten terms is below 3·10⁻¹⁷ of their sum. What is lost in rounding `1 + x` is added divided by `1 + x`, as the
//! first term of the logarithm's own series: that is what makes it right for a tiny `x`. It is known exactly below
//! 1, and above that hardly matters.

use std::f64::consts::{LN_2, SQRT_2};

/// ln(1 + x) of each `x`, which are over −1 and at most 10¹⁵, to within four units in the last place.
#[inline]
pub(super) fn ln_1p<const N: usize>(numbers: &[f64; N]) -> [f64; N] {
    let mut logarithms = [0.0; N];
    for (logarithm, number) in logarithms.iter_mut().zip(numbers) {
        *logarithm = of(*number);
    }
    logarithms
}

#[inline(always)]
fn of(x: f64) -> f64 {
    let sum = 1.0 + x;
    let lost = x - (sum - 1.0);

    // k + 1023 in the place of an exponent, with m's beginning at √½.
    let shifted = sum.to_bits().wrapping_sub(ROOT_OF_HALF) & EXPONENT;
    let m = f64::from_bits(sum.to_bits().wrapping_sub(shifted).wrapping_add(ONE));
    // An integer below 2⁵² is the mantissa of itself plus 2⁵².
    let k = f64::from_bits(shifted >> MANTISSA_BITS | TWO_TO_52) - (4_503_599_627_370_496.0 + 1_023.0);
    // 1/m is near enough to 2 − m, since little is lost.
    let inverse = f64::from_bits((2 * ONE).wrapping_sub(shifted)) * (2.0 - m);

    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    // 1/3 + s²/5 + s⁴/7 + …, in pairs that do not wait for each other.
    let pair = |n: usize| TERMS[n] + square * TERMS[n + 1];
    let fourth = square * square;
    let series =
        pair(0) + fourth * pair(2) + fourth * fourth * (pair(4) + fourth * (pair(6) + fourth * TERMS[8]));
    k * LN_2 + (2.0 * s + (2.0 * s * square * series + lost * inverse))
}

/// 1/3, 1/5 … 1/19.
const TERMS: [f64; 9] =
    [1.0 / 3.0, 1.0 / 5.0, 1.0 / 7.0, 1.0 / 9.0, 1.0 / 11.0, 1.0 / 13.0, 1.0 / 15.0, 1.0 / 17.0, 1.0 / 19.0];

const MANTISSA_BITS: u32 = f64::MANTISSA_DIGITS - 1;
const EXPONENT: u64 = 0xfff << MANTISSA_BITS;
/// The bits of 1, which are the exponent's bias.
const ONE: u64 = 1.0_f64.to_bits();
/// The bits of √½, less the bias.
const ROOT_OF_HALF: u64 = (SQRT_2 / 2.0).to_bits().wrapping_sub(ONE);
/// The exponent of 2⁵².
const TWO_TO_52: u64 = 4_503_599_627_370_496.0_f64.to_bits();

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assert_right(x: f64) {
        let ([ours], theirs) = (ln_1p(&[x]), x.ln_1p());
        let off = (ours - theirs).abs();
        assert!(off <= 4.0 * f64::EPSILON * theirs.abs(), "ln(1 + {x:e}) is {ours:e}, not {theirs:e}");
    }

    #[test]
    fn what_is_exact_is_exact() {
        assert_eq!(ln_1p(&[0.0, 1.0, 3.0, -0.5]), [0.0, LN_2, 2.0 * LN_2, -LN_2]);
    }

    #[test]
    fn ends_of_what_is_reduced_are_right() {
        for power in -9..50 {
            let middle = SQRT_2 * 2.0_f64.powi(power) - 1.0;
            for x in [middle.next_down(), middle, middle.next_up()] {
                assert_right(x);
            }
        }
        for x in [f64::MIN_POSITIVE, -f64::MIN_POSITIVE, f64::EPSILON, (-1.0_f64).next_up(), 1e15] {
            assert_right(x);
        }
    }

    proptest! {
        #[test]
        fn every_size_is_right(exponent in -60.0_f64..50.0, is_negative in any::<bool>()) {
            let x = exponent.exp2();
            assert_right(if is_negative { -x.min(0.999_999) } else { x });
        }
    }
}
