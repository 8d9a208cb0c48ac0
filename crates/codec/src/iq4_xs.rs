//! IQ4_XS: 256 values of 4.25 bits: 4-bit numbers of IQ4_NL's levels and a 6-bit scale for each 32.
//!
//! Layout (136 bytes): scale d `f16`; `u16` with the upper 2 bits of the eight scales s, the first lowest; 4 bytes with
//! their lower 4 bits, the first in the low nibble; for each group of 32 values 16 bytes, value i in the low nibble of
//! byte i, value i + 16 in its high nibble. `value = d · (s − 32) · LEVELS[nibble]`.

use crate::block::{Format, f16_to_f32, half_at};
use crate::superblock;
use crate::uneven::{LEVELS_UP, STARTS, Uneven, level, pack};
use fonio_simd::{Scalar, Simd};

pub(crate) struct Iq4Xs;

#[inline(always)]
fn scales<S: Simd>(s: S, block: &[u8], scale: &mut [f32]) {
    let d = half_at(s, block, 0);
    let high = u32::from(block[2]) | u32::from(block[3]) << 8;
    let low = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for g in 0..8 {
        let six = low >> (4 * g) & 15 | (high >> (2 * g) & 3) << 4;
        scale[g] = d * (six as i32 - 32) as f32;
    }
}

impl Format for Iq4Xs {
    const NAME: &'static str = "IQ4_XS";
    const GGML: Option<u32> = Some(23);
    const LEN: usize = 256;
    const BYTES: usize = 136;
    const GROUP: usize = 32;
    const CAN_QUANTIZE: bool = true;

    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        let block = &blocks[at / 256 * Self::BYTES..];
        s.look_up(&LEVELS_UP, s.nibbles(&block[8 + at % 256 / 2..], 16))
    }

    #[inline(always)]
    fn scales<S: Simd>(s: S, block: &[u8], scale: &mut [f32], _: &mut [f32]) {
        scales(s, block, scale);
    }

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scales(Scalar::new(), block, scale);
        for g in 0..8 {
            for i in 0..16 {
                let byte = block[8 + 16 * g + i];
                q[32 * g + i] = level(byte);
                q[32 * g + i + 16] = level(byte >> 4);
            }
        }
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let fit = superblock::scales::<Uneven, 32, 8, _, _>(src, importance, -32.0, &STARTS);
        block[..2].copy_from_slice(&fit.d.to_le_bytes());
        let (mut high, mut low) = (0u16, 0u32);
        for (g, &steps) in fit.scale.iter().enumerate() {
            let s = (i32::from(steps) + 32) as u32;
            low |= (s & 15) << (4 * g);
            high |= ((s >> 4) as u16) << (2 * g);
            let scale = f16_to_f32(fit.d) * f32::from(steps);
            pack(&src[32 * g..32 * g + 32], scale, &mut block[8 + 16 * g..24 + 16 * g]);
        }
        block[2..4].copy_from_slice(&high.to_le_bytes());
        block[4..8].copy_from_slice(&low.to_le_bytes());
    }
}
