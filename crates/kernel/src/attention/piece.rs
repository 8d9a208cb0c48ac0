//! Some queries times one span of the cache.

use super::{Attention, BLOCK, KvView, Queries, SPAN, Softmax, kv_offset};
use crate::floats::{Brains, Halves, Load, Singles};
use crate::math::{exp, tanh};
use crate::panel::{Sums, keep};
use fonio_codec::list;
use fonio_simd::{Isa, Lines, Simd, VectorTask};
use std::ops::Range;

/// Rows of queries, keys and values are padded to a multiple of this with zeros.
pub(super) const PAD: usize = 16;
/// Positions that are unpacked together: they are in one place.
pub(super) const CHUNK: usize = BLOCK;
/// Rows of queries that are taken together.
const ROWS: usize = 4;
/// Rows of queries from which on it is worth to turn keys, so that each lane has one.
const MANY: usize = 4 * ROWS;

const _: () = assert!(SPAN.is_multiple_of(CHUNK));

/// What a thread keeps between pieces.
#[derive(Default)]
pub(super) struct Scratch {
    queries: Lines<f32>,
    keys: Lines<f32>,
    /// Value d of each key of a chunk after value d − 1 of all.
    turned: Lines<u8>,
    /// Scores that wait for others.
    kept: Lines<f32>,
    values: Lines<f32>,
    /// What the last piece gave.
    pub span: Softmax,
    /// What it is taken into.
    pub total: Softmax,
}

/// Some queries times one span of the cache, into `scratch.span`.
pub(super) struct Piece<'a> {
    pub job: &'a Attention<'a>,
    pub isa: Isa,
    pub all: &'a [f32],
    pub queries: &'a Queries,
    pub span: usize,
    pub scratch: &'a mut Scratch,
}

impl VectorTask for Piece<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Piece { job, isa, queries, span, .. } = self;
        let (dk, dv) = (job.keys.head_dim, job.values.head_dim);
        let (sk, sv) = (dk.next_multiple_of(PAD), dv.next_multiple_of(PAD));
        let Scratch { queries: scaled, keys, turned, kept, values, span: sums, .. } = self.scratch;
        let rows = queries.len();
        scaled.resize(rows * sk);
        for ((token, head), to) in queries.rows().zip(scaled.chunks_exact_mut(sk)) {
            let from = &self.all[(token * job.heads + head) * dk..][..dk];
            to.iter_mut().zip(from).for_each(|(to, q)| *to = q * job.scale);
            to[dk..].fill(0.0);
        }
        keys.resize(CHUNK * sk);
        values.resize(CHUNK * sv);
        turned.resize(4 * sk * CHUNK);
        sums.clear(rows, sv);
        let kv_head = queries.heads.start / (job.heads / job.keys.heads);
        let end = (job.start + queries.tokens.end).min((span + 1) * SPAN);
        let first = job.window.map_or(0, |w| (job.start + queries.tokens.start + 1).saturating_sub(w));
        let mut chunk = (span * SPAN).max(first / CHUNK * CHUNK);
        while chunk < end {
            let n = CHUNK.min(end - chunk);
            unpack(s, isa, &job.keys, kv_head, chunk, &mut keys[..n * sk]);
            unpack(s, isa, &job.values, kv_head, chunk, &mut values[..n * sv]);
            if rows >= MANY {
                turn(s, keys, sk, turned);
            }
            let mut scores = [[0f32; CHUNK]; ROWS];
            let mut row = 0;
            while row < rows {
                let many = ROWS.min(rows - row);
                let asked = &scaled[row * sk..(row + many) * sk];
                if rows >= MANY && many == ROWS {
                    all_scores(s, asked, turned, kept, &mut scores);
                } else {
                    for r in 0..many {
                        let ahead = [&job.keys, &job.values].map(|kv| kv.chunk(kv_head, chunk, n));
                        let ahead = ahead.map(|bytes| share(bytes, row + r, rows));
                        one_score(s, &asked[r * sk..(r + 1) * sk], keys, ahead, &mut scores[r]);
                    }
                }
                let mut seen = [0..0, 0..0, 0..0, 0..0];
                for r in 0..many {
                    let position = job.start + queries.tokens.start + (row + r) / queries.heads.len();
                    let from = job.window.map_or(0, |w| (position + 1).saturating_sub(w)).max(chunk);
                    let to = (position + 1).min(chunk + n).max(from);
                    seen[r] = from - chunk..to - chunk;
                    let acc = &mut sums.acc[(row + r) * sv..(row + r + 1) * sv];
                    if !seen[r].is_empty() {
                        let state = &mut sums.max_sum[row + r];
                        let factor = weigh(s, job.softcap, &mut scores[r], &seen[r], state);
                        if factor != 1.0 {
                            shrink(s, acc, factor);
                        }
                    }
                }
                let acc = &mut sums.acc[row * sv..(row + many) * sv];
                add_values(s, &scores, &seen[..many], values, sv, acc);
                row += many;
            }
            chunk += CHUNK;
        }
    }
}

