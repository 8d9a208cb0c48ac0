//! Least-squares search for scales and minima: what the quantizers share.
//!
//! Everything works on *lanes*: `L` independent problems side by side, so that loops over lanes become vector
//! instructions and no sum has to be folded across a vector. A lane is one group of a super-block, or one of several
//! starting points for the same group ([`spread`]). A tile is `N` rows of `L` lanes: row i holds the i-th value of
//! every lane's group.
//!
//! For fixed integers the best scale has a closed form, and for a fixed scale the best integers are the nearest ones.
//! Alternating between the two never increases the error (Lloyd's algorithm with levels tied to one or two parameters),
//! but it stops at local minima, hence several starting points.
//!
//! Only additions, multiplications, divisions and comparisons in a fixed order: the same bits on every CPU.

use crate::block::{f16_to_f32, f32_to_f16};

/// Values and their weights for `L` groups of `N` values.
pub(crate) struct Tile<const N: usize, const L: usize> {
    /// Values, scaled by a power of two so that the largest magnitude is between 1 and 2.
    pub x: [[f32; L]; N],
    /// Weights of the squared errors, positive.
    pub w: [[f32; L]; N],
    /// What a value of `x` is multiplied with to be in the units of the source.
    pub unit: f32,
}

/// The integers (or other levels) that a format stores.
pub(crate) trait Levels {
    /// The level nearest to `t`, which may be infinite but not NaN.
    fn nearest(t: f32) -> f32;
}

/// All integers from `LO` to `HI`.
pub(crate) struct Ints<const LO: i32, const HI: i32>;

impl<const LO: i32, const HI: i32> Levels for Ints<LO, HI> {
    #[inline(always)]
    fn nearest(t: f32) -> f32 {
        round(clamp(t, LO as f32, HI as f32))
    }
}

/// Rounds to the nearest integer, ties to even, for magnitudes below 2²². Plain arithmetic, because
/// `f32::round_ties_even` is a library call on CPUs without SSE4.1.
#[inline(always)]
pub(crate) fn round(t: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³: the sum's last place is 1.
    (t + MAGIC) - MAGIC
}

/// `t` between `lo` and `hi`, as two instructions; `f32::clamp` and `f32::max` spend more on NaN.
#[inline(always)]
pub(crate) fn clamp(t: f32, lo: f32, hi: f32) -> f32 {
    let t = if t > lo { t } else { lo };
    if t < hi { t } else { hi }
}

/// `1 / s`, or 0 where `s` is 0.
#[inline(always)]
pub(crate) fn inverse<const L: usize>(s: &[f32; L]) -> [f32; L] {
    std::array::from_fn(|l| ratio(1.0, s[l]))
}

/// `a / b`, or 0 where `b` is 0.
#[inline(always)]
pub(crate) fn ratio(a: f32, b: f32) -> f32 {
    let quotient = a / if b == 0.0 { 1.0 } else { b };
    if b == 0.0 { 0.0 } else { quotient }
}

/// The lane with the least value; the first of equals.
#[inline(always)]
pub(crate) fn least<const L: usize>(values: &[f32; L]) -> usize {
    let mut best = 0;
    for l in 1..L {
        best = if values[l] < values[best] { l } else { best };
    }
    best
}

/// Sum of lanes, in a fixed order.
#[inline(always)]
pub(crate) fn total<const L: usize>(values: &[f32; L]) -> f32 {
    let mut sums = *values;
    let mut n = L / 2;
    while n > 0 {
        for l in 0..n {
            sums[l] += sums[l + n];
        }
        n /= 2;
    }
    sums[0]
}

/// The largest magnitude.
#[inline(always)]
pub(crate) fn peak(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for chunk in values.chunks_exact(16) {
        for l in 0..16 {
            let a = chunk[l].abs();
            lanes[l] = if a > lanes[l] { a } else { lanes[l] };
        }
    }
    lanes.iter().fold(0.0, |m, &a| if a > m { a } else { m })
}

/// Factors that bring `src` near 1 and back, both powers of two; `None` if every value is so small that any
/// half-precision scale for it would be zero.
#[inline(always)]
fn units(src: &[f32]) -> Option<(f32, f32)> {
    let exponent = (peak(src).to_bits() >> 23) as i32 - 127;
    if exponent < -40 {
        return None;
    }
    // 2¹²⁷ has no normal inverse: values up there are left a little above 2.
    let exponent = exponent.min(126) as u32;
    let power = |e: u32| f32::from_bits(127u32.wrapping_add(e) << 23);
    Some((power(exponent.wrapping_neg()), power(exponent)))
}

