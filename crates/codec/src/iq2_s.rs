//! IQ2_S: 256 values of 2.5625 bits: a codebook of 1024 eights, signs and 4-bit scales.
//!
//! Layout (82 bytes): scale d `f16`; 32 bytes with the lower 8 bits of the codebook indices; 32 bytes of signs; 8 bytes,
//! each with the upper 2 bits of four indices, the first lowest; 8 bytes with the scale s of a group of 16
//! values in each nibble, the lower first. `value = d · (2s + 1) / 8 · sign · entry`.

use crate::block::{Format, f16_at};
use crate::grid::{iq2_s, negate};

pub(crate) struct Iq2S;

impl Format for Iq2S {
    const NAME: &'static str = "IQ2_S";
    const GGML: Option<u32> = Some(22);
    const LEN: usize = 256;
    const BYTES: usize = 82;
    const GROUP: usize = 16;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        let d = f16_at(block, 0) * 0.125;
        for i in 0..8 {
            let byte = block[74 + i];
            scale[2 * i] = d * f32::from(2 * (byte & 15) + 1);
            scale[2 * i + 1] = d * f32::from(2 * (byte >> 4) + 1);
        }
        for i in 0..32 {
            let high = u16::from(block[66 + i / 4] >> (2 * (i % 4)) & 3);
            let index = u16::from(block[2 + i]) | (high << 8);
            q[8 * i..8 * i + 8].copy_from_slice(&negate(iq2_s(index), block[34 + i]));
        }
    }
}
