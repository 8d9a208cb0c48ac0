//! Operations on each value by itself.

use crate::Kernels;
use crate::math::{exp, sigmoid, silu, tanh};
use crate::share::Shared;
use fonio_simd::{Isa, Task};
use std::ops::Range;

/// A function of each value by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// GELU with the tanh approximation (Hendrycks & Gimpel 2016, section 2).
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `max(x, 0)²`
    ReluSquared,
    /// `g · sigmoid(1.702 · g) · (u + 1)` with `g = min(x, 7)` and the other factor `u` within ±7 (OpenAI 2025,
    /// "gpt-oss").
    SwigluOai,
    /// `1 / (1 + exp(−x))`
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
    /// `exp(−exp(x))`: RWKV-6's decay of a state (Peng et al. 2024).
    Decay6,
    /// `exp(−exp(−1/2) · sigmoid(x))`: RWKV-7's decay of a state (Peng et al. 2025).
    Decay7,
}

/// Values that one piece of work takes.
const PIECE: usize = 16_384;

struct Gate<'a>(Activation, &'a mut [f32], Option<&'a [f32]>);

impl Task for Gate<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        match self.0 {
            Activation::Silu => each(self.1, self.2, silu),
            Activation::GeluTanh => each(self.1, self.2, gelu),
            Activation::Relu => each(self.1, self.2, relu),
            Activation::SwigluOai => {
                let (x, up) = (self.1, self.2.unwrap_or_default());
                for (x, u) in x.iter_mut().zip(up) {
                    let g = x.min(7.0);
                    *x = g / (1.0 + exp(-1.702 * g)) * (u.clamp(-7.0, 7.0) + 1.0);
                }
            }
            Activation::ReluSquared => each(self.1, self.2, relu_squared),
            Activation::Sigmoid => each(self.1, self.2, sigmoid),
            Activation::Tanh => each(self.1, self.2, tanh),
            Activation::Decay6 => each(self.1, self.2, decay6),
            Activation::Decay7 => each(self.1, self.2, decay7),
        }
    }
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    const ROOT: f32 = 0.797_884_6; // √(2/π)
    0.5 * x * (1.0 + tanh(ROOT * (x + 0.044_715 * x * x * x)))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    x.max(0.0)
}

#[inline(always)]
fn relu_squared(x: f32) -> f32 {
    relu(x) * relu(x)
}

#[inline(always)]
fn decay6(x: f32) -> f32 {
    exp(-exp(x))
}

#[inline(always)]
fn decay7(x: f32) -> f32 {
    const ROOT: f32 = 0.606_530_66; // exp(−1/2)
    exp(-ROOT * sigmoid(x))
}

/// No closure does this: what is large in one is not compiled for the level.
#[inline(always)]
fn each(x: &mut [f32], up: Option<&[f32]>, f: impl Fn(f32) -> f32) {
    match up {
        Some(up) => {
            for (x, &u) in x.iter_mut().zip(up) {
                *x = f(*x) * u;
            }
        }
        None => {
            for x in x {
                *x = f(*x);
            }
        }
    }
}

/// `x = activation(x)`, times `up` where there is one. Same lengths.
pub fn gate(kernels: &Kernels, activation: Activation, x: &mut [f32], up: Option<&[f32]>) {
    let n = x.len();
    assert!(up.is_none_or(|up| up.len() == n), "gate and up have the same length");
    let shared = Shared::new(x);
    kernels.pool().each(
        n,
        PIECE,
        || (),
        |(), range| {
            // SAFETY: the ranges of `each` don't overlap.
            let part = unsafe { shared.part(range.start, range.len()) };
            kernels.isa().run(Gate(activation, part, up.map(|up| &up[range])));
        },
    );
}

/// Something simple for each value.
enum Simple<'a> {
    /// Adds these.
    Add(&'a [f32]),
    /// Multiplies with these.
    Multiply(&'a [f32]),
    Scale(f32),
    Softcap(f32),
}

struct Apply<'a>(Simple<'a>, &'a mut [f32]);

impl Task for Apply<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        match self.0 {
            Simple::Add(y) => self.1.iter_mut().zip(y).for_each(|(x, y)| *x += y),
            Simple::Multiply(y) => self.1.iter_mut().zip(y).for_each(|(x, y)| *x *= y),
            Simple::Scale(factor) => self.1.iter_mut().for_each(|x| *x *= factor),
            Simple::Softcap(cap) => self.1.iter_mut().for_each(|x| *x = cap * tanh(*x / cap)),
        }
    }
}

/// Does it in pieces, which don't overlap.
fn pieces<'a>(kernels: &Kernels, x: &mut [f32], what: impl Fn(Range<usize>) -> Simple<'a> + Sync) {
    let (n, shared) = (x.len(), Shared::new(x));
    kernels.pool().each(
        n,
        PIECE,
        || (),
        |(), range| {
            // SAFETY: the ranges of `each` don't overlap.
            let part = unsafe { shared.part(range.start, range.len()) };
            kernels.isa().run(Apply(what(range), part));
        },
    );
}