impl KvView<'_> {
    /// The bytes of a head of `n` positions of a chunk, from position `first` on.
    #[inline(always)]
    fn chunk(&self, head: usize, first: usize, n: usize) -> &[u8] {
        &self.bytes[kv_offset(self.heads, self.head_bytes, head, first)..][..n * self.head_bytes]
    }
}

/// Share `i` of `n` of some bytes.
#[inline(always)]
fn share(x: &[u8], i: usize, n: usize) -> &[u8] {
    &x[x.len() * i / n..x.len() * (i + 1) / n]
}

/// Unpacks one head of a chunk, from position `first` on, into padded rows.
#[inline(always)]
pub(super) fn unpack<S: Simd>(
    s: S,
    isa: Isa,
    from: &KvView<'_>,
    head: usize,
    first: usize,
    rows: &mut [f32],
) {
    let (dim, step) = (from.head_dim, from.head_bytes);
    let bytes = from.chunk(head, first, rows.len() / dim.next_multiple_of(PAD));
    if dim.is_multiple_of(PAD) {
        match from.dtype {
            t if t == list::F16 => return widen::<S, Halves>(s, bytes, step, dim, rows),
            t if t == list::BF16 => return widen::<S, Brains>(s, bytes, step, dim, rows),
            t if t == list::F32 => return widen::<S, Singles>(s, bytes, step, dim, rows),
            t if from.size() == step => {
                return t.codec().dequantize(isa, bytes, rows);
            }
            _ => {}
        }
    }
    for (i, row) in rows.chunks_exact_mut(dim.next_multiple_of(PAD)).enumerate() {
        from.dtype.codec().dequantize(isa, &bytes[i * step..][..from.size()], &mut row[..dim]);
        row[dim..].fill(0.0);
    }
}

/// Widens rows of `dim` numbers, `step` bytes apart.
#[inline(always)]
fn widen<S: Simd, L: Load>(s: S, bytes: &[u8], step: usize, dim: usize, rows: &mut [f32]) {
    let mut i = 0;
    while i < rows.len() / dim {
        let (from, to) = (&bytes[i * step..][..dim * L::BYTES], &mut rows[i * dim..(i + 1) * dim]);
        let mut d = 0;
        while d < to.len() {
            s.store(L::load(s, &from[d * L::BYTES..]), &mut to[d..]);
            d += S::LANES;
        }
        i += 1;
    }
}

/// Turns the keys of a chunk. Places of keys that are not there get what does not matter.
#[inline(always)]
fn turn<S: Simd>(s: S, keys: &[f32], stride: usize, turned: &mut [u8]) {
    let mut first = 0;
    while first < CHUNK {
        let mut d = 0;
        while d < stride {
            let mut square = [s.splat_i(0); 16];
            let mut j = 0;
            while j < S::LANES {
                square[j] = s.bits_of(s.load(&keys[(first + j) * stride + d..]));
                j += 1;
            }
            let square = s.transposed(square);
            let mut i = 0;
            while i < S::LANES {
                s.store_bytes(square[i], &mut turned[4 * ((d + i) * CHUNK + first)..]);
                i += 1;
            }
            d += S::LANES;
        }
        first += S::LANES;
    }
}

