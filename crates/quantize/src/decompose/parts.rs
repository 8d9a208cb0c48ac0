//! L, D and S of a matrix, as they are stored: rounded to `F16`, so that what comes after makes up for the rounding.

use super::product::{Machine, pieces, product};
use super::svd::low_rank;
use crate::Error;
use fonio_codec::list;
use fonio_simd::Isa;

/// What is taken out of a matrix, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Rank of L at most; 0 for none.
    pub rank: usize,
    /// Diagonals of D; none if 0, and if not said the main one where it stands out.
    pub band: Option<usize>,
    /// Quantile of magnitudes from which on values are outliers; 1 for none.
    pub outlier_q: f64,
    /// Sub-spaces that a vector of [`Settings::pq_d`] values is cut into; 0 for no R.
    pub pq_m: usize,
    /// Rows of a sub-space's table, 256 at most.
    pub pq_k: usize,
    /// Values of a vector.
    pub pq_d: usize,
    /// How many times L and R are found anew, each of what the other leaves.
    pub refine: usize,
    /// What all random numbers are drawn from.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { rank: 64, band: None, outlier_q: 0.999, pq_m: 8, pq_k: 256, pq_d: 128, refine: 0, seed: 0 }
    }
}

impl Settings {
    /// Whether the numbers make sense.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |reason: String| Err(Error::Request(reason));
        if !(0.0..=1.0).contains(&self.outlier_q) {
            return bad(format!("an outlier quantile of {} is not between 0 and 1", self.outlier_q));
        }
        if self.pq_m > 0 && (self.pq_d == 0 || !self.pq_d.is_multiple_of(self.pq_m)) {
            return bad(format!("vectors of {} values have no {} equal parts", self.pq_d, self.pq_m));
        }
        if self.pq_m > 0 && !(1..=256).contains(&self.pq_k) {
            return bad(format!("tables of {} rows; codes are bytes, for 1 to 256", self.pq_k));
        }
        if self.band.is_some_and(|n| n > 1 << 16) {
            return bad("more than 65,536 diagonals".into());
        }
        Ok(())
    }
}

/// A matrix that is decomposed.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// Its values, row by row.
    pub values: &'a [f32],
    /// Length of a row.
    pub cols: usize,
    /// How much an error in each column counts; all the same if not given.
    pub importance: Option<&'a [f32]>,
}

impl Matrix<'_> {
    pub(super) fn rows(&self) -> usize {
        self.values.len() / self.cols.max(1)
    }
}

/// Two factors, `F16`.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// Columns of the left one.
    pub rank: usize,
    /// `[rows, rank]`
    pub left: Vec<u8>,
    /// `[rank, cols]`
    pub right: Vec<u8>,
}

/// Diagonals, `F16`.
#[derive(Clone, Debug, PartialEq)]
pub struct Band {
    /// How many.
    pub n: usize,
    /// What column the first has in row 0.
    pub first: i64,
    /// `[n, min(rows, cols)]`
    pub values: Vec<u8>,
}

/// Outliers, `F16`.
#[derive(Clone, Debug, PartialEq)]
pub struct Outliers {
    /// `[rows + 1]`
    pub starts: Vec<u32>,
    /// `[n]`
    pub columns: Vec<u32>,
    /// `[n]`
    pub values: Vec<u8>,
}

/// What is taken out before vectors are quantized.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    /// What has low rank.
    pub l: Option<Factors>,
    /// Diagonals.
    pub d: Option<Band>,
    /// Outliers.
    pub s: Option<Outliers>,
}

impl Parts {
    /// Bytes that it takes in memory.
    pub(super) fn nbytes(&self) -> usize {
        let l = self.l.as_ref().map_or(0, |l| l.left.len() + l.right.len());
        let d = self.d.as_ref().map_or(0, |d| d.values.len());
        let s = self.s.as_ref().map_or(0, |s| 4 * (s.starts.len() + s.columns.len()) + s.values.len());
        l + d + s
    }
}

