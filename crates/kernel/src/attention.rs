//! Scaled dot-product attention over a cache, in one pass with a running softmax (Milakov & Gimelshein 2018; Dao et
//! al. 2022), so that scores are never held for the whole context.
//!
//! The cache is taken in spans of positions, each with a softmax of its own, and these are merged in order. Spans may so be
//! computed by several threads (Dao et al. 2023, Flash-Decoding), and the bits are the same if one thread takes all. Very many
//! queries are multiplied in AMX's tiles where the CPU has those; then the bits are others.

mod cells;
mod piece;
mod products;
mod store;
mod tiles;
mod unpack;

use crate::Kernels;
use crate::math::exp;
use crate::share::Shared;
use fonio_simd::amx::Amx;
use fonio_simd::{Isa, Task};
use piece::{Piece, Scratch};
use std::cmp::Reverse;
use std::ops::Range;
pub use store::KvShape;
pub(crate) use tiles::Scratch as Kept;

/// One layer's keys or values.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// How they are packed.
    pub shape: KvShape,
    /// The packed positions, as many bytes as the shape says or more.
    pub bytes: &'a [u8],
    /// Values of a head; others behind them are left out.
    pub head_dim: usize,
}

impl KvView<'_> {
    /// Bytes of the values of a head.
    fn size(&self) -> usize {
        let dtype = self.shape.dtype();
        self.head_dim / dtype.block_len() * dtype.block_bytes()
    }
}

/// What to attend to and how. Query `i` is at position `start + i` and sees keys at that position and before.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Query heads; a multiple of the heads of keys, which consecutive ones share.
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
/// Positions with a softmax of their own.
const SPAN: usize = 256;

/// The softmax of some queries over some positions: for each row of `acc` the weighted sum of values, the highest score and
/// the sum of weights, which are powers of differences from that score. A sum of 0 is the softmax over nothing.
#[derive(Default)]
struct Softmax {
    acc: Vec<f32>,
    max_sum: Vec<(f32, f32)>,
}

impl Softmax {
    /// Makes `rows` of these of `width` values over nothing.
    fn clear(&mut self, rows: usize, width: usize) {
        self.acc.clear();
        self.acc.resize(rows * width, 0.0);
        self.max_sum.clear();
        self.max_sum.resize(rows, (f32::NEG_INFINITY, 0.0));
    }
}

/// Takes one softmax into another.
#[inline(always)]
fn merge(total: &mut [f32], (max, sum): &mut (f32, f32), acc: &[f32], &(other_max, other_sum): &(f32, f32)) {
    if other_sum == 0.0 {
        return;
    }
    let highest = max.max(other_max);
    let own = if *max == f32::NEG_INFINITY { 0.0 } else { exp(*max - highest) };
    let other = exp(other_max - highest);
    // Nothing was there: a sequence of few positions has one span.
    if own == 0.0 && other == 1.0 {
        total.copy_from_slice(acc);
    } else {
        for (total, x) in total.iter_mut().zip(acc) {
            *total = *total * own + *x * other;
        }
    }
    *sum = *sum * own + other_sum * other;
    *max = highest;
}

impl Attention<'_> {
    /// The spans that these queries see something of.
    fn spans(&self, tokens: &Range<usize>) -> Range<usize> {
        let first = self.window.map_or(0, |w| (self.start + tokens.start + 1).saturating_sub(w));
        first / SPAN..(self.start + tokens.end).div_ceil(SPAN)
    }
}

/// Some query heads of one key head, for a tile of queries.
#[derive(Clone)]
struct Queries {
    heads: Range<usize>,
    tokens: Range<usize>,
}

impl Queries {
    /// Token and head of each row.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let heads = self.heads.clone();
        self.tokens.clone().flat_map(move |token| heads.clone().map(move |head| (token, head)))
    }

    fn len(&self) -> usize {
        self.heads.len() * self.tokens.len()
    }
}

/// All queries of `tokens` tokens, in pieces of `share` heads and up to `tile` tokens.
fn pieces(heads: usize, share: usize, tokens: usize, tile: usize) -> Vec<Queries> {
    (0..heads / share)
        .flat_map(|set| (0..tokens.div_ceil(tile)).map(move |i| (set, i)))
        .map(|(set, i)| Queries {
            heads: set * share..(set + 1) * share,
            tokens: i * tile..((i + 1) * tile).min(tokens),
        })
        .collect()
}

/// One call: what it reads and writes.
struct Call<'a, 'b> {
    job: &'a Attention<'a>,
    isa: Isa,
    queries: &'a [f32],
    out: Shared<'b, f32>,
}

