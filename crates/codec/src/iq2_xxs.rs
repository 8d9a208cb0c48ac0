//! IQ2_XXS: 256 values of 2.0625 bits: a codebook of 256 eights, signs and 4-bit scales.
//!
//! Layout (66 bytes): scale d `f16`; for each group of 32 values 4 codebook indices, then a `u32` with four times 7
//! signs (an eighth makes the number of negative values even) and the group's scale s in its upper 4 bits.
//! `value = d · (2s + 1) / 8 · sign · entry`.

use crate::block::{Format, f16_at};
use crate::grid::{even_signs, iq2_xxs, negate};

pub(crate) struct Iq2Xxs;

impl Format for Iq2Xxs {
    const NAME: &'static str = "IQ2_XXS";
    const GGML: Option<u32> = Some(16);
    const LEN: usize = 256;
    const BYTES: usize = 66;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        let d = f16_at(block, 0) * 0.125;
        for g in 0..8 {
            let bytes = &block[2 + 8 * g..10 + 8 * g];
            let word = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            scale[g] = d * (2 * (word >> 28) + 1) as f32;
            for (i, &index) in bytes[..4].iter().enumerate() {
                let signs = even_signs((word >> (7 * i)) as u8);
                let at = 32 * g + 8 * i;
                q[at..at + 8].copy_from_slice(&negate(iq2_xxs(index), signs));
            }
        }
    }
}
