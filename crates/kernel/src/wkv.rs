//! The recurrences of RWKV-4, RWKV-6 and RWKV-7, token after token. They are cut into pieces as [`crate::scan`] says.

use crate::Kernels;
use crate::columns::{Kept, LANES, Lanes, load, store};
use crate::math::exp;
use crate::share::Shared;
use fonio_simd::{Isa, Task};
use std::ops::Range;

/// RWKV-4 (Peng et al. 2023, section 3.1.3): for each channel a mean of all values, weighted with `exp(key)` that
/// decays from token to token, the present one with `exp(first + key)`. Sums are kept relative to the largest
/// exponent so far (appendix D), so no weight overflows.
#[derive(Clone, Copy)]
pub struct Wkv4<'a> {
    /// Added to a key's exponent at every later token; below 0. One for each channel.
    pub decay: &'a [f32],
    /// Added to the present key's exponent. One for each channel.
    pub first: &'a [f32],
    /// `[tokens, channels]`.
    pub key: &'a [f32],
    /// `[tokens, channels]`.
    pub value: &'a [f32],
}

struct Channels<'a> {
    job: &'a Wkv4<'a>,
    range: Range<usize>,
    state: [Lanes; 3],
    out: &'a Shared<'a, f32>,
}

// Loops over lanes are written with indices: they become vectors, and several arrays take part.
#[allow(clippy::needless_range_loop)]
impl Task for Channels<'_> {
    type Output = [Lanes; 3];
    #[inline(always)]
    fn run(self, _: Isa) -> [Lanes; 3] {
        let (job, at, channels) = (self.job, self.range, self.job.decay.len());
        let (decay, first) = (load(&job.decay[at.clone()]), load(&job.first[at.clone()]));
        let [mut numerator, mut denominator, mut exponent] = self.state;
        for t in 0..job.key.len() / channels {
            let row = t * channels + at.start..t * channels + at.end;
            let (key, value) = (load(&job.key[row.clone()]), load(&job.value[row.clone()]));
            let mut out = [0.0; LANES];
            for l in 0..LANES {
                // After any token the denominator is at least 1: at 0 there is no exponent yet.
                let past = if denominator[l] == 0.0 { f32::NEG_INFINITY } else { exponent[l] };
                let now = first[l] + key[l];
                let highest = past.max(now);
                let (before, present) = (exp(past - highest), exp(now - highest));
                out[l] = (before * numerator[l] + present * value[l]) / (before * denominator[l] + present);
                let past = past + decay[l];
                let highest = past.max(key[l]);
                let (before, present) = (exp(past - highest), exp(key[l] - highest));
                numerator[l] = before * numerator[l] + present * value[l];
                denominator[l] = before * denominator[l] + present;
                exponent[l] = highest;
            }
            // SAFETY: these channels of this token are in this piece alone.
            store(&out, unsafe { self.out.part(row.start, row.len()) });
        }
        [numerator, denominator, exponent]
    }
}

/// RWKV-6 (Peng et al. 2024, section 4.2): for each head a matrix S of keys and values. With the present token's
/// receptance r, key k, value v and decay w: `out = r · (S + diag(first · k) v)`, then `S = diag(w) S + k v`.
#[derive(Clone, Copy)]
pub struct Wkv6<'a> {
    /// `[tokens, heads · head_dim]`.
    pub receptance: &'a [f32],
    /// `[tokens, heads · head_dim]`; factors from 0 to 1.
    pub decay: &'a [f32],
    /// `[tokens, heads · head_dim]`.
    pub key: &'a [f32],
    /// `[tokens, heads · head_dim]`.
    pub value: &'a [f32],
    /// `[heads · head_dim]`.
    pub first: &'a [f32],
    /// Values of a head.
    pub head_dim: usize,
}

struct Head6<'a> {
    job: &'a Wkv6<'a>,
    head: usize,
    columns: Range<usize>,
    state: &'a mut [Lanes],
    out: &'a Shared<'a, f32>,
}

