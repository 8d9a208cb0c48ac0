//! Products of very many rows of activations with panels of rows of a quantized weight, in AMX's tiles.
//!
//! Both are rounded to bfloat16, whose error (at most 2⁻⁹ of each value) is less than that of activations rounded to bytes,
//! and sums are single precision. They are not added up in the order of [`fonio_codec::dot`]: a value is the same bits
//! for any such number of rows and any number of threads, and others than those of a row alone.

use crate::Kernels;
use crate::matmul::Matrix;
use crate::share::Shared;
use crate::spare::Lent;
use fonio_codec::block::Groups;
use fonio_simd::Isa;
use fonio_simd::amx::{Amx, Grouped, STEP, Sums, TILE, Tile, Tiles};

/// Rows of activations from which on this pays: fewer fill tiles badly, and don't pay for the rounding of weights.
pub(crate) const MANY: usize = 64;
/// Rows of a panel: with 2048 values they leave room for activations in the second-level cache.
pub(crate) const PANEL: usize = 128;
/// Rows and columns that are multiplied together.
const SQUARE: usize = 2 * TILE;
/// Most steps of a product at once: more would drive the panel out of the second-level cache.
const STEPS: usize = 64;

/// Rounded rows of activations, in tiles of 16, an even number of those. What is not there is zeros.
pub(crate) struct Columns<'a> {
    amx: Amx,
    tokens: usize,
    /// Tiles of each 16 rows.
    steps: usize,
    tiles: Lent<'a, Vec<Tile>>,
}

impl<'a> Columns<'a> {
    /// Rounds rows of `cols` values.
    pub(crate) fn pack(kernels: &'a Kernels, amx: Amx, x: &[f32], cols: usize) -> Columns<'a> {
        let (tokens, steps) = (x.len() / cols, cols.div_ceil(STEP));
        let sixteens = tokens.next_multiple_of(SQUARE) / TILE;
        let mut tiles = kernels.tiles.lend();
        at_least(&mut tiles, sixteens * steps, Tile::ZERO);
        let shared = Shared::new(&mut tiles);
        kernels.pool().each(
            sixteens,
            1,
            || (),
            |(), range| {
                for i in range {
                    // SAFETY: each sixteen are in one range.
                    let to = unsafe { shared.part(i * steps, steps) };
                    let rows = &x[(i * TILE).min(tokens) * cols..((i + 1) * TILE).min(tokens) * cols];
                    amx.round_columns(rows, cols, to);
                }
            },
        );
        Columns { amx, tokens, steps, tiles }
    }

    /// Steps `from..to` of two times sixteen rows.
    fn square(&self, square: usize, from: usize, to: usize) -> [&[Tile]; 2] {
        square_of(&self.tiles, self.steps, square, from, to)
    }
}

/// Steps `from..to` of the tiles of 32 rows.
fn square_of(tiles: &[Tile], steps: usize, square: usize, from: usize, to: usize) -> [&[Tile]; 2] {
    [0, 1].map(|half| &tiles[(2 * square + half) * steps..][from..to])
}

/// Makes place for `n`; what is there stays.
fn at_least<T: Clone>(buffer: &mut Vec<T>, n: usize, zero: T) {
    if buffer.len() < n {
        buffer.resize(n, zero);
    }
}

/// Buffers of one thread.
#[derive(Default)]
pub(crate) struct Panel {
    q: Vec<u8>,
    scale: Vec<f32>,
    min: Vec<f32>,
    /// Rounded rows, in tiles of 16.
    tiles: Vec<Tile>,
    /// Sums of the steps before, of each 32 rows of activations and 32 of the panel.
    sums: Vec<[Sums; 4]>,
}

/// Some rows of a weight times all rows of activations.
pub(crate) struct Strip<'a, 'b> {
    pub(crate) weight: &'a Matrix<'a>,
    pub(crate) groups: &'a dyn Groups,
    pub(crate) isa: Isa,
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) acts: &'a Columns<'a>,
    pub(crate) out: &'a Shared<'b, f32>,
}

impl Strip<'_, '_> {
    pub(crate) fn multiply(&self, panel: &mut Panel) {
        self.round(panel);
        self.acts.amx.with_tiles(|tiles| self.products(tiles, panel));
    }

