//! The recurrences of Mamba and Mamba-2, token after token.
//!
//! A piece of work is [`LANES`] columns of a state (channels, or values of one head), which stay in an array while the
//! loop goes over the tokens. Columns don't depend on each other, so threads share nothing and the result is the same
//! bits however the work is split, at every instruction set.

use crate::Kernels;
use crate::columns::{Columns, Kept, LANES, Lanes, gather, load, store};
use crate::math::{exp, silu, softplus};
use crate::share::Shared;
use fonio_simd::{Isa, Task};
use std::ops::Range;

/// Mamba's selective scan (Gu & Dao 2023, section 3.2), discretized with a zero-order hold for A and Euler's rule for
/// B as the authors do. For each channel: `δ = softplus(dt + dt_bias)`, `h = exp(δ · a) · h + δ · b · x`,
/// `y = c · h + d · x`, and then `y · silu(gate)`.
#[derive(Clone, Copy)]
pub struct SelectiveScan<'a> {
    /// `[tokens, channels]`.
    pub x: Columns<'a>,
    /// `[tokens, channels]`.
    pub dt: Columns<'a>,
    /// One for each channel.
    pub dt_bias: &'a [f32],
    /// `[states, channels]`.
    pub a: &'a [f32],
    /// `[tokens, states]`.
    pub b: Columns<'a>,
    /// `[tokens, states]`.
    pub c: Columns<'a>,
    /// One for each channel.
    pub d: &'a [f32],
    /// `[tokens, channels]`.
    pub gate: Columns<'a>,
}

#[derive(Default)]
struct Scratch {
    state: Vec<Lanes>,
    a: Vec<Lanes>,
}

struct Channels<'a> {
    job: &'a SelectiveScan<'a>,
    range: Range<usize>,
    scratch: &'a mut Scratch,
    out: &'a Shared<'a, f32>,
}

// Loops over lanes are written with indices: they become vectors, and several arrays take part.
#[allow(clippy::needless_range_loop)]
impl Task for Channels<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let job = self.job;
        let at = self.range;
        let (bias, d) = (load(&job.dt_bias[at.clone()]), load(&job.d[at.clone()]));
        for t in 0..job.x.rows() {
            let x = load(&job.x.row(t)[at.clone()]);
            let mut dt = load(&job.dt.row(t)[at.clone()]);
            let (mut dx, mut y) = ([0.0; LANES], [0.0; LANES]);
            for l in 0..LANES {
                dt[l] = softplus(dt[l] + bias[l]);
                dx[l] = dt[l] * x[l];
                y[l] = d[l] * x[l];
            }
            let inputs = job.b.row(t).iter().zip(job.c.row(t));
            for ((h, a), (&b, &c)) in self.scratch.state.iter_mut().zip(&self.scratch.a).zip(inputs) {
                for l in 0..LANES {
                    h[l] = exp(dt[l] * a[l]) * h[l] + dx[l] * b;
                    y[l] += c * h[l];
                }
            }
            let gate = load(&job.gate.row(t)[at.clone()]);
            for l in 0..LANES {
                y[l] *= silu(gate[l]);
            }
            // SAFETY: these channels of this token are in this piece alone.
            let out = unsafe { self.out.part(t * job.d.len() + at.start, at.len()) };
            store(&y, out);
        }
    }
}

/// Mamba-2's recurrence (Dao & Gu 2024, section 6; state space duality): as [`SelectiveScan`], but with one `a`, `dt`
/// and `d` for each head of neighbouring channels, and `b` and `c` for groups of heads.
#[derive(Clone, Copy)]
pub struct Ssd<'a> {
    /// `[tokens, heads · head_dim]`.
    pub x: Columns<'a>,
    /// `[tokens, heads]`.
    pub dt: Columns<'a>,
    /// One for each head.
    pub dt_bias: &'a [f32],
    /// One for each head.
    pub a: &'a [f32],
    /// `[tokens, groups · states]`.
    pub b: Columns<'a>,
    /// `[tokens, groups · states]`.
    pub c: Columns<'a>,
    /// One for each head.
    pub d: &'a [f32],
    /// `[tokens, heads · head_dim]`.
    pub gate: Columns<'a>,
    /// Values of a head.
    pub head_dim: usize,
    /// Values of `b` and `c` that a head sees.
    pub states: usize,
}

