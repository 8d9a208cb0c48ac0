//! Values that are kept beside the blocks, because they cost their blocks more than their own place.
//!
//! An outlier is taken out of its block: the block is packed as if it had nothing to say there, and a half-precision
//! number stands aside that is added to what the block gives. What a value costs is measured, not guessed by its size:
//! of each block those two values that may matter most (the one furthest from the middle and the one that rounding hurts
//! most) are each taken out on trial, and the fall of the squared error is the gain; after the better of them the next,
//! because often little is gained before both ends of a block are out. Blocks then take turns, the largest gain for each
//! value first, each having its next value tried when its last was taken, until the quota is used or nothing is gained.
//! A block whose error would not fall keeps all its values, so that the error never grows.

use crate::block::{f16_to_f32, f32_to_f16};
use crate::{DType, Error};
use fonio_simd::Isa;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Values kept beside the blocks of some rows, in the order of rows and columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outliers {
    /// For each row where its outliers begin in the other two, and the end of the last row's: rows + 1 numbers.
    pub row_start: Vec<usize>,
    /// Columns, ascending in each row.
    pub column: Vec<u32>,
    /// What is added to the block's value, as the bits of a half-precision number.
    pub value: Vec<u16>,
}

impl Outliers {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.column.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.column.is_empty()
    }

    /// Columns and values of one row.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let range = self.row_start[row]..self.row_start[row + 1];
        let values = self.value[range.clone()].iter().map(|&h| half::f16::from_bits(h).to_f32());
        self.column[range].iter().map(|&c| c as usize).zip(values)
    }
}

/// How many outliers the values from `first` to before `first + len` of a tensor may have, so that pieces of any lengths
/// have at most `fraction` of all values together, whatever the pieces are.
pub fn quota(fraction: f64, first: u64, len: u64) -> usize {
    let before = |n: u64| (n as f64 * fraction.clamp(0.0, 1.0)).floor() as u64;
    before(first.saturating_add(len)).saturating_sub(before(first)) as usize
}

/// Packs whole rows of `cols` finite values into `packed`, less at most `quota` outliers. `importance` is one weight
/// for each column. The same result on every CPU; the error is never more than without outliers.
///
/// Costs up to five times what [`DType::quantize`] does, and for each outlier up to two blocks more.
pub fn split(
    isa: Isa,
    dtype: DType,
    cols: usize,
    values: &[f32],
    importance: Option<&[f32]>,
    quota: usize,
    packed: &mut [u8],
) -> Result<Outliers, Error> {
    let wrong = |got| Error::WrongImportance { dtype: dtype.name(), len: cols, got };
    if let Some(weights) = importance.filter(|w| w.len() != cols) {
        return Err(wrong(weights.len()));
    }
    if cols == 0 || !values.len().is_multiple_of(cols) || !cols.is_multiple_of(dtype.block_len()) {
        return Err(Error::NotWholeBlocks { dtype: dtype.name(), len: cols, block_len: dtype.block_len() });
    }
    dtype.quantize(isa, values, importance, packed)?;
    let sensible = |w: &f32| if *w > 0.0 { w.min(f32::MAX) } else { 0.0 };
    let weights = importance.map_or_else(|| vec![1.0; cols], |w| w.iter().map(sensible).collect());
    let buffer = || vec![0.0; dtype.block_len()];
    let mut search = Search { isa, dtype, values, weights, given: buffer(), trial: (buffer(), buffer()) };
    let taken = if quota == 0 || !dtype.is_quantized() { Vec::new() } else { search.run(quota, packed)? };
    Ok(gather(cols, values.len() / cols, taken))
}

/// One outlier: its place, and its number.
type Taken = (usize, u16);

fn gather(cols: usize, rows: usize, mut taken: Vec<Taken>) -> Outliers {
    taken.sort_unstable_by_key(|(at, _)| *at);
    let mut out = Outliers { row_start: vec![0; rows + 1], ..Outliers::default() };
    for (at, value) in taken {
        out.row_start[at / cols + 1] += 1;
        // Columns are places in a row in memory that are counted in `u32` wherever outliers are stored.
        out.column.push((at % cols) as u32);
        out.value.push(value);
    }
    for row in 0..rows {
        out.row_start[row + 1] += out.row_start[row];
    }
    out
}

struct Search<'a> {
    isa: Isa,
    dtype: DType,
    values: &'a [f32],
    /// Weights of the columns, none of them senseless; ones if there are none.
    weights: Vec<f32>,
    /// What the block gives that was unpacked last.
    given: Vec<f32>,
    /// Values and weights of a block on trial.
    trial: (Vec<f32>, Vec<f32>),
}

/// A block with some values taken out.
struct State {
    packed: Vec<u8>,
    /// What was taken out; places are those in the block.
    out: Vec<Taken>,
    error: f64,
}