#[allow(clippy::needless_range_loop)]
impl Task for Head6<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let (job, n) = (self.job, self.job.head_dim);
        let dim = job.first.len();
        let first = &job.first[self.head * n..(self.head + 1) * n];
        for t in 0..job.key.len() / dim {
            let at = t * dim + self.head * n;
            let (r, k) = (&job.receptance[at..at + n], &job.key[at..at + n]);
            let w = &job.decay[at..at + n];
            let columns = at + self.columns.start..at + self.columns.end;
            let value = load(&job.value[columns.clone()]);
            let mut out = [0.0; LANES];
            let mut bonus = 0.0;
            let keys = r.iter().zip(k).zip(w).zip(first);
            for (state, (((&r, &k), &w), &first)) in self.state.iter_mut().zip(keys) {
                bonus += r * first * k;
                for l in 0..LANES {
                    out[l] += r * state[l];
                    state[l] = w * state[l] + k * value[l];
                }
            }
            for l in 0..LANES {
                out[l] += bonus * value[l];
            }
            // SAFETY: these values of this token are in this piece alone.
            store(&out, unsafe { self.out.part(columns.start, columns.len()) });
        }
    }
}

/// RWKV-7 (Peng et al. 2025, section 4): for each head a matrix S of keys and values, from which a direction is taken
/// and to which another is added, a generalized delta rule: `S = diag(w) S + b (a · S) + k v`, then `out = r · S`.
#[derive(Clone, Copy)]
pub struct Wkv7<'a> {
    /// `[tokens, heads · head_dim]`.
    pub receptance: &'a [f32],
    /// `[tokens, heads · head_dim]`; factors from 0 to 1.
    pub decay: &'a [f32],
    /// `[tokens, heads · head_dim]`.
    pub key: &'a [f32],
    /// `[tokens, heads · head_dim]`.
    pub value: &'a [f32],
    /// The keys whose values are taken away, negative: `[tokens, heads · head_dim]`.
    pub removed: &'a [f32],
    /// The keys by which those come back: `[tokens, heads · head_dim]`.
    pub replaced: &'a [f32],
    /// Heads that there are.
    pub heads: usize,
    /// Values of a head.
    pub head_dim: usize,
}

struct Head7<'a> {
    job: &'a Wkv7<'a>,
    head: usize,
    columns: Range<usize>,
    state: &'a mut [Lanes],
    out: &'a Shared<'a, f32>,
}

#[allow(clippy::needless_range_loop)]
impl Task for Head7<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let (job, n) = (self.job, self.job.head_dim);
        let dim = job.heads * n;
        for t in 0..job.key.len() / dim {
            let at = t * dim + self.head * n;
            let head = at..at + n;
            let columns = at + self.columns.start..at + self.columns.end;
            let value = load(&job.value[columns.clone()]);
            let (mut known, mut out) = ([0.0; LANES], [0.0; LANES]);
            for (state, &a) in self.state.iter().zip(&job.removed[head.clone()]) {
                for l in 0..LANES {
                    known[l] += a * state[l];
                }
            }
            let keys = job.key[head.clone()].iter().zip(&job.replaced[head.clone()]);
            let keys = keys.zip(&job.decay[head.clone()]).zip(&job.receptance[head]);
            for (state, (((&k, &b), &w), &r)) in self.state.iter_mut().zip(keys) {
                for l in 0..LANES {
                    state[l] = w * state[l] + b * known[l] + k * value[l];
                    out[l] += r * state[l];
                }
            }
            // SAFETY: these values of this token are in this piece alone.
            store(&out, unsafe { self.out.part(columns.start, columns.len()) });
        }
    }
}

/// What RWKV-7 makes of its keys and in-context learning rates before the recurrence.
#[derive(Clone, Copy)]
pub struct Wkv7Keys<'a> {
    /// Keys are multiplied with this before they are normed: `[heads · head_dim]`.
    pub k_k: &'a [f32],
    /// How much the rate takes part in the key: `[heads · head_dim]`.
    pub k_a: &'a [f32],
    /// Values of a head.
    pub head_dim: usize,
}

struct Keys7<'a> {
    k_a: &'a [f32],
    key: &'a mut [f32],
    rate: &'a mut [f32],
    removed: &'a mut [f32],
}

