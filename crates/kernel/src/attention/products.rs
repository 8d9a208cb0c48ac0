//! Products of a few queries with the keys of a block, and of their weights with its values.

use super::cells::{Cells, Packed, with};
use super::piece::CHUNK;
use fonio_simd::Simd;
use std::ops::Range;

/// Rows of queries that are taken together.
pub(super) const ROWS: usize = 4;
/// Values of keys that are multiplied between fetches.
const BETWEEN: usize = 8;

/// Scores, or weights, of queries for the positions of a chunk.
pub(super) type Scores = [[f32; CHUNK]; ROWS];

/// The products of `R` queries of `dim` values with all keys of a chunk, which are turned. A lane has a
/// position, and adds up one product after the other. What is far behind `ahead` is fetched on the way.
#[inline(always)]
pub(super) fn scores<S: Simd, const R: usize>(
    s: S,
    queries: &[f32],
    dim: usize,
    keys: Packed<'_>,
    ahead: &[u8],
    out: &mut Scores,
) {
    let queries: [&[f32]; R] = std::array::from_fn(|r| &queries[r * dim..][..dim]);
    with!(keys, C, keys => scores_of::<S, C, R>(s, queries, keys, ahead, out));
}

#[inline(always)]
fn scores_of<S: Simd, C: Cells, const R: usize>(
    s: S,
    queries: [&[f32]; R],
    keys: &[u8],
    ahead: &[u8],
    out: &mut Scores,
) {
    // As many vectors of positions as there are registers for.
    if S::LANES == 16 {
        scores_at::<S, C, R, 4>(s, queries, keys, ahead, 0, out);
    } else {
        let mut at = 0;
        while at < CHUNK {
            let ahead = if at == 0 { ahead } else { &[] };
            scores_at::<S, C, R, 2>(s, queries, keys, ahead, at, out);
            at += 2 * S::LANES;
        }
    }
}

#[inline(always)]
fn scores_at<S: Simd, C: Cells, const R: usize, const V: usize>(
    s: S,
    queries: [&[f32]; R],
    keys: &[u8],
    ahead: &[u8],
    at: usize,
    out: &mut Scores,
) {
    let dim = queries[0].len();
    let step = ahead.len() / dim;
    let mut sums = [[s.splat(0.0); V]; R];
    let mut d = 0;
    while d < dim {
        let end = dim.min(d + BETWEEN);
        s.fetch_ahead(ahead, d * step, end * step);
        while d < end {
            let column = C::column(keys, d);
            let mut key = [s.splat(0.0); V];
            let mut v = 0;
            while v < V {
                key[v] = C::of_column(s, column, at + v * S::LANES);
                v += 1;
            }
            for r in 0..R {
                let value = s.splat(queries[r][d]);
                for v in 0..V {
                    sums[r][v] = s.fma(value, key[v], sums[r][v]);
                }
            }
            d += 1;
        }
    }
    for r in 0..R {
        for v in 0..V {
            s.store(sums[r][v], &mut out[r][at + v * S::LANES..]);
        }
    }
}

/// Adds the values that rows see, weighted, to the rows of `acc`: what all see together, the rest row by row. Each row adds
/// values in the order of positions. `size` says how far apart rows of values begin, and rows of `acc`. What is far behind
/// `ahead` is fetched on the way.
#[inline(always)]
pub(super) fn add_values<S: Simd>(
    s: S,
    weights: &Scores,
    seen: &[Range<usize>],
    values: Packed<'_>,
    size: (usize, usize),
    ahead: &[u8],
    acc: &mut [f32],
) {
    with!(values, C, values => add_seen::<S, C>(s, weights, seen, values, size, ahead, acc));
}

