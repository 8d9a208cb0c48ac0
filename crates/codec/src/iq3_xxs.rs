//! IQ3_XXS: 256 values of 3.0625 bits: a codebook of 256 fours, signs and 4-bit scales.
//!
//! Layout (98 bytes): scale d `f16`; 64 codebook indices; for each group of 32 values a `u32` with four times 7
//! signs (an eighth makes the number of negative values even) and the group's scale s in its upper 4 bits.
//! `value = d · (2s + 1) / 4 · sign · entry`.

use crate::block::{Format, f16_at};
use crate::grid::{even_signs, iq3_xxs, negate};

pub(crate) struct Iq3Xxs;

impl Format for Iq3Xxs {
    const NAME: &'static str = "IQ3_XXS";
    const GGML: Option<u32> = Some(18);
    const LEN: usize = 256;
    const BYTES: usize = 98;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        let d = f16_at(block, 0) * 0.25;
        for g in 0..8 {
            let bytes = &block[66 + 4 * g..70 + 4 * g];
            let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            scale[g] = d * (2 * (word >> 28) + 1) as f32;
            for i in 0..4 {
                let signs = even_signs((word >> (7 * i)) as u8);
                let pair = 4 * g + i;
                let values = iq3_xxs(block[2 + 2 * pair], block[3 + 2 * pair]);
                q[8 * pair..8 * pair + 8].copy_from_slice(&negate(values, signs));
            }
        }
    }
}
