//! Products of packed weights with rows of activations: `out[t] = W · x[t]` for every token `t`.
//!
//! Rows of the weight are taken in strips. For quantized types the activations are rounded to bytes, once for each call,
//! with a scale for as many as share one in the weight, and integer sums are exact: of one token straight from the packed
//! rows, of a few from unpacked rows, and of many from panels. Plain numbers of one token are multiplied as they are loaded,
//! of a few a tile of rows and tokens at a time, and of many from panels as well. A value of the result is the same bits
//! however many tokens and threads there are, but for very many tokens where the CPU has AMX: then both sides are made
//! bfloat16 numbers and multiplied in its tiles.

use crate::Kernels;
use crate::bytes::{self, ByteActs};
use crate::floats::{FloatActs, FloatStrip, pack_floats};
use crate::panel::{bytes as byte_panel, floats as float_panel};
use crate::share::Shared;
use crate::spare::Lent;
use crate::tiles::{self, Columns};
use fonio_codec::DType;
use fonio_simd::Isa;
use fonio_simd::amx::Amx;

/// A weight: `rows` rows of `cols` values, packed one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// A view of `bytes`, or `None` if they are not `rows` rows of `cols` values of this type.
    pub fn new(dtype: DType, rows: usize, cols: usize, bytes: &'a [u8]) -> Option<Matrix<'a>> {
        let row_bytes = usize::try_from(dtype.bytes_for(cols as u64)?).ok()?;
        (row_bytes.checked_mul(rows)? == bytes.len()).then_some(Matrix {
            dtype,
            rows,
            cols,
            row_bytes,
            bytes,
        })
    }
    /// Length of the result.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Length of the input.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// What the bytes are.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// The packed bytes of some rows.
    pub(crate) fn packed(&self, first: usize, n: usize) -> &'a [u8] {
        &self.bytes[first * self.row_bytes..(first + n) * self.row_bytes]
    }
    /// Unpacks one row.
    pub fn row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row");
        self.dtype.codec().dequantize(isa, self.packed(row, 1), out);
    }
}

/// One of several products with the same input.
pub struct Product<'a> {
    /// The weight.
    pub weight: Matrix<'a>,
    /// `weight.rows()` values for each token.
    pub out: &'a mut [f32],
}

/// Rows that are unpacked together.
const STRIP: usize = 16;

/// Of short rows times one row of activations more are taken, until they have this many bytes.
const STRIP_BYTES: usize = 24 << 10;

/// But no more than these.
const MAX_STRIP: usize = 64;

/// Rows of activations from which on unpacked weights are arranged in panels first.
const MANY: usize = 12;

/// The same of plain numbers, whose panels take longer to make.
const MANY_FLOATS: usize = 24;

/// What activations are made into for a weight.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Plain numbers.
    Float,
    /// The same in tiles.
    FloatTiles,
    /// Bytes with a scale for each group of this length.
    Bytes(usize),
    /// The same in tiles, for weights whose bytes have this offset.
    Tiles(usize, u8),
    /// Bfloat16 numbers, or sums of two.
    Columns(Amx, bool),
}

impl Kind {
    /// What is multiplied with weights of this type.
    fn of(dtype: DType, tokens: usize, amx: Option<Amx>) -> Kind {
        match (amx, dtype.codec().groups()) {
            (Some(amx), Some(_)) => Kind::Columns(amx, false),
            (Some(amx), None) if tiles::is_split(dtype) => Kind::Columns(amx, true),
            (_, None) if tokens >= MANY_FLOATS => Kind::FloatTiles,
            (_, None) => Kind::Float,
            (None, Some(g)) if tokens >= MANY => Kind::Tiles(g.group_len(), g.offset()),
            (None, Some(g)) => Kind::Bytes(g.group_len()),
        }
    }

    /// Makes it of rows of `cols` values.
    fn pack<'a>(self, kernels: &'a Kernels, x: &[f32], cols: usize) -> Acts<'a> {
        match self {
            Kind::Columns(amx, split) => Acts::Columns(Columns::pack(kernels, amx, split, x, cols)),
            Kind::Float => Acts::Float(pack_floats(x, cols)),
            Kind::Bytes(group) => Acts::Bytes(ByteActs::pack(kernels, x, cols, group)),
            Kind::FloatTiles => Acts::FloatTiles(float_panel::Tiles::pack(kernels, x, cols)),
            Kind::Tiles(group, offset) => {
                Acts::Tiles(byte_panel::Tiles::pack(kernels, x, cols, group, offset))
            }
        }
    }
}

