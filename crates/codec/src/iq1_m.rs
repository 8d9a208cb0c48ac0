//! IQ1_M: 256 values of 1.75 bits: the codebook of IQ1_S with a shift for each eight and a scale for each 16.
//!
//! Layout (56 bytes): 32 bytes with the lower 8 bits of the codebook indices; 16 bytes with a nibble for each eight
//! values, the lower first: the upper 3 bits of the index, then the shift's sign; 4 × `u16`, each with four 3-bit scales
//! s of groups of 16 values, the first lowest, and above them 4 bits of the block's scale d `f16`, its lowest in the
//! first word. `value = d · (2s + 1) · (entry ± 1/8)`, in eighths as in IQ1_S.

use crate::block::{Format, f16_to_f32};
use crate::grid::iq1;

pub(crate) struct Iq1M;

impl Format for Iq1M {
    const NAME: &'static str = "IQ1_M";
    const GGML: Option<u32> = Some(29);
    const LEN: usize = 256;
    const BYTES: usize = 56;
    const GROUP: usize = 16;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        let word = |i: usize| u16::from_le_bytes([block[48 + 2 * i], block[49 + 2 * i]]);
        let bits = word(0) >> 12 | word(1) >> 12 << 4 | word(2) >> 12 << 8 | word(3) >> 12 << 12;
        let d = f16_to_f32(bits) * 0.125;
        for (i, scale) in scale.iter_mut().enumerate() {
            *scale = d * f32::from(2 * (word(i / 4) >> (3 * (i % 4)) & 7) + 1);
        }
        for i in 0..32 {
            let nibble = u16::from(block[32 + i / 2]) >> (4 * (i % 2));
            let index = u16::from(block[i]) | (nibble & 7) << 8;
            q[8 * i..8 * i + 8].copy_from_slice(&iq1(index, nibble & 8 != 0));
        }
    }
}
