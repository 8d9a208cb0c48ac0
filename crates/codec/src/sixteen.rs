//! The search of [`crate::single::scale`] without weights for 16 blocks side by side, one to a lane.
//!
//! The same sums in the same order, so the same bytes come out; but nothing is left over of a vector however few starts
//! there are, and peaks, units and roundings are computed for all blocks at once. Products that are exact anyway are
//! fused with what follows, and levels are clamped only where one could be out of range.

use crate::block::{Format, f16_to_f32, f32_to_f16, one_by_one};
use crate::search::{self, MAGIC, powers, ratio};
use fonio_simd::{Isa, Simd, Task, VectorTask};
use std::marker::PhantomData;

/// Blocks side by side.
const SIDE: usize = 16;
/// Values of a block.
const LEN: usize = 32;
/// Starts that are tried at once: as many chains of additions as hide what one takes.
const MANY: usize = 4;

/// A number for each block.
type Lanes = [f32; SIDE];

/// Blocks whose scales are searched before the first of them is packed.
const CHUNK: usize = 64 * SIDE;

/// A format of 32 integers and a half-precision scale.
pub(crate) trait OneScale: Format {
    /// The least and the largest integer, of at most 7 bits beside the sign.
    const RANGE: (f32, f32);
    /// The levels that the value with the largest magnitude is tried at, a multiple of four and at most 16 of them.
    const TARGETS: &'static [f32];
    /// Packs the nearest integers for this scale. Must be `#[inline(always)]`.
    fn fill(src: &[f32], scale: u16, block: &mut [u8]);
}

/// Packs whole blocks.
pub(crate) fn quantize<F: OneScale>(isa: Isa, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    const { assert!(F::LEN == LEN && F::TARGETS.len().is_multiple_of(MANY) && F::TARGETS.len() <= 16) };
    let all = if importance.is_none() && isa != Isa::scalar() { src.len() / (SIDE * LEN) * SIDE } else { 0 };
    let (tiles, rest) = src.split_at(all * LEN);
    let (packed, left) = dst.split_at_mut(all * F::BYTES);
    let mut scales = [0u16; CHUNK];
    for (src, dst) in tiles.chunks(CHUNK * LEN).zip(packed.chunks_mut(CHUNK * F::BYTES)) {
        let scales = &mut scales[..src.len() / LEN];
        isa.vector(Search { src, scales, range: F::RANGE, targets: F::TARGETS });
        isa.run(Fill::<F>(src, scales, dst, PhantomData));
    }
    one_by_one::<F>(isa, rest, importance, left);
}

/// Packs blocks with scales that were found.
struct Fill<'a, F>(&'a [f32], &'a [u16], &'a mut [u8], PhantomData<F>);

impl<F: OneScale> Task for Fill<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        for (i, &scale) in self.1.iter().enumerate() {
            let block = &mut self.2[i * F::BYTES..(i + 1) * F::BYTES];
            F::fill(&self.0[i * LEN..(i + 1) * LEN], scale, block);
        }
    }
}

/// Finds the scales of a multiple of 16 blocks; one task for all formats.
struct Search<'a> {
    src: &'a [f32],
    scales: &'a mut [u16],
    range: (f32, f32),
    targets: &'a [f32],
}

impl VectorTask for Search<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Lanes in memory gain nothing: `quantize` does not come here with them.
        if !S::REGISTERS {
            return;
        }
        for (src, out) in self.src.chunks_exact(SIDE * LEN).zip(self.scales.chunks_exact_mut(SIDE)) {
            out.copy_from_slice(&scales(s, src, self.range, self.targets));
        }
    }
}

/// 16 blocks, brought near 1.
struct Tile {
    /// Row i has the i-th value of every block.
    x: [Lanes; LEN],
    /// The values with the largest magnitudes.
    peak: Lanes,
    /// What values are multiplied with to be in the units of the source; 0 where all round to zero.
    unit: Lanes,
    /// Whether products of values and levels are exact.
    exact: bool,
}

impl Tile {
    #[inline(always)]
    fn new<S: Simd>(s: S, src: &[f32]) -> Tile {
        let (mut peak, mut unit, mut down) = ([0f32; SIDE], [0f32; SIDE], [0f32; SIDE]);
        let mut used = 0;
        for p in 0..SIDE {
            let block = &src[p * LEN..(p + 1) * LEN];
            peak[p] = search::peak(block);
            for x in block {
                used |= x.to_bits();
            }
        }
        for p in 0..SIDE {
            (down[p], unit[p]) = powers(peak[p]);
            peak[p] *= down[p];
        }
        let mut x = transposed(s, src);
        for i in 0..LEN {
            for at in (0..SIDE).step_by(S::LANES) {
                s.store(s.mul(s.load(&x[i][at..]), s.load(&down[at..])), &mut x[i][at..]);
            }
        }
        // With 7 bits of a level, these make no more than the 24 of a product.
        let exact = used & 0x7f == 0;
        Tile { x, peak, unit, exact }
    }