impl Ssd<'_> {
    fn heads(&self) -> usize {
        self.a.len()
    }
}

struct Head<'a> {
    job: &'a Ssd<'a>,
    head: usize,
    /// Columns of the row.
    range: Range<usize>,
    state: &'a mut [Lanes],
    out: &'a Shared<'a, f32>,
}

#[allow(clippy::needless_range_loop)]
impl Task for Head<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let job = self.job;
        let (a, d, bias) = (job.a[self.head], job.d[self.head], job.dt_bias[self.head]);
        let group = self.head * (job.b.width() / job.states) / job.heads();
        let inputs = group * job.states..(group + 1) * job.states;
        for t in 0..job.x.rows() {
            let dt = softplus(job.dt.row(t)[self.head] + bias);
            let decay = exp(dt * a);
            let x = load(&job.x.row(t)[self.range.clone()]);
            let (mut dx, mut y) = ([0.0; LANES], [0.0; LANES]);
            for l in 0..LANES {
                dx[l] = dt * x[l];
                y[l] = d * x[l];
            }
            let (b, c) = (&job.b.row(t)[inputs.clone()], &job.c.row(t)[inputs.clone()]);
            for ((h, &b), &c) in self.state.iter_mut().zip(b).zip(c) {
                for l in 0..LANES {
                    h[l] = decay * h[l] + dx[l] * b;
                    y[l] += c * h[l];
                }
            }
            let gate = load(&job.gate.row(t)[self.range.clone()]);
            for l in 0..LANES {
                y[l] *= silu(gate[l]);
            }
            // SAFETY: these values of this token are in this piece alone.
            let out = unsafe { self.out.part(t * job.x.width() + self.range.start, self.range.len()) };
            store(&y, out);
        }
    }
}

impl Kernels {
    /// Runs a selective scan over all tokens into `out`, `[tokens, channels]`. `state` is `[states, channels]`; zeros
    /// begin a sequence.
    pub fn selective_scan(&self, job: &SelectiveScan<'_>, state: Kept<'_>, out: &mut [f32]) {
        let (tokens, channels, states) = (job.x.rows(), job.d.len(), job.b.width());
        assert!(job.x.width() == channels && job.dt.width() == channels, "channels");
        assert!(job.gate.width() == channels && job.dt_bias.len() == channels, "channels");
        assert!(job.c.width() == states && state.len() == states * channels, "states");
        assert_eq!(job.a.len(), state.len(), "a for each state");
        assert!([job.dt, job.b, job.c, job.gate].iter().all(|x| x.rows() == tokens), "tokens");
        assert_eq!(out.len(), tokens * channels, "whole rows");
        let (before, after) = state.parts();
        let (after, out) = (Shared::new(after), Shared::new(out));
        self.pool().each(channels.div_ceil(LANES), 1, Scratch::default, |scratch, pieces| {
            for piece in pieces {
                let range = piece * LANES..channels.min((piece + 1) * LANES);
                gather(job.a, states, channels, &range, &mut scratch.a);
                gather(before, states, channels, &range, &mut scratch.state);
                self.isa().run(Channels { job, range: range.clone(), scratch, out: &out });
                for (i, h) in scratch.state.iter().enumerate() {
                    // SAFETY: each column of the state is in one piece alone.
                    store(h, unsafe { after.part(i * channels + range.start, range.len()) });
                }
            }
        });
    }

