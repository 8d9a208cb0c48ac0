//! Products of many rows of activations with panels of rows of a weight.
//!
//! A panel has the rows of two vectors, a row to a lane, four of a row's integers to a lane at a time; tiles have a few rows
//! of activations. Integers of a group are added up in registers and weighted with both scales once.
//!
//! The order of additions is that of [`fonio_codec::dot`], where group `g` belongs to lane `g mod L`. Here lanes are rows,
//! so the groups that one lane of `L` would take come one after another, and partial sums are added in the order in which
//! halves of a vector are: that is why groups are stored in the order of [`visits`].

use crate::Kernels;
use crate::bytes::Row;
use crate::matmul::Matrix;
use crate::share::Shared;
use fonio_codec::block::Groups;
use fonio_codec::dot::{self, Acts};
use fonio_simd::{Isa, Simd, VectorTask};

/// Most lanes of a vector.
const LANES: usize = 16;
/// Vectors of rows in a panel.
const VECTORS: usize = 2;

/// Rows of activations in a tile: as many as leave registers for their sums. The 16 of x86-64 without AVX-512 are for the
/// integer sums of a group; the others wait in memory.
pub(crate) const fn tile_tokens(lanes: usize) -> usize {
    if lanes == LANES {
        6
    } else if cfg!(target_arch = "aarch64") {
        3
    } else {
        5
    }
}

/// How many groups each of `lanes` lanes takes of `n`, and all groups, in the order of summing: that of numbers whose
/// bits are reversed, so that each sum of two, four, … lanes follows its parts.
pub(crate) fn visits(n: usize, lanes: usize) -> (Vec<usize>, Vec<usize>) {
    let bits = lanes.trailing_zeros();
    let order = (0..lanes).map(|i| i.reverse_bits() >> (usize::BITS - bits));
    let counts = order.clone().map(|lane| n.saturating_sub(lane).div_ceil(lanes)).collect();
    (counts, order.flat_map(|lane| (lane..n).step_by(lanes)).collect())
}

/// Rounded activations, tile by tile. In a tile, what belongs together of its rows is side by side; rows that are not
/// there are zeros.
pub(crate) struct Tiles {
    tokens: usize,
    group: usize,
    lanes: usize,
    /// Groups of each lane.
    counts: Vec<usize>,
    order: Vec<usize>,
    /// Four integers each.
    words: Vec<i32>,
    scale: Vec<f32>,
    total: Vec<f32>,
    /// What weights' integers are less than their bytes.
    offset: i32,
    /// What integer sums begin with for that.
    start: Vec<i32>,
}

impl Tiles {
    /// Rounds the rows of `x` for weights with groups of `group` values, whose integers are `offset` less than their bytes.
    pub(crate) fn pack(kernels: &Kernels, x: &[f32], cols: usize, group: usize, offset: u8) -> Tiles {
        let (lanes, tokens, n) = (kernels.isa().vector(Lanes), x.len() / cols, cols / group);
        let at_once = tile_tokens(lanes);
        let (counts, order) = visits(n, lanes);
        let tiles = tokens.div_ceil(at_once);
        let places = tiles * at_once * n;
        let mut new = Tiles {
            tokens,
            group,
            lanes,
            counts,
            order,
            words: vec![0; places * group / 4],
            scale: vec![0.0; places],
            total: vec![0.0; places],
            offset: i32::from(offset),
            start: vec![0; places],
        };
        let (words, start) = (Shared::new(&mut new.words), Shared::new(&mut new.start));
        let (scale, total) = (Shared::new(&mut new.scale), Shared::new(&mut new.total));
        let (stride, groups) = (dot::padded(cols), dot::group_places(cols, group));
        let buffers = || (vec![0; stride], vec![0; groups], vec![0.0; groups], vec![0.0; groups]);
        kernels.pool().each(tiles, 1, buffers, |(q, sums, scales, totals), range| {
            for tile in range {
                let (at, len) = (tile * at_once * n, at_once * n);
                // SAFETY: each tile is in one range, and its parts overlap no other tile's.
                let mut to = unsafe {
                    Tile {
                        at_once,
                        group,
                        offset: new.offset,
                        words: words.part(at * group / 4, len * group / 4),
                        start: start.part(at, len),
                        scale: scale.part(at, len),
                        total: total.part(at, len),
                    }
                };
                let rows = x[tile * at_once * cols..].chunks_exact(cols).take(at_once);
                for (t, x) in rows.enumerate() {
                    Row { q, sum: sums, scale: scales, total: totals }.round(kernels.isa(), x, group);
                    to.put(t, &new.order, &Acts { q, sum: sums, scale: scales, total: totals });
                }
            }
        });
        new
    }

    /// Rows of a panel.
    pub(crate) fn panel_rows(&self) -> usize {
        VECTORS * self.lanes
    }

