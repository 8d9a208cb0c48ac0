//! IQ2_XS: 256 values of 2.3125 bits: a codebook of 512 eights, signs and 4-bit scales.
//!
//! Layout (74 bytes): scale d `f16`; 32 × `u16`, each with a codebook index in its lower 9 bits and 7 signs above (an
//! eighth makes the number of negative values even); 8 bytes with the scale s of a group of 16 values in each
//! nibble, the lower first. `value = d · (2s + 1) / 8 · sign · entry`.

use crate::block::{Format, f16_at};
use crate::grid::{even_signs, iq2_xs, negate};

pub(crate) struct Iq2Xs;

impl Format for Iq2Xs {
    const NAME: &'static str = "IQ2_XS";
    const GGML: Option<u32> = Some(17);
    const LEN: usize = 256;
    const BYTES: usize = 74;
    const GROUP: usize = 16;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        let d = f16_at(block, 0) * 0.125;
        for i in 0..8 {
            let byte = block[66 + i];
            scale[2 * i] = d * f32::from(2 * (byte & 15) + 1);
            scale[2 * i + 1] = d * f32::from(2 * (byte >> 4) + 1);
        }
        for i in 0..32 {
            let word = u16::from_le_bytes([block[2 + 2 * i], block[3 + 2 * i]]);
            let signs = even_signs((word >> 9) as u8);
            q[8 * i..8 * i + 8].copy_from_slice(&negate(iq2_xs(word), signs));
        }
    }
}
