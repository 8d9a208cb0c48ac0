//! RWKV's token shift (Peng et al. 2023, section 3.1): every projection sees a mixture of a token and the one before.

use crate::Kernels;
use crate::columns::Kept;
use crate::share::Shared;
use fonio_simd::{Isa, Task};

struct Lerp<'a> {
    x: &'a [f32],
    delta: &'a [f32],
    mu: &'a [f32],
    out: &'a mut [f32],
}

impl Task for Lerp<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let dim = self.mu.len();
        let rows = self.x.chunks_exact(dim).zip(self.delta.chunks_exact(dim));
        for ((x, delta), out) in rows.zip(self.out.chunks_exact_mut(dim)) {
            for (((out, x), delta), mu) in out.iter_mut().zip(x).zip(delta).zip(self.mu) {
                *out = x + delta * mu;
            }
        }
    }
}

impl Kernels {
    /// What leads from each row of `x` to the one before: `x[t − 1] − x[t]`. The row before the first is the state, and
    /// the last one becomes it; zeros begin a sequence.
    pub fn shift(&self, state: Kept<'_>, x: &[f32]) -> Vec<f32> {
        let (first, last) = state.parts();
        let dim = last.len();
        assert!(dim > 0 && !x.is_empty() && x.len().is_multiple_of(dim), "whole rows");
        let mut delta = Vec::with_capacity(x.len());
        for (t, row) in x.chunks_exact(dim).enumerate() {
            let before = if t == 0 { first } else { &x[(t - 1) * dim..t * dim] };
            delta.extend(before.iter().zip(row).map(|(before, x)| before - x));
        }
        last.copy_from_slice(&x[x.len() - dim..]);
        delta
    }

    /// `x + delta · mu`. Same lengths; `mu` may be one row and then serves all.
    pub fn lerp(&self, x: &[f32], delta: &[f32], mu: &[f32]) -> Vec<f32> {
        let dim = mu.len();
        assert!(dim > 0 && x.len() == delta.len() && x.len().is_multiple_of(dim), "whole rows");
        let mut out = vec![0.0; x.len()];
        if dim == x.len() {
            self.isa().run(Lerp { x, delta, mu, out: &mut out });
            return out;
        }
        let shared = Shared::new(&mut out);
        self.pool().each(
            x.len() / dim,
            (16_384 / dim).max(1),
            || (),
            |(), range| {
                let at = range.start * dim..range.end * dim;
                // SAFETY: the ranges of `each` don't overlap.
                let out = unsafe { shared.part(at.start, at.len()) };
                self.isa().run(Lerp { x: &x[at.clone()], delta: &delta[at], mu, out });
            },
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    #[test]
    fn a_shifted_token_is_the_one_before() {
        let dim = 19;
        let x = noise(7 * dim, 1);
        let mu = noise(dim, 2);
        for isa in Isa::available() {
            let kernels = Kernels::new(2, isa);
            let (zeros, mut third, mut last) = (vec![0.0; dim], vec![0.0; dim], vec![0.0; dim]);
            let mut delta = kernels.shift(Kept::new(&zeros, &mut third), &x[..3 * dim]);
            delta.extend(kernels.shift(Kept::new(&third, &mut last), &x[3 * dim..]));
            assert_eq!(last, x[6 * dim..]);
            let mixed = kernels.lerp(&x, &delta, &mu);
            let each: Vec<f32> = mu.iter().copied().cycle().take(x.len()).collect();
            assert_eq!(mixed, kernels.lerp(&x, &delta, &each));
            for (i, mixed) in mixed.iter().enumerate() {
                let before = if i < dim { 0.0 } else { x[i - dim] };
                assert_eq!(delta[i], before - x[i]);
                assert_eq!(*mixed, x[i] + delta[i] * mu[i % dim]);
            }
        }
    }
}