    /// Rounds the rows of the weight.
    fn round(&self, panel: &mut Panel) {
        let (cols, group, steps) = (self.weight.cols(), self.groups.group_len(), self.acts.steps);
        panel.q.resize(cols, 0);
        panel.scale.resize(cols / group, 0.0);
        panel.min.resize(if self.groups.has_min() { cols / group } else { 0 }, 0.0);
        at_least(&mut panel.tiles, self.rows.next_multiple_of(SQUARE) / TILE * steps, Tile::ZERO);
        for r in 0..self.rows {
            let packed = self.weight.packed(self.first + r, 1);
            self.groups.unpack(self.isa, packed, &mut panel.q, &mut panel.scale, &mut panel.min);
            let from = Grouped {
                q: &panel.q,
                offset: self.groups.offset(),
                group,
                scale: &panel.scale,
                min: &panel.min,
            };
            self.acts.amx.round_grouped(from, r % TILE, &mut panel.tiles[r / TILE * steps..][..steps]);
        }
    }

    fn products(&self, tiles: &mut Tiles, panel: &mut Panel) {
        let (steps, tokens) = (self.acts.steps, self.acts.tokens);
        let (squares, across) = (self.rows.div_ceil(SQUARE), tokens.div_ceil(SQUARE));
        at_least(&mut panel.sums, if steps > STEPS { squares * across } else { 1 }, [Sums::ZERO; 4]);
        for from in (0..steps).step_by(STEPS) {
            let to = steps.min(from + STEPS);
            for t in 0..across {
                let columns = self.acts.square(t, from, to);
                for r in 0..squares {
                    let sums =
                        if steps > STEPS { &mut panel.sums[t * squares + r] } else { &mut panel.sums[0] };
                    tiles.multiply(square_of(&panel.tiles, steps, r, from, to), columns, sums, from > 0);
                    if to == steps {
                        self.write(sums, r * SQUARE, t * SQUARE);
                    }
                }
            }
        }
    }

    /// Writes sums, a row for each row of the weight, to places that have one for each row of activations.
    fn write(&self, sums: &[Sums; 4], row: usize, token: usize) {
        for (i, sums) in sums.iter().enumerate() {
            let (row, token) = (row + i / 2 * TILE, token + i % 2 * TILE);
            let Some(rows @ 1..) = self.rows.checked_sub(row).map(|n| n.min(TILE)) else { continue };
            let turned = self.acts.amx.turn(sums);
            for (t, values) in (token..self.acts.tokens).zip(&turned.0) {
                // SAFETY: these rows of the weight are this thread's alone, so their places are too.
                let out = unsafe { self.out.part(t * self.weight.rows() + self.first + row, rows) };
                match out.as_mut_array::<TILE>() {
                    // Of a length that is not known, a copy is a call.
                    Some(out) => *out = *values,
                    None => out.copy_from_slice(&values[..rows]),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::Product;
    use fonio_codec::list;

    /// More rows than a panel has, and more values than are multiplied at once; neither fills tiles.
    const ROWS: usize = PANEL + 37;
    const COLS: usize = STEPS * STEP + 288;

    fn noise(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + i / 13 * 104_729) % 2001) as f32 / 1000.0 - 1.0).collect()
    }

    #[test]
    fn sums_are_within_the_bound_and_the_same_among_other_rows() {
        let isa = Isa::detect();
        if isa.amx().is_none() {
            return eprintln!("skipped: no AMX");
        }
        let mut packed = vec![0; list::Q8_0.bytes_for((ROWS * COLS) as u64).unwrap() as usize];
        list::Q8_0.quantize(isa, &noise(ROWS * COLS), None, &mut packed).unwrap();
        let mut w = vec![0.0; ROWS * COLS];
        list::Q8_0.dequantize(isa, &packed, &mut w).unwrap();
        let weight = Matrix::new(list::Q8_0, ROWS, COLS, &packed).unwrap();
        let x = noise((MANY + 35) * COLS);
        let run = |threads, tokens: usize| {
            let mut out = vec![f32::NAN; tokens * ROWS];
            let kernels = Kernels::new(threads, isa);
            for _ in 0..2 {
                // The second time with buffers that were used before.
                kernels.matmul(&x[..tokens * COLS], &mut [Product { weight, out: &mut out }]);
            }
            out
        };
        let out = run(2, MANY + 35);
        assert_eq!(run(1, MANY), out[..MANY * ROWS], "fewer rows, one thread");
        for (t, out) in out.chunks_exact(ROWS).enumerate() {
            let x = &x[t * COLS..(t + 1) * COLS];
            for (r, &got) in out.iter().enumerate() {
                let terms = w[r * COLS..].iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                // Two factors, each off by at most 2⁻⁹ of itself; a sum of n is off by n · 2⁻²⁴ of all sizes.
                let bound = size * (2f64.powi(-8) + 2f64.powi(-18) + COLS as f64 * 2f64.powi(-24));
                assert!((f64::from(got) - exact).abs() <= bound, "{t} {r}: {got} {exact} ±{bound}");
            }
        }
    }
}