    /// The rows from `first` on times all activations. `groups` is of the weight's type.
    pub(crate) fn multiply(
        &self,
        isa: Isa,
        weight: &Matrix<'_>,
        groups: &dyn Groups,
        first: usize,
        panel: &mut Panel,
        out: &Shared<'_, f32>,
    ) {
        let rows = self.panel_rows().min(weight.rows() - first);
        panel.unpack(self, isa, weight, groups, first, rows);
        isa.vector(Multiply {
            tiles: self,
            panel,
            has_min: groups.has_min(),
            first,
            rows,
            out,
            all: weight.rows(),
        });
    }
}

/// One tile's places.
struct Tile<'a> {
    at_once: usize,
    group: usize,
    offset: i32,
    words: &'a mut [i32],
    start: &'a mut [i32],
    scale: &'a mut [f32],
    total: &'a mut [f32],
}

impl Tile<'_> {
    /// Puts a row beside the others.
    fn put(&mut self, t: usize, order: &[usize], row: &Acts<'_>) {
        let (group, at_once) = (self.group, self.at_once);
        for (i, &g) in order.iter().enumerate() {
            self.scale[i * at_once + t] = row.scale[g];
            self.total[i * at_once + t] = row.total[g];
            self.start[i * at_once + t] = -self.offset * row.sum[g];
            let words = &mut self.words[i * at_once * group / 4..][..at_once * group / 4];
            let q = &row.q[g * group..(g + 1) * group];
            for (words, q) in words.chunks_exact_mut(at_once).zip(q.chunks_exact(4)) {
                words[t] = i32::from_le_bytes([q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8]);
            }
        }
    }
}

struct Lanes;

impl VectorTask for Lanes {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

/// Unpacked rows. For each group in the order of visits: integers, four of each row side by side; and scales and minima,
/// one of each row.
#[derive(Default)]
pub(crate) struct Panel {
    q: Vec<u8>,
    scale: Vec<f32>,
    min: Vec<f32>,
    row_q: Vec<u8>,
    row_scale: Vec<f32>,
    row_min: Vec<f32>,
}

impl Panel {
    fn unpack(
        &mut self,
        tiles: &Tiles,
        isa: Isa,
        weight: &Matrix<'_>,
        groups: &dyn Groups,
        first: usize,
        rows: usize,
    ) {
        let (cols, width, group) = (weight.cols(), tiles.panel_rows(), tiles.group);
        let n = cols / group;
        // Rows do not begin at multiples of a power of two, which would compete for the same places of the cache.
        let stride = cols + 64;
        self.row_q.resize(rows * stride, 0);
        self.row_scale.resize(rows * n, 0.0);
        self.row_min.resize(rows * n, 0.0);
        for r in 0..rows {
            let packed = weight.packed(first + r, 1);
            let (q, places) = (&mut self.row_q[r * stride..][..cols], r * n..(r + 1) * n);
            groups.unpack(isa, packed, q, &mut self.row_scale[places.clone()], &mut self.row_min[places]);
        }
        self.q.resize(cols * width, 0);
        self.scale.resize(n * width, 0.0);
        self.min.resize(n * width, 0.0);
        if rows < width {
            // Whatever other rows left there.
            self.q.fill(0);
            self.scale.fill(0.0);
            self.min.fill(0.0);
        }
        for (i, &g) in tiles.order.iter().enumerate() {
            let words = self.q[i * group * width..(i + 1) * group * width].as_chunks_mut::<4>().0;
            for r in 0..rows {
                let from = &self.row_q[r * stride + g * group..][..group];
                for (word, from) in words[r..].iter_mut().step_by(width).zip(from.as_chunks::<4>().0) {
                    *word = *from;
                }
                self.scale[i * width + r] = self.row_scale[r * n + g];
                self.min[i * width + r] = self.row_min[r * n + g];
            }
        }
    }
}

struct Multiply<'a, 'b> {
    tiles: &'a Tiles,
    panel: &'a Panel,
    has_min: bool,
    first: usize,
    rows: usize,
    /// Rows of the whole weight.
    all: usize,
    out: &'a Shared<'b, f32>,
}

impl VectorTask for Multiply<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (S::LANES == LANES, self.tiles.group, self.tiles.offset) {
            (true, 16, 128) => self.all_tiles::<S, 16, true, { tile_tokens(LANES) }>(s),
            (true, 16, _) => self.all_tiles::<S, 16, false, { tile_tokens(LANES) }>(s),
            (true, _, 128) => self.all_tiles::<S, 32, true, { tile_tokens(LANES) }>(s),
            (true, _, _) => self.all_tiles::<S, 32, false, { tile_tokens(LANES) }>(s),
            (false, 16, 128) => self.all_tiles::<S, 16, true, { tile_tokens(8) }>(s),
            (false, 16, _) => self.all_tiles::<S, 16, false, { tile_tokens(8) }>(s),
            (false, _, 128) => self.all_tiles::<S, 32, true, { tile_tokens(8) }>(s),
            (false, _, _) => self.all_tiles::<S, 32, false, { tile_tokens(8) }>(s),
        }
    }
}

/// Sums of a tile: for each vector of rows one for each row of activations.
pub(crate) type Sums<F, const T: usize> = [[F; T]; VECTORS];

