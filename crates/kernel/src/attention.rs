//! Scaled dot-product attention over a cache, in one pass with a running softmax (Milakov & Gimelshein 2018; Dao et
//! al. 2022), so that memory does not grow with the context.

use crate::Kernels;
use crate::math::{exp, tanh};
use crate::matmul::dot;
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

#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    keys: Vec<f32>,
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
            for row in 0..rows {
                let position = job.start + self.tokens.start + row % self.tokens.len();
                let from = job.window.map_or(0, |w| (position + 1).saturating_sub(w));
                let seen = from.max(chunk)..(position + 1).min(chunk + n);
                if seen.is_empty() {
                    continue;
                }
                let seen = seen.start - chunk..seen.end - chunk;
                attend(
                    s,
                    job.softcap,
                    &scratch.queries[row * sk..(row + 1) * sk],
                    &scratch.keys[seen.start * sk..seen.end * sk],
                    &scratch.values[seen.start * sv..seen.end * sv],
                    &mut scratch.acc[row * sv..(row + 1) * sv],
                    &mut scratch.max_sum[row],
                );
            }
            chunk += CHUNK;
        }
        for (acc, (_, sum)) in scratch.acc.chunks_exact_mut(sv).zip(&scratch.max_sum) {
            acc.iter_mut().for_each(|x| *x /= sum);
        }
    }
}

/// Takes at most [`CHUNK`] more positions into the running softmax of one query.
#[inline(always)]
fn attend<S: Simd>(
    s: S,
    softcap: Option<f32>,
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    acc: &mut [f32],
    (max, sum): &mut (f32, f32),
) {
    let mut scores = [0f32; CHUNK];
    let n = keys.len() / query.len();
    let scores = &mut scores[..n];
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(query.len())) {
        *score = dot(s, query, key);
    }
    if let Some(cap) = softcap {
        scores.iter_mut().for_each(|x| *x = cap * tanh(*x / cap));
    }
    let highest = scores.iter().fold(*max, |m, &x| m.max(x));
    let shrink = if *max == f32::NEG_INFINITY { 0.0 } else { exp(*max - highest) };
    scores.iter_mut().for_each(|x| *x = exp(*x - highest));
    *sum = *sum * shrink + scores.iter().sum::<f32>();
    *max = highest;
    let mut at = 0;
    while at + S::LANES <= acc.len() {
        let mut lanes = s.mul(s.load(&acc[at..]), s.splat(shrink));
        for (weight, value) in scores.iter().zip(values.chunks_exact(acc.len())) {
            lanes = s.fma(s.splat(*weight), s.load(&value[at..]), lanes);
        }
        s.store(lanes, &mut acc[at..]);
        at += S::LANES;
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
