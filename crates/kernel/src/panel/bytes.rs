//! Panels of quantized rows: four of a row's integers to a lane at a time. Integers of a group are added up in registers and
//! weighted with both scales once.

use super::{Arrange, LANES, Lane, Lanes, Order, Sums, VECTORS, add_lanes};
use crate::Kernels;
use crate::bytes::Row;
use crate::matmul::Matrix;
use crate::share::Shared;
use crate::spare::Lent;
use fonio_codec::block::Groups;
use fonio_codec::dot::{self, Acts};
use fonio_simd::{Isa, Lines, Simd, VectorTask};
use std::ops::Range;

/// Rows of activations in a tile: as many as leave registers for their sums. The 16 of x86-64 without AVX-512 are for the
/// integer sums of a group; the others wait in memory.
const fn tile_tokens(lanes: usize) -> usize {
    if lanes == LANES {
        6
    } else if cfg!(target_arch = "aarch64") {
        3
    } else {
        5
    }
}

/// Rounded activations, tile by tile. In a tile, what belongs together of its rows is side by side; rows that are not
/// there are anything.
#[derive(Default)]
pub(crate) struct Tiles {
    tokens: usize,
    group: usize,
    order: Order,
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
    pub(crate) fn pack<'a>(
        kernels: &'a Kernels,
        x: &[f32],
        cols: usize,
        group: usize,
        offset: u8,
    ) -> Lent<'a, Tiles> {
        let (lanes, tokens, n) = (kernels.isa().vector(Lanes), x.len() / cols, cols / group);
        let at_once = tile_tokens(lanes);
        let tiles = tokens.div_ceil(at_once);
        let places = tiles * at_once * n;
        let mut lent = kernels.byte_tiles.lend();
        let new = &mut *lent;
        (new.tokens, new.group, new.offset) = (tokens, group, i32::from(offset));
        new.order = Order::new(n, lanes);
        new.words.resize(places * group / 4, 0);
        new.scale.resize(places, 0.0);
        new.total.resize(places, 0.0);
        new.start.resize(places, 0);
        let (order, offset) = (&new.order, new.offset);
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
                        offset,
                        words: words.part(at * group / 4, len * group / 4),
                        start: start.part(at, len),
                        scale: scale.part(at, len),
                        total: total.part(at, len),
                    }
                };
                let rows = x[tile * at_once * cols..].chunks_exact(cols).take(at_once);
                for (t, x) in rows.enumerate() {
                    Row { q, sum: sums, scale: scales, total: totals }.round(kernels.isa(), x, group);
                    to.put(t, &order.groups, &Acts { q, sum: sums, scale: scales, total: totals });
                }
            }
        });
        lent
    }

    /// Rows of a panel.
    pub(crate) fn panel_rows(&self) -> usize {
        VECTORS * self.order.lanes()
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
        let (has_min, all) = (groups.has_min(), weight.rows());
        isa.vector(Multiply { tiles: self, panel, has_min, first, rows, out, all });
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

/// Unpacked rows. For each group in the order of visits: integers, four of each row side by side; and scales and minima,
/// one of each row.
#[derive(Default)]
pub(crate) struct Panel {
    q: Lines<u8>,
    scale: Lines<f32>,
    min: Lines<f32>,
    row_q: Lines<u8>,
    row_scale: Vec<f32>,
    row_min: Vec<f32>,
    /// Sums of lanes that wait for those of others.
    kept: Lines<f32>,
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
        self.row_q.resize(width * stride);
        self.row_scale.resize(width * n, 0.0);
        self.row_min.resize(width * n, 0.0);
        for r in 0..rows {
            let packed = weight.packed(first + r, 1);
            let (q, places) = (&mut self.row_q[r * stride..][..cols], r * n..(r + 1) * n);
            groups.unpack(isa, packed, q, &mut self.row_scale[places.clone()], &mut self.row_min[places]);
        }
        self.q.resize(cols * width);
        self.scale.resize(n * width);
        self.min.resize(n * width);
        let (order, out) = (&tiles.order, &mut self.q[..]);
        isa.vector(Arrange { rows: &self.row_q[..], stride: stride / 4, group: group / 4, order, out });
        for (i, &g) in order.groups.iter().enumerate() {
            for r in 0..rows {
                self.scale[i * width + r] = self.row_scale[r * n + g];
            }
            if groups.has_min() {
                for r in 0..rows {
                    self.min[i * width + r] = self.row_min[r * n + g];
                }
            }
        }
    }
}