impl Call<'_, '_> {
    /// Attends with all spans, one after the other.
    fn whole(&self, queries: &Queries, scratch: &mut Scratch) {
        let width = self.width();
        let mut total = std::mem::take(&mut scratch.total);
        self.begin(queries, &mut total);
        for span in self.job.spans(&queries.tokens) {
            self.span(queries, span, scratch);
            self.isa.run(Merge { total: &mut total, other: &scratch.span, width });
        }
        self.finish(queries, &total);
        scratch.total = total;
    }

    /// Makes `total` what it is before any span.
    fn begin(&self, queries: &Queries, total: &mut Softmax) {
        total.clear(queries.len(), self.width());
        if let Some(sinks) = self.job.sinks {
            total
                .max_sum
                .iter_mut()
                .zip(queries.rows())
                .for_each(|(state, (_, head))| *state = (sinks[head], 1.0));
        }
    }

    /// Attends with one span, into `scratch.span`.
    fn span(&self, queries: &Queries, span: usize, scratch: &mut Scratch) {
        let Call { job, isa, .. } = *self;
        isa.vector(Piece { job, isa, all: self.queries, queries, span, scratch });
    }

    /// Places of a row of a [`Softmax`].
    fn width(&self) -> usize {
        self.job.values.head_dim.next_multiple_of(store::PAD)
    }

    /// Writes the results.
    fn finish(&self, queries: &Queries, total: &Softmax) {
        self.isa.run(Finish { call: self, queries, total });
    }
}

struct Finish<'a, 'b, 'c> {
    call: &'a Call<'b, 'c>,
    queries: &'a Queries,
    total: &'a Softmax,
}

impl Task for Finish<'_, '_, '_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let Finish { call, queries, total } = self;
        let (dv, width) = (call.job.values.head_dim, call.width());
        let rows = total.acc.chunks_exact(width).zip(&total.max_sum);
        for ((token, head), (row, (_, sum))) in queries.rows().zip(rows) {
            // SAFETY: this head of this token is one caller's alone.
            let out = unsafe { call.out.part((token * call.job.heads + head) * dv, dv) };
            for (out, x) in out.iter_mut().zip(row) {
                *out = x / sum;
            }
        }
    }
}

/// Takes all rows of a softmax into those of another.
struct Merge<'a> {
    total: &'a mut Softmax,
    other: &'a Softmax,
    width: usize,
}

impl Task for Merge<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let rows = self.total.acc.chunks_exact_mut(self.width).zip(&mut self.total.max_sum);
        let others = self.other.acc.chunks_exact(self.width).zip(&self.other.max_sum);
        for ((total, state), (acc, other)) in rows.zip(others) {
            merge(total, state, acc, other);
        }
    }
}

impl Kernels {
    /// Attention for the rows of `queries` (`heads · keys.head_dim` values each) into the rows of `out`
    /// (`heads · values.head_dim` each). The cache holds every position up to the last query's.
    pub fn attend(&self, job: &Attention<'_>, queries: &[f32], out: &mut [f32]) {
        let (dk, dv) = (job.keys.head_dim, job.values.head_dim);
        let kv_heads = job.keys.shape.heads();
        assert!(job.heads > 0 && job.heads.is_multiple_of(kv_heads), "heads share keys evenly");
        assert!(kv_heads == job.values.shape.heads() && job.window != Some(0), "keys and values fit");
        let tokens = queries.len() / (job.heads * dk);
        assert!(
            queries.len() == tokens * job.heads * dk && out.len() == tokens * job.heads * dv,
            "whole rows"
        );
        for kv in [&job.keys, &job.values] {
            let whole = kv.head_dim.is_multiple_of(kv.shape.dtype().block_len());
            assert!(whole && kv.head_dim <= kv.shape.head_dim(), "heads are whole blocks");
            assert!(kv.bytes.len() >= kv.shape.bytes(job.start + tokens), "cache holds the queries");
        }
        if let Some(amx) = self.isa().amx().filter(|_| tokens >= crate::tiles::MANY) {
            return self.attend_in_tiles(amx, job, queries, (tokens, out));
        }
        let (threads, tiles) = (self.pool().threads(), tokens.div_ceil(TILE));
        // A group of query heads shares its unpacked keys, unless that would leave threads without work.
        let spans = job.spans(&(0..tokens)).len();
        let group = job.heads / kv_heads;
        let share = if kv_heads * tiles * spans >= threads { group } else { 1 };
        let pieces = pieces(job.heads, share, tokens, TILE);
        let call = Call { job, isa: self.isa(), queries, out: Shared::new(out) };
        if spans > 1 && pieces.len() < 8 * threads {
            self.span_by_span(&call, &pieces);
        } else {
            self.pool().each(pieces.len(), 1, Scratch::default, |scratch, range| {
                pieces[range].iter().for_each(|piece| call.whole(piece, scratch));
            });
        }
    }

