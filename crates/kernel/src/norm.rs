//! Normalization of rows.

use crate::Kernels;
use crate::share::Shared;
use fonio_simd::{Simd, VectorTask};

struct RmsNorm<'a> {
    x: &'a mut [f32],
    weight: Option<&'a [f32]>,
    dim: usize,
    eps: f32,
}

impl VectorTask for RmsNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.x.chunks_exact_mut(self.dim) {
            let mut squares = s.splat(0.0);
            let mut lanes = row.chunks_exact(S::LANES);
            for v in &mut lanes {
                let v = s.load(v);
                squares = s.fma(v, v, squares);
            }
            let rest: f32 = lanes.remainder().iter().map(|x| x * x).sum();
            let mean = (s.sum(squares) + rest) / self.dim as f32;
            let factor = 1.0 / (mean + self.eps).sqrt();
            match self.weight {
                Some(weight) => row.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * factor * w),
                None => row.iter_mut().for_each(|x| *x *= factor),
            }
        }
    }
}

struct LayerNorm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
}

impl VectorTask for LayerNorm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let dim = self.weight.len();
        for row in self.x.chunks_exact_mut(dim) {
            let mean = row.iter().sum::<f32>() / dim as f32;
            row.iter_mut().for_each(|x| *x -= mean);
            let variance = row.iter().map(|x| x * x).sum::<f32>() / dim as f32;
            let factor = 1.0 / (variance + self.eps).sqrt();
            row.iter_mut().zip(self.weight).for_each(|(x, w)| *x = *x * factor * w);
            if let Some(bias) = self.bias {
                row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
        }
    }
}

/// Rows that one piece of work takes.
fn rows_per_piece(dim: usize) -> usize {
    (16_384 / dim.max(1)).max(1)
}

impl Kernels {
    /// Root mean square norm (Zhang & Sennrich 2019) in place: each row of `dim` values becomes
    /// `x / √(mean(x²) + eps) · weight`.
    pub fn rms_norm(&self, x: &mut [f32], weight: Option<&[f32]>, dim: usize, eps: f32) {
        assert!(
            dim > 0 && x.len().is_multiple_of(dim) && weight.is_none_or(|w| w.len() == dim),
            "whole rows"
        );
        let rows = x.len() / dim;
        let shared = Shared::new(x);
        self.pool().each(
            rows,
            rows_per_piece(dim),
            || (),
            |(), range| {
                // SAFETY: the ranges of `each` don't overlap.
                let x = unsafe { shared.part(range.start * dim, range.len() * dim) };
                self.isa().vector(RmsNorm { x, weight, dim, eps });
            },
        );
    }

    /// Layer norm (Ba, Kiros & Hinton 2016) in place: each row becomes
    /// `(x − mean(x)) / √(variance(x) + eps) · weight + bias`.
    pub fn layer_norm(&self, x: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) {
        let dim = weight.len();
        assert!(dim > 0 && x.len().is_multiple_of(dim) && bias.is_none_or(|b| b.len() == dim), "whole rows");
        let rows = x.len() / dim;
        let shared = Shared::new(x);
        self.pool().each(
            rows,
            rows_per_piece(dim),
            || (),
            |(), range| {
                // SAFETY: the ranges of `each` don't overlap.
                let x = unsafe { shared.part(range.start * dim, range.len() * dim) };
                self.isa().vector(LayerNorm { x, weight, bias, eps });
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fonio_simd::Isa;

    #[test]
    fn norms_follow_their_definitions_at_every_level() {
        let (rows, dim) = (5, 37);
        let x: Vec<f32> = (0..rows * dim).map(|i| ((i * 7919) % 101) as f32 * 0.13 - 4.0).collect();
        let weight: Vec<f32> = (0..dim).map(|i| 0.5 + i as f32 * 0.03).collect();
        let bias: Vec<f32> = (0..dim).map(|i| i as f32 * 0.1 - 1.0).collect();
        for isa in Isa::available() {
            let kernels = Kernels::new(2, isa);
            let mut rms = x.clone();
            kernels.rms_norm(&mut rms, Some(&weight), dim, 1e-5);
            let mut layer = x.clone();
            kernels.layer_norm(&mut layer, &weight, Some(&bias), 1e-5);
            for r in 0..rows {
                let row: Vec<f64> = x[r * dim..(r + 1) * dim].iter().map(|&x| x.into()).collect();
                let n = dim as f64;
                let mean = row.iter().sum::<f64>() / n;
                let rms_factor = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / n + 1e-5).sqrt();
                let factor = 1.0 / (row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + 1e-5).sqrt();
                for i in 0..dim {
                    let (w, b) = (f64::from(weight[i]), f64::from(bias[i]));
                    // dim + a few roundings of values of this size.
                    let bound = 45.0 * 2f64.powi(-24) * 4.0;
                    assert!((f64::from(rms[r * dim + i]) - row[i] * rms_factor * w).abs() < bound);
                    let want = (row[i] - mean) * factor * w + b;
                    assert!((f64::from(layer[r * dim + i]) - want).abs() < bound);
                }
            }
        }
    }
}
