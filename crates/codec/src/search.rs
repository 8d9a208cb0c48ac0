//! Least-squares search for scales and minima: what the quantizers share.
//!
//! Everything works on *lanes*: `L` independent problems side by side, so that loops over lanes become vector
//! instructions and no sum has to be folded across a vector. A lane is one group of a super-block, or one of several
//! starting points for the same group. A tile is `N` rows of `L` lanes: row i holds the i-th value of
//! every lane's group.
//!
//! For fixed integers the best scale has a closed form, and for a fixed scale the best integers are the nearest ones.
//! Alternating between the two never increases the error (Lloyd's algorithm with levels tied to one or two parameters),
//! but it stops at local minima, hence several starting points.
//!
//! Only additions, multiplications, divisions and comparisons in a fixed order: the same bits on every CPU.

use crate::block::{f16_to_f32, f32_to_f16};

/// Values and their weights for `P` groups of `N` values, or for one group (`P` = 1) that every lane shares.
/// `W` is `P`, or 0 where there are no weights: then all are 1 and cost nothing. With `HALVES`, lanes p and p + P/2 are
/// the first and the second half of a group: both hold the same parameters, and sums go over both. That keeps vectors of
/// 16 lanes full where there are 8 groups. One group (`P` = 1) may have fewer than `N` values.
pub(crate) struct Tile<const N: usize, const P: usize, const W: usize, const HALVES: bool> {
    /// Values, scaled by a power of two so that the largest magnitude is between 1 and 2.
    x: [[f32; P]; N],
    /// Weights of the squared errors, positive.
    w: [[f32; W]; N],
    /// What a value of `x` is multiplied with to be in the units of the source.
    pub unit: f32,
    /// Rows in use: `N`, or fewer for one group of a length that is not known when this is compiled.
    rows: usize,
}

/// Sums over a group for each lane, with q the levels: all that the best scale and minimum depend on.
pub(crate) struct Sums<const L: usize> {
    /// `Σ w·q`
    pub q: [f32; L],
    /// `Σ w·q²`
    pub qq: [f32; L],
    /// `Σ w·x·q`
    pub xq: [f32; L],
}

/// Starting points of a search, each the one that helps most beside those before it, on real weights: where to put the
/// largest value of a group among the levels. Equal weights want little to be clipped; given weights may want much.
pub(crate) struct Starts<T, const A: usize, const B: usize> {
    /// Without weights.
    pub plain: [T; A],
    /// With weights.
    pub weighted: [T; B],
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
    (t + MAGIC) - MAGIC
}

/// 1.5 · 2²³: the last place of a sum with it is 1.
pub(crate) const MAGIC: f32 = 12_582_912.0;