struct Multiply<'a, 'b> {
    tiles: &'a Tiles,
    panel: &'a mut Panel,
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
    fn run<S: Simd>(mut self, s: S) {
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

impl Multiply<'_, '_> {
    #[inline(always)]
    fn all_tiles<S: Simd, const G: usize, const WIDE: bool, const T: usize>(&mut self, s: S) {
        let Tiles { order, tokens, .. } = self.tiles;
        let mut kept = std::mem::take(&mut self.panel.kept);
        kept.resize(order.kept() * T);
        for tile in 0..tokens.div_ceil(T) {
            let sums = add_lanes(s, order, Integers::<G, WIDE, T> { job: self, tile }, &mut kept);
            self.finish(s, tile, sums, &mut kept);
        }
        self.panel.kept = kept;
    }

    /// Subtracts minima and writes the results of a tile.
    #[inline(always)]
    fn finish<S: Simd, const T: usize>(&self, s: S, tile: usize, mut sums: Sums<S::F, T>, kept: &mut [f32]) {
        if self.has_min {
            let low = add_lanes(s, &self.tiles.order, Minima::<T> { job: self, tile }, kept);
            let minus = s.splat(-1.0);
            for v in 0..VECTORS {
                for t in 0..T {
                    sums[v][t] = s.fma(low[v][t], minus, sums[v][t]);
                }
            }
        }
        let mut t = 0;
        while t < T && tile * T + t < self.tiles.tokens {
            // SAFETY: this panel is this thread's alone, so its rows' places are too.
            let out = unsafe { self.out.part((tile * T + t) * self.all + self.first, self.rows) };
            if out.len() == VECTORS * S::LANES {
                for v in 0..VECTORS {
                    s.store(sums[v][t], &mut out[v * S::LANES..]);
                }
            } else {
                let mut value = [0f32; VECTORS * LANES];
                for v in 0..VECTORS {
                    s.store(sums[v][t], &mut value[v * S::LANES..]);
                }
                out.copy_from_slice(&value[..out.len()]);
            }
            t += 1;
        }
    }
}

/// Integer products of a tile, weighted with scales.
struct Integers<'a, 'b, 'c, const G: usize, const WIDE: bool, const T: usize> {
    job: &'a Multiply<'b, 'c>,
    tile: usize,
}

impl<S: Simd, const G: usize, const WIDE: bool, const T: usize> Lane<S, T>
    for Integers<'_, '_, '_, G, WIDE, T>
{
    #[inline(always)]
    fn sums(&self, s: S, places: Range<usize>) -> Sums<S::F, T> {
        let (tiles, panel) = (self.job.tiles, &*self.job.panel);
        let (width, n) = (VECTORS * S::LANES, tiles.order.len());
        let mut sums = [[s.splat(0.0); T]; VECTORS];
        for i in places {
            let place = (self.tile * n + i) * T;
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
            // As many steps as a group has words: if their number were known, they would be written out, and all that they
            // load loaded first, for which there are no registers.
            for k in 0..tiles.group / 4 {
                let q = &q[4 * k * width..][..4 * width];
                let words = &words[k * T..][..T];
                let (a, b) = (s.load_bytes(q), s.load_bytes(&q[4 * S::LANES..]));
                for t in 0..T {
                    let word = words[t];
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
        sums
    }
}

/// Minima, weighted with the sums of a tile's activations.
struct Minima<'a, 'b, 'c, const T: usize> {
    job: &'a Multiply<'b, 'c>,
    tile: usize,
}

impl<S: Simd, const T: usize> Lane<S, T> for Minima<'_, '_, '_, T> {
    const PAIRS: bool = S::LANES == LANES;

    #[inline(always)]
    fn sums(&self, s: S, places: Range<usize>) -> Sums<S::F, T> {
        let (tiles, panel) = (self.job.tiles, &*self.job.panel);
        let (width, n) = (VECTORS * S::LANES, tiles.order.len());
        let mut sums = [[s.splat(0.0); T]; VECTORS];
        for i in places {
            let total = &tiles.total[(self.tile * n + i) * T..][..T];
            let rows = &panel.min[i * width..][..width];
            let (a, b) = (s.load(rows), s.load(&rows[S::LANES..]));
            for t in 0..T {
                let total = s.splat(total[t]);
                sums[0][t] = s.fma(a, total, sums[0][t]);
                sums[1][t] = s.fma(b, total, sums[1][t]);
            }
        }
        sums
    }
}