/// The products of one query with all keys of a chunk. A lane adds up every sixteenth or eighth product. What is far behind
/// `ahead`, the next head's or the next chunk's, is fetched on the way.
#[inline(always)]
fn one_score<S: Simd>(s: S, query: &[f32], keys: &[f32], ahead: [&[u8]; 2], scores: &mut [f32; CHUNK]) {
    let stride = query.len();
    let mut at = 0;
    while at < CHUNK {
        for bytes in ahead {
            s.fetch_ahead(bytes, bytes.len() * at / CHUNK, bytes.len() * (at + S::LANES) / CHUNK);
        }
        let keys = &keys[at * stride..(at + S::LANES) * stride];
        let mut sums = [s.splat(0.0); 16];
        let mut d = 0;
        while d < stride {
            let value = s.load(&query[d..]);
            for r in 0..S::LANES {
                sums[r] = s.fma(value, s.load(&keys[r * stride + d..]), sums[r]);
            }
            d += S::LANES;
        }
        s.store(s.sums(sums), &mut scores[at..]);
        at += S::LANES;
    }
}

/// The products of [`ROWS`] queries with all keys of a chunk, the same bits as [`one_score`]'s: what one of its lanes adds up is
/// added up here one value after the other, and the lanes in its order.
#[inline(always)]
fn all_scores<S: Simd>(
    s: S,
    queries: &[f32],
    turned: &[u8],
    kept: &mut Lines<f32>,
    scores: &mut [[f32; CHUNK]; ROWS],
) {
    let bits = S::LANES.trailing_zeros();
    // Of 32 registers, two lanes' sums have place.
    let together = if S::LANES == 16 { 2 } else { 1 };
    kept.resize(bits as usize * 2 * ROWS * S::LANES);
    let mut at = 0;
    while at < CHUNK {
        let mut i = 0;
        let sums = loop {
            let lane = |i: usize| i.reverse_bits() >> (usize::BITS - bits);
            let mut sums = lane_scores(s, queries, turned, lane(i), at);
            if together == 2 {
                let next = lane_scores(s, queries, turned, lane(i + 1), at);
                for v in 0..2 {
                    for r in 0..ROWS {
                        sums[v][r] = s.add(sums[v][r], next[v][r]);
                    }
                }
            }
            if let Some(sums) = keep(s, i, together / 2, sums, kept) {
                break sums;
            }
            i += together;
        };
        for r in 0..ROWS {
            s.store(sums[0][r], &mut scores[r][at..]);
            s.store(sums[1][r], &mut scores[r][at + S::LANES..]);
        }
        at += 2 * S::LANES;
    }
}

/// What lane `lane` adds up of the products with two vectors of keys, from `at` on.
#[inline(always)]
fn lane_scores<S: Simd>(s: S, queries: &[f32], turned: &[u8], lane: usize, at: usize) -> Sums<S::F, ROWS> {
    let stride = queries.len() / ROWS;
    let mut sums = [[s.splat(0.0); ROWS]; 2];
    let mut d = lane;
    while d < stride {
        let keys = &turned[4 * (d * CHUNK + at)..][..8 * S::LANES];
        let (a, b) = (s.load_f32(keys), s.load_f32(&keys[4 * S::LANES..]));
        for r in 0..ROWS {
            let value = s.splat(queries[r * stride + d]);
            sums[0][r] = s.fma(value, a, sums[0][r]);
            sums[1][r] = s.fma(value, b, sums[1][r]);
        }
        d += S::LANES;
    }
    sums
}

/// Makes scores of a chunk, of which some are seen, into weights, and takes them into the state of a running softmax. What its
/// sum of values shrinks by is returned.
#[inline(always)]
pub(super) fn weigh<S: Simd>(
    s: S,
    softcap: Option<f32>,
    scores: &mut [f32; CHUNK],
    seen: &Range<usize>,
    (max, sum): &mut (f32, f32),
) -> f32 {
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
    let highest = max.max(s.highest(highest));
    let shrink = match *max {
        f32::NEG_INFINITY => 0.0,
        // Nearly always: what `exp` gives.
        same if same == highest => 1.0,
        less => exp(less - highest),
    };
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
    shrink
}

