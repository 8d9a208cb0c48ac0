//! Product quantization (Jégou, Douze, Schmid 2011): rows are cut into pieces, and each piece becomes the nearest row
//! of a table, which weighted k-means finds (Lloyd 1982; seeding by Arthur and Vassilvitskii 2007). Vectors never run
//! across rows; piece `p` of a row has table `p mod m`.

use super::parts::{Matrix, Settings, floats, halves};
use super::product::{Machine, pieces};
use super::random::Random;
use crate::Error;
use fonio_simd::{Isa, Task};
use std::sync::{Mutex, PoisonError};

/// Pieces that are looked at for each row of a table.
const SAMPLES: usize = 48;
/// Rounds of k-means at most; more change the error by less than a percent.
const ROUNDS: usize = 12;
/// Most rows of a table.
const MOST: usize = 256;

/// Tables, as they are stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    /// Tables.
    pub m: usize,
    /// Rows of each.
    pub k: usize,
    /// Length of a row.
    pub len: usize,
    /// `F16 [m, k, len]`
    pub halves: Vec<u8>,
    /// The same, each table with its columns as rows: `[m, len, k]`.
    turned: Vec<f32>,
}

/// Pieces of residuals that tables are made from, by table.
pub struct Samples {
    len: usize,
    most: usize,
    /// For each table, values and weights, `len` of each for a piece.
    tables: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Samples {
    /// No pieces yet, for the settings' tables of at most `k` rows.
    pub fn new(settings: &Settings, k: usize) -> Samples {
        let m = settings.pq_m.max(1);
        Samples { len: settings.pq_d / m, most: SAMPLES * k, tables: vec![Default::default(); m] }
    }

    /// Adds pieces of a residual, `share` being this matrix's part of all that are wanted, in (0, 1].
    pub fn add(&mut self, rest: Matrix<'_>, share: f64, seed: u64) {
        let (rows, per_row) = (rest.rows(), rest.cols.div_ceil(self.len));
        let m = self.tables.len();
        for (t, (values, weights)) in self.tables.iter_mut().enumerate() {
            let there = if t < per_row { (per_row - t).div_ceil(m) } else { 0 };
            let wanted = ((self.most as f64 * share).ceil() as usize).min(rows * there);
            let mut random = Random::new(seed, t as u64);
            for _ in 0..wanted {
                // Drawn with repetition, which k-means does not mind.
                let (row, piece) = (random.below(rows), random.below(there) * m + t);
                let from = piece * self.len;
                for c in from..from + self.len {
                    let inside = c < rest.cols;
                    values.push(if inside { rest.values[row * rest.cols + c] } else { 0.0 });
                    let weight = rest.importance.map_or(1.0, |w| w.get(c).copied().unwrap_or(0.0));
                    weights.push(if inside { weight } else { 0.0 });
                }
            }
        }
    }

    /// Finds the tables.
    pub fn codebook(&self, machine: Machine<'_>, k: usize, seed: u64) -> Result<Codebook, Error> {
        let (m, len) = (self.tables.len(), self.len);
        let found: Vec<Mutex<Vec<f32>>> = (0..m).map(|_| Mutex::default()).collect();
        machine.pool.each(
            m,
            1,
            || (),
            |(), range| {
                for t in range {
                    let (values, weights) = &self.tables[t];
                    let mut random = Random::new(seed, t as u64);
                    let table = k_means(machine.isa, values, weights, len, k, &mut random);
                    *found[t].lock().unwrap_or_else(PoisonError::into_inner) = table;
                }
            },
        );
        let tables = found.into_iter().flat_map(|t| t.into_inner().unwrap_or_else(PoisonError::into_inner));
        let halves = halves(&tables.collect::<Vec<f32>>())?;
        Ok(Codebook::new(m, k, len, halves))
    }
}

impl Codebook {
    pub(super) fn new(m: usize, k: usize, len: usize, halves: Vec<u8>) -> Codebook {
        let values = floats(&halves);
        let turned = values.chunks_exact(k * len).flat_map(|table| turn(table, len)).collect();
        Codebook { m, k, len, halves, turned }
    }

    fn table(&self, piece: usize) -> &[f32] {
        &self.turned[piece % self.m * self.k * self.len..][..self.k * self.len]
    }

    /// Codes of a residual: `[rows, pieces]`.
    pub fn encode(&self, machine: Machine<'_>, rest: Matrix<'_>) -> Vec<u8> {
        let per_row = rest.cols.div_ceil(self.len);
        let mut codes = vec![0u8; rest.rows() * per_row];
        pieces(machine.pool, &mut codes, 16 * per_row, |i, codes| {
            let values = &rest.values[i * 16 * rest.cols..];
            machine.isa.run(Encode {
                book: self,
                values,
                cols: rest.cols,
                importance: rest.importance,
                codes,
            });
        });
        codes
    }

