//! Q6_K: 16 groups of 16 six-bit integers with eight-bit scales.
//!
//! Layout (210 bytes): 128 bytes of lower four bits; 64 bytes of upper two bits; 16 × `i8` scales; `d` `f16`. Value
//! 128·h + 32·j + r has its lower bits in nibble j / 2 of byte 64·h + 32·(j % 2) + r, its upper bits at 2j of byte
//! 32·h + r. `value = (d · scale) · (q − 32)`.

use crate::block::{Format, half_at};
use crate::search::Ints;
use crate::search::Starts;
use crate::superblock;
use fonio_simd::{Scalar, Simd};

pub(crate) struct Q6K;

const STARTS: Starts<f32, 14, 20> = Starts {
    plain: [
        -32.0, 30.01, 31.0, 28.02, 26.04, 29.02, 27.03, 24.06, -22.08, -24.96, -32.64, 23.06, -31.68, -19.2,
    ],
    weighted: [
        -32.0, 30.01, 28.02, 31.0, 26.04, -33.12, -24.0, 29.02, 27.03, 22.07, -38.4, 25.05, -34.56, 23.06,
        20.09, -44.16, 21.08, -36.0, 19.1, -32.64,
    ],
};

impl Format for Q6K {
    const NAME: &'static str = "Q6_K";
    const GGML: Option<u32> = Some(14);
    const LEN: usize = 256;
    const BYTES: usize = 210;
    const GROUP: usize = 16;
    const CAN_QUANTIZE: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        Self::scales(Scalar::new(), block, scale, &mut []);
        let (low, high) = (&block[..128], &block[128..192]);
        for h in 0..2 {
            for j in 0..4 {
                for r in 0..32 {
                    let lower = low[64 * h + 32 * (j % 2) + r] >> (4 * (j / 2)) & 15;
                    let upper = high[32 * h + r] >> (2 * j) & 3;
                    q[128 * h + 32 * j + r] = (lower | upper << 4) as i8 - 32;
                }
            }
        }
    }

    const OFFSET: u8 = 32;
    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        let block = &blocks[at / 256 * Self::BYTES..];
        let (h, nibble, pair) = (at % 256 / 128, at as u32 % 128 / 64 * 4, at as u32 % 128 / 16);
        let low = s.shift_right(s.load_bytes(&block[64 * h + at % 64..]), nibble, nibble);
        let high = s.shift_right(s.repeat(&block[128 + 32 * h..]), pair, pair + 2);
        s.or(s.and_bytes(low, 15), s.shift_left::<4>(s.and_bytes(high, 3)))
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, block: &[u8], scale: &mut [f32], _: &mut [f32]) {
        let d = half_at(s, block, 208);
        for g in 0..16 {
            scale[g] = d * f32::from(block[192 + g] as i8);
        }
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let fit = superblock::scales::<Ints<-32, 31>, 16, 16, _, _>(src, importance, -128.0, &STARTS);
        for h in 0..2 {
            for r in 0..32 {
                let q = |j: usize| (fit.q[r % 16][8 * h + 2 * j + r / 16] + 32) as u8;
                let q = [q(0), q(1), q(2), q(3)];
                block[64 * h + r] = q[0] & 15 | q[2] << 4;
                block[64 * h + 32 + r] = q[1] & 15 | q[3] << 4;
                block[128 + 32 * h + r] = q[0] >> 4 | q[1] >> 4 << 2 | q[2] >> 4 << 4 | q[3] >> 4 << 6;
            }
        }
        for g in 0..16 {
            block[192 + g] = fit.scale[g] as u8;
        }
        block[208..].copy_from_slice(&fit.d.to_le_bytes());
    }
}
