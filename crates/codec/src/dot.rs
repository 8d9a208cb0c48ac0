//! Dot products of packed rows with activations that were rounded to bytes.
//!
//! The integers of a group are multiplied and added up exactly. The sums of groups are then weighted with both scales and
//! added up in `f32`: lane `l` of `L` lanes takes groups `l`, `l + L`, … in this order, and the lanes come last. Every
//! product of quantized weights is computed in this order, so that its bits don't depend on how many rows of activations
//! there are.

use fonio_simd::{Bytes, Lines, Simd};

/// Places of arrays with one value for each group are a multiple of this: the lanes of the widest vectors.
const LANES: usize = 16;

/// Places that `cols` values have in a row of activations: [`Simd::group_sums`] takes 64 at once.
pub const fn padded(cols: usize) -> usize {
    cols.next_multiple_of(64)
}

/// Places for the groups of `cols` values.
pub const fn group_places(cols: usize, group: usize) -> usize {
    cols.div_ceil(group).next_multiple_of(LANES)
}

/// How many rows of `cols` values are multiplied as if they were one, so that no vectors are left partly empty. Long rows
/// have few of those.
pub const fn together(cols: usize) -> usize {
    let bits = cols.trailing_zeros();
    if bits >= 6 && bits < RUN.trailing_zeros() && cols < 4096 { RUN >> bits } else { 1 }
}

/// A row of activations, rounded: `x = scale · q` for each group. Behind the last value, all are zeros.
#[derive(Clone, Copy)]
pub struct Acts<'a> {
    /// The integers, from −127 to 127: [`padded`] places, as often as rows are multiplied together.
    pub q: &'a [i8],
    /// The sum of each group's integers: [`group_places`] of `q`.
    pub sum: &'a [i32],
    /// Each group's scale: [`group_places`] of one row.
    pub scale: &'a [f32],
    /// `scale · sum`, as many.
    pub total: &'a [f32],
}

impl Acts<'_> {
    /// The same for products of single rows of `cols` values.
    #[inline(always)]
    pub fn single(mut self, cols: usize) -> Self {
        self.q = &self.q[..padded(cols)];
        self
    }
}

/// What one row of weights is unpacked to.
#[derive(Default)]
pub struct Scratch {
    /// Bytes: [`padded`] places. What is behind the last value has no meaning.
    pub q: Lines<u8>,
    /// Each group's scale: [`group_places`]; zeros behind the last group.
    pub scale: Lines<f32>,
    /// Each group's minimum, likewise.
    pub min: Lines<f32>,
    /// Each group's sum of products, likewise.
    pub sums: Lines<f32>,
}

impl Scratch {
    /// Makes room for rows of `cols` values.
    pub fn resize(&mut self, cols: usize, group: usize) {
        let places = group_places(cols, group);
        self.q.resize(padded(cols));
        self.scale.resize(places);
        self.min.resize(places);
        self.sums.resize(places);
        // Whatever other rows left there.
        self.scale[cols / group..].fill(0.0);
        self.min[cols / group..].fill(0.0);
    }
}

/// The scales and minima of a row, and what integers are less than its bytes.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// As in [`Scratch`].
    pub scale: &'a [f32],
    /// As in [`Scratch`]; of formats without minima, anything as long.
    pub min: &'a [f32],
    /// 128, if bytes may be larger than 127.
    pub offset: i32,
}

/// Values whose number the compiler knows.
const RUN: usize = 512;

/// The dot product of a row, whose bytes are `w`, with activations. `WIDE` bytes may be larger than 127; with `MIN`, groups
/// have minima.
#[inline(always)]
pub fn dot<S: Simd, const GROUP: usize, const WIDE: bool, const MIN: bool>(
    s: S,
    w: impl Bytes,
    row: Row<'_>,
    acts: &Acts<'_>,
) -> f32 {
    let (n, mut at) = (acts.q.len(), 0);
    let mut sums = (s.splat(0.0), s.splat(0.0));
    while n - at >= RUN {
        let (part, a) = (w.part::<RUN>(at), &acts.q[at..at + RUN]);
        sums = add_run::<S, GROUP, WIDE, MIN>(s, part, a, (row, acts), at / GROUP, sums);
        at += RUN;
    }
    if at < n {
        let (rest, a) = (w.rest(at), &acts.q[at..]);
        let mut k = 0;
        while k < a.len() {
            sums = add::<S, GROUP, WIDE, MIN>(s, rest, a, k, (row, acts), (at + k) / GROUP, sums);
            k += S::LANES * GROUP;
        }
    }
    if MIN { s.sum(sums.0) - s.sum(sums.1) } else { s.sum(sums.0) }
}