    /// Runs Mamba-2's recurrence over all tokens into `out`, `[tokens, heads · head_dim]`. `state` is
    /// `[heads, states, head_dim]`; zeros begin a sequence.
    pub fn ssd(&self, job: &Ssd<'_>, state: Kept<'_>, out: &mut [f32]) {
        let (tokens, heads, dim) = (job.x.rows(), job.heads(), job.head_dim);
        assert!(heads > 0 && dim > 0 && job.states > 0, "an empty head");
        assert!(job.dt_bias.len() == heads && job.d.len() == heads && job.dt.width() == heads, "heads");
        assert!(job.x.width() == heads * dim && job.gate.width() == heads * dim, "values of all heads");
        let groups = job.b.width() / job.states;
        assert!(job.b.width() == groups * job.states && job.c.width() == job.b.width(), "groups");
        assert!(groups > 0 && heads.is_multiple_of(groups), "heads share groups evenly");
        assert!([job.dt, job.b, job.c, job.gate].iter().all(|x| x.rows() == tokens), "tokens");
        assert!(out.len() == tokens * heads * dim && state.len() == heads * job.states * dim, "whole rows");
        let out = Shared::new(out);
        self.each_head(heads, job.states, dim, state, |head, range, state| {
            let range = head * dim + range.start..head * dim + range.end;
            self.isa().run(Head { job, head, range, state, out: &out });
        });
    }

    /// Gives every head's state, `[heads, keys, values]`, to `f` to change in pieces of at most [`LANES`] columns, with
    /// the head and the columns.
    pub(crate) fn each_head(
        &self,
        heads: usize,
        keys: usize,
        values: usize,
        state: Kept<'_>,
        f: impl Fn(usize, Range<usize>, &mut [Lanes]) + Sync,
    ) {
        assert_eq!(state.len(), heads * keys * values, "a state for each head");
        let (before, after) = state.parts();
        let pieces = values.div_ceil(LANES);
        let after = Shared::new(after);
        self.pool().each(heads * pieces, 1, Vec::new, |rows: &mut Vec<Lanes>, range| {
            for piece in range {
                let (head, first) = (piece / pieces, piece % pieces * LANES);
                let columns = first..values.min(first + LANES);
                let at = head * keys * values;
                gather(&before[at..at + keys * values], keys, values, &columns, rows);
                f(head, columns.clone(), rows);
                for (i, lanes) in rows.iter().enumerate() {
                    // SAFETY: each column of a head's state is in one piece alone.
                    store(lanes, unsafe { after.part(at + i * values + columns.start, columns.len()) });
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    fn softplus64(x: f32) -> f64 {
        f64::from(x).exp().ln_1p()
    }

    fn silu64(x: f32) -> f64 {
        f64::from(x) / (1.0 + (-f64::from(x)).exp())
    }

    /// Every step multiplies the state's error with a decay below 1 and adds some roundings: relative to the largest
    /// sum that a decay near 1 allows, tokens times a few units of 2⁻²¹ (exp and softplus).
    fn check(got: &[f32], want: &[f64], what: &str) {
        let largest = want.iter().fold(0f64, |m, x| m.max(x.abs()));
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*got) - want).abs() < largest * 2f64.powi(-17), "{what} {i}: {got} {want}");
        }
    }

    struct Case {
        tokens: usize,
        heads: usize,
        dim: usize,
        states: usize,
        groups: usize,
    }

    /// Random inputs of one scan over rows that hold the parts one after the other.
    struct Inputs {
        row: Vec<f32>,
        a: Vec<f32>,
        d: Vec<f32>,
        bias: Vec<f32>,
        widths: [usize; 5],
    }

    impl Inputs {
        fn new(tokens: usize, widths: [usize; 5], n_a: usize, n: usize) -> Inputs {
            let stride: usize = widths.iter().sum();
            let a = noise(n_a, 2).iter().map(|a| -a.abs() - 0.01).collect();
            Inputs { row: noise(tokens * stride, 1), a, d: noise(n, 3), bias: noise(n, 4), widths }
        }
        fn part(&self, i: usize, tokens: Range<usize>) -> Columns<'_> {
            let stride: usize = self.widths.iter().sum();
            let first: usize = self.widths[..i].iter().sum();
            let rows = &self.row[tokens.start * stride..tokens.end * stride];
            Columns::new(rows, stride, first..first + self.widths[i])
        }
    }