/// The next state of a block, which has one value less inside or two, and what is gained by each of them.
struct Offer {
    gain: f64,
    block: usize,
    state: State,
    /// The state after, if it is known.
    next: Option<State>,
}

impl Ord for Offer {
    fn cmp(&self, other: &Offer) -> Ordering {
        // Equal gains: the block that comes first.
        self.gain.total_cmp(&other.gain).then(other.block.cmp(&self.block))
    }
}
impl PartialOrd for Offer {
    fn partial_cmp(&self, other: &Offer) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Offer {
    fn eq(&self, other: &Offer) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Offer {}

impl Search<'_> {
    fn run(&mut self, quota: usize, packed: &mut [u8]) -> Result<Vec<Taken>, Error> {
        let (len, bytes) = (self.dtype.block_len(), self.dtype.block_bytes());
        let mut offers = BinaryHeap::new();
        for (block, packed) in packed.chunks_exact(bytes).enumerate() {
            let mut state = State { packed: packed.to_vec(), out: Vec::new(), error: 0.0 };
            self.unpack(&state.packed)?;
            state.error = self.error(block, &mut state.out);
            offers.extend(self.offer(block, &state, None)?);
        }
        let mut taken: Vec<Option<State>> = Vec::new();
        taken.resize_with(self.values.len() / len, || None);
        let mut left = quota;
        while left > 0 {
            let Some(Offer { block, state, next, .. }) = offers.pop() else { break };
            let had = taken[block].as_ref().map_or(0, |state| state.out.len());
            let more = state.out.len() - had;
            if more <= left {
                left -= more;
                offers.extend(self.offer(block, &state, next)?);
                taken[block] = Some(state);
            }
        }
        let mut all = Vec::with_capacity(quota.min(self.values.len()));
        for (block, state) in taken.into_iter().enumerate() {
            let Some(state) = state else { continue };
            packed[block * bytes..(block + 1) * bytes].copy_from_slice(&state.packed);
            all.extend(state.out.into_iter().map(|(i, value)| (block * len + i, value)));
        }
        Ok(all)
    }

    /// The values of a block and their weights.
    fn block(&self, block: usize) -> (&[f32], &[f32]) {
        let (at, len) = (block * self.dtype.block_len(), self.dtype.block_len());
        let column = at % self.weights.len();
        (&self.values[at..at + len], &self.weights[column..column + len])
    }

    /// Unpacks a block into `given`.
    fn unpack(&mut self, packed: &[u8]) -> Result<(), Error> {
        self.dtype.dequantize(self.isa, packed, &mut self.given)
    }

    /// The weighted squared error of a block that gives `given`, after numbers are found for what is taken out.
    fn error(&self, block: usize, out: &mut [Taken]) -> f64 {
        let square = |x: f32, y: f32, w: f32| f64::from(w) * (f64::from(x) - f64::from(y)).powi(2);
        let (x, w) = self.block(block);
        // Several sums, so that additions need not wait for each other.
        let mut sums = [0f64; 8];
        for (i, ((&x, &y), &w)) in x.iter().zip(&self.given).zip(w).enumerate() {
            sums[i % 8] += square(x, y, w);
        }
        for (n, (i, value)) in out.iter_mut().enumerate() {
            let (x, y, w) = (x[*i], self.given[*i], w[*i]);
            *value = f32_to_f16(x - y);
            sums[n % 8] += square(x, y + f16_to_f32(*value), w) - square(x, y, w);
        }
        sums.iter().sum()
    }

    /// What is gained by the next value, or by the next two if that is more for each: where levels reach from end to
    /// end of a block, little is gained before both ends are out. `first` is the state after the next, if it is known.
    fn offer(&mut self, block: usize, state: &State, first: Option<State>) -> Result<Option<Offer>, Error> {
        let first = match first {
            Some(first) => Some(first),
            None => self.next(block, state)?,
        };
        let Some(first) = first else { return Ok(None) };
        let second = self.next(block, &first)?;
        let gain = state.error - first.error;
        let both = second.as_ref().map_or(0.0, |second| (state.error - second.error) / 2.0);
        let offer = match second {
            Some(state) if both > gain => Offer { gain: both, block, state, next: None },
            next => Offer { gain, block, state: first, next },
        };
        Ok((offer.gain > 0.0).then_some(offer))
    }

    /// The block with one more value taken out, the better of two.
    fn next(&mut self, block: usize, state: &State) -> Result<Option<State>, Error> {
        let len = self.dtype.block_len();
        if state.out.len() >= len / 2 {
            return Ok(None);
        }
        self.unpack(&state.packed)?;
        let (x, w) = self.block(block);
        let mut inside = vec![1f32; len];
        state.out.iter().for_each(|(i, _)| inside[*i] = 0.0);
        let middle = mean(x, &inside);
        let (mut far, mut hurt) = ((0, 0.0), (0, 0.0));
        for i in 0..len {
            let square = |y: f32| w[i] * inside[i] * ((x[i] - y) * (x[i] - y));
            let (from_middle, from_level) = (square(middle), square(self.given[i]));
            far = if from_middle > far.1 { (i, from_middle) } else { far };
            hurt = if from_level > hurt.1 { (i, from_level) } else { hurt };
        }
        let mut best: Option<State> = None;
        for (n, (i, score)) in [far, hurt].into_iter().enumerate() {
            if score == 0.0 || (n == 1 && i == far.0) {
                continue;
            }
            let trial = self.without(block, state, i, &mut inside)?;
            if best.as_ref().is_none_or(|best| trial.error < best.error) {
                best = Some(trial);
            }
        }
        Ok(best)
    }

    /// The block packed with value `i` taken out too. `inside` is 1 for the values that are not out, else 0.
    fn without(&mut self, block: usize, state: &State, i: usize, inside: &mut [f32]) -> Result<State, Error> {
        inside[i] = 0.0;
        // What stands in the place of a value has no weight, and lies where it stretches no range.
        let middle = mean(self.block(block).0, inside);
        let (mut x, mut w) = std::mem::take(&mut self.trial);
        let (values, weights) = self.block(block);
        for (at, inside) in inside.iter().enumerate() {
            x[at] = if *inside > 0.0 { values[at] } else { middle };
            w[at] = weights[at] * inside;
        }
        inside[i] = 1.0;
        let mut new = State { packed: vec![0; state.packed.len()], out: state.out.clone(), error: 0.0 };
        let made = self.dtype.quantize(self.isa, &x, Some(&w), &mut new.packed);
        self.trial = (x, w);
        made?;
        new.out.push((i, 0));
        self.unpack(&new.packed)?;
        new.error = self.error(block, &mut new.out);
        Ok(new)
    }
}

/// The mean of the values that are inside; finite for finite values.
fn mean(x: &[f32], inside: &[f32]) -> f32 {
    let mut sums = [(0f64, 0f64); 8];
    for (i, (x, inside)) in x.iter().zip(inside).enumerate() {
        let (sum, n) = &mut sums[i % 8];
        *sum += f64::from(*x) * f64::from(*inside);
        *n += f64::from(*inside);
    }
    let (sum, n) = sums.iter().fold((0.0, 0.0), |all, some| (all.0 + some.0, all.1 + some.1));
    (sum / n.max(1.0)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{list, qsf};

    /// Bell-shaped values with a heavy tail, as weights have.
    fn weights(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 16_777_216.0
        };
        (0..n)
            .map(|_| {
                let bell = (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
                if uniform() < 0.01 { bell * 4.0 } else { bell }
            })
            .collect()
    }

    fn rebuilt(dtype: DType, cols: usize, packed: &[u8], outliers: &Outliers, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        dtype.dequantize(Isa::scalar(), packed, &mut values).unwrap();
        for row in 0..len / cols {
            for (column, value) in outliers.row(row) {
                values[row * cols + column] += value;
            }
        }
        values
    }

    fn error(x: &[f32], y: &[f32], importance: Option<&[f32]>) -> f64 {
        let weight = |i: usize| importance.map_or(1.0, |w| f64::from(w[i % w.len()]));
        let square = |(i, (x, y)): (usize, (&f32, &f32))| weight(i) * f64::from(x - y).powi(2);
        x.iter().zip(y).enumerate().map(square).sum()
    }

    /// The error when the largest magnitudes are outliers.
    fn by_magnitude(dtype: DType, x: &[f32], n: usize) -> f64 {
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|a, b| x[*b].abs().total_cmp(&x[*a].abs()));
        let mut rest = x.to_vec();
        order[..n].iter().for_each(|&i| rest[i] = 0.0);
        let mut packed = vec![0; dtype.bytes_for(x.len() as u64).unwrap() as usize];
        dtype.quantize(Isa::detect(), &rest, None, &mut packed).unwrap();
        let mut y = vec![0.0; x.len()];
        dtype.dequantize(Isa::detect(), &packed, &mut y).unwrap();
        order[..n].iter().for_each(|&i| y[i] = half::f16::from_f32(x[i]).to_f32());
        error(x, &y, None)
    }

    #[test]
    fn the_error_falls_and_by_more_than_with_the_largest_magnitudes() {
        let (cols, rows) = (256, 48);
        let x = weights(cols * rows, 1);
        let importance: Vec<f32> = (0..cols).map(|i| (i % 9) as f32).collect();
        for dtype in ["2bit", "3bit", "4bit", "2bit_sym", "4bit_sym", "8bit", "ternary"]
            .map(|kind| qsf::named(kind, 64).unwrap())
            .into_iter()
            .chain([list::Q4_0, list::Q2_K])
        {
            let mut packed = vec![0; dtype.bytes_for(x.len() as u64).unwrap() as usize];
            for weights in [None, Some(&importance[..])] {
                let mut last = f64::INFINITY;
                for n in [0, 61, 122, 1000] {
                    let isa = Isa::detect();
                    let out = split(isa, dtype, cols, &x, weights, n, &mut packed).unwrap();
                    assert!(out.len() <= n && out.row_start.len() == rows + 1, "{dtype}");
                    assert!(out.row_start.is_sorted() && out.row_start[rows] == out.len(), "{dtype}");
                    for row in 0..rows {
                        assert!(out.row(row).map(|(c, _)| c).is_sorted_by(|a, b| a < b), "{dtype}");
                    }
                    let e = error(&x, &rebuilt(dtype, cols, &packed, &out, x.len()), weights);
                    assert!(e < last, "{dtype} {n}: {e} {last}");
                    // Of a twelfth of all values, or where levels are many and reach to both ends of a block, sizes
                    // are as good a guess as gains one or two at a time.
                    let compared = weights.is_none() && n < 1000 && dtype.block_bytes() <= 36;
                    assert!(!compared || e <= by_magnitude(dtype, &x, n), "{dtype} {n}");
                    last = e;
                }
            }
        }
    }

    #[test]
    fn any_values_and_weights_give_no_more_error_than_without() {
        let dtype = qsf::named("2bit", 32).unwrap();
        let kinds: [fn(usize) -> f32; 7] = [
            |_| 0.0,
            |_| 1.5,
            |i| [f32::MAX, f32::MIN][i % 2],
            |i| if i == 40 { 1e9 } else { 1e-9 },
            |i| i as f32 * 1e-44,
            |i| if i % 32 < 16 { 1e5 } else { -0.01 * i as f32 },
            |i| 2f32.powi(i as i32 % 250 - 125),
        ];
        let senseless: Vec<f32> =
            (0..64).map(|i| [f32::NAN, 1.0, f32::INFINITY, -1.0, 0.0, f32::MAX][i % 6]).collect();
        for (n, kind) in kinds.iter().enumerate() {
            let x: Vec<f32> = (0..128).map(kind).collect();
            let mut packed = vec![0; 4 * dtype.block_bytes()];
            let mut errors = Vec::new();
            for quota in [0, 1, 20, 1000] {
                let out = split(Isa::detect(), dtype, 64, &x, None, quota, &mut packed).unwrap();
                errors.push(error(&x, &rebuilt(dtype, 64, &packed, &out, 128), None));
                split(Isa::detect(), dtype, 64, &x, Some(&senseless), quota, &mut packed).unwrap();
                assert!(
                    rebuilt(
                        dtype,
                        64,
                        &packed,
                        &Outliers { row_start: vec![0; 3], ..Outliers::default() },
                        128
                    )
                    .iter()
                    .all(|x| x.is_finite())
                );
            }
            assert!(errors.is_sorted_by(|a, b| a >= b), "{n}: {errors:?}");
        }
        assert!(split(Isa::detect(), dtype, 48, &[0.0; 96], None, 1, &mut [0; 36]).is_err());
        assert!(split(Isa::detect(), dtype, 0, &[], None, 1, &mut []).is_err());
        assert!(split(Isa::detect(), dtype, 32, &[f32::NAN; 32], None, 1, &mut [0; 12]).is_err());
        assert!(split(Isa::detect(), dtype, 32, &[0.0; 32], Some(&[1.0; 64]), 1, &mut [0; 12]).is_err());
    }

    #[test]
    fn every_instruction_set_and_quotas_of_pieces_give_the_same() {
        let x = weights(64 * 32, 2);
        let dtype = qsf::named("3bit", 64).unwrap();
        let mut want = vec![0; dtype.bytes_for(x.len() as u64).unwrap() as usize];
        let outliers = split(Isa::scalar(), dtype, 64, &x, None, 20, &mut want).unwrap();
        for isa in Isa::available() {
            let mut packed = vec![0; want.len()];
            assert_eq!(split(isa, dtype, 64, &x, None, 20, &mut packed).unwrap(), outliers, "{isa}");
            assert_eq!(packed, want, "{isa}");
        }
        for piece in [1, 7, 64, 1000] {
            let pieces = (0..10_000u64).step_by(piece);
            let len = |at: u64| (piece as u64).min(10_000 - at);
            assert_eq!(pieces.map(|at| quota(0.007, at, len(at))).sum::<usize>(), 70, "{piece}");
        }
        assert_eq!((quota(f64::NAN, 0, 100), quota(2.0, 5, 100), quota(-1.0, 0, 9)), (0, 100, 0));
    }
}
