//! Q2_K: 16 groups of 16 two-bit integers with four-bit scales and minima.
//!
//! Layout (84 bytes): 16 bytes, scale of group g in the low nibble of byte g, minimum in its high nibble; 64 bytes of
//! integers; `d` `f16`; `dmin` `f16`. Value 128·h + 32·j + r is bits 2j and 2j + 1 of byte 32·h + r.
//! `value = (d · scale) · q − dmin · min`.

use crate::block::{Format, half_at};
use crate::search::Ints;
use crate::search::Starts;
use crate::superblock;
use fonio_simd::{Scalar, Simd};

pub(crate) struct Q2K;

const STARTS: Starts<(f32, f32), 12, 20> = Starts {
    plain: [
        (0.0, 0.0),
        (0.42, 0.54),
        (0.54, 0.06),
        (0.0, 0.54),
        (0.42, 0.21),
        (0.72, -0.06),
        (0.06, 0.3),
        (-0.12, 0.72),
        (-0.72, 0.21),
        (0.3, 0.72),
        (0.12, -0.3),
        (0.72, 0.54),
    ],
    weighted: [
        (0.0, 0.0),
        (-0.06, 0.72),
        (0.96, 0.3),
        (0.54, 0.72),
        (0.96, -0.12),
        (-0.3, 0.96),
        (-0.96, 0.06),
        (0.72, 0.54),
        (0.21, 0.96),
        (0.96, -0.42),
        (0.3, -0.12),
        (-0.06, 0.3),
        (-0.12, 0.96),
        (0.54, 0.96),
        (-0.42, 0.96),
        (0.96, 0.96),
        (0.96, 0.06),
        (0.96, 0.54),
        (0.06, 0.96),
        (-0.54, 0.42),
    ],
};

impl Format for Q2K {
    const NAME: &'static str = "Q2_K";
    const GGML: Option<u32> = Some(10);
    const LEN: usize = 256;
    const BYTES: usize = 84;
    const GROUP: usize = 16;
    const HAS_MIN: bool = true;
    const CAN_QUANTIZE: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], min: &mut [f32]) {
        Self::scales(Scalar::new(), block, scale, min);
        for h in 0..2 {
            for j in 0..4 {
                for r in 0..32 {
                    q[128 * h + 32 * j + r] = (block[16 + 32 * h + r] >> (2 * j) & 3) as i8;
                }
            }
        }
    }

    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        let low = &blocks[at / 256 * Self::BYTES + 16 + at % 256 / 128 * 32..];
        let first = at as u32 % 128 / 16;
        s.and_bytes(s.shift_right(s.repeat(low), first, first + 2), 3)
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, block: &[u8], scale: &mut [f32], min: &mut [f32]) {
        let (d, dmin) = (half_at(s, block, 80), half_at(s, block, 82));
        for g in 0..16 {
            scale[g] = d * f32::from(block[g] & 15);
            min[g] = dmin * f32::from(block[g] >> 4);
        }
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let fit = superblock::scales_and_mins::<Ints<0, 3>, 16, 16, _, _, false>(
            src, importance, 15.0, 3.0, &STARTS,
        );
        for g in 0..16 {
            block[g] = fit.scale[g] | fit.min[g] << 4;
        }
        for h in 0..2 {
            for r in 0..32 {
                let q = |j: usize| fit.q[r % 16][8 * h + 2 * j + r / 16];
                block[16 + 32 * h + r] = q(0) | q(1) << 2 | q(2) << 4 | q(3) << 6;
            }
        }
        block[80..82].copy_from_slice(&fit.d.to_le_bytes());
        block[82..].copy_from_slice(&fit.dmin.to_le_bytes());
    }
}