impl Task for Keys7<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let dim = self.k_a.len();
        let rows = self.key.chunks_exact_mut(dim).zip(self.rate.chunks_exact_mut(dim));
        for ((key, rate), removed) in rows.zip(self.removed.chunks_exact_mut(dim)) {
            let values = key.iter_mut().zip(rate).zip(removed);
            for (((key, rate), removed), k_a) in values.zip(self.k_a) {
                *key += *key * (*rate - 1.0) * k_a;
                *rate *= *removed;
                *removed = -*removed;
            }
        }
    }
}

struct Bonus7<'a> {
    job: &'a Wkv7<'a>,
    r_k: &'a [f32],
    token: usize,
    out: &'a mut [f32],
}

impl Task for Bonus7<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let (job, n) = (self.job, self.job.head_dim);
        let row = self.token * self.r_k.len();
        for (head, (out, r_k)) in self.out.chunks_exact_mut(n).zip(self.r_k.chunks_exact(n)).enumerate() {
            let at = row + head * n..row + (head + 1) * n;
            let factors = job.receptance[at.clone()].iter().zip(&job.key[at.clone()]).zip(r_k);
            let bonus: f32 = factors.map(|((r, k), r_k)| r * k * r_k).sum();
            out.iter_mut().zip(&job.value[at]).for_each(|(out, v)| *out += bonus * v);
        }
    }
}

impl Kernels {
    /// Runs RWKV-4's recurrence over all tokens into `out`, `[tokens, channels]`. `state` is `[3, channels]`:
    /// numerator, denominator, exponent; zeros begin a sequence.
    pub fn wkv4(&self, job: &Wkv4<'_>, state: Kept<'_>, out: &mut [f32]) {
        let channels = job.decay.len();
        assert!(channels > 0 && job.first.len() == channels, "channels");
        assert!(job.key.len().is_multiple_of(channels), "whole rows");
        assert!(job.value.len() == job.key.len() && out.len() == job.key.len(), "whole rows");
        assert_eq!(state.len(), 3 * channels, "three numbers for each channel");
        let (before, after) = state.parts();
        let (after, out) = (Shared::new(after), Shared::new(out));
        self.pool().each(
            channels.div_ceil(LANES),
            2,
            || (),
            |(), pieces| {
                for piece in pieces {
                    let range = piece * LANES..channels.min((piece + 1) * LANES);
                    let row = |i: usize| load(&before[i * channels + range.start..][..range.len()]);
                    let state = std::array::from_fn(row);
                    let state = self.isa().run(Channels { job, range: range.clone(), state, out: &out });
                    for (i, lanes) in state.iter().enumerate() {
                        // SAFETY: each channel is in one piece alone.
                        store(lanes, unsafe { after.part(i * channels + range.start, range.len()) });
                    }
                }
            },
        );
    }

    /// Runs RWKV-6's recurrence over all tokens into `out`, `[tokens, heads · head_dim]`. `state` is
    /// `[heads, head_dim, head_dim]`, a key's values neighbours; zeros begin a sequence.
    pub fn wkv6(&self, job: &Wkv6<'_>, state: Kept<'_>, out: &mut [f32]) {
        let (n, dim) = (job.head_dim, job.first.len());
        assert!(n > 0 && dim > 0 && dim.is_multiple_of(n), "whole heads");
        assert!(job.key.len().is_multiple_of(dim), "whole rows");
        let inputs = [job.receptance, job.decay, job.value, &*out];
        assert!(inputs.iter().all(|x| x.len() == job.key.len()), "whole rows");
        let out = Shared::new(out);
        self.each_head(dim / n, n, n, state, |head, columns, state| {
            self.isa().run(Head6 { job, head, columns, state, out: &out });
        });
    }

