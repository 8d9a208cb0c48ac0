//! IQ4_XS: 256 values of 4.25 bits: 4-bit numbers of IQ4_NL's levels and a 6-bit scale for each 32.
//!
//! Layout (136 bytes): scale d `f16`; `u16` with the upper 2 bits of the eight scales s, the first lowest; 4 bytes with
//! their lower 4 bits, the first in the low nibble; for each group of 32 values 16 bytes, value i in the low nibble of
//! byte i, value i + 16 in its high nibble. `value = d · (s − 32) · LEVELS[nibble]`.
//!
//! Quantizing: the best scale of each group as in IQ4_NL, not rounded; the step d whose multiples come nearest to these
//! scales, an error in a group's scale weighing as much as its levels are large; for each group the best
//! of the three next multiples; at last the best step for the levels that these have.

use crate::block::{Format, f16_at, f16_to_f32};
use crate::search::{Tile, clamp, inverse, least, ratio, round};
use crate::uneven::{STARTS, Uneven, level, pack};

pub(crate) struct Iq4Xs;

impl Format for Iq4Xs {
    const NAME: &'static str = "IQ4_XS";
    const GGML: u32 = 23;
    const LEN: usize = 256;
    const BYTES: usize = 136;
    const GROUP: usize = 32;
    const CAN_QUANTIZE: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        let d = f16_at(block, 0);
        let high = u16::from_le_bytes([block[2], block[3]]);
        for g in 0..8 {
            let low = block[4 + g / 2] >> (4 * (g % 2)) & 15;
            let s = i16::from(low) | ((high >> (2 * g) & 3) << 4) as i16;
            scale[g] = d * f32::from(s - 32);
            for i in 0..16 {
                let byte = block[8 + 16 * g + i];
                q[32 * g + i] = level(byte);
                q[32 * g + i + 16] = level(byte >> 4);
            }
        }
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let Some(tile) = Tile::<32, 8>::of_groups(src, importance) else {
            block.fill(0);
            return;
        };
        let free = Fit::free(&tile);
        let (d, steps) = free.best_step(&tile);
        let fit = Fit::near(&tile, d, &steps);
        let refit = tile.stored(fit.common_step());
        let d = if fit.error(refit) < fit.error(d) { refit } else { d };
        let half = tile.half(d);
        block[..2].copy_from_slice(&half.to_le_bytes());
        let (mut high, mut low) = (0u16, 0u32);
        for (g, &steps) in fit.steps.iter().enumerate() {
            let s = (steps as i32 + 32) as u32;
            low |= (s & 15) << (4 * g);
            high |= ((s >> 4) as u16) << (2 * g);
            let scale = f16_to_f32(half) * steps;
            pack(&src[32 * g..32 * g + 32], scale, &mut block[8 + 16 * g..24 + 16 * g]);
        }
        block[2..4].copy_from_slice(&high.to_le_bytes());
        block[4..8].copy_from_slice(&low.to_le_bytes());
    }
}

/// Levels for each group, known by their sums (see [`Tile::scale_sums`]), and the groups' scales in steps of d.
struct Fit {
    steps: [f32; 8],
    xq: [f32; 8],
    qq: [f32; 8],
}

impl Fit {
    /// The best levels for each group if its scale could be any number.
    #[inline(always)]
    fn free(tile: &Tile<32, 8>) -> Fit {
        let peak = tile.peaks();
        let mut best = Fit { steps: [0.0; 8], xq: [0.0; 8], qq: [1.0; 8] };
        for start in STARTS {
            let (xq, qq) = tile.scale_sums::<Uneven>(&inverse(&peak.map(|p| p / start)));
            for l in 0..8 {
                let better = xq[l] * xq[l] * best.qq[l] > best.xq[l] * best.xq[l] * qq[l];
                best.xq[l] = if better { xq[l] } else { best.xq[l] };
                best.qq[l] = if better { qq[l] } else { best.qq[l] };
            }
        }
        best
    }

    /// The step d, as stored, whose multiples come nearest to the groups' best scales, and these multiples.
    #[inline(always)]
    fn best_step(&self, tile: &Tile<32, 8>) -> (f32, [f32; 8]) {
        let scale: [f32; 8] = std::array::from_fn(|g| ratio(self.xq[g], self.qq[g]));
        let peak = scale.iter().fold(0f32, |p, &s| if s.abs() > p.abs() { s } else { p });
        let d: [f32; 16] = std::array::from_fn(|l| {
            let multiple = if l % 2 == 0 { l as f32 * 0.5 - 32.0 } else { 31.5 - l as f32 * 0.5 };
            tile.stored(peak / multiple)
        });
        let inverse = inverse(&d);
        let mut error = [0f32; 16];
        for (&scale, &weight) in scale.iter().zip(&self.qq) {
            for l in 0..16 {
                let e = scale - d[l] * clamp(round(scale * inverse[l]), -32.0, 31.0);
                error[l] += weight * (e * e);
            }
        }
        let best = least(&error);
        (d[best], scale.map(|s| clamp(round(s * inverse[best]), -32.0, 31.0)))
    }

    /// The best of the multiples of d next to `steps`, with the levels nearest at them.
    #[inline(always)]
    fn near(tile: &Tile<32, 8>, d: f32, steps: &[f32; 8]) -> Fit {
        let mut best = Fit { steps: *steps, xq: [0.0; 8], qq: [0.0; 8] };
        let mut least = [f32::MAX; 8];
        for offset in [0.0, -1.0, 1.0] {
            let near = steps.map(|s| clamp(s + offset, -32.0, 31.0));
            let scale = near.map(|s| s * d);
            let (xq, qq) = tile.scale_sums::<Uneven>(&inverse(&scale));
            for l in 0..8 {
                let error = scale[l] * (scale[l] * qq[l] - 2.0 * xq[l]);
                let better = error < least[l];
                least[l] = if better { error } else { least[l] };
                best.steps[l] = if better { near[l] } else { best.steps[l] };
                best.xq[l] = if better { xq[l] } else { best.xq[l] };
                best.qq[l] = if better { qq[l] } else { best.qq[l] };
            }
        }
        best
    }

    /// The best step for these multiples and levels.
    #[inline(always)]
    fn common_step(&self) -> f32 {
        let (mut xq, mut qq) = (0.0, 0.0);
        for g in 0..8 {
            xq += self.steps[g] * self.xq[g];
            qq += self.steps[g] * self.steps[g] * self.qq[g];
        }
        ratio(xq, qq)
    }

    /// The error at a step, less what it is with all values zero.
    #[inline(always)]
    fn error(&self, d: f32) -> f32 {
        let mut error = 0.0;
        for g in 0..8 {
            let scale = d * self.steps[g];
            error += scale * (scale * self.qq[g] - 2.0 * self.xq[g]);
        }
        error
    }
}
