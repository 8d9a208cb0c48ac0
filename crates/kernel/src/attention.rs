//! Scaled dot-product attention over a cache, in one pass with a running softmax (Milakov & Gimelshein 2018; Dao et
//! al. 2022), so that memory does not grow with the context.

use crate::Kernels;
use crate::floats::dot;
use crate::math::{exp, tanh};
use crate::panel::{Sums, gather};
use crate::share::Shared;
use fonio_codec::DType;
use fonio_simd::{Isa, Simd, VectorTask};

/// One layer's keys or values: positions of `heads` heads of `head_dim` values, packed one after the other.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// What the bytes are; a head is whole blocks.
    pub dtype: DType,
    /// The packed positions.
    pub bytes: &'a [u8],
    /// Bytes from one position to the next.
    pub position_bytes: usize,
    /// Heads of a position.
    pub heads: usize,
    /// Values of a head.
    pub head_dim: usize,
}

impl KvView<'_> {
    fn head_bytes(&self) -> usize {
        self.head_dim / self.dtype.block_len() * self.dtype.block_bytes()
    }

    /// Unpacks one head at positions from `first` on into rows of `stride` values.
    fn unpack(&self, isa: Isa, head: usize, first: usize, rows: &mut [f32], stride: usize) {
        let size = self.head_bytes();
        for (i, row) in rows.chunks_exact_mut(stride).enumerate() {
            let at = (first + i) * self.position_bytes + head * size;
            self.dtype.codec().dequantize(isa, &self.bytes[at..at + size], &mut row[..self.head_dim]);
        }
    }
}

/// What to attend to and how. Query `i` is at position `start + i` and sees keys at that position and before.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Query heads; a multiple of `keys.heads`, which consecutive ones share.
    pub heads: usize,
    /// The keys.
    pub keys: KvView<'a>,
    /// The values.
    pub values: KvView<'a>,
    /// Position of the first query.
    pub start: usize,
    /// Scores are multiplied with this.
    pub scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A query sees this many positions, its own included.
    pub window: Option<usize>,
    /// A score for each query head that takes part in the softmax without a value (attention sinks).
    pub sinks: Option<&'a [f32]>,
}

/// Queries that share an unpacked piece of the cache.
const TILE: usize = 16;
/// Positions that are unpacked together.
const CHUNK: usize = 64;
/// Rows of queries whose scores are found together.
const ROWS: usize = 4;
/// Rows of queries from which on it is worth to turn keys, so that each lane has one.
const MANY: usize = 4 * ROWS;

#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    keys: Vec<f32>,
    /// Value d of each key of a chunk after value d − 1 of all.
    turned: Vec<f32>,
    values: Vec<f32>,
    acc: Vec<f32>,
    max_sum: Vec<(f32, f32)>,
}

/// Some query heads of one key head, for a tile of queries.
struct Piece<'a> {
    job: &'a Attention<'a>,
    isa: Isa,
    queries: &'a [f32],
    heads: std::ops::Range<usize>,
    tokens: std::ops::Range<usize>,
    scratch: &'a mut Scratch,
}

