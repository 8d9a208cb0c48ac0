//! Dot products of packed rows with activations that were rounded to bytes.
//!
//! The integers of a group are multiplied and added up exactly. The sums of groups are then weighted with both scales and
//! added up in `f32`: lane `l` of `L` lanes takes groups `l`, `l + L`, … in this order, and the lanes come last. Every
//! product of quantized weights is computed in this order, so that its bits don't depend on how many rows of activations
//! there are.

use fonio_simd::{SPAN, Simd};

/// Places of arrays with one value for each group are a multiple of this: the lanes of the widest vectors.
const LANES: usize = 16;

/// Places that `cols` values have in a row of activations: [`Simd::group_dots`] takes 64 at once.
pub const fn padded(cols: usize) -> usize {
    cols.next_multiple_of(64)
}

/// Places for the groups of `cols` values.
pub const fn group_places(cols: usize, group: usize) -> usize {
    (cols.next_multiple_of(SPAN) / group).next_multiple_of(LANES)
}

/// A row of activations, rounded: `x = scale · q` for each group. Behind the last value, all are zeros.
#[derive(Clone, Copy)]
pub struct Acts<'a> {
    /// The integers, from −127 to 127: [`padded`] places.
    pub q: &'a [i8],
    /// The sum of each group's integers: [`group_places`], like the others.
    pub sum: &'a [i32],
    /// Each group's scale.
    pub scale: &'a [f32],
    /// `scale · sum`
    pub total: &'a [f32],
}

/// What one row of weights is unpacked to, beside its integers.
#[derive(Default)]
pub struct Scratch {
    /// Sums of integer products: [`group_places`], like the others.
    pub ints: Vec<i32>,
    /// Each group's scale; zeros behind the last group.
    pub scale: Vec<f32>,
    /// Each group's minimum; zeros behind the last group.
    pub min: Vec<f32>,
}

impl Scratch {
    /// Makes room for rows of `cols` values.
    pub fn resize(&mut self, cols: usize, group: usize) {
        let places = group_places(cols, group);
        if self.ints.len() != places {
            self.ints.resize(places, 0);
            self.scale.resize(places, 0.0);
            self.min.resize(places, 0.0);
        }
        // Whatever other rows left there.
        self.scale[cols / group..].fill(0.0);
        self.min[cols / group..].fill(0.0);
    }
}

/// The dot product, of a row's integer sums and scales (and minima, if `MIN`).
#[inline(always)]
pub fn weigh<S: Simd, const MIN: bool>(
    s: S,
    ints: &[i32],
    scale: &[f32],
    min: &[f32],
    acts: &Acts<'_>,
) -> f32 {
    let n = acts.scale.len();
    let (ints, scale, total) = (&ints[..n], &scale[..n], &acts.total[..n]);
    let min = if MIN { &min[..n] } else { scale };
    let (mut sum, mut low) = (s.splat(0.0), s.splat(0.0));
    let mut g = 0;
    while g + S::LANES <= n {
        let scales = s.mul(s.load(&scale[g..]), s.load(&acts.scale[g..]));
        sum = s.fma(s.to_f32(s.load_i(&ints[g..])), scales, sum);
        if MIN {
            low = s.fma(s.load(&min[g..]), s.load(&total[g..]), low);
        }
        g += S::LANES;
    }
    if MIN { s.sum(sum) - s.sum(low) } else { s.sum(sum) }
}