    /// Attends with all that is seen of a head of keys, for many queries at once.
    fn attend_in_tiles(
        &self,
        amx: Amx,
        job: &Attention<'_>,
        all: &[f32],
        (tokens, out): (usize, &mut [f32]),
    ) {
        let group = job.heads / job.keys.shape.heads();
        let mut pieces = pieces(job.heads, group, tokens, tiles::tokens(group));
        // Those that see most come first, so that threads end together.
        pieces.sort_by_key(|piece| Reverse(piece.tokens.start));
        let (isa, out) = (self.isa(), &Shared::new(out));
        self.pool().each(
            pieces.len(),
            1,
            || self.attention.lend(),
            |scratch, range| {
                for queries in &pieces[range] {
                    isa.vector(tiles::Piece { job, isa, amx, all, queries, scratch, out });
                }
            },
        );
    }

    /// Attends to spans of the same queries on several threads. What is done to one span comes one after the other, because
    /// it is in the same pages.
    fn span_by_span(&self, call: &Call<'_, '_>, pieces: &[Queries]) {
        let mut items: Vec<(usize, &Queries, Softmax)> = pieces
            .iter()
            .flat_map(|p| call.job.spans(&p.tokens).map(move |span| (span, p, Softmax::default())))
            .collect();
        items.sort_by_key(|(span, ..)| *span);
        let len = items.len();
        let places = Shared::new(&mut items);
        self.pool().each(len, 1, Scratch::default, |scratch, range| {
            for i in range {
                // SAFETY: each item is in one range.
                let (span, queries, sums) = &mut unsafe { places.part(i, 1) }[0];
                call.span(queries, *span, scratch);
                std::mem::swap(sums, &mut scratch.span);
            }
        });
        let mut total = Softmax::default();
        for queries in pieces {
            call.begin(queries, &mut total);
            for (_, _, other) in items.iter().filter(|(_, other, _)| std::ptr::eq(*other, queries)) {
                self.isa().run(Merge { total: &mut total, other, width: call.width() });
            }
            call.finish(queries, &total);
        }
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

    /// Positions, one after the other, as a cache has them. What is behind them is what would be seen if it were used.
    fn cache(shape: &KvShape, x: &[f32]) -> Vec<u8> {
        let mut cache = vec![0x7f; shape.bytes(x.len() / shape.heads() / shape.head_dim())];
        Kernels::new(1, Isa::scalar()).put(shape, &mut cache, 0, x).unwrap();
        cache
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
        turned: bool,
    }

    fn check(case: &Case, isa: Isa) {
        let Case { heads, kv_heads, dk, dv, start, tokens, window, softcap, sinks, turned } = *case;
        let total = start + tokens;
        let (k, v) = (noise(total * kv_heads * dk, 1), noise(total * kv_heads * dv, 2));
        let q = noise(tokens * heads * dk, 3);
        let sink_scores = noise(heads, 4);
        let shape = |dim| KvShape::new(list::F32, kv_heads, dim).unwrap();
        let (shape_k, shape_v) = (if turned { shape(dk).turned() } else { shape(dk) }, shape(dv));
        let (kb, vb) = (cache(&shape_k, &k), cache(&shape_v, &v));
        let scale = 1.0 / (dk as f32).sqrt();
        let job = Attention {
            heads,
            keys: KvView { shape: shape_k, bytes: &kb, head_dim: dk },
            values: KvView { shape: shape_v, bytes: &vb, head_dim: dv },
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
        alone_and_among_others(4, 1, 40, 90);
        // Over the ends of spans, with heads that are whole vectors.
        alone_and_among_others(6, 2, 64, 240);
    }

    fn alone_and_among_others(heads: usize, kv_heads: usize, dim: usize, start: usize) {
        let (total, tokens) = (start + 37, 37);
        let shape = |dtype| KvShape::new(dtype, kv_heads, dim).unwrap();
        let halves = |seed| {
            let x = noise(total * kv_heads * dim, seed);
            let (mut bytes, mut halves) = (vec![0; 2 * x.len()], vec![0.0; x.len()]);
            list::F16.quantize(Isa::scalar(), &x, None, &mut bytes).unwrap();
            list::F16.dequantize(Isa::scalar(), &bytes, &mut halves).unwrap();
            halves
        };
        let (k, v) = (halves(1), halves(2));
        // The same numbers in other types and orders.
        let kinds = [
            (shape(list::F16).turned(), shape(list::F16)),
            (shape(list::F32).turned(), shape(list::F32)),
            (shape(list::F16), shape(list::F16)),
        ];
        let caches = kinds.map(|(keys, values)| (cache(&keys, &k), cache(&values, &v)));
        let q = noise(tokens * heads * dim, 3);
        for isa in Isa::available() {
            for window in [None, Some(50), Some(200)] {
                let job = |start, kind: usize| {
                    let view = |shape, bytes| KvView { shape, bytes, head_dim: dim };
                    let ((k, v), (kb, vb)) = (kinds[kind], &caches[kind]);
                    Attention {
                        heads,
                        keys: view(k, kb),
                        values: view(v, vb),
                        start,
                        scale: 0.3,
                        softcap: None,
                        window,
                        sinks: None,
                    }
                };
                let mut all = vec![f32::NAN; q.len()];
                Kernels::new(2, isa).attend(&job(start, 0), &q, &mut all);
                for kind in 1..kinds.len() {
                    let mut same = vec![f32::NAN; q.len()];
                    Kernels::new(1, isa).attend(&job(start, kind), &q, &mut same);
                    assert_eq!(all, same, "{isa} {window:?} {kind}");
                }
                for (t, q) in q.chunks_exact(heads * dim).enumerate() {
                    let mut one = vec![f32::NAN; q.len()];
                    let threads = 1 + t % 3;
                    Kernels::new(threads, isa).attend(&job(start + t, t % kinds.len()), q, &mut one);
                    assert_eq!(one, all[t * q.len()..][..q.len()], "{isa} {window:?} {t}");
                }
            }
        }
    }

    #[test]
    fn bytes_with_scales_are_the_numbers_that_they_unpack_to() {
        let (heads, kv_heads, dim, total, tokens) = (6, 2, 96, 290, 21);
        let shape = |dtype| KvShape::new(dtype, kv_heads, dim).unwrap();
        let eights = |seed| {
            let x = noise(total * kv_heads * dim, seed);
            let mut bytes = vec![0; x.len() / 32 * 34];
            list::Q8_0.quantize(Isa::scalar(), &x, None, &mut bytes).unwrap();
            let mut exact = vec![0.0; x.len()];
            list::Q8_0.dequantize(Isa::scalar(), &bytes, &mut exact).unwrap();
            (x, exact)
        };
        let ((k, exact_k), (v, exact_v)) = (eights(1), eights(2));
        let q = noise(tokens * heads * dim, 3);
        let of = |isa, dtype, turned, (k, v): (&[f32], &[f32]), tokens: usize| {
            let (keys, values) = (if turned { shape(dtype).turned() } else { shape(dtype) }, shape(dtype));
            let (kb, vb) = (cache(&keys, k), cache(&values, v));
            let view = |shape, bytes| KvView { shape, bytes, head_dim: dim };
            let (keys, values) = (view(keys, &kb), view(values, &vb));
            let job = Attention {
                heads,
                keys,
                values,
                start: total - tokens,
                scale: 0.1,
                softcap: None,
                window: None,
                sinks: None,
            };
            let q = &q[q.len() - tokens * heads * dim..];
            let mut out = vec![f32::NAN; q.len()];
            Kernels::new(2, isa).attend(&job, q, &mut out);
            out
        };
        for isa in Isa::available() {
            for tokens in [1, 2, tokens] {
                let want = of(isa, list::F32, true, (&exact_k, &exact_v), tokens);
                for turned in [true, false] {
                    let got = of(isa, list::Q8_0, turned, (&k, &v), tokens);
                    assert_eq!(got, want, "{isa} {tokens} {turned}");
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
            turned: true,
        };
        for isa in Isa::available() {
            check(&plain, isa);
            check(&Case { turned: false, ..plain }, isa);
            check(&Case { start: 150, tokens: 1, ..plain }, isa);
            check(&Case { start: 300, tokens: 2, sinks: true, window: Some(200), ..plain }, isa);
            check(&Case { start: 70, tokens: 33, window: Some(9), ..plain }, isa);
            check(&Case { start: 3, window: Some(100), softcap: Some(5.0), dv: 40, ..plain }, isa);
            check(&Case { heads: 3, kv_heads: 1, sinks: true, ..plain }, isa);
            // As many as are taken in tiles of their own.
            check(&Case { tokens: 70, start: 90, ..plain }, isa);
            check(
                &Case { tokens: 133, heads: 6, dk: 64, dv: 64, window: Some(100), sinks: true, ..plain },
                isa,
            );
            check(&Case { tokens: 64, dk: 40, dv: 72, softcap: Some(5.0), ..plain }, isa);
            check(&Case { tokens: 65, heads: 40, kv_heads: 1, dk: 96, dv: 80, start: 200, ..plain }, isa);
        }
    }
}
