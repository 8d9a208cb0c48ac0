//! Q3_K: 16 groups of 16 three-bit integers with six-bit scales.
//!
//! Layout (110 bytes): 32 bytes of highest bits; 64 bytes of lower bits; 12 bytes of scales; `d` `f16`. Value
//! v = 128·h + 32·j + r has its lower bits at 2j and 2j + 1 of byte 32·h + r and its highest bit at 4h + j of byte r.
//! Scale g: its lower four bits are nibble g / 8 of byte g % 8 of the scales, its upper two bits are at 2·(g / 4) of byte
//! 8 + g % 4. `value = (d · (scale − 32)) · (q − 4)`.

use crate::block::{Format, half_at};
use crate::search::Ints;
use crate::search::Starts;
use crate::superblock;
use fonio_simd::{Scalar, Simd};

pub(crate) struct Q3K;

const STARTS: Starts<f32, 8, 12> = Starts {
    plain: [-4.0, -4.5, 3.19, -3.72, -4.26, -4.92, -2.88, 3.34],
    weighted: [-4.0, -5.46, 3.15, -6.0, -4.62, 4.2, -3.66, -2.76, -4.26, -4.98, 2.18, 3.58],
};

impl Format for Q3K {
    const NAME: &'static str = "Q3_K";
    const GGML: Option<u32> = Some(11);
    const LEN: usize = 256;
    const BYTES: usize = 110;
    const GROUP: usize = 16;
    const CAN_QUANTIZE: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        Self::scales(Scalar::new(), block, scale, &mut []);
        let (high, low) = (&block[..32], &block[32..96]);
        for h in 0..2 {
            for j in 0..4 {
                for r in 0..32 {
                    let bits = low[32 * h + r] >> (2 * j) & 3 | (high[r] >> (4 * h + j) & 1) << 2;
                    q[128 * h + 32 * j + r] = bits as i8 - 4;
                }
            }
        }
    }

    const OFFSET: u8 = 4;
    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        let block = &blocks[at / 256 * Self::BYTES..];
        let (first, g) = (at as u32 % 128 / 16, at as u32 % 256 / 32);
        let low = s.shift_right(s.repeat(&block[32 + at % 256 / 128 * 32..]), first, first + 2);
        let high = s.shift_right(s.repeat(block), g, g + 1);
        s.or(s.and_bytes(low, 3), s.shift_left::<2>(s.and_bytes(high, 1)))
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, block: &[u8], scale: &mut [f32], _: &mut [f32]) {
        let scales = &block[96..108];
        let d = half_at(s, block, 108);
        let mut six = [0u8; 16];
        for g in 0..8 {
            six[g] = scales[g] & 15;
            six[g + 8] = scales[g] >> 4;
        }
        for j in 0..4 {
            for g in 0..4 {
                six[4 * j + g] |= (scales[8 + g] >> (2 * j) & 3) << 4;
            }
        }
        for g in 0..16 {
            scale[g] = d * f32::from(six[g] as i8 - 32);
        }
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let fit = superblock::scales::<Ints<-4, 3>, 16, 16, _, _>(src, importance, -32.0, &STARTS);
        block[..32].fill(0);
        for h in 0..2 {
            for r in 0..32 {
                let q = |j: usize| (fit.q[r % 16][8 * h + 2 * j + r / 16] + 4) as u8;
                let q = [q(0), q(1), q(2), q(3)];
                block[32 + 32 * h + r] = q[0] & 3 | (q[1] & 3) << 2 | (q[2] & 3) << 4 | (q[3] & 3) << 6;
                let high = q[0] >> 2 | (q[1] >> 2) << 1 | (q[2] >> 2) << 2 | (q[3] >> 2) << 3;
                block[r] |= high << (4 * h);
            }
        }
        block[96..108].fill(0);
        for g in 0..16 {
            let scale = (fit.scale[g] + 32) as u8;
            block[96 + g % 8] |= (scale & 15) << (4 * (g / 8));
            block[104 + g % 4] |= (scale >> 4) << (2 * (g / 4));
        }
        block[108..].copy_from_slice(&fit.d.to_le_bytes());
    }
}