impl VectorTask for Piece<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let job = self.job;
        let (dk, dv) = (job.keys.head_dim, job.values.head_dim);
        let (sk, sv) = (dk.next_multiple_of(16), dv.next_multiple_of(16));
        let rows = self.heads.len() * self.tokens.len();
        let scratch = self.scratch;
        scratch.queries.clear();
        scratch.queries.resize(rows * sk, 0.0);
        scratch.keys.resize(CHUNK * sk, 0.0);
        scratch.values.resize(CHUNK * sv, 0.0);
        scratch.acc.clear();
        scratch.acc.resize(rows * sv, 0.0);
        scratch.max_sum.clear();
        for head in self.heads.clone() {
            for token in self.tokens.clone() {
                let row = scratch.max_sum.len();
                let from = (token * job.heads + head) * dk;
                let to = &mut scratch.queries[row * sk..row * sk + dk];
                to.iter_mut().zip(&self.queries[from..from + dk]).for_each(|(to, q)| *to = q * job.scale);
                scratch.max_sum.push(job.sinks.map_or((f32::NEG_INFINITY, 0.0), |sinks| (sinks[head], 1.0)));
            }
        }
        let end = job.start + self.tokens.end;
        let first = job.window.map_or(0, |w| (job.start + self.tokens.start + 1).saturating_sub(w));
        let kv_head = self.heads.start / (job.heads / job.keys.heads);
        let mut chunk = first / CHUNK * CHUNK;
        while chunk < end {
            let n = CHUNK.min(end - chunk);
            job.keys.unpack(self.isa, kv_head, chunk, &mut scratch.keys[..n * sk], sk);
            job.values.unpack(self.isa, kv_head, chunk, &mut scratch.values[..n * sv], sv);
            if sk != dk {
                scratch.keys[..n * sk].chunks_exact_mut(sk).for_each(|row| row[dk..].fill(0.0));
            }
            if sv != dv {
                scratch.values[..n * sv].chunks_exact_mut(sv).for_each(|row| row[dv..].fill(0.0));
            }
            if rows >= MANY {
                turn(&scratch.keys[..n * sk], sk, &mut scratch.turned);
            }
            let mut scores = [[0f32; CHUNK]; ROWS];
            let mut row = 0;
            while row < rows {
                let many = if rows >= MANY && rows - row >= ROWS { ROWS } else { 1 };
                if many == ROWS {
                    let queries = &scratch.queries[row * sk..(row + ROWS) * sk];
                    all_scores(s, queries, &scratch.turned, &mut scores);
                }
                for scores in &mut scores[..many] {
                    let position = job.start + self.tokens.start + row % self.tokens.len();
                    let from = job.window.map_or(0, |w| (position + 1).saturating_sub(w));
                    let seen = from.max(chunk)..(position + 1).min(chunk + n);
                    if !seen.is_empty() {
                        let seen = seen.start - chunk..seen.end - chunk;
                        if many == 1 {
                            let query = &scratch.queries[row * sk..(row + 1) * sk];
                            for j in seen.clone() {
                                scores[j] = dot(s, query, &scratch.keys[j * sk..(j + 1) * sk]);
                            }
                        }
                        let acc = &mut scratch.acc[row * sv..(row + 1) * sv];
                        let state = &mut scratch.max_sum[row];
                        attend(s, job.softcap, scores, seen, &scratch.values, acc, state);
                    }
                    row += 1;
                }
            }
            chunk += CHUNK;
        }
        for (acc, (_, sum)) in scratch.acc.chunks_exact_mut(sv).zip(&scratch.max_sum) {
            acc.iter_mut().for_each(|x| *x /= sum);
        }
    }
}

/// Turns the keys of a chunk. Places of keys that are not there get what does not matter.
fn turn(keys: &[f32], stride: usize, turned: &mut Vec<f32>) {
    turned.resize(stride * CHUNK, 0.0);
    for (j, key) in keys.chunks_exact(stride).enumerate() {
        for (d, value) in key.iter().enumerate() {
            turned[d * CHUNK + j] = *value;
        }
    }
}

/// The products of [`ROWS`] queries with all keys of a chunk, the same bits as [`dot`]'s: what one of its lanes adds up is
/// added up here one value after the other, and the lanes in its order.
#[inline(always)]
fn all_scores<S: Simd>(s: S, queries: &[f32], turned: &[f32], scores: &mut [[f32; CHUNK]; ROWS]) {
    let stride = queries.len() / ROWS;
    let (bits, zero) = (S::LANES.trailing_zeros(), [[s.splat(0.0); ROWS]; 2]);
    let mut at = 0;
    while at < CHUNK {
        let mut parts: [Sums<S::F, ROWS>; 5] = [zero; 5];
        for i in 0..S::LANES {
            let mut d = i.reverse_bits() >> (usize::BITS - bits);
            let mut sums = zero;
            while d < stride {
                let keys = &turned[d * CHUNK + at..][..2 * S::LANES];
                let (a, b) = (s.load(keys), s.load(&keys[S::LANES..]));
                for r in 0..ROWS {
                    let value = s.splat(queries[r * stride + d]);
                    sums[0][r] = s.fma(value, a, sums[0][r]);
                    sums[1][r] = s.fma(value, b, sums[1][r]);
                }
                d += S::LANES;
            }
            gather(s, i, sums, &mut parts);
        }
        let sums = parts[bits as usize];
        for r in 0..ROWS {
            s.store(sums[0][r], &mut scores[r][at..]);
            s.store(sums[1][r], &mut scores[r][at + S::LANES..]);
        }
        at += 2 * S::LANES;
    }
}