/// Adds the products of [`RUN`] values, whose groups are those from `g` on.
#[inline(always)]
fn add_run<S: Simd, const GROUP: usize, const WIDE: bool, const MIN: bool>(
    s: S,
    w: impl Bytes,
    a: &[i8],
    rows: (Row<'_>, &Acts<'_>),
    g: usize,
    mut sums: (S::F, S::F),
) -> (S::F, S::F) {
    let step = S::LANES * GROUP;
    if S::REGISTERS && step < RUN {
        // Written out: a loop of two or four is left as one, and finds the places of its blocks and lines as it runs.
        sums = add::<S, GROUP, WIDE, MIN>(s, w, a, 0, rows, g, sums);
        sums = add::<S, GROUP, WIDE, MIN>(s, w, a, step, rows, g + S::LANES, sums);
        if 2 * step < RUN {
            sums = add::<S, GROUP, WIDE, MIN>(s, w, a, 2 * step, rows, g + 2 * S::LANES, sums);
            sums = add::<S, GROUP, WIDE, MIN>(s, w, a, 3 * step, rows, g + 3 * S::LANES, sums);
        }
        return sums;
    }
    let mut k = 0;
    while k < RUN {
        sums = add::<S, GROUP, WIDE, MIN>(s, w, a, k, rows, g + k / GROUP, sums);
        k += step;
    }
    sums
}

/// Adds the products of a group in each lane, those from `g` on.
#[inline(always)]
fn add<S: Simd, const GROUP: usize, const WIDE: bool, const MIN: bool>(
    s: S,
    w: impl Bytes,
    a: &[i8],
    at: usize,
    (row, acts): (Row<'_>, &Acts<'_>),
    g: usize,
    (sum, low): (S::F, S::F),
) -> (S::F, S::F) {
    let ints = s.group_sums::<GROUP, WIDE>(w, a, at, &acts.sum[g..], row.offset);
    let scales = s.mul(s.load(&row.scale[g..]), s.load(&acts.scale[g..]));
    let sum = s.fma(s.to_f32(ints), scales, sum);
    (sum, if MIN { s.fma(s.load(&row.min[g..]), s.load(&acts.total[g..]), low) } else { low })
}

/// The dot products of some rows of `cols` values, one for each place of `out`. `w` has the bytes of all rows, `row` their
/// scales and minima, one row's behind the other's. `sums` is for what is between.
#[inline(always)]
pub fn dots<S: Simd, const GROUP: usize, const WIDE: bool, const MIN: bool, const MANY: bool>(
    s: S,
    w: impl Bytes,
    row: Row<'_>,
    acts: &Acts<'_>,
    sums: &mut [f32],
    (cols, out): (usize, &mut [f32]),
) {
    if !MANY {
        out[0] = dot::<S, GROUP, WIDE, MIN>(s, w, row, &acts.single(cols));
        return;
    }
    let (all, mut at) = (out.len() * cols, 0);
    while all - at >= RUN {
        let (part, a) = (w.part::<RUN>(at), &acts.q[at..at + RUN]);
        let mut k = 0;
        while k < RUN {
            let g = (at + k) / GROUP;
            let ints = s.group_sums::<GROUP, WIDE>(part, a, k, &acts.sum[g..], row.offset);
            s.store(s.to_f32(ints), &mut sums[g..]);
            k += S::LANES * GROUP;
        }
        at += RUN;
    }
    if at < all {
        let (rest, a) = (w.rest(at), &acts.q[at..all]);
        let mut k = 0;
        while k < a.len() {
            let g = (at + k) / GROUP;
            let ints = s.group_sums::<GROUP, WIDE>(rest, a, k, &acts.sum[g..], row.offset);
            s.store(s.to_f32(ints), &mut sums[g..]);
            k += S::LANES * GROUP;
        }
    }
    let n = cols / GROUP;
    let mut r = 0;
    while r < out.len() {
        let groups = r * n..(r + 1) * n;
        let sum = weighted(s, &sums[groups.clone()], &row.scale[groups.clone()], Some(&acts.scale[..n]));
        out[r] = s.sum(sum);
        if MIN {
            out[r] -= s.sum(weighted(s, &acts.total[..n], &row.min[groups], None));
        }
        r += 1;
    }
}

/// `x · y`, or `x · y · z`, added up lane by lane.
#[inline(always)]
fn weighted<S: Simd>(s: S, x: &[f32], y: &[f32], z: Option<&[f32]>) -> S::F {
    let mut sum = s.splat(0.0);
    let mut k = 0;
    while k < x.len() {
        let left = x.len() - k;
        let load = |x: &[f32]| if left < S::LANES { s.load_first(&x[k..]) } else { s.load(&x[k..]) };
        let y = load(y);
        sum = s.fma(load(x), if let Some(z) = z { s.mul(y, load(z)) } else { y }, sum);
        k += S::LANES;
    }
    sum
}
