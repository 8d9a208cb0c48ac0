//! Threads over pieces of a slice, and products of dense matrices.
//!
//! Every value of a product is one chain of multiplications and additions in `f32`, in the order of the inner
//! dimension: the same bits at any number of threads and at every instruction set.

use fonio_kernel::Pool;
use fonio_simd::{Isa, Task};
use std::sync::{Mutex, PoisonError};

/// What computations run on.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// Threads.
    pub pool: &'a Pool,
    /// Their instruction set.
    pub isa: Isa,
}

/// Calls `f` with the number and the content of every piece of `len` values, on whichever thread is free.
pub(super) fn pieces<T: Send>(pool: &Pool, out: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let parts: Vec<Mutex<&mut [T]>> = out.chunks_mut(len.max(1)).map(Mutex::new).collect();
    pool.each(
        parts.len(),
        1,
        || (),
        |(), range| {
            for i in range {
                f(i, &mut parts[i].lock().unwrap_or_else(PoisonError::into_inner));
            }
        },
    );
}

/// Rows and columns of a tile that is kept in registers.
const TILE: usize = 4;
const WIDE: usize = 16;
/// Rows that a thread takes together.
const STRIP: usize = 32;

struct Strip<'a> {
    a: &'a [f32],
    /// Panels of `WIDE` columns of the right matrix, one after the other.
    panels: &'a [[f32; WIDE]],
    inner: usize,
    cols: usize,
    out: &'a mut [f32],
}

impl Task for Strip<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let rows = self.out.len() / self.cols;
        for (p, panel) in self.panels.chunks_exact(self.inner).enumerate() {
            let (first, width) = (p * WIDE, WIDE.min(self.cols - p * WIDE));
            for top in (0..rows).step_by(TILE) {
                let mut sums = [[0f32; WIDE]; TILE];
                // Rows beyond the last one are the last one again; what they give is dropped.
                let row = |r: usize| {
                    let at = (top + r).min(rows - 1) * self.inner;
                    &self.a[at..at + self.inner]
                };
                let (a0, a1, a2, a3) = (row(0), row(1), row(2), row(3));
                for ((((b, &a0), &a1), &a2), &a3) in panel.iter().zip(a0).zip(a1).zip(a2).zip(a3) {
                    for j in 0..WIDE {
                        sums[0][j] += a0 * b[j];
                        sums[1][j] += a1 * b[j];
                        sums[2][j] += a2 * b[j];
                        sums[3][j] += a3 * b[j];
                    }
                }
                for (r, sums) in sums.iter().enumerate().take(rows - top) {
                    let at = (top + r) * self.cols + first;
                    self.out[at..at + width].copy_from_slice(&sums[..width]);
                }
            }
        }
    }
}

/// `a · b`, row-major: `[rows, inner]` times `[inner, cols]`.
pub(super) fn product(machine: Machine<'_>, a: &[f32], b: &[f32], inner: usize, cols: usize) -> Vec<f32> {
    if inner == 0 || cols == 0 {
        return Vec::new();
    }
    let rows = a.len() / inner;
    let mut panels = vec![[0f32; WIDE]; cols.div_ceil(WIDE) * inner];
    pieces(machine.pool, &mut panels, inner, |p, panel| {
        for (to, row) in panel.iter_mut().zip(b.chunks_exact(cols)) {
            let from = &row[p * WIDE..cols.min((p + 1) * WIDE)];
            to[..from.len()].copy_from_slice(from);
        }
    });
    let mut out = vec![0f32; rows * cols];
    pieces(machine.pool, &mut out, STRIP * cols, |i, out| {
        let a = &a[i * STRIP * inner..];
        machine.isa.run(Strip { a, panels: &panels, inner, cols, out });
    });
    out
}

/// `[rows, cols]` as `[cols, rows]`.
pub(super) fn transposed(machine: Machine<'_>, a: &[f32], cols: usize) -> Vec<f32> {
    const BLOCK: usize = 32;
    if cols == 0 {
        return Vec::new();
    }
    let rows = a.len() / cols;
    let mut out = vec![0f32; a.len()];
    pieces(machine.pool, &mut out, BLOCK * rows.max(1), |i, out| {
        for (b, block) in a.chunks(BLOCK * cols).enumerate() {
            for (c, column) in out.chunks_exact_mut(rows).enumerate() {
                for (r, row) in block.chunks_exact(cols).enumerate() {
                    column[b * BLOCK + r] = row[i * BLOCK + c];
                }
            }
        }
    });
    out
}

/// The sum of products, in eight chains.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    let (a8, b8) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a8.0.iter().zip(b8.0) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a8.1.iter().zip(b8.1).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_the_same_bits_everywhere() {
        for (rows, inner, cols) in [(1, 1, 1), (5, 7, 3), (70, 33, 17), (33, 100, 48)] {
            let a: Vec<f32> = (0..rows * inner).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let b: Vec<f32> = (0..inner * cols).map(|i| ((i * 53 % 97) as f32 - 40.0) / 9.0).collect();
            let mut want = vec![0f32; rows * cols];
            for (i, want) in want.iter_mut().enumerate() {
                for k in 0..inner {
                    *want += a[i / cols * inner + k] * b[k * cols + i % cols];
                }
            }
            for threads in [1, 3] {
                let pool = Pool::new(threads);
                for isa in Isa::available() {
                    let machine = Machine { pool: &pool, isa };
                    assert_eq!(product(machine, &a, &b, inner, cols), want, "{rows} {inner} {cols} {isa}");
                    let turned = transposed(machine, &a, inner);
                    assert_eq!(transposed(machine, &turned, rows), a);
                    assert!(rows == 1 || turned[1] == a[inner]);
                }
            }
        }
    }
}