/// `F16` bytes of values, which must be in its range.
pub(super) fn halves(values: &[f32]) -> Result<Vec<u8>, Error> {
    let mut out = vec![0; values.len() * 2];
    list::F16.codec().quantize(Isa::scalar(), values, None, &mut out);
    match values.iter().find(|v| v.is_nan() || v.abs() >= 65_520.0) {
        Some(v) => Err(Error::Request(format!("a part's value {v} is beyond F16"))),
        None => Ok(out),
    }
}

/// Values of `F16` bytes.
pub(super) fn floats(halves: &[u8]) -> Vec<f32> {
    let mut out = vec![0f32; halves.len() / 2];
    list::F16.codec().dequantize(Isa::detect(), halves, &mut out);
    out
}

/// L, D and S, each of what those before it leave.
pub fn parts(machine: Machine<'_>, matrix: Matrix<'_>, settings: &Settings) -> Result<Parts, Error> {
    let mut found = Parts { l: factors(machine, matrix, settings)?, ..Parts::default() };
    let mut rest = rest(machine, matrix, &found);
    found.d = band(&rest, matrix.cols, settings.band)?;
    if let Some(band) = &found.d {
        subtract_band(&mut rest, matrix.cols, band);
    }
    found.s = outliers(&rest, matrix, settings.outlier_q)?;
    Ok(found)
}

/// The rank that a matrix gets: never so high that the factors take more than a quarter of its 16-bit size.
pub fn fitting_rank(rank: usize, rows: usize, cols: usize) -> usize {
    rank.min(rows * cols / (4 * (rows + cols)).max(1))
}

/// L. With importance the columns are scaled with its root first, so that the error that is least is the weighted one.
pub(super) fn factors(
    machine: Machine<'_>,
    matrix: Matrix<'_>,
    settings: &Settings,
) -> Result<Option<Factors>, Error> {
    let cols = matrix.cols;
    let rank = fitting_rank(settings.rank, matrix.rows(), cols);
    if rank == 0 {
        return Ok(None);
    }
    let Some(importance) = matrix.importance else {
        let l = low_rank(machine, matrix.values, cols, rank, settings.seed)?;
        return Ok(Some(Factors { rank: l.rank, left: halves(&l.left)?, right: halves(&l.right)? }));
    };
    let scale: Vec<f32> = importance.iter().map(|w| w.max(1e-12).sqrt()).collect();
    let mut scaled = matrix.values.to_vec();
    for row in scaled.chunks_exact_mut(cols) {
        row.iter_mut().zip(&scale).for_each(|(v, s)| *v *= s);
    }
    let mut l = low_rank(machine, &scaled, cols, rank, settings.seed)?;
    for row in l.right.chunks_exact_mut(cols) {
        row.iter_mut().zip(&scale).for_each(|(v, s)| *v /= s);
    }
    Ok(Some(Factors { rank: l.rank, left: halves(&l.left)?, right: halves(&l.right)? }))
}

/// What the parts leave of a matrix.
pub fn rest(machine: Machine<'_>, matrix: Matrix<'_>, parts: &Parts) -> Vec<f32> {
    let mut rest = match &parts.l {
        None => matrix.values.to_vec(),
        Some(l) => {
            let mut dense = product(machine, &floats(&l.left), &floats(&l.right), l.rank, matrix.cols);
            let piece = 64 * matrix.cols;
            pieces(machine.pool, &mut dense, piece, |i, dense| {
                dense.iter_mut().zip(&matrix.values[i * piece..]).for_each(|(d, w)| *d = w - *d);
            });
            dense
        }
    };
    if let Some(band) = &parts.d {
        subtract_band(&mut rest, matrix.cols, band);
    }
    if let Some(s) = &parts.s {
        let values = floats(&s.values);
        for (row, ends) in rest.chunks_exact_mut(matrix.cols).zip(s.starts.windows(2)) {
            for at in ends[0] as usize..ends[1] as usize {
                row[s.columns[at] as usize] -= values[at];
            }
        }
    }
    rest
}