/// Takes the seen positions of a chunk into the running softmax of one query.
#[inline(always)]
fn attend<S: Simd>(
    s: S,
    softcap: Option<f32>,
    scores: &mut [f32; CHUNK],
    seen: std::ops::Range<usize>,
    values: &[f32],
    acc: &mut [f32],
    (max, sum): &mut (f32, f32),
) {
    if let Some(cap) = softcap {
        for score in scores.iter_mut() {
            *score = cap * tanh(*score / cap);
        }
    }
    // What is not seen weighs 0.
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    let mut highest = s.load(&scores[..]);
    let mut at = S::LANES;
    while at < CHUNK {
        highest = s.max(highest, s.load(&scores[at..]));
        at += S::LANES;
    }
    let mut lanes = [0f32; 16];
    s.store(highest, &mut lanes);
    let highest = lanes[..S::LANES].iter().fold(*max, |m, &x| m.max(x));
    let shrink = if *max == f32::NEG_INFINITY { 0.0 } else { exp(*max - highest) };
    for score in scores.iter_mut() {
        *score = exp(*score - highest);
    }
    let mut weights = s.load(&scores[..]);
    let mut at = S::LANES;
    while at < CHUNK {
        weights = s.add(weights, s.load(&scores[at..]));
        at += S::LANES;
    }
    *sum = *sum * shrink + s.sum(weights);
    *max = highest;
    let mut at = 0;
    while at < acc.len() {
        if acc.len() - at >= 4 * S::LANES {
            weigh::<S, 4>(s, scores, seen.clone(), values, shrink, acc, at);
            at += 4 * S::LANES;
        } else {
            weigh::<S, 1>(s, scores, seen.clone(), values, shrink, acc, at);
            at += S::LANES;
        }
    }
}

/// Adds the seen values, weighted, to `V` vectors of a shrunk sum, from `at` on.
#[inline(always)]
fn weigh<S: Simd, const V: usize>(
    s: S,
    weights: &[f32; CHUNK],
    seen: std::ops::Range<usize>,
    values: &[f32],
    shrink: f32,
    acc: &mut [f32],
    at: usize,
) {
    let (stride, acc) = (acc.len(), &mut acc[at..at + V * S::LANES]);
    let shrink = s.splat(shrink);
    let mut lanes = [shrink; V];
    for v in 0..V {
        lanes[v] = s.mul(s.load(&acc[v * S::LANES..]), shrink);
    }
    for j in seen {
        let (weight, values) = (s.splat(weights[j]), &values[j * stride + at..][..V * S::LANES]);
        for v in 0..V {
            lanes[v] = s.fma(weight, s.load(&values[v * S::LANES..]), lanes[v]);
        }
    }
    for v in 0..V {
        s.store(lanes[v], &mut acc[v * S::LANES..]);
    }
}