    /// Runs RWKV-7's recurrence over all tokens into `out`, `[tokens, heads · head_dim]`. `state` is
    /// `[heads, head_dim, head_dim]`, a key's values neighbours; zeros begin a sequence.
    pub fn wkv7(&self, job: &Wkv7<'_>, state: Kept<'_>, out: &mut [f32]) {
        let (n, dim) = (job.head_dim, job.heads * job.head_dim);
        assert!(dim > 0 && job.key.len().is_multiple_of(dim), "whole rows");
        let inputs = [job.receptance, job.decay, job.value, job.removed, job.replaced, &*out];
        assert!(inputs.iter().all(|x| x.len() == job.key.len()), "whole rows");
        let out = Shared::new(out);
        self.each_head(job.heads, n, n, state, |head, columns, state| {
            self.isa().run(Head7 { job, head, columns, state, out: &out });
        });
    }

    /// Makes what [`Wkv7`] asks for of keys and in-context learning rates a, both `[tokens, heads · head_dim]`: with
    /// `kk = k · k_k / ‖k · k_k‖` for each head, `key` becomes `k · (1 + (a − 1) · k_a)`, `rate` becomes `kk · a`
    /// ([`Wkv7::replaced`]), and the result is `−kk` ([`Wkv7::removed`]).
    pub fn wkv7_keys(&self, params: &Wkv7Keys<'_>, key: &mut [f32], rate: &mut [f32]) -> Vec<f32> {
        let Wkv7Keys { k_k, k_a, head_dim } = *params;
        let dim = k_k.len();
        assert!(dim > 0 && k_a.len() == dim && key.len().is_multiple_of(dim), "whole rows");
        assert_eq!(key.len(), rate.len(), "a rate for each key");
        let mut removed = key.to_vec();
        for row in removed.chunks_exact_mut(dim) {
            row.iter_mut().zip(k_k).for_each(|(x, k_k)| *x *= k_k);
        }
        self.l2_norm(&mut removed, head_dim, 1e-12);
        let (rows, keys) = (key.len() / dim, Shared::new(key));
        let (rates, out) = (Shared::new(rate), Shared::new(&mut removed));
        self.pool().each(
            rows,
            (8192 / dim).max(1),
            || (),
            |(), range| {
                let (at, n) = (range.start * dim, range.len() * dim);
                // SAFETY: the ranges of `each` don't overlap.
                let (key, rate, removed) = unsafe { (keys.part(at, n), rates.part(at, n), out.part(at, n)) };
                self.isa().run(Keys7 { k_a, key, rate, removed });
            },
        );
        removed
    }