/// Calls `f` for every value of diagonals that is in the matrix: its place among them, and in the matrix.
fn along(rows: usize, cols: usize, n: usize, first: i64, mut f: impl FnMut(usize, usize)) {
    let len = rows.min(cols);
    for d in 0..n {
        for i in 0..len {
            if let Some(c) = i.checked_add_signed((first + d as i64) as isize).filter(|c| *c < cols) {
                f(d * len + i, i * cols + c);
            }
        }
    }
}

/// How much larger than the others' the mean square of the main diagonal must be to stand out: below that its bytes are
/// better spent on outliers.
const STANDS_OUT: f64 = 4.0;

fn band(rest: &[f32], cols: usize, wanted: Option<usize>) -> Result<Option<Band>, Error> {
    let rows = rest.len() / cols;
    let n = wanted.unwrap_or(1).min(rows.min(cols) * 2 - 1);
    let first = -((n / 2) as i64);
    if n == 0 {
        return Ok(None);
    }
    let mut values = vec![0f32; n * rows.min(cols)];
    along(rows, cols, n, first, |at, place| values[at] = rest[place]);
    let square =
        |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
    if wanted.is_none() && square(&values) < square(rest) * STANDS_OUT {
        return Ok(None);
    }
    Ok(Some(Band { n, first, values: halves(&values)? }))
}

fn subtract_band(rest: &mut [f32], cols: usize, band: &Band) {
    let values = floats(&band.values);
    along(rest.len() / cols, cols, band.n, band.first, |at, place| rest[place] -= values[at]);
}

