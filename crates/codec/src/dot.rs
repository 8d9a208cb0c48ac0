//! Dot products of packed rows with activations that were rounded to bytes.
//!
//! The integers of a group are multiplied and added up exactly. The sums of groups are then weighted with both scales and
//! added up in `f32`: lane `l` of `L` lanes takes groups `l`, `l + L`, … in this order, and the lanes come last. Every
//! product of quantized weights is computed in this order, so that its bits don't depend on how many rows of activations
//! there are.

use fonio_simd::{Bytes, Simd};

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

/// What one row of weights is unpacked to.
#[derive(Default)]
pub struct Scratch {
    /// Bytes: [`padded`] places. What is behind the last value has no meaning.
    pub q: Vec<u8>,
    /// Each group's scale: [`group_places`]; zeros behind the last group.
    pub scale: Vec<f32>,
    /// Each group's minimum, likewise.
    pub min: Vec<f32>,
}

impl Scratch {
    /// Makes room for rows of `cols` values.
    pub fn resize(&mut self, cols: usize, group: usize) {
        let places = group_places(cols, group);
        self.q.resize(padded(cols), 0);
        self.scale.resize(places, 0.0);
        self.min.resize(places, 0.0);
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