    /// Whether a value times one of these can be a level out of range.
    #[inline(always)]
    fn is_beyond(&self, (lo, hi): (f32, f32), inverse: &[Lanes; MANY]) -> bool {
        let limit = if -lo < hi { -lo } else { hi } + 0.5;
        let mut beyond = [false; SIDE];
        for k in 0..MANY {
            for p in 0..SIDE {
                // Where all values round to zero this may be no number, and nothing depends on it.
                beyond[p] |= (self.peak[p] * inverse[k][p]).abs() >= limit;
            }
        }
        beyond.iter().fold(false, |any, beyond| any | beyond)
    }
}

/// Row i has the i-th value of every block.
#[inline(always)]
fn transposed<S: Simd>(s: S, src: &[f32]) -> [Lanes; LEN] {
    let src = &src[..SIDE * LEN];
    let mut x = [[0f32; SIDE]; LEN];
    for p in (0..SIDE).step_by(4) {
        let (a, b) = (&src[p * LEN..(p + 1) * LEN], &src[(p + 1) * LEN..(p + 2) * LEN]);
        let (c, d) = (&src[(p + 2) * LEN..(p + 3) * LEN], &src[(p + 3) * LEN..(p + 4) * LEN]);
        for i in (0..LEN).step_by(4) {
            let turned = s.turn([&a[i..i + 4], &b[i..i + 4], &c[i..i + 4], &d[i..i + 4]]);
            for v in 0..4 {
                x[i + v][p..p + 4].copy_from_slice(&turned[v]);
            }
        }
    }
    x
}

/// The scales with the least errors.
#[inline(always)]
fn scales<S: Simd>(s: S, src: &[f32], range: (f32, f32), targets: &[f32]) -> [u16; SIDE] {
    let tile = Tile::new(s, src);
    let mut tried = [[0f32; SIDE]; 16];
    let mut best = [u32::MAX; SIDE];
    let mut first = 0;
    while first + MANY <= targets.len() {
        let mut inverse = [[0f32; SIDE]; MANY];
        for k in 0..MANY {
            for p in 0..SIDE {
                inverse[k][p] = targets[first + k] / tile.peak[p];
            }
        }
        let (xq, qq) = sums(s, &tile, range, &inverse);
        let mut scale = [[0f32; SIDE]; MANY];
        for k in 0..MANY {
            for p in 0..SIDE {
                let half = f32_to_f16(ratio(xq[k][p], qq[k][p]) * tile.unit[p]);
                scale[k][p] = f16_to_f32(half) * (1.0 / tile.unit[p]);
                inverse[k][p] = ratio(1.0, scale[k][p]);
            }
        }
        let error = errors(s, &tile, range, &scale, &inverse);
        for k in 0..MANY {
            for p in 0..SIDE {
                // As `search::least`: of near equals the first.
                best[p] = best[p].min((error[k][p].to_bits() & !15) | (first + k) as u32);
            }
            tried[first + k] = scale[k];
        }
        first += MANY;
    }
    let mut chosen = [0f32; SIDE];
    for p in 0..SIDE {
        chosen[p] = tried[(best[p] & 15) as usize][p];
    }
    let mut halves = [0u16; SIDE];
    for p in 0..SIDE {
        let half = f32_to_f16(chosen[p] * tile.unit[p]);
        halves[p] = if tile.unit[p] == 0.0 { 0 } else { half };
    }
    halves
}

/// `Σ x·q` and `Σ q²` for the levels q nearest to `x · inverse`.
#[inline(always)]
fn sums<S: Simd>(
    s: S,
    tile: &Tile,
    range: (f32, f32),
    inverse: &[Lanes; MANY],
) -> ([Lanes; MANY], [Lanes; MANY]) {
    match (tile.exact, tile.is_beyond(range, inverse)) {
        (true, true) => sums_of::<S, true, true>(s, &tile.x, range, inverse),
        (true, false) => sums_of::<S, true, false>(s, &tile.x, range, inverse),
        (false, true) => sums_of::<S, false, true>(s, &tile.x, range, inverse),
        (false, false) => sums_of::<S, false, false>(s, &tile.x, range, inverse),
    }
}

#[inline(always)]
fn sums_of<S: Simd, const EXACT: bool, const CLAMP: bool>(
    s: S,
    x: &[Lanes; LEN],
    range: (f32, f32),
    inverse: &[Lanes; MANY],
) -> ([Lanes; MANY], [Lanes; MANY]) {
    let (mut xq, mut qq) = ([[0f32; SIDE]; MANY], [[0f32; SIDE]; MANY]);
    let mut at = 0;
    while at < SIDE {
        let inverse = load(s, inverse, at);
        let (mut by_x, mut by_q) = ([s.splat(0.0); MANY], [s.splat(0.0); MANY]);
        for i in 0..LEN {
            let x = s.load(&x[i][at..]);
            for k in 0..MANY {
                let q = level::<S, CLAMP>(s, s.mul(x, inverse[k]), range);
                // Squares of levels and their sums are integers below 2²⁴.
                by_q[k] = s.fma(q, q, by_q[k]);
                by_x[k] = if EXACT { s.fma(q, x, by_x[k]) } else { s.add(by_x[k], s.mul(q, x)) };
            }
        }
        for k in 0..MANY {
            s.store(by_x[k], &mut xq[k][at..]);
            s.store(by_q[k], &mut qq[k][at..]);
        }
        at += S::LANES;
    }
    (xq, qq)
}

