//! Some queries times one span of the cache.

use super::cells::Packed;
use super::products::{ROWS, Scores, add_values, scores};
use super::store::{BLOCK, PAD};
use super::unpack::{columns, rows};
use super::{Attention, Queries, SPAN, Softmax};
use crate::math::{exp, tanh};
use fonio_simd::{Isa, Lines, Simd, VectorTask};
use std::ops::Range;

/// Positions whose scores are held at once: they are in one place.
pub(super) const CHUNK: usize = BLOCK;
/// Rows of queries from which on it is worth to unpack keys and values before they are multiplied.
const MANY: usize = 4 * ROWS;

const _: () = assert!(SPAN.is_multiple_of(CHUNK));

/// What a thread keeps between pieces.
#[derive(Default)]
pub(super) struct Scratch {
    queries: Lines<f32>,
    /// Keys that wait to be turned.
    unpacked: Lines<f32>,
    keys: Lines<f32>,
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
        let (dk, sv) = (job.keys.head_dim, job.values.head_dim.next_multiple_of(PAD));
        let Scratch { queries: scaled, unpacked, keys: key_room, values: value_room, span: sums, .. } =
            self.scratch;
        let n_rows = queries.len();
        scaled.resize(n_rows * dk);
        for ((token, head), to) in queries.rows().zip(scaled.chunks_exact_mut(dk)) {
            let from = &self.all[(token * job.heads + head) * dk..][..dk];
            to.iter_mut().zip(from).for_each(|(to, q)| *to = q * job.scale);
        }
        value_room.resize(CHUNK * sv);
        sums.clear(n_rows, sv);
        let head = queries.heads.start / (job.heads / job.keys.shape.heads());
        let end = (job.start + queries.tokens.end).min((span + 1) * SPAN);
        let first = job.window.map_or(0, |w| (job.start + queries.tokens.start + 1).saturating_sub(w));
        let mut weights: Scores = [[0.0; CHUNK]; ROWS];
        let mut chunk = (span * SPAN).max(first / CHUNK * CHUNK);
        while chunk < end {
            let n = CHUNK.min(end - chunk);
            // What few rows see is multiplied as it is loaded.
            let few = n_rows < MANY;
            let keys = match job.keys.packed_columns(head, chunk) {
                Some(keys) if few => keys,
                _ => {
                    columns(s, isa, &job.keys, (head, chunk, n), unpacked, key_room);
                    Packed::Singles(key_room.bytes())
                }
            };
            let (values, stride) = match job.values.packed_rows(head, chunk) {
                Some(values) if few => (values, job.values.shape.head_dim()),
                _ => {
                    rows(s, isa, &job.values, (head, chunk, n), value_room);
                    (Packed::Singles(value_room.bytes()), sv)
                }
            };
            let mut row = 0;
            while row < n_rows {
                let many = ROWS.min(n_rows - row);
                let asked = &scaled[row * dk..(row + many) * dk];
                // Few rows wait for the cache: each fetches its share of what comes next.
                let (mut keys_ahead, mut values_ahead) = (&[][..], &[][..]);
                if few {
                    keys_ahead = share(job.keys.block(head, chunk), row, many, n_rows);
                    values_ahead = share(job.values.block(head, chunk), row, many, n_rows);
                }
                match many {
                    1 => scores::<S, 1>(s, asked, dk, keys, keys_ahead, &mut weights),
                    2 => scores::<S, 2>(s, asked, dk, keys, keys_ahead, &mut weights),
                    3 => scores::<S, 3>(s, asked, dk, keys, keys_ahead, &mut weights),
                    _ => scores::<S, ROWS>(s, asked, dk, keys, keys_ahead, &mut weights),
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
                        let factor = weigh(s, job.softcap, &mut weights[r], &seen[r], state);
                        if factor != 1.0 {
                            shrink(s, acc, factor);
                        }
                    }
                }
                let acc = &mut sums.acc[row * sv..(row + many) * sv];
                add_values(s, &weights, &seen[..many], values, (stride, sv), values_ahead, acc);
                row += many;
            }
            chunk += CHUNK;
        }
    }
}

/// What `many` rows from `row` on of `n` have of some bytes.
#[inline(always)]
fn share(x: &[u8], row: usize, many: usize, n: usize) -> &[u8] {
    &x[x.len() * row / n..x.len() * (row + many) / n]
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
