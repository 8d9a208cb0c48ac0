//! IQ3_S: 256 values of 3.4375 bits: a codebook of 512 fours, signs and 4-bit scales.
//!
//! Layout (110 bytes): scale d `f16`; 64 bytes with the lower 8 bits of the codebook indices; 8 bytes with their ninth
//! bits, the first lowest; 32 bytes of signs; 4 bytes with the scale s of a group of 32 values in each nibble,
//! the lower first. `value = d · (2s + 1) · sign · entry`.

use crate::block::{Format, f16_at};
use crate::grid::{iq3_s, negate};

pub(crate) struct Iq3S;

impl Format for Iq3S {
    const NAME: &'static str = "IQ3_S";
    const GGML: Option<u32> = Some(21);
    const LEN: usize = 256;
    const BYTES: usize = 110;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        let d = f16_at(block, 0);
        for i in 0..4 {
            let byte = block[106 + i];
            scale[2 * i] = d * f32::from(2 * (byte & 15) + 1);
            scale[2 * i + 1] = d * f32::from(2 * (byte >> 4) + 1);
        }
        for pair in 0..32 {
            let high = u16::from(block[66 + pair / 4]) >> (2 * (pair % 4));
            let first = u16::from(block[2 + 2 * pair]) | (high & 1) << 8;
            let second = u16::from(block[3 + 2 * pair]) | (high >> 1 & 1) << 8;
            q[8 * pair..8 * pair + 8].copy_from_slice(&negate(iq3_s(first, second), block[74 + pair]));
        }
    }
}
