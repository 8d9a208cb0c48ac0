//! Q4_0: 32 values, a half-precision scale and unsigned nibbles around 8.
//!
//! Layout (18 bytes): scale `f16`; 16 bytes, value i in the low nibble of byte i, value i + 16 in its high nibble.
//! `value = scale · (nibble − 8)`.

use crate::block::{Format, f16_at};

pub(crate) struct Q4_0;

impl Format for Q4_0 {
    const NAME: &'static str = "Q4_0";
    const GGML: u32 = 2;
    const LEN: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale[0] = f16_at(block, 0);
        for i in 0..16 {
            let byte = block[2 + i];
            q[i] = (byte & 15) as i8 - 8;
            q[i + 16] = (byte >> 4) as i8 - 8;
        }
    }
}
