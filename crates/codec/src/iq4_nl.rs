//! IQ4_NL: 32 values of 4.5 bits: a half-precision scale and 4-bit numbers of 16 uneven levels.
//!
//! Layout (18 bytes): scale `f16`; 16 bytes, value i in the low nibble of byte i, value i + 16 in its high nibble.
//! `value = scale · LEVELS[nibble]`.

use crate::block::{Format, f16_at};

pub(crate) struct Iq4Nl;

/// The levels, finer near 0, where weights are many.
pub(crate) const LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The level behind the lower nibble.
#[inline(always)]
pub(crate) fn level(nibble: u8) -> i8 {
    LEVELS[usize::from(nibble & 15)]
}

impl Format for Iq4Nl {
    const NAME: &'static str = "IQ4_NL";
    const GGML: u32 = 20;
    const LEN: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale[0] = f16_at(block, 0);
        for i in 0..16 {
            let byte = block[2 + i];
            q[i] = level(byte);
            q[i + 16] = level(byte >> 4);
        }
    }
}