    /// Adds `(Σ r · k · r_k) · v` of each head to `out`, `[tokens, heads · head_dim]`; `r_k` is `[heads · head_dim]`.
    pub fn wkv7_bonus(&self, job: &Wkv7<'_>, r_k: &[f32], out: &mut [f32]) {
        let dim = job.heads * job.head_dim;
        assert!(dim > 0 && r_k.len() == dim && out.len().is_multiple_of(dim), "whole rows");
        let inputs = [job.receptance, job.key, job.value];
        assert!(inputs.iter().all(|x| x.len() == out.len()), "whole rows");
        let (rows, out) = (out.len() / dim, Shared::new(out));
        self.pool().each(
            rows,
            (8192 / dim).max(1),
            || (),
            |(), range| {
                for token in range {
                    // SAFETY: each token is in one range alone.
                    let out = unsafe { out.part(token * dim, dim) };
                    self.isa().run(Bonus7 { job, r_k, token, out });
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    /// Errors of a step are some roundings of the state, and decays below 1 keep them from growing: tokens times a few
    /// units of 2⁻²² (exp) of the largest value.
    const CLOSE: f64 = 1.0 / (1 << 17) as f64;

    type Piecewise<'a> = dyn Fn(&Kernels, Range<usize>, Kept<'_>) -> Vec<f32> + 'a;

    /// Runs `f` over the tokens at once and one by one, at every level: always the same bits, and close to `want` as
    /// a share of the largest value.
    fn however(tokens: usize, state_len: usize, want: &[f64], close: f64, f: &Piecewise<'_>) {
        let largest = want.iter().fold(0f64, |m, x| m.max(x.abs()));
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let kernels = Kernels::new(3, isa);
            for cuts in [vec![0, tokens], (0..=tokens).collect()] {
                let (mut state, mut all) = (vec![0.0; state_len], Vec::new());
                for cut in cuts.windows(2) {
                    let before = state.clone();
                    all.extend(f(&kernels, cut[0]..cut[1], Kept::new(&before, &mut state)));
                }
                for (i, (got, want)) in all.iter().zip(want).enumerate() {
                    assert!((f64::from(*got) - want).abs() < largest * close, "{isa} {i}: {got} {want}");
                }
                assert_eq!(*first.get_or_insert(all.clone()), all, "{isa}");
            }
        }
    }

    #[test]
    fn rwkv_4_is_a_weighted_mean_of_all_values() {
        let (tokens, channels) = (23, 70);
        // Exponents far beyond what exp can hold, in both directions.
        let key: Vec<f32> = noise(tokens * channels, 1).iter().map(|k| k * 100.0).collect();
        let value = noise(tokens * channels, 2);
        let decay: Vec<f32> = noise(channels, 3).iter().map(|w| -w.exp()).collect();
        let first = noise(channels, 4);
        let mut want = Vec::new();
        for t in 0..tokens {
            for c in 0..channels {
                let exponent = |i: usize| {
                    let k = f64::from(key[i * channels + c]);
                    let age = t as f64 - i as f64 - 1.0;
                    k + if i == t { f64::from(first[c]) } else { age * f64::from(decay[c]) }
                };
                let highest = (0..=t).map(exponent).fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = (0..=t).map(|i| (exponent(i) - highest).exp()).collect();
                let sum: f64 =
                    weights.iter().enumerate().map(|(i, w)| w * f64::from(value[i * channels + c])).sum();
                want.push(sum / weights.iter().sum::<f64>());
            }
        }
        // Exponents of some hundreds are rounded to 2⁻¹⁶, a few times on the way to a weight.
        however(tokens, 3 * channels, &want, 2f64.powi(-13), &|kernels, range, state| {
            let rows = range.start * channels..range.end * channels;
            let job = Wkv4 { decay: &decay, first: &first, key: &key[rows.clone()], value: &value[rows] };
            let mut out = vec![f32::NAN; job.key.len()];
            kernels.wkv4(&job, state, &mut out);
            out
        });
    }

    fn cut<'a>(x: &'a [f32], tokens: &Range<usize>, dim: usize) -> &'a [f32] {
        &x[tokens.start * dim..tokens.end * dim]
    }

    /// Tokens, heads, and values of a head.
    const SIZES: [(usize, usize, usize); 3] = [(17, 3, 64), (9, 2, 40), (1, 4, 8)];

    #[test]
    fn rwkv_6_equals_its_definition_however_it_is_cut() {
        for (tokens, heads, n) in SIZES {
            let dim = heads * n;
            let [r, k, v, w] = [1, 2, 3, 4].map(|seed| noise(tokens * dim, seed));
            let decay: Vec<f32> = w.iter().map(|w| (-w.exp()).exp()).collect();
            let first = noise(dim, 5);
            let mut want = Vec::new();
            let mut state = vec![0f64; dim * n];
            for t in 0..tokens {
                for c in 0..dim {
                    let head = c / n * n;
                    let mut out = 0f64;
                    for i in 0..n {
                        let at = |x: &[f32]| f64::from(x[t * dim + head + i]);
                        let kv = at(&k) * f64::from(v[t * dim + c]);
                        let s = &mut state[c * n + i];
                        out += at(&r) * (*s + f64::from(first[head + i]) * kv);
                        *s = at(&decay) * *s + kv;
                    }
                    want.push(out);
                }
            }
            however(tokens, dim * n, &want, CLOSE, &|kernels, range, state| {
                let job = Wkv6 {
                    receptance: cut(&r, &range, dim),
                    decay: cut(&decay, &range, dim),
                    key: cut(&k, &range, dim),
                    value: cut(&v, &range, dim),
                    first: &first,
                    head_dim: n,
                };
                let mut out = vec![f32::NAN; job.key.len()];
                kernels.wkv6(&job, state, &mut out);
                out
            });
        }
    }