/// S: what is as large as the quantile of all magnitudes, times the root of importance, and not 0.
fn outliers(rest: &[f32], matrix: Matrix<'_>, q: f64) -> Result<Option<Outliers>, Error> {
    if q >= 1.0 {
        return Ok(None);
    }
    let scale: Vec<f32> = match matrix.importance {
        Some(importance) => importance.iter().map(|w| w.max(0.0).sqrt()).collect(),
        None => vec![1.0; matrix.cols],
    };
    let size = |row: &[f32]| row.iter().zip(&scale).map(|(v, s)| v.abs() * s).collect::<Vec<f32>>();
    let mut sizes: Vec<f32> = rest.chunks_exact(matrix.cols).flat_map(size).collect();
    let at = ((sizes.len() - 1) as f64 * q) as usize;
    let least = *sizes.select_nth_unstable_by(at, f32::total_cmp).1;
    let (mut starts, mut columns, mut values) = (vec![0u32], Vec::new(), Vec::new());
    for row in rest.chunks_exact(matrix.cols) {
        for (c, (v, s)) in row.iter().zip(&scale).enumerate() {
            if v.abs() * s >= least && *v != 0.0 {
                columns.push(c as u32);
                values.push(*v);
            }
        }
        let end = u32::try_from(columns.len());
        starts.push(end.map_err(|_| Error::Request("more than 2³² outliers".into()))?);
    }
    let found = Outliers { starts, columns, values: halves(&values)? };
    Ok(Some(found).filter(|s| !s.columns.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::*;
    use fonio_kernel::Pool;

    fn energy(values: &[f32]) -> f64 {
        values.iter().map(|v| f64::from(*v).powi(2)).sum()
    }

    #[test]
    fn each_part_takes_what_it_is_for() {
        let pool = Pool::new(2);
        let machine = Machine { pool: &pool, isa: Isa::detect() };
        let (rows, cols) = (80, 120);
        let mut random = Random::new(3, 0);
        let mut w: Vec<f32> = (0..rows * cols).map(|_| random.normal() * 0.1).collect();
        let (a, b): (Vec<f32>, Vec<f32>) =
            ((0..rows).map(|_| random.normal()).collect(), (0..cols).map(|_| random.normal()).collect());
        for i in 0..w.len() {
            w[i] += a[i / cols] * b[i % cols];
        }
        (0..rows).for_each(|i| w[i * cols + i] += 3.0);
        [(3, 7), (3, 90), (44, 0)].iter().for_each(|(r, c)| w[r * cols + c] += 20.0);
        let matrix = Matrix { values: &w, cols, importance: None };
        let settings = Settings { rank: 1, outlier_q: 0.9998, ..Settings::default() };
        let found = parts(machine, matrix, &settings).unwrap();
        assert_eq!(found.l.as_ref().unwrap().rank, 1);
        assert_eq!((found.d.as_ref().unwrap().n, found.d.as_ref().unwrap().first), (1, 0));
        let s = found.s.as_ref().unwrap();
        assert_eq!(s.columns.len(), 3);
        assert_eq!((s.starts[4] - s.starts[3], s.starts[45] - s.starts[44]), (2, 1));
        // A rank-1 matrix, a diagonal and three values: what is left is the noise, and what the others turn L by.
        let left = energy(&rest(machine, matrix, &found));
        assert!(left < 0.01 * (rows * cols) as f64 * 1.5, "{left}");
        let off = Settings { rank: 0, band: Some(0), outlier_q: 1.0, ..settings };
        assert_eq!(parts(machine, matrix, &off).unwrap(), Parts::default());
        let wide = Settings { band: Some(5), ..off };
        let band = parts(machine, matrix, &wide).unwrap();
        assert_eq!((band.d.as_ref().unwrap().first, band.d.as_ref().unwrap().values.len()), (-2, 5 * 80 * 2));
        let gone = rest(machine, matrix, &band);
        assert!(gone[2 * cols..][..5].iter().all(|v| v.abs() < 0.02), "rounding to F16 is left");
        assert_eq!(gone[2 * cols + 5], w[2 * cols + 5]);
    }

    #[test]
    fn importance_moves_the_error() {
        let pool = Pool::new(1);
        let machine = Machine { pool: &pool, isa: Isa::detect() };
        let mut random = Random::new(5, 0);
        let w: Vec<f32> = (0..64 * 64).map(|_| random.normal()).collect();
        let importance: Vec<f32> = (0..64).map(|c| if c < 8 { 100.0 } else { 1.0 }).collect();
        let settings = Settings { rank: 8, outlier_q: 1.0, ..Settings::default() };
        let of = |importance| {
            let found = parts(machine, Matrix { values: &w, cols: 64, importance }, &settings).unwrap();
            let left = rest(machine, Matrix { values: &w, cols: 64, importance: None }, &found);
            left.chunks_exact(64).map(|row| energy(&row[..8])).sum::<f64>()
        };
        assert!(of(Some(&importance)) < of(None) * 0.5);
    }

    #[test]
    fn more_rank_is_less_error() {
        let pool = Pool::new(2);
        let machine = Machine { pool: &pool, isa: Isa::detect() };
        let mut random = Random::new(6, 0);
        let w: Vec<f32> = (0..100 * 90).map(|_| random.normal()).collect();
        let matrix = Matrix { values: &w, cols: 90, importance: None };
        let mut last = f64::INFINITY;
        for rank in [0, 1, 2, 5, 11] {
            let settings = Settings { rank, outlier_q: 1.0, band: Some(0), ..Settings::default() };
            let left = energy(&rest(machine, matrix, &parts(machine, matrix, &settings).unwrap()));
            assert!(left < last, "{rank}");
            last = left;
        }
        assert_eq!(fitting_rank(64, 100, 90), 11);
    }

    #[test]
    fn senseless_settings_are_refused() {
        let fine = Settings::default();
        assert!(fine.check().is_ok() && Settings { pq_m: 0, pq_d: 0, ..fine }.check().is_ok());
        for bad in [
            Settings { outlier_q: 1.5, ..fine },
            Settings { outlier_q: f64::NAN, ..fine },
            Settings { pq_m: 7, ..fine },
            Settings { pq_k: 257, ..fine },
            Settings { pq_k: 0, ..fine },
            Settings { band: Some(1 << 20), ..fine },
        ] {
            assert!(matches!(bad.check(), Err(Error::Request(_))), "{bad:?}");
        }
    }
}