impl Kernels {
    /// Attention for the rows of `queries` (`heads · keys.head_dim` values each) into the rows of `out`
    /// (`heads · values.head_dim` each). The cache holds every position up to the last query's.
    pub fn attend(&self, job: &Attention<'_>, queries: &[f32], out: &mut [f32]) {
        let (dk, dv) = (job.keys.head_dim, job.values.head_dim);
        assert!(job.heads > 0 && job.heads.is_multiple_of(job.keys.heads), "heads share keys evenly");
        assert!(job.keys.heads == job.values.heads && job.window != Some(0), "keys and values fit");
        let tokens = queries.len() / (job.heads * dk);
        assert!(
            queries.len() == tokens * job.heads * dk && out.len() == tokens * job.heads * dv,
            "whole rows"
        );
        for kv in [&job.keys, &job.values] {
            assert!(kv.head_dim.is_multiple_of(kv.dtype.block_len()), "heads are whole blocks");
            assert!(
                kv.heads * kv.head_bytes() <= kv.position_bytes
                    && kv.bytes.len() >= (job.start + tokens) * kv.position_bytes,
                "cache holds the queries"
            );
        }
        let group = job.heads / job.keys.heads;
        let tiles = tokens.div_ceil(TILE);
        // A group of query heads shares its unpacked keys, unless that would leave threads without work.
        let share = if job.keys.heads * tiles >= self.pool().threads() { group } else { 1 };
        let head_sets = job.heads / share;
        let out = Shared::new(out);
        self.pool().each(head_sets * tiles, 1, Scratch::default, |scratch, range| {
            for item in range {
                let heads = item / tiles * share..(item / tiles + 1) * share;
                let tile = item % tiles * TILE;
                let range = tile..(tile + TILE).min(tokens);
                let (heads_, tokens_) = (heads.clone(), range.clone());
                let isa = self.isa();
                isa.vector(Piece { job, isa, queries, heads, tokens: range, scratch });
                let stride = dv.next_multiple_of(16);
                let mut rows = scratch.acc.chunks_exact(stride);
                for head in heads_ {
                    for (token, row) in tokens_.clone().zip(&mut rows) {
                        // SAFETY: this head of this token is in this piece alone.
                        let to = unsafe { out.part((token * job.heads + head) * dv, dv) };
                        to.copy_from_slice(&row[..dv]);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fonio_codec::list;

    fn noise(n: usize, mut state: u32) -> Vec<f32> {
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 22) as f32 - 2.0
        })
        .take(n)
        .collect()
    }

    struct Case {
        heads: usize,
        kv_heads: usize,
        dk: usize,
        dv: usize,
        start: usize,
        tokens: usize,
        window: Option<usize>,
        softcap: Option<f32>,
        sinks: bool,
    }

    fn check(case: &Case, isa: Isa) {
        let Case { heads, kv_heads, dk, dv, start, tokens, window, softcap, sinks } = *case;
        let total = start + tokens;
        let (k, v) = (noise(total * kv_heads * dk, 1), noise(total * kv_heads * dv, 2));
        let q = noise(tokens * heads * dk, 3);
        let sink_scores = noise(heads, 4);
        let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let (kb, vb) = (bytes(&k), bytes(&v));
        let scale = 1.0 / (dk as f32).sqrt();
        let job = Attention {
            heads,
            keys: KvView {
                dtype: list::F32,
                bytes: &kb,
                position_bytes: kv_heads * dk * 4,
                heads: kv_heads,
                head_dim: dk,
            },
            values: KvView {
                dtype: list::F32,
                bytes: &vb,
                position_bytes: kv_heads * dv * 4,
                heads: kv_heads,
                head_dim: dv,
            },
            start,
            scale,
            softcap,
            window,
            sinks: sinks.then_some(&sink_scores[..]),
        };
        let mut out = vec![f32::NAN; tokens * heads * dv];
        Kernels::new(2, isa).attend(&job, &q, &mut out);
        for t in 0..tokens {
            for h in 0..heads {
                let kv = h / (heads / kv_heads);
                let position = start + t;
                let from = window.map_or(0, |w| (position + 1).saturating_sub(w));
                let q = &q[(t * heads + h) * dk..][..dk];
                let scores: Vec<f64> = (from..=position)
                    .map(|p| {
                        let key = &k[(p * kv_heads + kv) * dk..][..dk];
                        let x: f64 = q.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                        let x = x * f64::from(scale);
                        softcap.map_or(x, |c| f64::from(c) * (x / f64::from(c)).tanh())
                    })
                    .collect();
                let sink = if sinks { f64::from(sink_scores[h]).exp() } else { 0.0 };
                let sum: f64 = scores.iter().map(|x| x.exp()).sum::<f64>() + sink;
                for i in 0..dv {
                    let value = |p: usize| f64::from(v[(p * kv_heads + kv) * dv + i]);
                    let want: f64 =
                        scores.iter().enumerate().map(|(j, x)| x.exp() / sum * value(from + j)).sum();
                    let got = f64::from(out[(t * heads + h) * dv + i]);
                    // Scores of size up to 4·√dk carry dk roundings; exp turns that into a relative error.
                    let bound = 2.0 * (dk as f64 * 8.0 + 64.0) * 2f64.powi(-22);
                    assert!((got - want).abs() < bound, "{isa} t{t} h{h} {i}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn a_query_alone_has_the_same_bits_as_among_others() {
        let (heads, dim, start, tokens) = (4, 40, 90, 37);
        let total = start + tokens;
        let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let (k, v) = (bytes(&noise(total * dim, 1)), bytes(&noise(total * dim, 2)));
        let q = noise(tokens * heads * dim, 3);
        let view =
            |bytes| KvView { dtype: list::F32, bytes, position_bytes: dim * 4, heads: 1, head_dim: dim };
        for isa in Isa::available() {
            for window in [None, Some(50)] {
                let job = |start| Attention {
                    heads,
                    keys: view(&k),
                    values: view(&v),
                    start,
                    scale: 0.3,
                    softcap: None,
                    window,
                    sinks: None,
                };
                let mut all = vec![0.0; q.len()];
                Kernels::new(2, isa).attend(&job(start), &q, &mut all);
                for (t, q) in q.chunks_exact(heads * dim).enumerate() {
                    let mut one = vec![0.0; q.len()];
                    Kernels::new(1, isa).attend(&job(start + t), q, &mut one);
                    assert_eq!(one, all[t * q.len()..][..q.len()], "{isa} {window:?} {t}");
                }
            }
        }
    }

    #[test]
    fn attention_equals_its_definition() {
        let plain = Case {
            heads: 4,
            kv_heads: 2,
            dk: 24,
            dv: 24,
            start: 0,
            tokens: 40,
            window: None,
            softcap: None,
            sinks: false,
        };
        for isa in Isa::available() {
            check(&plain, isa);
            check(&Case { start: 150, tokens: 1, ..plain }, isa);
            check(&Case { start: 70, tokens: 33, window: Some(9), ..plain }, isa);
            check(&Case { start: 3, window: Some(100), softcap: Some(5.0), dv: 40, ..plain }, isa);
            check(&Case { heads: 3, kv_heads: 1, sinks: true, ..plain }, isa);
        }
    }
}
