//! Q4_0: 32 values, a half-precision scale and unsigned nibbles around 8.
//!
//! Layout (18 bytes): scale `f16`; 16 bytes, value i in the low nibble of byte i, value i + 16 in its high nibble.
//! `value = scale · (nibble − 8)`.

use crate::block::{Format, f16_at};
use crate::search::{Ints, inverse_of_half, nearest};
use crate::single;

pub(crate) struct Q4_0;

/// The scale's sign decides which end of −8..7 the largest value goes to.
const TARGETS: [f32; 16] =
    [-8.0, -7.2, -7.6, -7.8, -8.2, -8.4, -8.7, -9.0, 6.6, 6.8, 7.0, 7.2, 7.4, 7.6, 7.8, 8.1];

impl Format for Q4_0 {
    const NAME: &'static str = "Q4_0";
    const GGML: u32 = 2;
    const LEN: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;
    const CAN_QUANTIZE: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale[0] = f16_at(block, 0);
        for i in 0..16 {
            let byte = block[2 + i];
            q[i] = (byte & 15) as i8 - 8;
            q[i + 16] = (byte >> 4) as i8 - 8;
        }
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let d = single::scale::<Ints<-8, 7>, 32, 16>(src, importance, &TARGETS);
        let inverse = inverse_of_half(d);
        let nibble = |x: f32| (nearest::<-8, 7>(x * inverse) + 8) as u8;
        block[..2].copy_from_slice(&d.to_le_bytes());
        for i in 0..16 {
            block[2 + i] = nibble(src[i]) | nibble(src[i + 16]) << 4;
        }
    }
}
