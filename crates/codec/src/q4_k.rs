//! Q4_K: 8 groups of 32 nibbles with six-bit scales and minima.
//!
//! Layout (144 bytes): `d` `f16`; `dmin` `f16`; 12 bytes of scales and minima ([`scales_and_mins`]); 128 bytes, groups
//! 2j and 2j + 1 in the low and the high nibbles of bytes 32j..32j + 32.
//! `value = (d · scale) · q − dmin · min`.

use crate::block::{Format, half_at};
use crate::search::Ints;
use crate::search::Starts;
use crate::superblock::{self, ScaledMin};
use fonio_simd::{Scalar, Simd};

pub(crate) struct Q4K;

const STARTS: Starts<(f32, f32), 16, 20> = Starts {
    plain: [
        (0.0, 0.0),
        (0.0, -1.0),
        (0.0, -2.0),
        (-0.2, 0.35),
        (0.35, -0.1),
        (-0.9, 0.2),
        (0.2, 0.35),
        (0.5, -0.2),
        (0.35, 0.2),
        (-0.7, 0.0),
        (0.1, 0.7),
        (-0.1, 0.2),
        (-1.2, 0.2),
        (0.1, -0.1),
        (-0.9, -0.9),
        (-0.2, 0.5),
    ],
    weighted: [
        (0.0, 0.0),
        (0.0, -1.0),
        (0.0, -2.0),
        (0.5, -0.25),
        (0.0, 0.5),
        (-0.8, 0.0),
        (1.2, 0.5),
        (0.25, 2.5),
        (1.8, 0.25),
        (0.5, 1.8),
        (-1.2, 0.25),
        (2.5, 0.25),
        (-0.8, -0.8),
        (0.5, 0.5),
        (3.5, 0.25),
        (0.25, 1.2),
        (0.0, 3.5),
        (5.0, 0.5),
        (0.0, 5.0),
        (0.5, 0.0),
    ],
};

impl Format for Q4K {
    const NAME: &'static str = "Q4_K";
    const GGML: Option<u32> = Some(12);
    const LEN: usize = 256;
    const BYTES: usize = 144;
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const CAN_QUANTIZE: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], min: &mut [f32]) {
        scales_and_mins(Scalar::new(), block, scale, min);
        for j in 0..4 {
            for r in 0..32 {
                let byte = block[16 + 32 * j + r];
                q[64 * j + r] = (byte & 15) as i8;
                q[64 * j + 32 + r] = (byte >> 4) as i8;
            }
        }
    }

    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        let low = &blocks[at / 256 * Self::BYTES + 16 + at % 256 / 64 * 32..];
        let first = at as u32 % 64 / 8;
        s.and_bytes(s.shift_right(s.repeat(low), first, first + 4), 15)
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, block: &[u8], scale: &mut [f32], min: &mut [f32]) {
        scales_and_mins(s, block, scale, min);
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let fit = superblock::scales_and_mins::<Ints<0, 15>, 16, 16, _, _, true>(
            src, importance, 63.0, 15.0, &STARTS,
        );
        pack_scales_and_mins(&fit, block);
        for j in 0..4 {
            for r in 0..32 {
                block[16 + 32 * j + r] =
                    fit.q[r % 16][2 * j + r / 16 * 8] | fit.q[r % 16][2 * j + 1 + r / 16 * 8] << 4;
            }
        }
    }
}

/// Reads `d`, `dmin` and the six-bit scales and minima of 8 groups from the first 16 bytes of a block.
///
/// Groups 0 to 3: the scale is the lower six bits of byte g, the minimum of byte g + 4. Groups 4 to 7: the lower four
/// bits are the low (scale) and the high (minimum) nibble of byte g + 4, the upper two bits are the top of the bytes of
/// group g − 4.
#[inline(always)]
pub(crate) fn scales_and_mins<S: Simd>(s: S, block: &[u8], scale: &mut [f32], min: &mut [f32]) {
    let (d, dmin) = (half_at(s, block, 0), half_at(s, block, 2));
    // Four bytes at a time.
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (low, high, both) = (word(4), word(8), word(12));
    let top = |x: u32| x >> 2 & 0x3030_3030;
    let scales = [low & 0x3f3f_3f3f, both & 0x0f0f_0f0f | top(low)];
    let mins = [high & 0x3f3f_3f3f, both >> 4 & 0x0f0f_0f0f | top(high)];
    let bytes = |x: [u32; 2]| (u64::from(x[0]) | u64::from(x[1]) << 32).to_le_bytes();
    let (scales, mins) = (bytes(scales), bytes(mins));
    let (scale, min) = (&mut scale[..8], &mut min[..8]);
    for g in 0..8 {
        scale[g] = d * f32::from(scales[g]);
        min[g] = dmin * f32::from(mins[g]);
    }
}

/// Writes what [`scales_and_mins`] reads.
#[inline(always)]
pub(crate) fn pack_scales_and_mins<const N: usize>(fit: &ScaledMin<N, 16>, block: &mut [u8]) {
    let (scale, min) = (&fit.scale, &fit.min);
    block[..2].copy_from_slice(&fit.d.to_le_bytes());
    block[2..4].copy_from_slice(&fit.dmin.to_le_bytes());
    for g in 0..4 {
        block[4 + g] = scale[g] | scale[g + 4] >> 4 << 6;
        block[8 + g] = min[g] | min[g + 4] >> 4 << 6;
        block[12 + g] = scale[g + 4] & 15 | min[g + 4] << 4;
    }
}