/// `x += y`. Same lengths.
pub fn add(kernels: &Kernels, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "a term for each value");
    pieces(kernels, x, |range| Simple::Add(&y[range]));
}

/// `row += y` for each row of `x`.
pub fn add_to_rows(kernels: &Kernels, x: &mut [f32], y: &[f32]) {
    assert!(!y.is_empty() && x.len().is_multiple_of(y.len()), "whole rows");
    let (rows, dim, shared) = (x.len() / y.len(), y.len(), Shared::new(x));
    kernels.pool().each(
        rows,
        (PIECE / dim).max(1),
        || (),
        |(), range| {
            for row in range {
                // SAFETY: the ranges of `each` don't overlap.
                let row = unsafe { shared.part(row * dim, dim) };
                kernels.isa().run(Apply(Simple::Add(y), row));
            }
        },
    );
}

/// `x *= y`. Same lengths.
pub fn multiply(kernels: &Kernels, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "a factor for each value");
    pieces(kernels, x, |range| Simple::Multiply(&y[range]));
}

/// `x *= factor`
pub fn scale(kernels: &Kernels, x: &mut [f32], factor: f32) {
    pieces(kernels, x, |_| Simple::Scale(factor));
}

/// `x = cap · tanh(x / cap)`
pub fn softcap(kernels: &Kernels, x: &mut [f32], cap: f32) {
    pieces(kernels, x, |_| Simple::Softcap(cap));
}

impl Kernels {
    /// A copy in a [`Kernels::buffer`].
    pub fn copy(&self, x: &[f32]) -> Vec<f32> {
        let mut copy = self.buffer(x.len());
        let shared = Shared::new(&mut copy);
        self.pool().each(
            x.len(),
            PIECE,
            || (),
            |(), range| {
                // SAFETY: the ranges of `each` don't overlap.
                unsafe { shared.part(range.start, range.len()) }.copy_from_slice(&x[range]);
            },
        );
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_follow_their_definitions() {
        let kernels = Kernels::new(2, Isa::detect());
        let x: Vec<f32> = (0..40_000).map(|i| (i as f32 - 20_000.0) * 5e-4).collect();
        let up: Vec<f32> = x.iter().map(|x| 1.0 - x).collect();
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let gelu = |x: f64| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        };
        let relu = |x: f64| x.max(0.0);
        let square = |x: f64| x.max(0.0).powi(2);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let decay6 = |x: f64| (-x.exp()).exp();
        let decay7 = |x: f64| (-(-0.5f64).exp() * sigmoid(x)).exp();
        let cases: [(Activation, &dyn Fn(f64) -> f64); 8] = [
            (Activation::Silu, &silu),
            (Activation::GeluTanh, &gelu),
            (Activation::Relu, &relu),
            (Activation::ReluSquared, &square),
            (Activation::Sigmoid, &sigmoid),
            (Activation::Tanh, &f64::tanh),
            (Activation::Decay6, &decay6),
            (Activation::Decay7, &decay7),
        ];
        for (activation, f) in cases {
            let mut y = x.clone();
            gate(&kernels, activation, &mut y, Some(&up));
            for ((&x, &up), &y) in x.iter().zip(&up).zip(&y) {
                let want = f(x.into()) * f64::from(up);
                // exp within 2^-22 and some five roundings of numbers no larger than these.
                let largest = f64::from((x * up).abs().max(up.abs())).max(want.abs());
                let bound = 2f64.powi(-20) * largest + 1e-30;
                assert!((f64::from(y) - want).abs() <= bound, "{activation:?} {x}: {y} {want}");
            }
        }
    }

    #[test]
    fn simple_operations_do_what_they_say() {
        let kernels = Kernels::new(2, Isa::detect());
        let x: Vec<f32> = (0..40_000).map(|i| i as f32 * 0.25 - 3000.0).collect();
        let y: Vec<f32> = x.iter().rev().map(|y| y * 0.5).collect();
        let mut got = kernels.copy(&x);
        assert_eq!(got, x);
        add(&kernels, &mut got, &y);
        assert!(got.iter().zip(&x).zip(&y).all(|((got, x), y)| *got == x + y));
        multiply(&kernels, &mut got, &y);
        assert!(got.iter().zip(&x).zip(&y).all(|((got, x), y)| *got == (x + y) * y));
        kernels.recycle(got);
        let mut got = kernels.copy(&x);
        scale(&kernels, &mut got, 3.0);
        add_to_rows(&kernels, &mut got, &y[..100]);
        assert!(got.iter().enumerate().all(|(i, got)| *got == x[i] * 3.0 + y[i % 100]));
        got.copy_from_slice(&x);
        softcap(&kernels, &mut got, 30.0);
        assert!(got.iter().zip(&x).all(|(got, x)| (got - 30.0 * (x / 30.0).tanh()).abs() < 1e-4));
    }
}
