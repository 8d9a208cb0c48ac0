//! Products with the parts of a weight that is stored as a sum: single values, diagonals, and product quantization
//! (Jégou, Douze, Schmid 2011). Each adds to `out[t]` what its part of the weight makes of `x[t]`.
//!
//! What the parts hold came from a file and is checked here: a number that points out of the weight is told, and nothing
//! is read out of bounds.

use crate::share::Shared;
use crate::{Kernels, Matrix};
use fonio_codec::DType;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows and columns of the whole weight, and which of its rows are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first row.
    pub first: usize,
    /// How many.
    pub rows: usize,
    /// Length of a row.
    pub cols: usize,
}

/// Single values: row `r` has those from `starts[r]` to before `starts[r + 1]`. Numbers are little-endian `u32`.
#[derive(Clone, Copy)]
pub struct Sparse<'a> {
    /// One for each row of the whole weight, and one more.
    pub starts: &'a [u8],
    /// The column of each value.
    pub columns: &'a [u8],
    /// Type of the values, plain numbers.
    pub dtype: DType,
    /// The values.
    pub values: &'a [u8],
}

/// Diagonals: the `d`-th has its value `i` at row `i`, column `i + first + d`.
#[derive(Clone, Copy)]
pub struct Band<'a> {
    /// A row for each diagonal.
    pub values: Matrix<'a>,
    /// Column of the first diagonal in row 0.
    pub first: i64,
}

/// Product quantization: piece `p` of a row is row `code` of table `p mod m`.
#[derive(Clone, Copy)]
pub struct Vectors<'a> {
    /// A byte for each piece, row by row of the whole weight.
    pub codes: &'a [u8],
    /// `m · k` rows of a piece's values.
    pub tables: Matrix<'a>,
    /// Number of tables.
    pub m: usize,
}

/// The file's numbers point out of the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBounds;

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.as_chunks::<4>().0.get(at).map(|b| u32::from_le_bytes(*b) as usize)
}

/// Rows that one thread takes at a time.
const STRIP: usize = 64;

impl Kernels {
    /// Adds the product with single values.
    pub fn add_sparse(
        &self,
        x: &[f32],
        part: Sparse<'_>,
        window: Window,
        out: &mut [f32],
    ) -> Result<(), OutOfBounds> {
        let tokens = x.len() / window.cols;
        let shared = Shared::new(out);
        let size = part.dtype.block_bytes();
        self.each_strip(window.rows, |first, n| {
            let mut values = Vec::new();
            for r in first..first + n {
                let row = window.first + r;
                let (start, end) = (number(part.starts, row)?, number(part.starts, row + 1)?);
                let packed = part.values.get(start.checked_mul(size)?..end.checked_mul(size)?)?;
                values.resize(end - start, 0.0);
                part.dtype.dequantize(self.isa(), packed, &mut values).ok()?;
                for t in 0..tokens {
                    let x = &x[t * window.cols..(t + 1) * window.cols];
                    let mut sum = 0.0;
                    for (i, value) in values.iter().enumerate() {
                        sum += value * x.get(number(part.columns, start + i)?)?;
                    }
                    // SAFETY: row `r` of every token is this strip's alone.
                    unsafe { shared.part(t * window.rows + r, 1)[0] += sum };
                }
            }
            Some(())
        })
    }

    /// Adds the product with diagonals.
    pub fn add_band(&self, x: &[f32], part: Band<'_>, window: Window, out: &mut [f32]) {
        let mut values = vec![0.0; part.values.cols()];
        for d in 0..part.values.rows() {
            part.values.row(self.isa(), d, &mut values);
            let shift = part.first + d as i64;
            for (x, out) in x.chunks_exact(window.cols).zip(out.chunks_exact_mut(window.rows)) {
                for (r, out) in out.iter_mut().enumerate() {
                    let row = window.first + r;
                    let col = usize::try_from(row as i64 + shift).ok();
                    if let (Some(value), Some(x)) = (values.get(row), col.and_then(|c| x.get(c))) {
                        *out += value * x;
                    }
                }
            }
        }
    }

