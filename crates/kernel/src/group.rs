//! Normalization of groups of neighbouring values, such as a head's, with weights for each value of a row.

use crate::Kernels;
use crate::share::Shared;
use fonio_simd::{Simd, VectorTask};

/// How a group is normed.
#[derive(Clone, Copy)]
enum How<'a> {
    /// `(x − mean) / √(variance + eps) · weight + bias`
    Layer { weight: &'a [f32], bias: &'a [f32], eps: f32 },
    /// `x / √(mean(x²) + eps) · weight`
    Rms { weight: &'a [f32], eps: f32 },
    /// `x / max(√Σx², eps)`
    L2 { eps: f32 },
}

struct Piece<'a> {
    how: How<'a>,
    x: &'a mut [f32],
    row: usize,
    group: usize,
}

/// The sum of `x²`.
#[inline(always)]
fn squares<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    let mut lanes = x.chunks_exact(S::LANES);
    for v in &mut lanes {
        let v = s.load(v);
        sum = s.fma(v, v, sum);
    }
    s.sum(sum) + lanes.remainder().iter().map(|x| x * x).sum::<f32>()
}

impl VectorTask for Piece<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.group as f32;
        for row in self.x.chunks_exact_mut(self.row) {
            for (i, x) in row.chunks_exact_mut(self.group).enumerate() {
                let at = i * self.group..(i + 1) * self.group;
                match self.how {
                    How::Layer { weight, bias, eps } => {
                        let mean = x.iter().sum::<f32>() / n;
                        x.iter_mut().for_each(|x| *x -= mean);
                        let factor = 1.0 / (squares(s, x) / n + eps).sqrt();
                        for ((x, w), b) in x.iter_mut().zip(&weight[at.clone()]).zip(&bias[at]) {
                            *x = *x * factor * w + b;
                        }
                    }
                    How::Rms { weight, eps } => {
                        let factor = 1.0 / (squares(s, x) / n + eps).sqrt();
                        x.iter_mut().zip(&weight[at]).for_each(|(x, w)| *x = *x * factor * w);
                    }
                    How::L2 { eps } => {
                        let length = squares(s, x).sqrt();
                        // `max` would hide a NaN.
                        let factor = 1.0 / if length < eps { eps } else { length };
                        x.iter_mut().for_each(|x| *x *= factor);
                    }
                }
            }
        }
    }
}

impl Kernels {
    /// Group norm (Wu & He 2018) in place: each `group` values of a row become
    /// `(x − mean) / √(variance + eps)`, then `· weight + bias`, which have a value for each of the row.
    pub fn group_norm(&self, x: &mut [f32], weight: &[f32], bias: &[f32], group: usize, eps: f32) {
        assert_eq!(weight.len(), bias.len(), "weight and bias of a row");
        self.groups(x, How::Layer { weight, bias, eps }, weight.len(), group);
    }

    /// Root mean square norm of groups in place: each `group` values of a row become
    /// `x / √(mean(x²) + eps)`, then `· weight`, which has a value for each of the row.
    pub fn group_rms_norm(&self, x: &mut [f32], weight: &[f32], group: usize, eps: f32) {
        self.groups(x, How::Rms { weight, eps }, weight.len(), group);
    }

    /// Gives each `group` values length 1: `x / max(√Σx², eps)`.
    pub fn l2_norm(&self, x: &mut [f32], group: usize, eps: f32) {
        self.groups(x, How::L2 { eps }, group, group);
    }

    fn groups(&self, x: &mut [f32], how: How<'_>, row: usize, group: usize) {
        assert!(group > 0 && row > 0 && row.is_multiple_of(group), "whole groups");
        assert!(x.len().is_multiple_of(row), "whole rows");
        let rows = x.len() / row;
        let shared = Shared::new(x);
        self.pool().each(
            rows,
            (16_384 / row).max(1),
            || (),
            |(), range| {
                // SAFETY: the ranges of `each` don't overlap.
                let x = unsafe { shared.part(range.start * row, range.len() * row) };
                self.isa().vector(Piece { how, x, row, group });
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;
    use fonio_simd::Isa;

    #[test]
    fn group_norms_follow_their_definitions_at_every_level() {
        let (rows, groups, group) = (5, 3, 37);
        let row = groups * group;
        let x = noise(rows * row, 1);
        let (weight, bias) = (noise(row, 2), noise(row, 3));
        for isa in Isa::available() {
            let kernels = Kernels::new(2, isa);
            let [mut layer, mut rms, mut l2] = [x.clone(), x.clone(), x.clone()];
            kernels.group_norm(&mut layer, &weight, &bias, group, 64e-5);
            kernels.group_rms_norm(&mut rms, &weight, group, 1e-5);
            kernels.l2_norm(&mut l2, group, 1e-12);
            for (g, x) in x.chunks_exact(group).enumerate() {
                let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
                let n = group as f64;
                let mean = x.iter().sum::<f64>() / n;
                let squares: f64 = x.iter().map(|x| x * x).sum();
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                for (i, x) in x.iter().enumerate() {
                    let at = g * group + i;
                    let (w, b) = (f64::from(weight[at % row]), f64::from(bias[at % row]));
                    // The group's size and a few roundings of values below 8.
                    let bound = 45.0 * 2f64.powi(-24) * 8.0;
                    let close = |got: f32, want: f64| assert!((f64::from(got) - want).abs() < bound);
                    close(layer[at], (x - mean) / (variance + 64e-5).sqrt() * w + b);
                    close(rms[at], x / (squares / n + 1e-5).sqrt() * w);
                    close(l2[at], x / squares.sqrt());
                }
            }
        }
        let kernels = Kernels::new(1, Isa::detect());
        let mut zeros = [0.0; 8];
        kernels.l2_norm(&mut zeros, 4, 1e-12);
        assert_eq!(zeros, [0.0; 8]);
        let mut bad = [f32::NAN; 4];
        kernels.l2_norm(&mut bad, 4, 1e-12);
        assert!(bad.iter().all(|x| x.is_nan()));
    }
}
