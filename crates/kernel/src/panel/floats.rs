//! Panels of rows of plain numbers: a number of a row to a lane at a time.

use super::{Arrange, LANES, Lane, Lanes, Order, Sums, VECTORS, add_lanes};
use crate::Kernels;
use crate::matmul::Matrix;
use crate::share::Shared;
use crate::spare::Lent;
use fonio_simd::{Isa, Lines, Simd, VectorTask};
use std::ops::Range;

/// Rows of activations in a tile: as many as there are registers for their sums, beside two vectors of weights and one of
/// activations.
const fn tile_tokens(lanes: usize) -> usize {
    if lanes == LANES { 12 } else { 6 }
}

/// Activations, tile by tile. In a tile, what belongs together of its rows is side by side; rows that are not there are
/// anything.
#[derive(Default)]
pub(crate) struct Tiles {
    tokens: usize,
    order: Order,
    x: Vec<f32>,
}

impl Tiles {
    /// Arranges the rows of `x`.
    pub(crate) fn pack<'a>(kernels: &'a Kernels, x: &[f32], cols: usize) -> Lent<'a, Tiles> {
        let (lanes, tokens) = (kernels.isa().vector(Lanes), x.len() / cols);
        let at_once = tile_tokens(lanes);
        let tiles = tokens.div_ceil(at_once);
        let mut lent = kernels.float_tiles.lend();
        let new = &mut *lent;
        new.tokens = tokens;
        new.order = Order::new(cols, lanes);
        new.x.resize(tiles * at_once * cols, 0.0);
        let (order, to) = (&new.order, Shared::new(&mut new.x));
        kernels.pool().each(
            tiles,
            1,
            || (),
            |(), range| {
                for tile in range {
                    // SAFETY: each tile is in one range.
                    let to = unsafe { to.part(tile * at_once * cols, at_once * cols) };
                    let rows = &x[tile * at_once * cols..tokens.min((tile + 1) * at_once) * cols];
                    for (to, &from) in to.chunks_exact_mut(at_once).zip(&order.groups) {
                        for (to, row) in to.iter_mut().zip(rows.chunks_exact(cols)) {
                            *to = row[from];
                        }
                    }
                }
            },
        );
        lent
    }

    /// Rows of a panel.
    pub(crate) fn panel_rows(&self) -> usize {
        VECTORS * self.order.lanes()
    }

    /// The rows from `first` on times all activations.
    pub(crate) fn multiply(
        &self,
        isa: Isa,
        weight: &Matrix<'_>,
        first: usize,
        panel: &mut Panel,
        out: &Shared<'_, f32>,
    ) {
        let (cols, width) = (weight.cols(), self.panel_rows());
        let rows = width.min(weight.rows() - first);
        let stride = cols + LANES;
        panel.rows.resize(width * stride);
        panel.q.resize(width * cols * size_of::<f32>());
        for r in 0..rows {
            weight.row(isa, first + r, &mut panel.rows[r * stride..][..cols]);
        }
        isa.vector(Arrange {
            rows: &panel.rows[..],
            stride,
            group: 1,
            order: &self.order,
            out: &mut panel.q,
        });
        isa.vector(Multiply { tiles: self, panel, first, rows, out, all: weight.rows() });
    }
}

/// Unpacked rows.
#[derive(Default)]
pub(crate) struct Panel {
    rows: Lines<f32>,
    /// One number of each row side by side, in the order of visits.
    q: Lines<u8>,
    /// Sums of lanes that wait for those of others.
    kept: Lines<f32>,
}

struct Multiply<'a, 'b> {
    tiles: &'a Tiles,
    panel: &'a mut Panel,
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
        match S::LANES {
            LANES => self.all_tiles::<S, { tile_tokens(LANES) }>(s),
            _ => self.all_tiles::<S, { tile_tokens(8) }>(s),
        }
    }
}

impl Multiply<'_, '_> {
    #[inline(always)]
    fn all_tiles<S: Simd, const T: usize>(&mut self, s: S) {
        let Tiles { order, tokens, .. } = self.tiles;
        let mut kept = std::mem::take(&mut self.panel.kept);
        kept.resize(order.kept() * T);
        for tile in 0..tokens.div_ceil(T) {
            let sums = add_lanes(s, order, Numbers::<T> { job: self, tile }, &mut kept);
            self.write(s, tile, sums);
        }
        self.panel.kept = kept;
    }

    #[inline(always)]
    fn write<S: Simd, const T: usize>(&self, s: S, tile: usize, sums: Sums<S::F, T>) {
        let mut value = [0f32; VECTORS * LANES];
        let mut t = 0;
        while t < T.min(self.tiles.tokens - tile * T) {
            for v in 0..VECTORS {
                s.store(sums[v][t], &mut value[v * S::LANES..]);
            }
            // SAFETY: this panel is this thread's alone, so its rows' places are too.
            let out = unsafe { self.out.part((tile * T + t) * self.all + self.first, self.rows) };
            out.copy_from_slice(&value[..self.rows]);
            t += 1;
        }
    }
}

/// Products of a tile.
struct Numbers<'a, 'b, 'c, const T: usize> {
    job: &'a Multiply<'b, 'c>,
    tile: usize,
}

impl<S: Simd, const T: usize> Lane<S, T> for Numbers<'_, '_, '_, T> {
    #[inline(always)]
    fn sums(&self, s: S, places: Range<usize>) -> Sums<S::F, T> {
        let (tiles, width) = (self.job.tiles, VECTORS * S::LANES * size_of::<f32>());
        let (n, first) = (places.len(), self.tile * tiles.order.len() + places.start);
        let q = &self.job.panel.q[places.start * width..][..n * width];
        let x = &tiles.x[first * T..][..n * T];
        let mut sums = [[s.splat(0.0); T]; VECTORS];
        for i in 0..n {
            let rows = &q[i * width..(i + 1) * width];
            let x = &x[i * T..(i + 1) * T];
            let (a, b) = (s.load_f32(rows), s.load_f32(&rows[width / 2..]));
            for t in 0..T {
                let x = s.splat(x[t]);
                sums[0][t] = s.fma(a, x, sums[0][t]);
                sums[1][t] = s.fma(b, x, sums[1][t]);
            }
        }
        sums
    }
}
