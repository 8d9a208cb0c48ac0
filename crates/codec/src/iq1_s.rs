//! IQ1_S: 256 values of 1.5625 bits: a codebook of 2048 eights of −1, 0 and 1, shifted by ±1/8.
//!
//! Layout (50 bytes): scale d `f16`; 32 bytes with the lower 8 bits of the codebook indices; for each group of 32
//! values a `u16` with the upper 3 bits of its four indices, the first lowest, the group's scale s in bits 12 to 14 and
//! the shift's sign in bit 15. `value = d · (2s + 1) · (entry ± 1/8)`; an eighth of the scale times eight times
//! the shifted entry is the same number, as both factors stay exact.

use crate::block::{Format, f16_at};
use crate::grid::iq1;

pub(crate) struct Iq1S;

impl Format for Iq1S {
    const NAME: &'static str = "IQ1_S";
    const GGML: Option<u32> = Some(19);
    const LEN: usize = 256;
    const BYTES: usize = 50;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        let d = f16_at(block, 0) * 0.125;
        for g in 0..8 {
            let word = u16::from_le_bytes([block[34 + 2 * g], block[35 + 2 * g]]);
            scale[g] = d * f32::from(2 * (word >> 12 & 7) + 1);
            for i in 0..4 {
                let index = u16::from(block[2 + 4 * g + i]) | (word >> (3 * i) & 7) << 8;
                let at = 32 * g + 8 * i;
                q[at..at + 8].copy_from_slice(&iq1(index, word & 0x8000 != 0));
            }
        }
    }
}