    #[test]
    fn selective_scans_equal_their_definition_however_they_are_cut() {
        for (tokens, channels, states) in [(19, 70, 16), (33, 32, 5), (1, 7, 3)] {
            let inputs = Inputs::new(
                tokens,
                [channels, channels, states, states, channels],
                states * channels,
                channels,
            );
            let mut want = Vec::new();
            let mut h = vec![0f64; states * channels];
            for t in 0..tokens {
                let row = |i: usize| inputs.part(i, 0..tokens).row(t);
                for c in 0..channels {
                    let (x, dt) = (f64::from(row(0)[c]), softplus64(row(1)[c] + inputs.bias[c]));
                    let mut y = f64::from(inputs.d[c]) * x;
                    for n in 0..states {
                        let h = &mut h[n * channels + c];
                        *h = (dt * f64::from(inputs.a[n * channels + c])).exp() * *h
                            + dt * x * f64::from(row(2)[n]);
                        y += *h * f64::from(row(3)[n]);
                    }
                    want.push(y * silu64(row(4)[c]));
                }
            }
            let mut first = None;
            for isa in Isa::available() {
                let kernels = Kernels::new(3, isa);
                for cuts in [vec![0, tokens], (0..=tokens).collect()] {
                    let (mut state, mut got) = (vec![0.0; states * channels], Vec::new());
                    for cut in cuts.windows(2) {
                        let part = |i| inputs.part(i, cut[0]..cut[1]);
                        let job = SelectiveScan {
                            x: part(0),
                            dt: part(1),
                            dt_bias: &inputs.bias,
                            a: &inputs.a,
                            b: part(2),
                            c: part(3),
                            d: &inputs.d,
                            gate: part(4),
                        };
                        let mut out = vec![f32::NAN; (cut[1] - cut[0]) * channels];
                        let before = state.clone();
                        kernels.selective_scan(&job, Kept::new(&before, &mut state), &mut out);
                        got.extend(out);
                    }
                    check(&got, &want, &format!("{isa}"));
                    assert_eq!(*first.get_or_insert(got.clone()), got, "{isa}");
                }
            }
        }
    }

    #[test]
    fn mamba_2_equals_its_definition_however_it_is_cut() {
        for case in [
            Case { tokens: 21, heads: 4, dim: 64, states: 16, groups: 2 },
            Case { tokens: 9, heads: 3, dim: 40, states: 7, groups: 1 },
            Case { tokens: 1, heads: 4, dim: 8, states: 3, groups: 4 },
        ] {
            let Case { tokens, heads, dim, states, groups } = case;
            let width = heads * dim;
            let inputs =
                Inputs::new(tokens, [width, heads, groups * states, groups * states, width], heads, heads);
            let mut want = Vec::new();
            let mut h = vec![0f64; width * states];
            for t in 0..tokens {
                let row = |i: usize| inputs.part(i, 0..tokens).row(t);
                for p in 0..width {
                    let head = p / dim;
                    let group = head / (heads / groups);
                    let x = f64::from(row(0)[p]);
                    let dt = softplus64(row(1)[head] + inputs.bias[head]);
                    let mut y = f64::from(inputs.d[head]) * x;
                    for n in 0..states {
                        let h = &mut h[p * states + n];
                        *h = (dt * f64::from(inputs.a[head])).exp() * *h
                            + dt * x * f64::from(row(2)[group * states + n]);
                        y += *h * f64::from(row(3)[group * states + n]);
                    }
                    want.push(y * silu64(row(4)[p]));
                }
            }
            let mut first = None;
            for isa in Isa::available() {
                let kernels = Kernels::new(3, isa);
                for cuts in [vec![0, tokens], (0..=tokens).collect()] {
                    let (mut state, mut got) = (vec![0.0; width * states], Vec::new());
                    for cut in cuts.windows(2) {
                        let part = |i| inputs.part(i, cut[0]..cut[1]);
                        let job = Ssd {
                            x: part(0),
                            dt: part(1),
                            dt_bias: &inputs.bias,
                            a: &inputs.a,
                            b: part(2),
                            c: part(3),
                            d: &inputs.d,
                            gate: part(4),
                            head_dim: dim,
                            states,
                        };
                        let mut out = vec![f32::NAN; (cut[1] - cut[0]) * width];
                        let before = state.clone();
                        kernels.ssd(&job, Kept::new(&before, &mut state), &mut out);
                        got.extend(out);
                    }
                    check(&got, &want, &format!("{isa}"));
                    assert_eq!(*first.get_or_insert(got.clone()), got, "{isa}");
                }
            }
        }
    }
}
