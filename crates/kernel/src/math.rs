//! Elementary functions in plain arithmetic, so that loops over them are vectorized at every level and give the same
//! bits at each.

/// The exponential function; relative error below 2⁻²² (the polynomial of Cephes' `expf`, Moshier 1992, on
/// ±ln 2 / 2, plus the rounding of two products). 0 below −87.3 and the largest power below overflow above 88.7.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.3, 88.7);
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let y = p * (r * r) + r + 1.0;
    // `n` is an integer in −126 … 128; 2ⁿ is made in two halves so that 128 does not overflow. The integer is read off
    // the mantissa: a conversion checks for NaN and range value by value, and there `y` is NaN already.
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |e: i32| f32::from_bits((e.wrapping_add(127) << 23) as u32);
    let value = y * power(half) * power(n.wrapping_sub(half));
    if x < -87.3 { 0.0 } else { value }
}

/// The hyperbolic tangent; relative error below 2⁻²⁰ (the polynomial of Cephes' `tanhf`, Moshier 1992, where the
/// difference of exponentials would lose it).
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let q = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * q + 2.063_909e-2;
    p = p * q - 5.373_971_6e-2;
    p = p * q + 1.333_144_2e-1;
    p = p * q - 3.333_328e-1;
    let near = p * q * x + x;
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.625 { near } else { far }
}

/// `1 / (1 + exp(−x))`
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x · sigmoid(x)`
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `ln(1 + exp(x))`; relative error below 2⁻²⁰ down to −87.3, where the result becomes 0.
#[inline(always)]
pub(crate) fn softplus(x: f32) -> f32 {
    // ln(1 + u) = 2 artanh(u / (2 + u)) for u = exp(−|x|), and the quotient is at most 1/3: eight terms of artanh's
    // series leave less than 2⁻²⁵ of the sum.
    let u = exp(-x.abs());
    let s = u / (2.0 + u);
    let q = s * s;
    let mut p = 1.0 / 15.0;
    p = p * q + 1.0 / 13.0;
    p = p * q + 1.0 / 11.0;
    p = p * q + 1.0 / 9.0;
    p = p * q + 1.0 / 7.0;
    p = p * q + 1.0 / 5.0;
    p = p * q + 1.0 / 3.0;
    p = p * q + 1.0;
    x.max(0.0) + 2.0 * s * p
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_bound() {
        let mut worst = 0f64;
        for i in -870_000..=886_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - want) / want).abs());
        }
        assert!(worst < 2f64.powi(-22), "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
        assert!(exp(1000.0) > 1e38);
    }

    #[test]
    fn tanh_keeps_its_relative_precision_and_saturates() {
        for i in -200_000..=200_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).tanh();
            assert!((f64::from(tanh(x)) - want).abs() <= want.abs() * 2f64.powi(-20), "{x}");
        }
        assert!(tanh(f32::NAN).is_nan());
        assert_eq!(tanh(100.0), 1.0);
    }

    #[test]
    fn softplus_keeps_its_relative_precision() {
        let mut worst = 0f64;
        for i in -870_000..=1_000_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp().ln_1p();
            worst = worst.max(((f64::from(softplus(x)) - want) / want).abs());
        }
        assert!(worst < 2f64.powi(-20), "{worst:e}");
        assert!(softplus(f32::NAN).is_nan());
        assert_eq!(softplus(1e30), 1e30);
    }
}