    #[test]
    fn rwkv_7_equals_its_definition_however_it_is_cut() {
        for (tokens, heads, n) in SIZES {
            let dim = heads * n;
            let [r, mut k, v, w, k_k, k_a, mut b] =
                [1, 2, 3, 4, 5, 6, 7].map(|seed| noise(tokens * dim, seed));
            let decay: Vec<f32> = w.iter().map(|w| (-w.exp()).exp()).collect();
            b.iter_mut().for_each(|rate| *rate = *rate / 4.0 + 0.5);
            let params = Wkv7Keys { k_k: &k_k[..dim], k_a: &k_a[..dim], head_dim: n };
            let a = Kernels::new(1, Isa::scalar()).wkv7_keys(&params, &mut k, &mut b);
            let mut want = Vec::new();
            let mut state = vec![0f64; dim * n];
            for t in 0..tokens {
                for c in 0..dim {
                    let at = |x: &[f32], i: usize| f64::from(x[t * dim + c / n * n + i]);
                    let known: f64 = (0..n).map(|i| at(&a, i) * state[c * n + i]).sum();
                    let mut out = 0f64;
                    for i in 0..n {
                        let s = &mut state[c * n + i];
                        let kv = at(&k, i) * f64::from(v[t * dim + c]);
                        *s = at(&decay, i) * *s + known * at(&b, i) + kv;
                        out += at(&r, i) * *s;
                    }
                    want.push(out);
                }
            }
            however(tokens, dim * n, &want, CLOSE, &|kernels, range, state| {
                let job = Wkv7 {
                    receptance: cut(&r, &range, dim),
                    decay: cut(&decay, &range, dim),
                    key: cut(&k, &range, dim),
                    value: cut(&v, &range, dim),
                    removed: cut(&a, &range, dim),
                    replaced: cut(&b, &range, dim),
                    heads,
                    head_dim: n,
                };
                let mut out = vec![f32::NAN; job.key.len()];
                kernels.wkv7(&job, state, &mut out);
                out
            });
        }
    }

    #[test]
    fn keys_and_bonus_of_rwkv_7_follow_their_definitions() {
        let (tokens, heads, n) = (5, 3, 24);
        let dim = heads * n;
        let [k, a, r, v] = [1, 2, 3, 4].map(|seed| noise(tokens * dim, seed));
        let [k_k, k_a, r_k] = [5, 6, 7].map(|seed| noise(dim, seed));
        for isa in Isa::available() {
            let kernels = Kernels::new(2, isa);
            let (mut key, mut rate) = (k.clone(), a.clone());
            let params = Wkv7Keys { k_k: &k_k, k_a: &k_a, head_dim: n };
            let removed = kernels.wkv7_keys(&params, &mut key, &mut rate);
            let mut out = vec![0.0; tokens * dim];
            let job = Wkv7 {
                receptance: &r,
                decay: &[],
                key: &key,
                value: &v,
                removed: &removed,
                replaced: &rate,
                heads,
                head_dim: n,
            };
            kernels.wkv7_bonus(&job, &r_k, &mut out);
            for i in 0..tokens * dim {
                let head = i / n * n;
                let wide = |x: &[f32], i: usize| f64::from(x[i]);
                let scaled = |i: usize| wide(&k, i) * wide(&k_k, i % dim);
                let length = (head..head + n).map(|i| scaled(i).powi(2)).sum::<f64>().sqrt();
                let modified = |i: usize| wide(&k, i) * (1.0 + (wide(&a, i) - 1.0) * wide(&k_a, i % dim));
                let bonus: f64 =
                    (head..head + n).map(|i| wide(&r, i) * modified(i) * wide(&r_k, i % dim)).sum();
                // A head's size and a few roundings of terms below 2 · 14 · 2, times 2.
                let bound = 32.0 * 56.0 * 2f64.powi(-23);
                assert!((wide(&removed, i) + scaled(i) / length).abs() < bound);
                assert!((wide(&rate, i) - scaled(i) / length * wide(&a, i)).abs() < bound);
                assert!((wide(&key, i) - modified(i)).abs() < bound);
                assert!(
                    (wide(&out, i) - bonus * wide(&v, i)).abs() < bound,
                    "{} {}",
                    out[i],
                    bonus * wide(&v, i)
                );
            }
        }
    }
}
