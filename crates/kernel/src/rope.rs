//! Rotary position embedding (Su et al. 2021): pairs of values of each head are turned by an angle that grows with
//! the position.

use crate::Kernels;
use crate::share::Shared;

/// Which values of a head form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Neighbours: (0, 1), (2, 3), …
    Neighbours,
    /// Values half the rotated width apart: (0, n/2), (1, n/2 + 1), … as GPT-NeoX and Hugging Face's LLaMA have it.
    Halves,
}

/// Angles for all positions: `inv_freq[i]` is the angle by which pair `i` turns from one position to the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Which values are turned together.
    pub pairing: Pairing,
    /// One angle for each pair; twice as many values of each head are turned, the first ones.
    pub inv_freq: Vec<f32>,
    /// Cosine and sine are multiplied with this (YaRN's attention factor), else 1.
    pub magnitude: f32,
}

impl Rotary {
    fn turn(&self, head: &mut [f32], cos_sin: &[(f32, f32)]) {
        let n = cos_sin.len();
        match self.pairing {
            Pairing::Neighbours => {
                for (pair, &(cos, sin)) in head.chunks_exact_mut(2).zip(cos_sin) {
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * cos - b * sin;
                    pair[1] = a * sin + b * cos;
                }
            }
            Pairing::Halves => {
                let (first, second) = head[..2 * n].split_at_mut(n);
                for ((a, b), &(cos, sin)) in first.iter_mut().zip(second).zip(cos_sin) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}

impl Kernels {
    /// Turns every head of every row of `x`. Rows are tokens at positions from `start` on; a row is whole heads of
    /// `head_dim` values.
    pub fn rotate(&self, rotary: &Rotary, x: &mut [f32], row_len: usize, head_dim: usize, start: usize) {
        assert!(2 * rotary.inv_freq.len() <= head_dim && row_len.is_multiple_of(head_dim), "whole heads");
        assert!(row_len > 0 && x.len().is_multiple_of(row_len), "whole rows");
        let rows = x.len() / row_len;
        let shared = Shared::new(x);
        self.pool().each(rows, 4, Vec::new, |cos_sin, range| {
            // SAFETY: the ranges of `each` don't overlap.
            let x = unsafe { shared.part(range.start * row_len, range.len() * row_len) };
            for (row, position) in x.chunks_exact_mut(row_len).zip(start + range.start..) {
                cos_sin.clear();
                cos_sin.extend(rotary.inv_freq.iter().map(|f| {
                    let (sin, cos) = (position as f32 * f).sin_cos();
                    (cos * rotary.magnitude, sin * rotary.magnitude)
                }));
                row.chunks_exact_mut(head_dim).for_each(|head| rotary.turn(head, cos_sin));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fonio_simd::Isa;

    #[test]
    fn both_pairings_turn_by_the_angle_and_leave_the_rest() {
        let kernels = Kernels::new(1, Isa::scalar());
        let inv_freq = vec![1.0, 0.1];
        for (pairing, pairs) in [(Pairing::Neighbours, [(0, 1), (2, 3)]), (Pairing::Halves, [(0, 2), (1, 3)])]
        {
            let rotary = Rotary { pairing, inv_freq: inv_freq.clone(), magnitude: 2.0 };
            let x: Vec<f32> = (1..=20).map(|i| i as f32).collect();
            let mut y = x.clone();
            kernels.rotate(&rotary, &mut y, 10, 5, 3);
            for (row, position) in [(0, 3.0f32), (1, 4.0)] {
                for head in 0..2 {
                    let at = row * 10 + head * 5;
                    for (&(a, b), f) in pairs.iter().zip(&inv_freq) {
                        let (sin, cos) = (position * f).sin_cos();
                        let (x0, x1) = (x[at + a], x[at + b]);
                        assert!((y[at + a] - 2.0 * (x0 * cos - x1 * sin)).abs() < 1e-4);
                        assert!((y[at + b] - 2.0 * (x0 * sin + x1 * cos)).abs() < 1e-4);
                    }
                    assert_eq!(y[at + 4], x[at + 4]);
                }
            }
        }
    }
}