impl Multiply<'_, '_> {
    #[inline(always)]
    fn all_tiles<S: Simd, const G: usize, const WIDE: bool, const T: usize>(&self, s: S) {
        let width = VECTORS * S::LANES;
        let mut value = [[0f32; VECTORS * LANES]; T];
        for tile in 0..self.tiles.tokens.div_ceil(T) {
            let mut sums = self.products::<S, G, WIDE, T>(s, tile);
            for v in 0..VECTORS {
                for t in 0..T {
                    s.store(sums[v][t], &mut value[t][v * S::LANES..]);
                }
            }
            if self.has_min {
                sums = self.minima::<S, T>(s, tile);
                let mut low = [0f32; LANES];
                for v in 0..VECTORS {
                    for t in 0..T {
                        s.store(sums[v][t], &mut low);
                        for l in 0..S::LANES {
                            value[t][v * S::LANES + l] -= low[l];
                        }
                    }
                }
            }
            let n = self.rows.min(width);
            for (t, value) in (tile * T..self.tiles.tokens).zip(&value) {
                // SAFETY: this panel is this thread's alone, so its rows' places are too.
                let out = unsafe { self.out.part(t * self.all + self.first, n) };
                out.copy_from_slice(&value[..n]);
            }
        }
    }

    /// Integer products, weighted with scales.
    #[inline(always)]
    fn products<S: Simd, const G: usize, const WIDE: bool, const T: usize>(
        &self,
        s: S,
        tile: usize,
    ) -> Sums<S::F, T> {
        let (tiles, panel) = (self.tiles, self.panel);
        let (width, n) = (VECTORS * S::LANES, tiles.order.len());
        let zero = [[s.splat(0.0); T]; VECTORS];
        let mut parts = [zero; 5];
        let mut at = 0;
        for (lane, &count) in tiles.counts.iter().enumerate() {
            let mut sums = zero;
            for i in at..at + count {
                let place = (tile * n + i) * T;
                let q = &panel.q[i * G * width..][..G * width];
                let words = &tiles.words[place * G / 4..][..T * G / 4];
                let mut ints = [[s.splat_i(0); T]; VECTORS];
                if !WIDE || S::BIASED {
                    let start = &tiles.start[place..place + T];
                    for t in 0..T {
                        ints[0][t] = s.splat_i(start[t]);
                        ints[1][t] = ints[0][t];
                    }
                }
                for k in 0..G / 4 {
                    let a = s.load_bytes(&q[4 * k * width..]);
                    let b = s.load_bytes(&q[4 * k * width + 4 * S::LANES..]);
                    for t in 0..T {
                        let word = words[k * T + t];
                        ints[0][t] = s.lane_dots::<WIDE>(ints[0][t], a, word);
                        ints[1][t] = s.lane_dots::<WIDE>(ints[1][t], b, word);
                    }
                }
                let scale = &tiles.scale[place..place + T];
                let rows = &panel.scale[i * width..][..width];
                let (a, b) = (s.load(rows), s.load(&rows[S::LANES..]));
                for t in 0..T {
                    let scale = s.splat(scale[t]);
                    sums[0][t] = s.fma(s.to_f32(ints[0][t]), s.mul(a, scale), sums[0][t]);
                    sums[1][t] = s.fma(s.to_f32(ints[1][t]), s.mul(b, scale), sums[1][t]);
                }
            }
            at += count;
            gather(s, lane, sums, &mut parts);
        }
        parts[S::LANES.trailing_zeros() as usize]
    }

    /// Minima, weighted with the sums of activations.
    #[inline(always)]
    fn minima<S: Simd, const T: usize>(&self, s: S, tile: usize) -> Sums<S::F, T> {
        let (tiles, panel) = (self.tiles, self.panel);
        let (width, n) = (VECTORS * S::LANES, tiles.order.len());
        let zero = [[s.splat(0.0); T]; VECTORS];
        let mut parts = [zero; 5];
        let mut at = 0;
        for (lane, &count) in tiles.counts.iter().enumerate() {
            let mut sums = zero;
            for i in at..at + count {
                let total = &tiles.total[(tile * n + i) * T..][..T];
                let rows = &panel.min[i * width..][..width];
                let (a, b) = (s.load(rows), s.load(&rows[S::LANES..]));
                for t in 0..T {
                    let total = s.splat(total[t]);
                    sums[0][t] = s.fma(a, total, sums[0][t]);
                    sums[1][t] = s.fma(b, total, sums[1][t]);
                }
            }
            at += count;
            gather(s, lane, sums, &mut parts);
        }
        parts[S::LANES.trailing_zeros() as usize]
    }
}

/// Adds a lane's sums to those of the lanes before it that it belongs with: the sums of 2ⁿ lanes are in part `n`.
#[inline(always)]
pub(crate) fn gather<S: Simd, const T: usize>(
    s: S,
    lane: usize,
    mut sums: Sums<S::F, T>,
    parts: &mut [Sums<S::F, T>; 5],
) {
    let mut level = 0;
    while lane >> level & 1 == 1 {
        for v in 0..VECTORS {
            for t in 0..T {
                sums[v][t] = s.add(parts[level][v][t], sums[v][t]);
            }
        }
        level += 1;
    }
    parts[level] = sums;
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
}