#[inline(always)]
fn add_seen<S: Simd, C: Cells>(
    s: S,
    weights: &Scores,
    seen: &[Range<usize>],
    values: &[u8],
    size: (usize, usize),
    ahead: &[u8],
    acc: &mut [f32],
) {
    let (mut first, mut end) = (0, CHUNK);
    for seen in seen {
        (first, end) = (first.max(seen.start), end.min(seen.end));
    }
    let width = size.1;
    if first >= end {
        for (r, seen) in seen.iter().enumerate() {
            add_rows::<S, C, 1>(s, &weights[r..], seen.clone(), values, size, &[], &mut acc[r * width..]);
        }
        return;
    }
    for (r, seen) in seen.iter().enumerate() {
        add_rows::<S, C, 1>(s, &weights[r..], seen.start..first, values, size, &[], &mut acc[r * width..]);
    }
    let mut r = 0;
    while r < seen.len() {
        let (weights, acc) = (&weights[r..], &mut acc[r * width..]);
        // As many as there are registers for.
        r += match seen.len() - r {
            4.. if S::LANES == 16 => add_rows::<S, C, 4>(s, weights, first..end, values, size, ahead, acc),
            3 if S::LANES == 16 => add_rows::<S, C, 3>(s, weights, first..end, values, size, ahead, acc),
            2.. => add_rows::<S, C, 2>(s, weights, first..end, values, size, ahead, acc),
            _ => add_rows::<S, C, 1>(s, weights, first..end, values, size, ahead, acc),
        };
    }
    for (r, seen) in seen.iter().enumerate() {
        add_rows::<S, C, 1>(s, &weights[r..], end..seen.end, values, size, &[], &mut acc[r * width..]);
    }
}

/// Adds the values of some positions to `R` rows, and returns `R`.
#[inline(always)]
fn add_rows<S: Simd, C: Cells, const R: usize>(
    s: S,
    weights: &[[f32; CHUNK]],
    positions: Range<usize>,
    values: &[u8],
    size: (usize, usize),
    ahead: &[u8],
    acc: &mut [f32],
) -> usize {
    let (mut at, width) = (0, size.1);
    while at < width && !positions.is_empty() {
        let end = width.min(at + 4 * S::LANES);
        let ahead = &ahead[ahead.len() * at / width..ahead.len() * end / width];
        if width - at >= 4 * S::LANES {
            add_lanes::<S, C, R, 4>(s, weights, positions.clone(), (values, at), size, ahead, &mut acc[at..]);
            at += 4 * S::LANES;
        } else {
            add_lanes::<S, C, R, 1>(s, weights, positions.clone(), (values, at), size, &[], &mut acc[at..]);
            at += S::LANES;
        }
    }
    R
}

/// The same of `V` vectors of each row, of values from `at` on.
#[inline(always)]
fn add_lanes<S: Simd, C: Cells, const R: usize, const V: usize>(
    s: S,
    weights: &[[f32; CHUNK]],
    positions: Range<usize>,
    (values, at): (&[u8], usize),
    (stride, width): (usize, usize),
    ahead: &[u8],
    acc: &mut [f32],
) {
    let step = ahead.len() / CHUNK;
    let mut lanes = [[s.splat(0.0); V]; R];
    for r in 0..R {
        for v in 0..V {
            lanes[r][v] = s.load(&acc[r * width + v * S::LANES..]);
        }
    }
    for j in positions {
        s.fetch_ahead(ahead, j * step, (j + 1) * step);
        let part = C::part(values, j * stride, at, V * S::LANES);
        let mut value = [s.splat(0.0); V];
        let mut v = 0;
        while v < V {
            value[v] = C::of_part(s, part, v * S::LANES);
            v += 1;
        }
        for r in 0..R {
            let weight = s.splat(weights[r][j]);
            for v in 0..V {
                lanes[r][v] = s.fma(weight, value[v], lanes[r][v]);
            }
        }
    }
    for r in 0..R {
        for v in 0..V {
            s.store(lanes[r][v], &mut acc[r * width + v * S::LANES..]);
        }
    }
}