/// Multiplies a row with one number.
#[inline(always)]
fn shrink<S: Simd>(s: S, acc: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    let mut at = 0;
    while at < acc.len() {
        let lanes = s.mul(s.load(&acc[at..]), factor);
        s.store(lanes, &mut acc[at..]);
        at += S::LANES;
    }
}

/// Adds the seen values, weighted, to the rows of `acc`: what all rows see together, the rest row by row. Each row adds
/// values in the order of positions.
#[inline(always)]
fn add_values<S: Simd>(
    s: S,
    weights: &[[f32; CHUNK]; ROWS],
    seen: &[Range<usize>],
    values: &[f32],
    stride: usize,
    acc: &mut [f32],
) {
    let (mut first, mut end) = (0, CHUNK);
    for seen in seen {
        (first, end) = (first.max(seen.start), end.min(seen.end));
    }
    if first >= end {
        for (r, seen) in seen.iter().enumerate() {
            add_rows::<S, 1>(s, &weights[r..], seen.clone(), values, stride, &mut acc[r * stride..]);
        }
        return;
    }
    for (r, seen) in seen.iter().enumerate() {
        add_rows::<S, 1>(s, &weights[r..], seen.start..first, values, stride, &mut acc[r * stride..]);
    }
    let mut r = 0;
    while r < seen.len() {
        let (weights, acc) = (&weights[r..], &mut acc[r * stride..]);
        // As many as there are registers for.
        r += match seen.len() - r {
            4.. if S::LANES == 16 => add_rows::<S, 4>(s, weights, first..end, values, stride, acc),
            3 if S::LANES == 16 => add_rows::<S, 3>(s, weights, first..end, values, stride, acc),
            2.. => add_rows::<S, 2>(s, weights, first..end, values, stride, acc),
            _ => add_rows::<S, 1>(s, weights, first..end, values, stride, acc),
        };
    }
    for (r, seen) in seen.iter().enumerate() {
        add_rows::<S, 1>(s, &weights[r..], end..seen.end, values, stride, &mut acc[r * stride..]);
    }
}

/// Adds the values of some positions to `R` rows, and returns `R`.
#[inline(always)]
fn add_rows<S: Simd, const R: usize>(
    s: S,
    weights: &[[f32; CHUNK]],
    positions: Range<usize>,
    values: &[f32],
    stride: usize,
    acc: &mut [f32],
) -> usize {
    let mut at = 0;
    while at < stride && !positions.is_empty() {
        if stride - at >= 4 * S::LANES {
            add_lanes::<S, R, 4>(s, weights, positions.clone(), values, (stride, at), acc);
            at += 4 * S::LANES;
        } else {
            add_lanes::<S, R, 1>(s, weights, positions.clone(), values, (stride, at), acc);
            at += S::LANES;
        }
    }
    R
}

/// The same of `V` vectors of each row, from `at` on.
#[inline(always)]
fn add_lanes<S: Simd, const R: usize, const V: usize>(
    s: S,
    weights: &[[f32; CHUNK]],
    positions: Range<usize>,
    values: &[f32],
    (stride, at): (usize, usize),
    acc: &mut [f32],
) {
    let mut lanes = [[s.splat(0.0); V]; R];
    for r in 0..R {
        for v in 0..V {
            lanes[r][v] = s.load(&acc[r * stride + at + v * S::LANES..]);
        }
    }
    for j in positions {
        let values = &values[j * stride + at..][..V * S::LANES];
        for r in 0..R {
            let weight = s.splat(weights[r][j]);
            for v in 0..V {
                lanes[r][v] = s.fma(weight, s.load(&values[v * S::LANES..]), lanes[r][v]);
            }
        }
    }
    for r in 0..R {
        for v in 0..V {
            s.store(lanes[r][v], &mut acc[r * stride + at + v * S::LANES..]);
        }
    }
}
