//! The best approximation of low rank, nearly: the randomized method of Halko, Martinsson and Tropp, *Finding structure
//! with randomness* (SIAM Review 53, 2011), algorithms 4.4 and 5.1.
//!
//! A matrix times some random vectors spans nearly the space of its largest singular vectors, more so after a few
//! multiplications with it and its transpose. The matrix is projected there, and a small symmetric eigenproblem gives
//! the singular vectors.
//!
//! Products with the matrix, which take nearly all of the time, run on our threads. The QR decompositions and the
//! eigenproblem are faer's, in `f64`. It is built without its features `rayon` and `std`: so it has one thread, and
//! the instructions that the program is compiled for, not those that the CPU has. But it cuts long sums into pieces that fit
//! the CPU's caches, so on a machine with other ones last bits may differ.

use super::product::{Machine, dot, pieces, product, transposed};
use super::random::Random;
use crate::Error;
use faer::{Mat, MatRef, Side};

/// Random vectors beyond the rank: their error would need a hundred times the singular values' gap to be seen.
const MORE: usize = 10;
/// Multiplications with the matrix and its transpose.
const POWERS: usize = 2;

/// `left · right`, row-major: `[rows, rank]` times `[rank, cols]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LowRank {
    /// Columns of `left`.
    pub rank: usize,
    /// `[rows, rank]`
    pub left: Vec<f32>,
    /// `[rank, cols]`
    pub right: Vec<f32>,
}

/// An approximation of `a`, a matrix of `cols` columns, whose squared error is nearly the least that this rank can have.
/// Each factor carries the root of the singular values, so that both have values of a size.
pub fn low_rank(
    machine: Machine<'_>,
    a: &[f32],
    cols: usize,
    rank: usize,
    seed: u64,
) -> Result<LowRank, Error> {
    let rows = a.len().checked_div(cols).unwrap_or(0);
    let rank = rank.min(rows).min(cols);
    if rank == 0 {
        return Ok(LowRank::default());
    }
    let n = (rank + MORE).min(rows).min(cols);
    let turned = transposed(machine, a, cols);
    let mut random = Random::new(seed, 0);
    let start: Vec<f32> = (0..cols * n).map(|_| random.normal()).collect();
    let mut basis = orthonormal(&product(machine, a, &start, cols, n), n);
    for _ in 0..POWERS {
        let back = orthonormal(&product(machine, &turned, &basis, rows, n), n);
        basis = orthonormal(&product(machine, a, &back, cols, n), n);
    }
    // `a` ≈ basis · projectedᵀ.
    let projected = product(machine, &turned, &basis, rows, n);
    let (values, vectors) = eigen(&gram(machine, &projected, n), n)?;
    // Columns of the largest singular values, √σ on either side.
    let mut to_left = vec![0f32; n * rank];
    let mut to_right = vec![0f32; n * rank];
    for (j, (value, vector)) in values.iter().zip(vectors.chunks_exact(n)).take(rank).enumerate() {
        let root = value.max(0.0).sqrt().sqrt();
        for (i, v) in vector.iter().enumerate() {
            to_left[i * rank + j] = (v * root) as f32;
            to_right[i * rank + j] = if root > 0.0 { (v / root) as f32 } else { 0.0 };
        }
    }
    let left = product(machine, &basis, &to_left, n, rank);
    let right = product(machine, &projected, &to_right, n, rank);
    Ok(LowRank { rank, left, right: transposed(machine, &right, rank) })
}

/// An orthonormal basis of a space that has the columns' space in it, of as many columns: Q of the QR decomposition by
/// Householder's reflections. There are no fewer rows than columns.
fn orthonormal(a: &[f32], cols: usize) -> Vec<f32> {
    let a = Mat::from_fn(a.len() / cols, cols, |r, c| f64::from(a[r * cols + c]));
    let q = a.qr().compute_thin_Q();
    (0..a.nrows() * cols).map(|i| q[(i / cols, i % cols)] as f32).collect()
}

/// `aᵀ · a` of `[rows, n]`.
fn gram(machine: Machine<'_>, a: &[f32], n: usize) -> Vec<f64> {
    let rows = a.len() / n;
    let columns: Vec<f64> = transposed(machine, a, n).iter().map(|&v| f64::from(v)).collect();
    let column = |i: usize| &columns[i * rows..(i + 1) * rows];
    let mut out = vec![0f64; n * n];
    pieces(machine.pool, &mut out, n, |i, out| {
        out.iter_mut().enumerate().skip(i).for_each(|(j, v)| *v = dot(column(i), column(j)));
    });
    for i in 0..n {
        for j in 0..i {
            out[i * n + j] = out[j * n + i];
        }
    }
    out
}