    /// Adds the product with quantized pieces: the products of all tables' rows with the pieces of `x` are made once,
    /// and each row of the weight adds up those that its codes name.
    pub fn add_vectors(
        &self,
        x: &[f32],
        part: Vectors<'_>,
        window: Window,
        out: &mut [f32],
    ) -> Result<(), OutOfBounds> {
        let piece = part.tables.cols();
        let pieces = window.cols.div_ceil(piece.max(1));
        let (m, k) = (part.m, part.tables.rows().checked_div(part.m).unwrap_or(0));
        if piece == 0 || k == 0 || part.tables.rows() != m * k {
            return Err(OutOfBounds);
        }
        let codes = window.first * pieces..(window.first + window.rows) * pieces;
        let codes = part.codes.get(codes).ok_or(OutOfBounds)?;
        let mut tables = vec![0.0; m * k * piece];
        for (row, to) in tables.chunks_exact_mut(piece).enumerate() {
            part.tables.row(self.isa(), row, to);
        }
        let mut products = vec![0.0; pieces * k];
        for (x, out) in x.chunks_exact(window.cols).zip(out.chunks_exact_mut(window.rows)) {
            let shared = Shared::new(&mut products);
            self.each_strip(pieces, |first, n| {
                for p in first..first + n {
                    let x = &x[p * piece..window.cols.min((p + 1) * piece)];
                    let table = &tables[p % m * k * piece..][..k * piece];
                    // SAFETY: the products of piece `p` are this strip's alone.
                    let to = unsafe { shared.part(p * k, k) };
                    for (to, row) in to.iter_mut().zip(table.chunks_exact(piece)) {
                        *to = row.iter().zip(x).map(|(w, x)| w * x).sum();
                    }
                }
                Some(())
            })?;
            let shared = Shared::new(out);
            self.each_strip(window.rows, |first, n| {
                for r in first..first + n {
                    let mut sum = 0.0;
                    for (products, &code) in
                        products.chunks_exact(k).zip(&codes[r * pieces..(r + 1) * pieces])
                    {
                        sum += products.get(usize::from(code))?;
                    }
                    // SAFETY: row `r` is this strip's alone.
                    unsafe { shared.part(r, 1)[0] += sum };
                }
                Some(())
            })?;
        }
        Ok(())
    }

    /// Gives strips of `0 .. rows` to the threads: the first one and how many.
    fn each_strip(
        &self,
        rows: usize,
        work: impl Fn(usize, usize) -> Option<()> + Sync,
    ) -> Result<(), OutOfBounds> {
        let broken = AtomicBool::new(false);
        self.pool().each(
            rows.div_ceil(STRIP),
            1,
            || (),
            |(), strips| {
                for strip in strips {
                    let first = strip * STRIP;
                    if work(first, STRIP.min(rows - first)).is_none() {
                        broken.store(true, Ordering::Relaxed);
                    }
                }
            },
        );
        if broken.into_inner() { Err(OutOfBounds) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fonio_codec::list;
    use fonio_simd::Isa;

    const WINDOW: Window = Window { first: 1, rows: 130, cols: 37 };

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0)
            .collect()
    }

