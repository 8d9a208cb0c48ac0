//! TQ2_0: 256 values −1, 0, 1 (or 2) of 2.0625 bits.
//!
//! Layout (66 bytes): twice 32 bytes of four 2-bit digits, the first lowest: digit n of byte i of the h-th is value
//! 128h + 32n + i; scale d `f16`. `value = d · (digit − 1)`.

use crate::block::{Format, f16_at};

pub(crate) struct Tq20;

impl Format for Tq20 {
    const NAME: &'static str = "TQ2_0";
    const GGML: Option<u32> = Some(35);
    const LEN: usize = 256;
    const BYTES: usize = 66;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale.fill(f16_at(block, 64));
        for g in 0..8 {
            let bytes = &block[g / 4 * 32..g / 4 * 32 + 32];
            for (q, &byte) in q[32 * g..32 * g + 32].iter_mut().zip(bytes) {
                *q = (byte >> (2 * (g % 4)) & 3) as i8 - 1;
            }
        }
    }
}