/// Eigenvalues of a symmetric matrix, the largest first, and their vectors, one row each.
fn eigen(a: &[f64], n: usize) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let found = MatRef::from_row_major_slice(a, n, n).self_adjoint_eigen(Side::Lower);
    let found = found.map_err(|e| Error::Request(format!("its singular vectors are not found: {e:?}")))?;
    let (values, vectors) = (found.S(), found.U());
    let rows = (0..n).rev().flat_map(|j| (0..n).map(move |i| vectors[(i, j)]));
    Ok(((0..n).rev().map(|j| values[j]).collect(), rows.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fonio_kernel::Pool;
    use fonio_simd::Isa;

    fn random(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed, 7);
        (0..rows * cols).map(|_| random.normal()).collect()
    }

    /// Squared singular values of a matrix, all of them, by the eigenvalues of its smaller Gram matrix in `f64`.
    fn spectrum(machine: Machine<'_>, a: &[f32], cols: usize) -> Vec<f64> {
        let rows = a.len() / cols;
        match rows < cols {
            true => eigen(&gram(machine, &transposed(machine, a, cols), rows), rows).unwrap().0,
            false => eigen(&gram(machine, a, cols), cols).unwrap().0,
        }
    }

    fn error(machine: Machine<'_>, a: &[f32], cols: usize, l: &LowRank) -> f64 {
        let dense = product(machine, &l.left, &l.right, l.rank, cols);
        a.iter().zip(&dense).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
    }

    #[test]
    fn the_error_is_nearly_the_least() {
        let pool = Pool::new(2);
        let machine = Machine { pool: &pool, isa: Isa::detect() };
        for (rows, cols) in [(60, 90), (120, 40), (64, 64)] {
            // Noise alone, the hardest case, and noise beside three directions.
            let noise = random(rows, cols, 1);
            let strong = product(machine, &random(rows, 3, 2), &random(3, cols, 3), 3, cols);
            let mixed: Vec<f32> = noise.iter().zip(&strong).map(|(n, s)| n * 0.1 + s).collect();
            for a in [&noise, &mixed] {
                let all = spectrum(machine, a, cols);
                let mut last = f64::INFINITY;
                for rank in [1, 3, 8, 20] {
                    let least: f64 = all[rank..].iter().sum();
                    let found = error(machine, a, cols, &low_rank(machine, a, cols, rank, 5).unwrap());
                    assert!(found <= least * 1.03 && found >= least * 0.999, "{rank}: {found} {least}");
                    assert!(found < last);
                    last = found;
                }
            }
            let all = low_rank(machine, &mixed, cols, rows.min(cols), 5).unwrap();
            let size: f64 = mixed.iter().map(|v| f64::from(v * v)).sum();
            assert!(error(machine, &mixed, cols, &all) < size * 1e-9);
        }
    }

    #[test]
    fn degenerate_matrices_are_fine() {
        let pool = Pool::new(1);
        let machine = Machine { pool: &pool, isa: Isa::detect() };
        let zero = low_rank(machine, &[0.0; 60], 6, 3, 1).unwrap();
        assert!(zero.left.iter().all(|v| *v == 0.0) && zero.right.iter().all(|v| v.is_finite()));
        let one: Vec<f32> = (0..60).map(|i| ((i / 6) * (i % 6 + 1)) as f32).collect();
        assert!(error(machine, &one, 6, &low_rank(machine, &one, 6, 4, 1).unwrap()) < 1e-6);
        assert_eq!(low_rank(machine, &one, 6, 0, 1).unwrap(), LowRank::default());
        assert_eq!(low_rank(machine, &[3.0], 1, 9, 1).unwrap().rank, 1);
    }

    #[test]
    fn threads_change_nothing() {
        let a = random(150, 97, 4);
        let of = |threads: usize, isa| {
            low_rank(Machine { pool: &Pool::new(threads), isa }, &a, 97, 12, 3).unwrap()
        };
        let want = of(1, Isa::detect());
        assert_eq!(of(3, Isa::detect()), want);
        assert_eq!(of(2, Isa::scalar()), want);
    }
}