/// The integer that [`round`] gives. A cast would check each value for being out of range or NaN.
#[inline(always)]
pub(crate) fn integer(t: f32) -> i32 {
    (t + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32
}

/// The integer from `LO` to `HI` that is nearest to `t`.
#[inline(always)]
pub(crate) fn nearest<const LO: i32, const HI: i32>(t: f32) -> i32 {
    integer(clamp(t, LO as f32, HI as f32))
}

/// `t` between `lo` and `hi`, as two instructions; `f32::clamp` and `f32::max` spend more on NaN.
#[inline(always)]
pub(crate) fn clamp(t: f32, lo: f32, hi: f32) -> f32 {
    let t = if t > lo { t } else { lo };
    if t < hi { t } else { hi }
}

/// An array from what each of its lanes is; `std::array::from_fn` is not always inlined.
#[inline(always)]
pub(crate) fn lanes<const L: usize>(mut f: impl FnMut(usize) -> f32) -> [f32; L] {
    let mut out = [0f32; L];
    for (l, lane) in out.iter_mut().enumerate() {
        *lane = f(l);
    }
    out
}

/// `1 / s`, or 0 where `s` is 0.
#[inline(always)]
pub(crate) fn inverse<const L: usize>(s: &[f32; L]) -> [f32; L] {
    lanes(|l| ratio(1.0, s[l]))
}

/// `a / b`, or 0 where `b` is 0.
#[inline(always)]
pub(crate) fn ratio(a: f32, b: f32) -> f32 {
    let quotient = a / if b == 0.0 { 1.0 } else { b };
    if b == 0.0 { 0.0 } else { quotient }
}

/// The lane with the least of values that are not negative; of near equals (to 2⁻¹⁹) the first. Integer minima
/// vectorize where comparisons of floats do not.
#[inline(always)]
pub(crate) fn least<const L: usize>(values: &[f32; L]) -> usize {
    const { assert!(L <= 16) };
    let mut best = u32::MAX;
    for (l, v) in values.iter().enumerate() {
        best = best.min((v.to_bits() & !15) | l as u32);
    }
    (best & 15) as usize
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

/// The value with the largest magnitude. With the sign moved to the last place, floats order as integers.
#[inline(always)]
pub(crate) fn peak(values: &[f32]) -> f32 {
    let most = values.iter().fold(0, |most: u32, x| most.max(x.to_bits().rotate_left(1)));
    f32::from_bits(most.rotate_right(1))
}

/// Factors that bring `src` near 1 and back, both powers of two; `None` if every value is so small that any
/// half-precision scale for it would be zero.
#[inline(always)]
fn units(src: &[f32]) -> Option<(f32, f32)> {
    let (down, up) = powers(peak(src));
    (up != 0.0).then_some((down, up))
}

/// The same for a value with this magnitude, with 0 as the second factor for what is too small.
#[inline(always)]
pub(crate) fn powers(peak: f32) -> (f32, f32) {
    let exponent = ((peak.to_bits() >> 23) & 255) as i32 - 127;
    // 2¹²⁷ has no normal inverse: values up there are left a little above 2.
    let near = exponent.clamp(-40, 126) as u32;
    let up = f32::from_bits(127u32.wrapping_add(near) << 23);
    (f32::from_bits(127u32.wrapping_sub(near) << 23), if exponent < -40 { 0.0 } else { up })
}

/// Factors that make weights at most 1 and positive: the scale, and a floor that gives values without weight a say
/// where nothing else has one. Weights that are negative or not numbers count as 0.
#[inline(always)]
fn weight_units(importance: &[f32]) -> (f32, f32) {
    const FLOOR: f32 = 1.0 / (1u32 << 30) as f32;
    // Non-negative floats order as integers; 1e38 stands for what is larger or not a number.
    let bits = importance.iter().fold(0, |most: i32, w| most.max(w.to_bits() as i32));
    let most = f32::from_bits(bits.min(1e38f32.to_bits() as i32) as u32);
    if most < 1e-38 { (0.0, 1.0) } else { (1.0 / most, FLOOR) }
}

#[inline(always)]
fn weight(w: f32, (scale, floor): (f32, f32)) -> f32 {
    clamp(w * scale, 0.0, 1.0) + floor
}

impl<const N: usize, const P: usize, const W: usize, const HALVES: bool> Tile<N, P, W, HALVES> {
    /// The lane's place in the source.
    #[inline(always)]
    fn start(p: usize) -> usize {
        if HALVES { (p % (P / 2) * 2 + p / (P / 2)) * N } else { p * N }
    }

    /// Adds up the halves of each group, if they are apart.
    #[inline(always)]
    fn join<const L: usize>(sums: &mut [f32; L]) {
        if HALVES {
            for l in 0..L / 2 {
                let sum = sums[l] + sums[l + L / 2];
                sums[l] = sum;
                sums[l + L / 2] = sum;
            }
        }
    }

    /// Puts `P` groups of `N` values beside each other. `None` if every value rounds to zero.
    /// `importance` is not looked at if `W` is 0.
    #[inline(always)]
    pub fn new(src: &[f32], importance: &[f32]) -> Option<Self> {
        let (down, unit) = units(src)?;
        let rows = if P == 1 { src.len().min(N) } else { N };
        let src = &src[..rows * P];
        let mut tile = Tile { x: [[0.0; P]; N], w: [[1.0; W]; N], unit, rows };
        for i in 0..tile.rows() {
            for p in 0..P {
                tile.x[i][p] = src[Self::start(p) + i] * down;
            }
        }
        if W != 0 {
            let importance = &importance[..rows * P];
            let factors = weight_units(importance);
            for i in 0..tile.rows() {
                for p in 0..W {
                    tile.w[i][p] = weight(importance[Self::start(p) + i], factors);
                }
            }
        }
        Some(tile)
    }

    #[inline(always)]
    fn rows(&self) -> usize {
        if P == 1 { self.rows.min(N) } else { N }
    }

    #[inline(always)]
    fn x(&self, i: usize, lane: usize) -> f32 {
        self.x[i][if P == 1 { 0 } else { lane }]
    }

    #[inline(always)]
    fn w(&self, i: usize, lane: usize) -> f32 {
        if W == 0 { 1.0 } else { self.w[i][if W == 1 { 0 } else { lane }] }
    }

    /// For each group the value with the largest magnitude.
    #[inline(always)]
    pub fn peaks(&self) -> [f32; P] {
        const { assert!(!HALVES) };
        let mut most = [0u32; P];
        for x in &self.x[..self.rows()] {
            for p in 0..P {
                most[p] = most[p].max(x[p].to_bits().rotate_left(1));
            }
        }
        lanes(|p| f32::from_bits(most[p].rotate_right(1)))
    }

    /// The least and the largest value of each group.
    #[inline(always)]
    pub fn ranges(&self) -> ([f32; P], [f32; P]) {
        let (mut lo, mut hi) = (self.x[0], self.x[0]);
        for x in &self.x[..self.rows()] {
            for p in 0..P {
                lo[p] = if x[p] < lo[p] { x[p] } else { lo[p] };
                hi[p] = if x[p] > hi[p] { x[p] } else { hi[p] };
            }
        }
        if HALVES {
            for p in 0..P / 2 {
                let q = p + P / 2;
                lo[p] = if lo[q] < lo[p] { lo[q] } else { lo[p] };
                hi[p] = if hi[q] > hi[p] { hi[q] } else { hi[p] };
                (lo[q], hi[q]) = (lo[p], hi[p]);
            }
        }
        (lo, hi)
    }

    /// `Σ w` and `Σ w·x` of each group.
    #[inline(always)]
    pub fn totals(&self) -> ([f32; P], [f32; P]) {
        let (mut ws, mut wxs) = ([0f32; P], [0f32; P]);
        for i in 0..self.rows() {
            for p in 0..P {
                ws[p] += self.w(i, p);
                wxs[p] += self.w(i, p) * self.x(i, p);
            }
        }
        Self::join(&mut ws);
        Self::join(&mut wxs);
        (ws, wxs)
    }

    /// Sums for the levels nearest to `x · inverse`. The best scale for these levels is `xq / qq`, and it lowers the
    /// error from `Σ w·x²` by `xq² / qq`. `q` is left 0.
    #[inline(always)]
    pub fn scale_sums<Q: Levels, const L: usize>(&self, inverse: &[f32; L]) -> Sums<L> {
        let (mut qq, mut xq) = ([0f32; L], [0f32; L]);
        for i in 0..self.rows() {
            for l in 0..L {
                let x = self.x(i, l);
                let q = Q::nearest(x * inverse[l]);
                let wq = self.w(i, l) * q;
                qq[l] += wq * q;
                xq[l] += wq * x;
            }
        }
        Self::join(&mut qq);
        Self::join(&mut xq);
        Sums { q: [0.0; L], qq, xq }
    }

    /// Sums for the levels nearest to `(x + min) · inverse`.
    #[inline(always)]
    pub fn min_sums<Q: Levels, const L: usize>(&self, inverse: &[f32; L], min: &[f32; L]) -> Sums<L> {
        let (mut q1, mut qq, mut xq) = ([0f32; L], [0f32; L], [0f32; L]);
        for i in 0..self.rows() {
            for l in 0..L {
                let x = self.x(i, l);
                let q = Q::nearest((x + min[l]) * inverse[l]);
                let wq = self.w(i, l) * q;
                q1[l] += wq;
                qq[l] += wq * q;
                xq[l] += wq * x;
            }
        }
        Self::join(&mut q1);
        Self::join(&mut qq);
        Self::join(&mut xq);
        Sums { q: q1, qq, xq }
    }

    /// `Σ w·(x − scale·q)²` for each lane, with the nearest levels.
    #[inline(always)]
    pub fn scale_error<Q: Levels, const L: usize>(&self, scale: &[f32; L]) -> [f32; L] {
        let inverse = inverse(scale);
        let mut error = [0f32; L];
        for i in 0..self.rows() {
            for l in 0..L {
                let x = self.x(i, l);
                let e = x - scale[l] * Q::nearest(x * inverse[l]);
                error[l] += self.w(i, l) * (e * e);
            }
        }
        Self::join(&mut error);
        error
    }

    /// `Σ w·(x − (scale·q − min))²` for each lane, with the nearest levels.
    #[inline(always)]
    pub fn min_error<Q: Levels, const L: usize>(&self, scale: &[f32; L], min: &[f32; L]) -> [f32; L] {
        let inverse = inverse(scale);
        let mut error = [0f32; L];
        for i in 0..self.rows() {
            for l in 0..L {
                let x = self.x(i, l) + min[l];
                let e = x - scale[l] * Q::nearest(x * inverse[l]);
                error[l] += self.w(i, l) * (e * e);
            }
        }
        Self::join(&mut error);
        error
    }

    /// The nearest levels for `scale · q − min`, as integers.
    #[inline(always)]
    pub fn levels<Q: Levels, const L: usize, T>(
        &self,
        scale: &[f32; L],
        min: &[f32; L],
        out: &mut [[T; L]; N],
        as_int: impl Fn(i32) -> T,
    ) {
        let inverse = inverse(scale);
        for i in 0..self.rows() {
            for l in 0..L {
                out[i][l] = as_int(integer(Q::nearest((self.x(i, l) + min[l]) * inverse[l])));
            }
        }
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

/// `1 / d` for a scale stored in half precision; 0 for 0.
#[inline(always)]
pub(crate) fn inverse_of_half(d: u16) -> f32 {
    ratio(1.0, f16_to_f32(d))
}
