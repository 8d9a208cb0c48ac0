//! Products of very many rows of activations with panels of rows of a weight, in AMX's tiles, whose numbers are bfloat16.
//!
//! Integers with scales are rounded to one number each, and so are the activations that are multiplied with them: an error of
//! at most 2⁻⁹ of each, less than that of activations rounded to bytes. Plain numbers of 16 bits are exactly sums of two,
//! `high + low`; then activations are such sums too, within 2⁻¹⁷, and the product of two low parts is left out. Whoever has
//! weights of 32 bits wants to see them all: those are not multiplied here.
//!
//! Sums are single precision. They are not added up in the order of [`fonio_codec::dot`]: a value is the same bits
//! for any such number of rows and any number of threads, and others than those of a row alone.

use crate::Kernels;
use crate::matmul::Matrix;
use crate::share::Shared;
use crate::spare::Lent;
use fonio_codec::block::Groups;
use fonio_codec::{DType, list};
use fonio_simd::Isa;
use fonio_simd::amx::{Amx, Grouped, STEP, Sums, TILE, Tile, Tiles};

/// Rows of activations from which on this pays: fewer fill tiles badly, and don't pay for the rounding of weights.
pub(crate) const MANY: usize = 64;
/// Rows of a panel: with 2048 values they leave room for activations in the second-level cache.
pub(crate) const PANEL: usize = 128;
/// Rows and columns that are multiplied together.
pub(crate) const SQUARE: usize = 2 * TILE;
/// Most steps of a product at once: more would drive the panel out of the second-level cache.
const STEPS: usize = 64;

/// Which parts of a weight and of activations are multiplied with each other, high parts being the first.
type Pairs = &'static [(usize, usize)];
const ROUNDED: Pairs = &[(0, 0)];
const SPLIT: Pairs = &[(0, 0), (0, 1), (1, 0)];
/// Of a weight that has no low part.
const HALF_SPLIT: Pairs = &[(0, 0), (0, 1)];

/// Whether plain numbers are multiplied here.
pub(crate) fn is_split(dtype: DType) -> bool {
    dtype == list::F16 || dtype == list::BF16
}

/// Rounded rows of activations, in tiles of 16, an even number of those. What is not there is zeros.
pub(crate) struct Columns<'a> {
    amx: Amx,
    tokens: usize,
    /// Tiles of each 16 rows.
    steps: usize,
    /// High parts of all, then low parts if there are any.
    tiles: Lent<'a, Vec<Tile>>,
}

impl<'a> Columns<'a> {
    /// Rounds rows of `cols` values, or splits them.
    pub(crate) fn pack(kernels: &'a Kernels, amx: Amx, split: bool, x: &[f32], cols: usize) -> Columns<'a> {
        let (tokens, steps) = (x.len() / cols, cols.div_ceil(STEP));
        let sixteens = tokens.next_multiple_of(SQUARE) / TILE;
        // Where low parts begin, and how many tiles they have.
        let (behind, low) = if split { (sixteens * steps, steps) } else { (0, 0) };
        let mut tiles = kernels.tiles.lend();
        at_least(&mut tiles, sixteens * (steps + low), Tile::ZERO);
        let shared = Shared::new(&mut tiles);
        kernels.pool().each(
            sixteens,
            1,
            || (),
            |(), range| {
                for i in range {
                    // SAFETY: each sixteen are in one range, and low parts are behind all high ones.
                    let (high, low) =
                        unsafe { (shared.part(i * steps, steps), shared.part(behind + i * low, low)) };
                    let rows = &x[(i * TILE).min(tokens) * cols..((i + 1) * TILE).min(tokens) * cols];
                    amx.split_columns(rows, cols, high, low);
                }
            },
        );
        Columns { amx, tokens, steps, tiles }
    }

    /// Steps `from..to` of two times sixteen rows.
    fn square(&self, part: usize, square: usize, from: usize, to: usize) -> [&[Tile]; 2] {
        square_of(&self.tiles, self.steps, part * self.tokens.div_ceil(SQUARE) + square, from, to)
    }
}

/// Steps `from..to` of the tiles of 32 rows.
fn square_of(tiles: &[Tile], steps: usize, square: usize, from: usize, to: usize) -> [&[Tile]; 2] {
    [0, 1].map(|half| &tiles[(2 * square + half) * steps..][from..to])
}

/// Makes place for `n`; what is there stays.
pub(crate) fn at_least<T: Clone>(buffer: &mut Vec<T>, n: usize, zero: T) {
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
    x: Vec<f32>,
    /// Rounded rows, in tiles of 16: high parts, then low parts.
    tiles: Vec<Tile>,
    /// Sums of the steps before, of each 32 rows of activations and 32 of the panel.
    sums: Vec<[Sums; 4]>,
}

/// Some rows of a weight times all rows of activations.
pub(crate) struct Strip<'a, 'b> {
    pub(crate) weight: &'a Matrix<'a>,
    pub(crate) isa: Isa,
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) acts: &'a Columns<'a>,
    pub(crate) out: &'a Shared<'b, f32>,
}