    /// What codes stand for.
    pub fn decode(&self, machine: Machine<'_>, codes: &[u8], cols: usize) -> Vec<f32> {
        let per_row = cols.div_ceil(self.len);
        let mut out = vec![0f32; codes.len() / per_row.max(1) * cols];
        pieces(machine.pool, &mut out, 16 * cols, |i, out| {
            for (row, codes) in
                out.chunks_exact_mut(cols).zip(codes[i * 16 * per_row..].chunks_exact(per_row))
            {
                for (p, (values, code)) in row.chunks_mut(self.len).zip(codes).enumerate() {
                    let table = self.table(p);
                    for (c, v) in values.iter_mut().enumerate() {
                        *v = table[c * self.k + usize::from(*code)];
                    }
                }
            }
        });
        out
    }
}

/// A table with its columns as rows.
fn turn(table: &[f32], len: usize) -> Vec<f32> {
    (0..table.len()).map(|i| table[i % (table.len() / len) * len + i / (table.len() / len)]).collect()
}

/// The row of a table (columns as rows) that is nearest by weighted squares, the first of equals, and how far it is.
#[inline(always)]
fn nearest(turned: &[f32], k: usize, x: &[f32], weight: impl Fn(usize) -> f32) -> (usize, f32) {
    let mut far = [0f32; MOST];
    let far = &mut far[..k];
    for (c, (&x, column)) in x.iter().zip(turned.chunks_exact(k)).enumerate() {
        let w = weight(c);
        for (far, t) in far.iter_mut().zip(column) {
            let e = x - t;
            *far += w * (e * e);
        }
    }
    let mut least = [f32::INFINITY; 16];
    for far in far.chunks(16) {
        for (least, far) in least.iter_mut().zip(far) {
            *least = if *far < *least { *far } else { *least };
        }
    }
    let least = least.iter().fold(f32::INFINITY, |a, b| if *b < a { *b } else { a });
    (far.iter().position(|far| *far == least).unwrap_or(0), least)
}

struct Encode<'a> {
    book: &'a Codebook,
    values: &'a [f32],
    cols: usize,
    importance: Option<&'a [f32]>,
    codes: &'a mut [u8],
}

impl Task for Encode<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let len = self.book.len;
        let per_row = self.cols.div_ceil(len);
        for (codes, row) in self.codes.chunks_exact_mut(per_row).zip(self.values.chunks_exact(self.cols)) {
            for (p, (code, x)) in codes.iter_mut().zip(row.chunks(len)).enumerate() {
                let table = self.book.table(p);
                *code = match self.importance {
                    None => nearest(table, self.book.k, x, |_| 1.0).0,
                    Some(w) => nearest(table, self.book.k, x, |c| w[p * len + c]).0,
                } as u8;
            }
        }
    }
}

/// Nearest rows of all samples, and how far they are.
struct Assign<'a> {
    turned: &'a [f32],
    k: usize,
    values: &'a [f32],
    weights: &'a [f32],
    len: usize,
    out: &'a mut [(usize, f32)],
}

impl Task for Assign<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let samples = self.values.chunks_exact(self.len).zip(self.weights.chunks_exact(self.len));
        for (out, (x, w)) in self.out.iter_mut().zip(samples) {
            *out = nearest(self.turned, self.k, x, |c| w[c]);
        }
    }
}

/// A table `[k, len]` of samples that are `len` long.
fn k_means(isa: Isa, values: &[f32], weights: &[f32], len: usize, k: usize, random: &mut Random) -> Vec<f32> {
    let n = values.len() / len;
    if n == 0 {
        return vec![0.0; k * len];
    }
    let mut table = seeds(isa, values, weights, len, k, random);
    let mut near = vec![(usize::MAX, 0f32); n];
    for _ in 0..ROUNDS {
        let before: Vec<usize> = near.iter().map(|(code, _)| *code).collect();
        isa.run(Assign { turned: &turn(&table, len), k, values, weights, len, out: &mut near });
        if near.iter().map(|(code, _)| *code).eq(before) {
            break;
        }
        let (mut sums, mut totals) = (vec![0f64; k * len], vec![0f64; k * len]);
        let mut used = vec![false; k];
        let samples = values.chunks_exact(len).zip(weights.chunks_exact(len));
        for ((code, _), (x, w)) in near.iter().zip(samples) {
            used[*code] = true;
            for c in 0..len {
                sums[code * len + c] += f64::from(w[c]) * f64::from(x[c]);
                totals[code * len + c] += f64::from(w[c]);
            }
        }
        for (to, (sum, total)) in table.iter_mut().zip(sums.iter().zip(&totals)) {
            *to = if *total > 0.0 { (sum / total) as f32 } else { *to };
        }
        // A row that nothing is near to becomes a sample that nothing is near to.
        for code in (0..k).filter(|code| !used[*code]) {
            let worst = (0..n).max_by(|a, b| near[*a].1.total_cmp(&near[*b].1).then(b.cmp(a))).unwrap_or(0);
            table[code * len..][..len].copy_from_slice(&values[worst * len..][..len]);
            near[worst].1 = 0.0;
        }
    }
    table
}

/// How far all samples are from one row.
struct Far<'a> {
    row: &'a [f32],
    values: &'a [f32],
    weights: &'a [f32],
    least: &'a mut [f32],
}