/// Factors that make weights at most 1 and positive: the scale, and a floor that gives values without weight a say
/// where nothing else has one. Weights that are negative or not numbers count as 0.
#[inline(always)]
fn weight_units(importance: &[f32]) -> (f32, f32) {
    const FLOOR: f32 = 1.0 / (1u32 << 30) as f32;
    let most = importance.iter().fold(0f32, |m, &w| if w > m { w } else { m });
    if most < f32::MIN_POSITIVE { (0.0, 1.0) } else { (1.0 / most.min(1e38), FLOOR) }
}

#[inline(always)]
fn weight(w: f32, (scale, floor): (f32, f32)) -> f32 {
    clamp(w * scale, 0.0, 1.0) + floor
}

impl<const N: usize, const L: usize> Tile<N, L> {
    /// Puts `L` groups of `N` values beside each other. `None` if every value rounds to zero.
    #[inline(always)]
    pub fn of_groups(src: &[f32], importance: Option<&[f32]>) -> Option<Self> {
        let (down, unit) = units(src)?;
        let src = &src[..N * L];
        let x = std::array::from_fn(|i| std::array::from_fn(|l| src[l * N + i] * down));
        let mut tile = Tile { x, w: [[1.0; L]; N], unit };
        if let Some(importance) = importance {
            let importance = &importance[..N * L];
            let factors = weight_units(importance);
            tile.w = std::array::from_fn(|i| std::array::from_fn(|l| weight(importance[l * N + i], factors)));
        }
        Some(tile)
    }

    /// Puts the same `N` values into every lane. `None` if every value rounds to zero.
    #[inline(always)]
    pub fn spread(src: &[f32], importance: Option<&[f32]>) -> Option<Self> {
        let (down, unit) = units(src)?;
        let src = &src[..N];
        let mut tile = Tile { x: std::array::from_fn(|i| [src[i] * down; L]), w: [[1.0; L]; N], unit };
        if let Some(importance) = importance {
            let importance = &importance[..N];
            let factors = weight_units(importance);
            tile.w = std::array::from_fn(|i| [weight(importance[i], factors); L]);
        }
        Some(tile)
    }

    /// For each lane the value with the largest magnitude, with its sign.
    #[inline(always)]
    pub fn peaks(&self) -> [f32; L] {
        let mut best = [0f32; L];
        for x in &self.x {
            for l in 0..L {
                best[l] = if x[l].abs() > best[l].abs() { x[l] } else { best[l] };
            }
        }
        best
    }

    /// `Σ w·x·q` and `Σ w·q²` for each lane, with q the level nearest to `x · inverse`. The best scale for these
    /// levels is their [`ratio`], and it lowers the error from `Σ w·x²` by `(Σ w·x·q)² / Σ w·q²`.
    #[inline(always)]
    pub fn scale_sums<Q: Levels>(&self, inverse: &[f32; L]) -> ([f32; L], [f32; L]) {
        let (mut xq, mut qq) = ([0f32; L], [0f32; L]);
        for (x, w) in self.x.iter().zip(&self.w) {
            for l in 0..L {
                let q = Q::nearest(x[l] * inverse[l]);
                let wq = w[l] * q;
                xq[l] += wq * x[l];
                qq[l] += wq * q;
            }
        }
        (xq, qq)
    }

    /// `Σ w·(x − scale·q)²` for each lane, with the nearest levels.
    #[inline(always)]
    pub fn scale_error<Q: Levels>(&self, scale: &[f32; L]) -> [f32; L] {
        let inverse = inverse(scale);
        let mut error = [0f32; L];
        for (x, w) in self.x.iter().zip(&self.w) {
            for l in 0..L {
                let e = x[l] - scale[l] * Q::nearest(x[l] * inverse[l]);
                error[l] += w[l] * (e * e);
            }
        }
        error
    }

    /// The nearest levels for `scale · q − min`, row by row.
    #[inline(always)]
    pub fn levels<Q: Levels>(&self, scale: &[f32; L], min: &[f32; L]) -> [[f32; L]; N] {
        let inverse = inverse(scale);
        std::array::from_fn(|i| std::array::from_fn(|l| Q::nearest((self.x[i][l] + min[l]) * inverse[l])))
    }

    /// A parameter as it is stored: in the units of the source and in half precision.
    #[inline(always)]
    pub fn half(&self, parameter: f32) -> u16 {
        f32_to_f16(parameter * self.unit)
    }

    /// What becomes of a parameter by being stored in half precision.
    #[inline(always)]
    pub fn stored(&self, parameter: f32) -> f32 {
        f16_to_f32(self.half(parameter)) * (1.0 / self.unit)
    }
}
