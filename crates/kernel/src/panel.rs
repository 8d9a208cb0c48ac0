//! Products of many rows of activations with panels of rows of a weight.
//!
//! A panel has the rows of two vectors, a row to a lane; tiles have a few rows of activations. What is multiplied at once of a
//! weight's row is a group: integers that share a scale ([`bytes`]), or one number ([`floats`]).
//!
//! The order of additions is that of products of single rows, where group `g` belongs to lane `g mod L`. Here lanes are
//! rows, so the groups that one lane of `L` would take come one after another, and partial sums are added in the order in
//! which halves of a vector are: that is why groups are stored in the [`Order`] of visits.

pub(crate) mod bytes;
pub(crate) mod floats;

use fonio_simd::{Simd, VectorTask};
use std::ops::Range;

/// Most lanes of a vector.
const LANES: usize = 16;
/// Vectors of rows in a panel.
const VECTORS: usize = 2;
/// Lanes of a level's vectors.
struct Lanes;

impl VectorTask for Lanes {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

/// In which order the groups of a row are visited.
#[derive(Default)]
pub(crate) struct Order {
    /// Groups of each lane.
    counts: Vec<usize>,
    groups: Vec<usize>,
    /// Where each group is in `groups`.
    places: Vec<usize>,
}

impl Order {
    fn new(n: usize, lanes: usize) -> Order {
        let (counts, groups) = visits(n, lanes);
        let mut places = vec![0; n];
        groups.iter().enumerate().for_each(|(place, &group)| places[group] = place);
        Order { counts, groups, places }
    }

    fn len(&self) -> usize {
        self.groups.len()
    }

    fn lanes(&self) -> usize {
        self.counts.len()
    }

    /// Values that are kept for a row of activations while lanes are added up.
    fn kept(&self) -> usize {
        VECTORS * self.lanes() * self.lanes().trailing_zeros() as usize
    }
}

/// How many groups each of `lanes` lanes takes of `n`, and all groups, in the order of summing: that of numbers whose
/// bits are reversed, so that each sum of two, four, … lanes follows its parts.
fn visits(n: usize, lanes: usize) -> (Vec<usize>, Vec<usize>) {
    let bits = lanes.trailing_zeros();
    let order = (0..lanes).map(|i| i.reverse_bits() >> (usize::BITS - bits));
    let counts = order.clone().map(|lane| n.saturating_sub(lane).div_ceil(lanes)).collect();
    (counts, order.flat_map(|lane| (lane..n).step_by(lanes)).collect())
}

/// Sums of a tile: for each vector of rows one for each row of activations.
pub(crate) type Sums<F, const T: usize> = [[F; T]; VECTORS];

/// Adds the sums of all lanes, in the order of visits. `kept` has [`Order::kept`] values for each row of activations.
#[inline(always)]
fn add_lanes<S: Simd, L: Lane<S, T>, const T: usize>(
    s: S,
    order: &Order,
    lane: L,
    kept: &mut [f32],
) -> Sums<S::F, T> {
    let (mut at, mut i) = (0, 0);
    loop {
        let count = order.counts[i];
        let mut sums = lane.sums(s, at..at + count);
        (at, i) = (at + count, i + 1);
        if L::PAIRS {
            let count = order.counts[i];
            let next = lane.sums(s, at..at + count);
            for v in 0..VECTORS {
                for t in 0..T {
                    sums[v][t] = s.add(sums[v][t], next[v][t]);
                }
            }
            (at, i) = (at + count, i + 1);
        }
        let parts = usize::from(L::PAIRS);
        if let Some(sums) = keep::<S, T>(s, i - (1 << parts), parts, sums, kept) {
            return sums;
        }
    }
}

/// What is added up for a lane: not a closure, which would not be compiled for the level.
trait Lane<S: Simd, const T: usize> {
    /// Whether there are registers for the sums of two lanes.
    const PAIRS: bool = false;
    /// The sums of these places. Must be `#[inline(always)]`.
    fn sums(&self, s: S, places: Range<usize>) -> Sums<S::F, T>;
}

/// Adds the sums of the 2^`level` parts from `i` on to those of the parts before them that they belong with. Those of all
/// parts are returned, others kept: for each level of the tree, the sums of 1, 2, 4, … parts. What is there before the first
/// part has no meaning.
#[inline(always)]
pub(crate) fn keep<S: Simd, const T: usize>(
    s: S,
    i: usize,
    mut level: usize,
    mut sums: Sums<S::F, T>,
    kept: &mut [f32],
) -> Option<Sums<S::F, T>> {
    let size = VECTORS * T * S::LANES;
    let mut at = level * size;
    while i >> level & 1 == 1 {
        let before = &kept[at..at + size];
        for v in 0..VECTORS {
            for t in 0..T {
                sums[v][t] = s.add(s.load(&before[(v * T + t) * S::LANES..]), sums[v][t]);
            }
        }
        (level, at) = (level + 1, at + size);
    }
    if at == kept.len() {
        return Some(sums);
    }
    let now = &mut kept[at..at + size];
    for v in 0..VECTORS {
        for t in 0..T {
            s.store(sums[v][t], &mut now[(v * T + t) * S::LANES..]);
        }
    }
    None
}

/// Rows of words, four bytes each.
trait Words: Copy {
    /// The words from `at` on, a lane each. Must be `#[inline(always)]`.
    fn load<S: Simd>(self, s: S, at: usize) -> S::I;
}

impl Words for &[u8] {
    #[inline(always)]
    fn load<S: Simd>(self, s: S, at: usize) -> S::I {
        s.load_bytes(&self[4 * at..])
    }
}

impl Words for &[f32] {
    #[inline(always)]
    fn load<S: Simd>(self, s: S, at: usize) -> S::I {
        s.bits_of(s.load(&self[at..]))
    }
}

/// Arranges the rows of a panel for products: word `w` of a row goes beside those of the other rows, to where its group of
/// `group` words is. Rows begin `stride` words apart, with place for those of one more vector behind them.
struct Arrange<'a, W> {
    rows: W,
    stride: usize,
    group: usize,
    order: &'a Order,
    out: &'a mut [u8],
}

impl<W: Words> VectorTask for Arrange<'_, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Arrange { rows, stride, group, order, out } = self;
        let words = order.len() * group;
        let mut v = 0;
        while v < VECTORS {
            let mut w = 0;
            while w < words {
                let mut square = [s.splat_i(0); LANES];
                let mut r = 0;
                while r < S::LANES {
                    square[r] = rows.load(s, (v * S::LANES + r) * stride + w);
                    r += 1;
                }
                let square = s.transposed(square);
                let mut i = 0;
                while i < S::LANES && w + i < words {
                    let at = order.places[(w + i) / group] * group + (w + i) % group;
                    s.store_bytes(square[i], &mut out[4 * (at * VECTORS + v) * S::LANES..]);
                    i += 1;
                }
                w += S::LANES;
            }
            v += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_visited_lane_by_lane_and_lanes_as_halves_are_added() {
        let (counts, order) = visits(11, 4);
        assert_eq!(counts, [3, 3, 3, 2], "lanes 0, 2, 1, 3");
        assert_eq!(order, [0, 4, 8, 2, 6, 10, 1, 5, 9, 3, 7]);
        for n in 0..70 {
            let (counts, mut order) = visits(n, 16);
            assert_eq!(counts.iter().sum::<usize>(), n);
            order.sort_unstable();
            assert!(order.into_iter().eq(0..n));
        }
    }

    #[test]
    fn places_are_those_of_groups() {
        let order = Order::new(176, 16);
        assert!((0..176).all(|g| order.groups[order.places[g]] == g));
    }
}
