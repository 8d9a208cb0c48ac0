//! Causal depthwise convolution over tokens: each channel by itself, with the tokens before the batch carried in a
//! state.

use crate::Kernels;
use crate::columns::{Columns, Kept};
use crate::math::silu;
use crate::share::Shared;
use fonio_simd::{Isa, Task};
use std::ops::Range;

/// A causal depthwise convolution: `out[t] = Σ_j weight[j] · x[t − (n − 1) + j] + bias`, `n` taps for each channel.
#[derive(Clone, Copy)]
pub struct Conv<'a> {
    /// `[n, channels]`, the tap of the present token last.
    pub weight: &'a [f32],
    /// One for each channel.
    pub bias: Option<&'a [f32]>,
    /// Channels that there are.
    pub channels: usize,
    /// Whether the result goes through `x · sigmoid(x)`.
    pub silu: bool,
}

impl Conv<'_> {
    /// Values of the state: the `n − 1` rows before the batch, `[n − 1, channels]`. Zeros begin a sequence.
    pub fn state_len(&self) -> usize {
        self.weight.len() - self.channels
    }
}

struct Piece<'a> {
    conv: &'a Conv<'a>,
    state: &'a [f32],
    x: Columns<'a>,
    tokens: Range<usize>,
    out: &'a mut [f32],
}

impl Task for Piece<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let Conv { weight, bias, channels, silu: activate } = *self.conv;
        let before = weight.len() / channels - 1;
        for (t, out) in self.tokens.zip(self.out.chunks_exact_mut(channels)) {
            match bias {
                Some(bias) => out.copy_from_slice(bias),
                None => out.fill(0.0),
            }
            for (j, weight) in weight.chunks_exact(channels).enumerate() {
                let row = match (t + j).checked_sub(before) {
                    Some(at) => self.x.row(at),
                    None => &self.state[(t + j) * channels..][..channels],
                };
                for ((out, x), w) in out.iter_mut().zip(row).zip(weight) {
                    *out += x * w;
                }
            }
            if activate {
                out.iter_mut().for_each(|x| *x = silu(*x));
            }
        }
    }
}

impl Kernels {
    /// Convolves the rows of `x` into `out`, `[tokens, channels]`, and keeps the last rows ([`Conv::state_len`]).
    pub fn conv(&self, conv: &Conv<'_>, state: Kept<'_>, x: Columns<'_>, out: &mut [f32]) {
        let channels = conv.channels;
        assert!(channels > 0 && !conv.weight.is_empty(), "a convolution has taps");
        assert!(conv.weight.len().is_multiple_of(channels), "as many taps for each channel");
        assert!(conv.bias.is_none_or(|b| b.len() == channels), "a bias for each channel");
        assert!(x.width() == channels && out.len() == x.rows() * channels, "whole rows");
        assert_eq!(state.len(), conv.state_len(), "the rows before");
        let (shared, (before, after)) = (Shared::new(out), state.parts());
        self.pool().each(
            x.rows(),
            (8192 / channels).max(1),
            || (),
            |(), range| {
                // SAFETY: the ranges of `each` don't overlap.
                let out = unsafe { shared.part(range.start * channels, range.len() * channels) };
                self.isa().run(Piece { conv, state: before, x, tokens: range, out });
            },
        );
        let kept = before.len() / channels;
        let new = x.rows().min(kept);
        let (old, rows) = after.split_at_mut((kept - new) * channels);
        old.copy_from_slice(&before[new * channels..]);
        for (row, t) in rows.chunks_exact_mut(channels).zip(x.rows() - new..) {
            row.copy_from_slice(x.row(t));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    #[test]
    fn convolution_equals_its_definition_however_it_is_cut() {
        let (tokens, stride) = (23, 90);
        for (channels, taps) in [(37, 4), (64, 4), (90, 3), (8, 1)] {
            let x = noise(tokens * stride, 1);
            let (weight, bias) = (noise(taps * channels, 2), noise(channels, 3));
            for isa in Isa::available() {
                let kernels = Kernels::new(2, isa);
                for (bias, silu) in [(Some(&bias[..]), true), (None, false)] {
                    let conv = Conv { weight: &weight, bias, channels, silu };
                    let mut whole = vec![0.0; tokens * channels];
                    let mut state = vec![f32::NAN; conv.state_len()];
                    let empty = vec![0.0; conv.state_len()];
                    let kept = Kept::new(&empty, &mut state);
                    kernels.conv(&conv, kept, Columns::new(&x, stride, 0..channels), &mut whole);
                    for t in 0..tokens {
                        for c in 0..channels {
                            let mut want = bias.map_or(0.0, |b| f64::from(b[c]));
                            for j in (0..taps).filter(|j| t + j >= taps - 1) {
                                let x = x[(t + j + 1 - taps) * stride + c];
                                want += f64::from(x) * f64::from(weight[j * channels + c]);
                            }
                            if silu {
                                want /= 1.0 + (-want).exp();
                            }
                            // Five roundings of sums below 4 · 4 + 2, then exp.
                            let bound = 6.0 * 18.0 * 2f64.powi(-24) + want.abs() * 2f64.powi(-20);
                            let got = f64::from(whole[t * channels + c]);
                            assert!((got - want).abs() < bound, "{isa} {t} {c}: {got} {want}");
                        }
                    }
                    let mut parts = Vec::new();
                    let mut carried = vec![0.0; conv.state_len()];
                    for rows in [0..1, 1..3, 3..17, 17..23] {
                        let x = &x[rows.start * stride..rows.end * stride];
                        let mut out = vec![0.0; rows.len() * channels];
                        let before = carried.clone();
                        let kept = Kept::new(&before, &mut carried);
                        kernels.conv(&conv, kept, Columns::new(x, stride, 0..channels), &mut out);
                        parts.extend(out);
                    }
                    assert_eq!(parts, whole, "{isa}");
                    assert_eq!(carried, state, "{isa}");
                }
            }
        }
    }
}
