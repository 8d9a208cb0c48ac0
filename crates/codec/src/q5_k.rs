//! Q5_K: 8 groups of 32 five-bit integers with six-bit scales and minima.
//!
//! Layout (176 bytes): `d`, `dmin`, scales and minima as in Q4_K; 32 bytes, bit g of byte r the highest bit of value r of
//! group g; 128 bytes of nibbles as in Q4_K. `value = (d · scale) · q − dmin · min`.

use crate::block::Format;
use crate::q4_k::{pack_scales_and_mins, scales_and_mins};
use crate::search::Ints;
use crate::search::Starts;
use crate::superblock;
use fonio_simd::{Scalar, Simd};

pub(crate) struct Q5K;

const STARTS: Starts<(f32, f32), 16, 20> = Starts {
    plain: [
        (0.0, 0.0),
        (0.0, -1.0),
        (0.0, -2.0),
        (0.1, -0.9),
        (-1.6, -0.5),
        (-0.9, -0.9),
        (-1.6, -1.6),
        (-0.1, 0.35),
        (0.35, -0.1),
        (0.2, -1.2),
        (-0.1, -0.7),
        (-1.6, -0.9),
        (0.2, 0.2),
        (-0.2, 0.5),
        (0.5, -0.2),
        (-0.9, -1.2),
    ],
    weighted: [
        (0.0, 0.0),
        (0.0, -1.0),
        (0.0, -2.0),
        (0.25, -0.8),
        (-0.8, -0.8),
        (0.8, 0.0),
        (0.0, 0.5),
        (-0.5, -1.2),
        (-1.2, -0.5),
        (0.0, 1.8),
        (1.8, 0.25),
        (0.25, -0.25),
        (-0.8, -1.2),
        (0.25, 1.2),
        (2.5, 0.0),
        (0.5, 5.0),
        (0.5, 0.5),
        (0.0, 2.5),
        (3.5, 0.0),
        (0.25, -1.2),
    ],
};

impl Format for Q5K {
    const NAME: &'static str = "Q5_K";
    const GGML: Option<u32> = Some(13);
    const LEN: usize = 256;
    const BYTES: usize = 176;
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const CAN_QUANTIZE: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], min: &mut [f32]) {
        scales_and_mins(Scalar::new(), block, scale, min);
        let (high, low) = (&block[16..48], &block[48..176]);
        for j in 0..4 {
            for r in 0..32 {
                let (byte, bits) = (low[32 * j + r], high[r] >> (2 * j));
                q[64 * j + r] = (byte & 15 | (bits & 1) << 4) as i8;
                q[64 * j + 32 + r] = (byte >> 4 | (bits >> 1 & 1) << 4) as i8;
            }
        }
    }

    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        let block = &blocks[at / 256 * Self::BYTES..];
        let (first, g) = (at as u32 % 64 / 8, at as u32 % 256 / 32);
        let low = s.shift_right(s.repeat(&block[48 + at % 256 / 64 * 32..]), first, first + 4);
        let high = s.shift_right(s.repeat(&block[16..]), g, g + 1);
        s.or(s.and_bytes(low, 15), s.shift_left::<4>(s.and_bytes(high, 1)))
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, block: &[u8], scale: &mut [f32], min: &mut [f32]) {
        scales_and_mins(s, block, scale, min);
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let fit = superblock::scales_and_mins::<Ints<0, 31>, 16, 16, _, _, true>(
            src, importance, 63.0, 31.0, &STARTS,
        );
        pack_scales_and_mins(&fit, block);
        for r in 0..32 {
            let mut high = 0;
            for g in 0..8 {
                high |= fit.q[r % 16][g + r / 16 * 8] >> 4 << g;
            }
            block[16 + r] = high;
            for j in 0..4 {
                block[48 + 32 * j + r] =
                    fit.q[r % 16][2 * j + r / 16 * 8] & 15 | fit.q[r % 16][2 * j + 1 + r / 16 * 8] << 4;
            }
        }
    }
}