/// And what was made.
enum Acts<'a> {
    Float(FloatActs),
    Bytes(Lent<'a, ByteActs>),
    FloatTiles(Lent<'a, float_panel::Tiles>),
    Tiles(Lent<'a, byte_panel::Tiles>),
    Columns(Columns<'a>),
}

impl Acts<'_> {
    /// Rows of a weight that are multiplied together, of so many for each thread.
    fn height(&self, weight: &Matrix<'_>, share: usize) -> usize {
        match self {
            Acts::Bytes(acts) if acts.is_single() => {
                // Threads that take eight strips each or more end at about the same time.
                let rows = (STRIP_BYTES / weight.row_bytes.max(1)).min(share / 8).min(MAX_STRIP);
                (rows / STRIP * STRIP).max(STRIP)
            }
            Acts::Float(_) | Acts::Bytes(_) => STRIP,
            Acts::FloatTiles(tiles) => tiles.panel_rows(),
            Acts::Tiles(tiles) => tiles.panel_rows(),
            Acts::Columns(_) => tiles::PANEL,
        }
    }
}

/// One of the products of a call.
struct Job<'a> {
    /// Its first strip, and how many rows a strip has.
    begin: usize,
    height: usize,
    weight: Matrix<'a>,
    acts: &'a Acts<'a>,
    out: Shared<'a, f32>,
}

/// Buffers of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    bytes: bytes::Buffers,
    panel: byte_panel::Panel,
    floats: float_panel::Panel,
    tiles: tiles::Panel,
    x: Vec<f32>,
}

