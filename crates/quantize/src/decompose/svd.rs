//! The best approximation of low rank, nearly: the randomized method of Halko, Martinsson and Tropp, *Finding structure
//! with randomness* (SIAM Review 53, 2011), algorithms 4.4 and 5.1.
//!
//! A matrix times some random vectors spans nearly the space of its largest singular vectors, more so after a few
//! multiplications with it and its transpose. The matrix is projected there, and a small symmetric eigenproblem,
//! solved by Jacobi's rotations in `f64`, gives the singular vectors.

use super::product::{Machine, dot, pieces, product, transposed};
use super::random::Random;

/// Random vectors beyond the rank: their error would need a hundred times the singular values' gap to be seen.
const MORE: usize = 10;
/// Multiplications with the matrix and its transpose.
const POWERS: usize = 2;
/// Rounds of rotations; they converge quadratically and mostly need seven.
const SWEEPS: usize = 30;

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
pub fn low_rank(machine: Machine<'_>, a: &[f32], cols: usize, rank: usize, seed: u64) -> LowRank {
    let rows = a.len().checked_div(cols).unwrap_or(0);
    let rank = rank.min(rows).min(cols);
    if rank == 0 {
        return LowRank::default();
    }
    let n = (rank + MORE).min(rows).min(cols);
    let turned = transposed(machine, a, cols);
    let mut random = Random::new(seed, 0);
    let start: Vec<f32> = (0..cols * n).map(|_| random.normal()).collect();
    let mut basis = orthonormal(machine, &product(machine, a, &start, cols, n), n);
    for _ in 0..POWERS {
        let back = orthonormal(machine, &product(machine, &turned, &basis, rows, n), n);
        basis = orthonormal(machine, &product(machine, a, &back, cols, n), n);
    }
    // `a` ≈ basis · projectedᵀ.
    let projected = product(machine, &turned, &basis, rows, n);
    let (values, vectors) = eigen(gram(machine, &projected, n), n);
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
    LowRank { rank, left, right: transposed(machine, &right, rank) }
}

/// An orthonormal basis of the columns' space, by Gram and Schmidt's method, twice, in `f64`. Columns that depend on
/// others become 0.
fn orthonormal(machine: Machine<'_>, a: &[f32], cols: usize) -> Vec<f32> {
    let rows = a.len() / cols;
    let mut columns: Vec<f64> = transposed(machine, a, cols).iter().map(|&v| f64::from(v)).collect();
    for j in 0..cols {
        let (before, rest) = columns.split_at_mut(j * rows);
        let column = &mut rest[..rows];
        let length = dot(column, column).sqrt();
        for _ in 0..2 {
            let mut shares = vec![0f64; j];
            pieces(machine.pool, &mut shares, 16, |i, shares| {
                for (share, other) in shares.iter_mut().zip(before[i * 16 * rows..].chunks_exact(rows)) {
                    *share = dot(other, column);
                }
            });
            for (share, other) in shares.iter().zip(before.chunks_exact(rows)) {
                column.iter_mut().zip(other).for_each(|(v, o)| *v -= share * o);
            }
        }
        let left = dot(column, column).sqrt();
        let scale = if left > length * 1e-9 { 1.0 / left } else { 0.0 };
        column.iter_mut().for_each(|v| *v *= scale);
    }
    let columns: Vec<f32> = columns.iter().map(|&v| v as f32).collect();
    transposed(machine, &columns, rows)
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

/// Eigenvalues of a symmetric matrix, the largest first, and their vectors, one row each: Jacobi's rotations (Golub and
/// Van Loan, *Matrix Computations*, 8.5).
fn eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
    let size: f64 = a.iter().map(|v| v * v).sum();
    for _ in 0..SWEEPS {
        let off: f64 =
            (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i * n + j].powi(2)).sum();
        if off <= size * 1e-26 {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                let apq = a[p * n + q];
                if apq.abs() <= 1e-300 {
                    continue;
                }
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * apq);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                rotate(&mut a, n, p, q, c, t * c);
                let (first, second) = vectors.split_at_mut(q * n);
                turn(&mut first[p * n..(p + 1) * n], &mut second[..n], c, t * c);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j * n + j].total_cmp(&a[i * n + i]).then(i.cmp(&j)));
    let values = order.iter().map(|&i| a[i * n + i]).collect();
    (values, order.iter().flat_map(|&i| vectors[i * n..(i + 1) * n].to_vec()).collect())
}

/// Rows and columns p and q of a symmetric matrix turn.
fn rotate(a: &mut [f64], n: usize, p: usize, q: usize, c: f64, s: f64) {
    let (first, second) = a.split_at_mut(q * n);
    turn(&mut first[p * n..(p + 1) * n], &mut second[..n], c, s);
    for row in a.chunks_exact_mut(n) {
        let (x, y) = (row[p], row[q]);
        row[p] = c * x - s * y;
        row[q] = s * x + c * y;
    }
}

fn turn(first: &mut [f64], second: &mut [f64], c: f64, s: f64) {
    for (x, y) in first.iter_mut().zip(second) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
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
            true => eigen(gram(machine, &transposed(machine, a, cols), rows), rows).0,
            false => eigen(gram(machine, a, cols), cols).0,
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
                    let found = error(machine, a, cols, &low_rank(machine, a, cols, rank, 5));
                    assert!(found <= least * 1.03 && found >= least * 0.999, "{rank}: {found} {least}");
                    assert!(found < last);
                    last = found;
                }
            }
            let all = low_rank(machine, &mixed, cols, rows.min(cols), 5);
            let size: f64 = mixed.iter().map(|v| f64::from(v * v)).sum();
            assert!(error(machine, &mixed, cols, &all) < size * 1e-9);
        }
    }

    #[test]
    fn degenerate_matrices_are_fine() {
        let pool = Pool::new(1);
        let machine = Machine { pool: &pool, isa: Isa::detect() };
        let zero = low_rank(machine, &[0.0; 60], 6, 3, 1);
        assert!(zero.left.iter().all(|v| *v == 0.0) && zero.right.iter().all(|v| v.is_finite()));
        let one: Vec<f32> = (0..60).map(|i| ((i / 6) * (i % 6 + 1)) as f32).collect();
        assert!(error(machine, &one, 6, &low_rank(machine, &one, 6, 4, 1)) < 1e-6);
        assert_eq!(low_rank(machine, &one, 6, 0, 1), LowRank::default());
        assert_eq!(low_rank(machine, &[3.0], 1, 9, 1).rank, 1);
    }

    #[test]
    fn threads_change_nothing() {
        let a = random(150, 97, 4);
        let of = |threads: usize, isa| low_rank(Machine { pool: &Pool::new(threads), isa }, &a, 97, 12, 3);
        let want = of(1, Isa::detect());
        assert_eq!(of(3, Isa::detect()), want);
        assert_eq!(of(2, Isa::scalar()), want);
    }
}