    fn bytes(x: &[f32]) -> Vec<u8> {
        x.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn numbers(x: &[u32]) -> Vec<u8> {
        x.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    /// `out + W·x` for rows of the window, with `W` dense.
    fn check(dense: &[f32], run: impl Fn(&Kernels, &[f32], &mut [f32])) {
        let tokens = 3;
        let x = noise(tokens * WINDOW.cols, 7);
        for threads in [1, 3] {
            let mut out = noise(tokens * WINDOW.rows, 8);
            let before = out.clone();
            run(&Kernels::new(threads, Isa::detect()), &x, &mut out);
            for t in 0..tokens {
                for r in 0..WINDOW.rows {
                    let row = &dense[(WINDOW.first + r) * WINDOW.cols..][..WINDOW.cols];
                    let x = &x[t * WINDOW.cols..][..WINDOW.cols];
                    let want: f32 = row.iter().zip(x).map(|(w, x)| w * x).sum();
                    let at = t * WINDOW.rows + r;
                    assert!(
                        (out[at] - before[at] - want).abs() < 1e-4,
                        "{r}: {} {want}",
                        out[at] - before[at]
                    );
                }
            }
        }
    }

    #[test]
    fn single_values() {
        let rows = WINDOW.rows + 2;
        let (mut starts, mut columns, mut dense) = (vec![0u32], Vec::new(), vec![0.0; rows * WINDOW.cols]);
        let mut values = noise(2 * rows, 1);
        for r in 0..rows {
            for c in [r % 37, 36].into_iter().take(r % 3) {
                dense[r * WINDOW.cols + c] += values[columns.len()];
                columns.push(c as u32);
            }
            starts.push(columns.len() as u32);
        }
        values.truncate(columns.len());
        let (starts, values) = (numbers(&starts), bytes(&values));
        let run = |columns: &[u8], k: &Kernels, x: &[f32], out: &mut [f32]| {
            let part = Sparse { starts: &starts, columns, dtype: list::F32, values: &values };
            k.add_sparse(x, part, WINDOW, out)
        };
        let good = numbers(&columns);
        check(&dense, |k, x, out| run(&good, k, x, out).unwrap());
        columns[9] = 37;
        let (k, mut out) = (Kernels::new(2, Isa::detect()), vec![0.0; WINDOW.rows]);
        assert_eq!(run(&numbers(&columns), &k, &[0.0; 37], &mut out), Err(OutOfBounds));
        assert_eq!(run(&good[..8], &k, &[0.0; 37], &mut out), Err(OutOfBounds));
    }

    #[test]
    fn diagonals() {
        let rows = WINDOW.rows + 2;
        let values = noise(3 * 37, 2);
        let mut dense = vec![0.0; rows * WINDOW.cols];
        for d in 0..3usize {
            for i in 0..37 {
                if let Some(c) = (i + d).checked_sub(1).filter(|&c| c < 37) {
                    dense[i * WINDOW.cols + c] += values[d * 37 + i];
                }
            }
        }
        let packed = bytes(&values);
        check(&dense, |k, x, out| {
            let part = Band { values: Matrix::new(list::F32, 3, 37, &packed).unwrap(), first: -1 };
            k.add_band(x, part, WINDOW, out);
        });
    }

    #[test]
    fn quantized_pieces() {
        let (rows, m, k, piece) = (WINDOW.rows + 2, 3, 5, 4);
        let pieces = WINDOW.cols.div_ceil(piece);
        let tables = noise(m * k * piece, 3);
        let mut codes: Vec<u8> = (0..rows * pieces).map(|i| (i * i % k) as u8).collect();
        let dense: Vec<f32> = (0..rows * WINDOW.cols)
            .map(|i| {
                let (r, c) = (i / WINDOW.cols, i % WINDOW.cols);
                let p = c / piece;
                tables[(p % m * k + usize::from(codes[r * pieces + p])) * piece + c % piece]
            })
            .collect();
        let packed = bytes(&tables);
        let run = |codes: &[u8], kernels: &Kernels, x: &[f32], out: &mut [f32]| {
            let tables = Matrix::new(list::F32, m * k, piece, &packed).unwrap();
            kernels.add_vectors(x, Vectors { codes, tables, m }, WINDOW, out)
        };
        check(&dense, |kernels, x, out| run(&codes, kernels, x, out).unwrap());
        codes[700] = k as u8;
        let (kernels, mut out) = (Kernels::new(2, Isa::detect()), vec![0.0; WINDOW.rows]);
        assert_eq!(run(&codes, &kernels, &[0.0; 37], &mut out), Err(OutOfBounds));
        assert_eq!(run(&codes[..700], &kernels, &[0.0; 37], &mut out), Err(OutOfBounds));
    }
}