impl Kernels {
    /// Multiplies the rows of `x` with each weight: `out[t] = W · x[t]`. All weights have the same number of columns,
    /// which is the length of a row of `x`.
    pub fn matmul(&self, x: &[f32], products: &mut [Product<'_>]) {
        let Some(cols) = products.first().map(|p| p.weight.cols) else { return };
        assert!(cols > 0 && x.len().is_multiple_of(cols), "whole rows");
        let tokens = x.len() / cols;
        if tokens == 0 {
            return;
        }
        for p in products.iter() {
            assert!(p.weight.cols == cols && p.out.len() == tokens * p.weight.rows, "shapes fit");
        }
        let amx = self.isa().amx().filter(|_| tokens >= tiles::MANY);
        let kind = |p: &Product<'_>| Kind::of(p.weight.dtype, tokens, amx);
        // Weights of a call are of one type or two, and share what is made of the activations.
        let mut acts: Vec<(Kind, Acts<'_>)> = Vec::new();
        for kind in products.iter().map(kind) {
            if acts.iter().all(|(other, _)| *other != kind) {
                acts.push((kind, kind.pack(self, x, cols)));
            }
        }
        // All strips of all products in one row of work, so that threads wait once.
        let share = products.iter().map(|p| p.weight.rows).sum::<usize>() / self.pool().threads();
        let mut strips = 0;
        let jobs: Vec<Job<'_>> = products
            .iter_mut()
            .map(|p| {
                let place = acts.iter().position(|(other, _)| *other == kind(p));
                let acts = &acts[place.expect("made for all kinds")].1;
                let height = acts.height(&p.weight, share);
                let begin = strips;
                strips += p.weight.rows.div_ceil(height);
                Job { begin, height, weight: p.weight, acts, out: Shared::new(&mut *p.out) }
            })
            .collect();
        self.pool().each(
            strips,
            1,
            || self.scratch.lend(),
            |scratch, range| {
                let scratch = &mut **scratch;
                for strip in range {
                    let job = &jobs[jobs.partition_point(|job| job.begin <= strip) - 1];
                    let Job { weight, out, .. } = job;
                    let first = (strip - job.begin) * job.height;
                    let rows = job.height.min(weight.rows - first);
                    let isa = self.isa();
                    let groups = weight.dtype.codec().groups();
                    match (job.acts, groups) {
                        (Acts::Tiles(tiles), Some(groups)) => {
                            tiles.multiply(isa, weight, groups, first, &mut scratch.panel, out);
                        }
                        (Acts::Bytes(acts), Some(groups)) => {
                            let strip = bytes::Strip { weight, groups, isa, first, rows, acts, out };
                            strip.multiply(&mut scratch.bytes);
                        }
                        (Acts::Columns(acts), _) => {
                            tiles::Strip { weight, isa, first, rows, acts, out }.multiply(&mut scratch.tiles);
                        }
                        (Acts::FloatTiles(tiles), _) => {
                            tiles.multiply(isa, weight, first, &mut scratch.floats, out);
                        }
                        (Acts::Float(acts), _) => {
                            isa.vector(FloatStrip { weight, isa, first, rows, acts, x: &mut scratch.x, out });
                        }
                        (_, None) => unreachable!("activations are rounded for groups"),
                    }
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fonio_codec::list;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .take(n)
        .collect()
    }

    /// Weights of a type, and their bytes; of one that is not made, of any bytes that make no scale infinite.
    fn weights(dtype: DType, n: usize) -> (Vec<u8>, Vec<f32>) {
        let mut packed: Vec<u8> =
            (0..dtype.bytes_for(n as u64).unwrap()).map(|i| (i * 7 % 61) as u8).collect();
        if dtype.can_quantize() {
            dtype.quantize(Isa::scalar(), &noise(n, 1), None, &mut packed).unwrap();
        }
        let mut w = vec![0.0; n];
        dtype.dequantize(Isa::scalar(), &packed, &mut w).unwrap();
        (packed, w)
    }

    /// Every type against its own dequantized values in `f64`, at every level, at 1, 3, 9 and 70 tokens.
    #[test]
    fn products_are_within_the_bound_of_rounded_activations() {
        for &dtype in list::ALL.iter().filter(|t| t.can_quantize() || t.is_quantized()) {
            let block = dtype.block_len();
            let (rows, cols) = (37, if block == 1 { 75 } else { 3 * block.max(32) });
            let (packed, w) = weights(dtype, rows * cols);
            let matrix = Matrix::new(dtype, rows, cols, &packed).unwrap();
            for isa in Isa::available() {
                let kernels = Kernels::new(2, isa);
                for tokens in [1, 3, 9, 70] {
                    let x = noise(tokens * cols, 2);
                    let mut out = vec![f32::NAN; tokens * rows];
                    kernels.matmul(&x, &mut [Product { weight: matrix, out: &mut out }]);
                    for t in 0..tokens {
                        let x = &x[t * cols..(t + 1) * cols];
                        for r in 0..rows {
                            let w = &w[r * cols..(r + 1) * cols];
                            let exact: f64 =
                                w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                            let size: f64 = w.iter().map(|&w| f64::from(w).abs()).sum();
                            // An activation is off by half a step of 1/127 of its group's largest (at most 1), or
                            // it and the weight by 1/512 of themselves; minima and scales take part with the values'
                            // size once more.
                            let round = if dtype.codec().groups().is_some() { 0.5 / 127.0 } else { 0.0 };
                            let bound = size * round * 1.01 + (size * 8.0 + cols as f64) * 2f64.powi(-22);
                            let got = f64::from(out[t * rows + r]);
                            assert!(
                                (got - exact).abs() <= bound,
                                "{dtype} {isa} {tokens}: {got} {exact} ±{bound}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_token_alone_has_the_same_bits_as_among_others() {
        for &dtype in list::ALL.iter().filter(|t| t.can_quantize() || t.is_quantized()) {
            let block = dtype.block_len();
            // Rows that fill vectors, and those that are multiplied together because they don't.
            for cols in [if block == 1 { 163 } else { 5 * block }, 576, 1024] {
                // Rows as they are unpacked, and panels, of which the last tile has one row.
                for tokens in [7, MANY_FLOATS + 1] {
                    if cols.is_multiple_of(block) {
                        alone_and_among_others(dtype, 35, cols, tokens);
                    }
                }
            }
        }
    }

    fn alone_and_among_others(dtype: DType, rows: usize, cols: usize, tokens: usize) {
        let (packed, _) = weights(dtype, rows * cols);
        let weight = Matrix::new(dtype, rows, cols, &packed).unwrap();
        let x = noise(tokens * cols, 4);
        for isa in Isa::available() {
            let mut all = vec![0.0; tokens * rows];
            Kernels::new(2, isa).matmul(&x, &mut [Product { weight, out: &mut all }]);
            let single = Kernels::new(1, isa);
            for t in 0..tokens {
                let mut one = vec![0.0; rows];
                single.matmul(&x[t * cols..(t + 1) * cols], &mut [Product { weight, out: &mut one }]);
                assert_eq!(one, all[t * rows..(t + 1) * rows], "{dtype} {isa} {cols}");
            }
        }
    }

    #[test]
    fn several_products_share_one_input_and_nan_stays_visible() {
        let kernels = Kernels::new(2, Isa::detect());
        let mut bytes = vec![0; 34 * 40];
        list::Q8_0.quantize(Isa::scalar(), &noise(32 * 40, 5), None, &mut bytes).unwrap();
        let floats: Vec<u8> = noise(32 * 7, 6).iter().flat_map(|x| x.to_le_bytes()).collect();
        let a = Matrix::new(list::Q8_0, 40, 32, &bytes).unwrap();
        let b = Matrix::new(list::F32, 7, 32, &floats).unwrap();
        let mut x = noise(64, 7);
        x[40] = f32::NAN;
        let (mut out_a, mut out_b) = (vec![0.0; 80], vec![0.0; 14]);
        kernels.matmul(
            &x,
            &mut [Product { weight: a, out: &mut out_a }, Product { weight: b, out: &mut out_b }],
        );
        assert!(out_a[..40].iter().chain(&out_b[..7]).all(|x| x.is_finite()));
        assert!(out_a[40..].iter().chain(&out_b[7..]).all(|x| x.is_nan()));
        assert!(Matrix::new(list::Q8_0, 40, 33, &bytes).is_none());
        assert!(Matrix::new(list::Q8_0, 41, 32, &bytes).is_none());
    }
}