/// `Σ (x − scale·q)²` for the levels q nearest to `x · inverse`.
#[inline(always)]
fn errors<S: Simd>(
    s: S,
    tile: &Tile,
    range: (f32, f32),
    scale: &[Lanes; MANY],
    inverse: &[Lanes; MANY],
) -> [Lanes; MANY] {
    match tile.is_beyond(range, inverse) {
        true => errors_of::<S, true>(s, &tile.x, range, scale, inverse),
        false => errors_of::<S, false>(s, &tile.x, range, scale, inverse),
    }
}

#[inline(always)]
fn errors_of<S: Simd, const CLAMP: bool>(
    s: S,
    x: &[Lanes; LEN],
    range: (f32, f32),
    scale: &[Lanes; MANY],
    inverse: &[Lanes; MANY],
) -> [Lanes; MANY] {
    let mut error = [[0f32; SIDE]; MANY];
    let mut at = 0;
    while at < SIDE {
        let (scale, inverse) = (load(s, scale, at), load(s, inverse, at));
        let mut minus = scale;
        for k in 0..MANY {
            minus[k] = s.mul(scale[k], s.splat(-1.0));
        }
        let mut sum = [s.splat(0.0); MANY];
        for i in 0..LEN {
            let x = s.load(&x[i][at..]);
            for k in 0..MANY {
                let q = level::<S, CLAMP>(s, s.mul(x, inverse[k]), range);
                // Exact: 11 bits of a scale that was half precision, and 7 of a level.
                let e = s.fma(minus[k], q, x);
                sum[k] = s.add(sum[k], s.mul(e, e));
            }
        }
        for k in 0..MANY {
            s.store(sum[k], &mut error[k][at..]);
        }
        at += S::LANES;
    }
    error
}

#[inline(always)]
fn load<S: Simd>(s: S, x: &[Lanes; MANY], at: usize) -> [S::F; MANY] {
    let mut v = [s.splat(0.0); MANY];
    for k in 0..MANY {
        v[k] = s.load(&x[k][at..]);
    }
    v
}

/// The nearest level; `CLAMP` if it may be out of range.
#[inline(always)]
fn level<S: Simd, const CLAMP: bool>(s: S, t: S::F, (lo, hi): (f32, f32)) -> S::F {
    let t = if CLAMP { s.min(s.max(t, s.splat(lo)), s.splat(hi)) } else { t };
    s.add(s.add(t, s.splat(MAGIC)), s.splat(-MAGIC))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{q4_0::Q4_0, q5_0::Q5_0, q8_0::Q8_0};

    /// Blocks of all kinds: smooth, with one large value, alike, beyond a half, too small for one, zero.
    fn blocks(fine: bool) -> Vec<f32> {
        let mut state = 88_172_645_463_325_252u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut values = Vec::new();
        for i in 0..(3 * SIDE + 5) {
            let block: Vec<f32> = (0..LEN).map(|_| next()).collect();
            let size = [1.0, 0.02, 3e-7, 6e4, 1e-30, 0.0, 3e38, 1e-9][i % 8];
            let peak = if i % 3 == 0 { 30.0 } else { 1.0 };
            values.extend(block.iter().enumerate().map(|(j, x)| match (i % 11, j) {
                (10, _) => size,
                (_, 7) => -(x * peak).clamp(-1.0, 1.0) * size,
                _ => x / peak * size,
            }));
        }
        if !fine {
            values.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32().clamp(-3e38, 3e38));
        }
        values
    }

    fn check<F: OneScale>() {
        for fine in [true, false] {
            let src = blocks(fine);
            let mut expected = vec![0; src.len() / LEN * F::BYTES];
            one_by_one::<F>(Isa::scalar(), &src, None, &mut expected);
            for isa in Isa::available() {
                let mut packed = vec![0; expected.len()];
                quantize::<F>(isa, &src, None, &mut packed);
                let differ = packed.chunks(F::BYTES).zip(expected.chunks(F::BYTES)).position(|(a, b)| a != b);
                assert_eq!(differ, None, "{isa}, fine {fine}");
            }
        }
    }

    #[test]
    fn side_by_side_as_one_by_one() {
        check::<Q4_0>();
        check::<Q5_0>();
        check::<Q8_0>();
    }
}