impl Strip<'_, '_> {
    pub(crate) fn multiply(&self, panel: &mut Panel) {
        let dtype = self.weight.dtype();
        let pairs = match dtype.codec().groups() {
            Some(groups) => {
                self.round(groups, panel);
                ROUNDED
            }
            None => {
                self.split(panel);
                if dtype == list::BF16 { HALF_SPLIT } else { SPLIT }
            }
        };
        self.products(&mut self.acts.amx.tiles(), pairs, panel);
    }

    /// Pairs of tiles' rows that the panel fills.
    fn squares(&self) -> usize {
        self.rows.div_ceil(SQUARE)
    }

    /// Rounds the rows of the weight.
    fn round(&self, groups: &dyn Groups, panel: &mut Panel) {
        let (cols, group, steps) = (self.weight.cols(), groups.group_len(), self.acts.steps);
        panel.q.resize(cols, 0);
        panel.scale.resize(cols / group, 0.0);
        panel.min.resize(if groups.has_min() { cols / group } else { 0 }, 0.0);
        at_least(&mut panel.tiles, 2 * self.squares() * steps, Tile::ZERO);
        for r in 0..self.rows {
            let packed = self.weight.packed(self.first + r, 1);
            groups.unpack(self.isa, packed, &mut panel.q, &mut panel.scale, &mut panel.min);
            let (q, scale, min) = (&panel.q[..], &panel.scale[..], &panel.min[..]);
            let from = Grouped { q, offset: groups.offset(), group, scale, min };
            self.acts.amx.round_grouped(from, r % TILE, &mut panel.tiles[r / TILE * steps..][..steps]);
        }
    }

    /// Splits the rows of the weight.
    fn split(&self, panel: &mut Panel) {
        let (steps, all) = (self.acts.steps, 2 * self.squares() * self.acts.steps);
        panel.x.resize(self.weight.cols(), 0.0);
        at_least(&mut panel.tiles, 2 * all, Tile::ZERO);
        let (high, low) = panel.tiles.split_at_mut(all);
        for r in 0..self.rows {
            self.weight.row(self.isa, self.first + r, &mut panel.x);
            let at = r / TILE * steps..(r / TILE + 1) * steps;
            self.acts.amx.split_row(&panel.x, r % TILE, &mut high[at.clone()], &mut low[at]);
        }
    }

    fn products(&self, tiles: &mut Tiles, pairs: Pairs, panel: &mut Panel) {
        let steps = self.acts.steps;
        let (squares, across) = (self.squares(), self.acts.tokens.div_ceil(SQUARE));
        at_least(&mut panel.sums, if steps > STEPS { squares * across } else { 1 }, [Sums::ZERO; 4]);
        for from in (0..steps).step_by(STEPS) {
            let to = steps.min(from + STEPS);
            for t in 0..across {
                for r in 0..squares {
                    let sums = &mut panel.sums[if steps > STEPS { t * squares + r } else { 0 }];
                    for (i, &(part, of_acts)) in pairs.iter().enumerate() {
                        let rows = square_of(&panel.tiles, steps, part * squares + r, from, to);
                        tiles.multiply(rows, self.acts.square(of_acts, t, from, to), sums, from > 0 || i > 0);
                    }
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
        // What factors are off by, both together.
        let [rounded, split] = [2f64.powi(-8), 2f64.powi(-17)];
        for (dtype, factors) in [(list::Q8_0, rounded), (list::F16, split), (list::BF16, split)] {
            let mut packed = vec![0; dtype.bytes_for((ROWS * COLS) as u64).unwrap() as usize];
            dtype.quantize(isa, &noise(ROWS * COLS), None, &mut packed).unwrap();
            let mut w = vec![0.0; ROWS * COLS];
            dtype.dequantize(isa, &packed, &mut w).unwrap();
            let weight = Matrix::new(dtype, ROWS, COLS, &packed).unwrap();
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
            assert_eq!(run(1, MANY), out[..MANY * ROWS], "{dtype}: fewer rows, one thread");
            for (t, out) in out.chunks_exact(ROWS).enumerate() {
                let x = &x[t * COLS..(t + 1) * COLS];
                for (r, &got) in out.iter().enumerate() {
                    let terms = w[r * COLS..].iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                    let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                    // Factors; what low parts or both roundings make of each other; a sum of n is off by n · 2⁻²⁴
                    // of all sizes, of three times as many products.
                    let bound = size * (factors + 2f64.powi(-17) + 3.0 * COLS as f64 * 2f64.powi(-24));
                    assert!(
                        (f64::from(got) - exact).abs() <= bound,
                        "{dtype} {t} {r}: {got} {exact} ±{bound}"
                    );
                }
            }
        }
    }
}