impl Task for Far<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let len = self.row.len();
        let samples = self.values.chunks_exact(len).zip(self.weights.chunks_exact(len));
        for (least, (x, w)) in self.least.iter_mut().zip(samples) {
            let mut far = 0f32;
            for ((x, w), t) in x.iter().zip(w).zip(self.row) {
                far += w * ((x - t) * (x - t));
            }
            *least = if far < *least { far } else { *least };
        }
    }
}

/// k-means++: each next row is a sample drawn by how far it is from all rows before it.
fn seeds(isa: Isa, values: &[f32], weights: &[f32], len: usize, k: usize, random: &mut Random) -> Vec<f32> {
    let n = values.len() / len;
    let mut table = Vec::with_capacity(k * len);
    let mut least = vec![f32::INFINITY; n];
    for i in 0..k {
        let total: f64 = least.iter().map(|v| f64::from(*v)).sum();
        let mut at = random.below(n);
        if i > 0 && total > 0.0 {
            let mut left = random.unit() * total;
            at = least
                .iter()
                .position(|v| {
                    left -= f64::from(*v);
                    left < 0.0
                })
                .unwrap_or(n - 1);
        }
        let row = &values[at * len..][..len];
        table.extend_from_slice(row);
        isa.run(Far { row, values, weights, least: &mut least });
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use fonio_kernel::Pool;

    fn normal(n: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed, 9);
        (0..n).map(|_| random.normal()).collect()
    }

    fn made(machine: Machine<'_>, w: Matrix<'_>, m: usize, k: usize) -> (Codebook, Vec<u8>, f64) {
        let settings = Settings { pq_m: m, pq_k: k, pq_d: 16, ..Settings::default() };
        let mut samples = Samples::new(&settings, k);
        samples.add(w, 1.0, 3);
        let book = samples.codebook(machine, k, 4).unwrap();
        let codes = book.encode(machine, w);
        let back = book.decode(machine, &codes, w.cols);
        let error = w.values.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        (book, codes, error / w.values.len() as f64)
    }

    #[test]
    fn more_tables_and_rows_are_less_error() {
        let pool = Pool::new(2);
        let machine = Machine { pool: &pool, isa: Isa::detect() };
        let values = normal(200 * 48, 1);
        let w = Matrix { values: &values, cols: 48, importance: None };
        let of = |m, k| made(machine, w, m, k).2;
        let (mut last, mut wide) = (f64::INFINITY, f64::INFINITY);
        for k in [1, 4, 16, 64, 256] {
            assert!(of(8, k) < last, "k {k}");
            last = of(8, k);
        }
        for m in [1, 2, 4, 8, 16] {
            assert!(of(m, 16) < wide, "m {m}");
            wide = of(m, 16);
        }
        // Sixteen levels for a normal number: 0.0095 is the least (Max 1960), and these have shorter tails.
        assert!((0.0085..0.0130).contains(&wide), "{wide}");
    }

    #[test]
    fn codes_are_the_nearest_rows() {
        let pool = Pool::new(2);
        let machine = Machine { pool: &pool, isa: Isa::detect() };
        // 50 columns: the last piece of a row is short.
        let values = normal(30 * 50, 2);
        let importance: Vec<f32> = (0..50).map(|c| 1.0 + (c % 7) as f32).collect();
        let w = Matrix { values: &values, cols: 50, importance: Some(&importance) };
        let (book, codes, _) = made(machine, w, 2, 20);
        let table = floats(&book.halves);
        for (r, row) in values.chunks_exact(50).enumerate() {
            for (p, x) in row.chunks(8).enumerate() {
                let far = |code: usize| {
                    let row = &table[(p % 2 * 20 + code) * 8..];
                    x.iter()
                        .zip(row)
                        .enumerate()
                        .map(|(c, (x, t))| importance[p * 8 + c] * ((x - t) * (x - t)))
                        .sum::<f32>()
                };
                let code = usize::from(codes[r * 7 + p]);
                assert!((0..20).all(|other| far(code) <= far(other) * 1.00001));
            }
        }
    }

    #[test]
    fn threads_and_instructions_change_nothing() {
        let values = normal(64 * 40, 3);
        let w = Matrix { values: &values, cols: 40, importance: None };
        let of = |threads, isa| made(Machine { pool: &Pool::new(threads), isa }, w, 4, 30);
        let (book, codes, _) = of(1, Isa::detect());
        for (threads, isa) in [(3, Isa::detect()), (2, Isa::scalar())] {
            let (other, others, _) = of(threads, isa);
            assert!(other == book && others == codes);
        }
    }

    #[test]
    fn few_and_equal_samples_are_fine() {
        let pool = Pool::new(1);
        let machine = Machine { pool: &pool, isa: Isa::detect() };
        for values in [vec![0.0; 32], vec![2.5; 32], vec![1.0; 3]] {
            let w = Matrix { values: &values, cols: values.len(), importance: None };
            assert!(made(machine, w, 2, 200).2 < 1e-9);
        }
    }
}
