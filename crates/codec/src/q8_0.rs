//! Q8_0: 32 values, a half-precision scale and signed bytes.
//!
//! Layout (34 bytes): scale `f16`; 32 × `i8`. `value = scale · q`. −128 is never written: integer dot products that take
//! absolute values have no room for it.

use crate::block::{Format, f16_at};
use crate::search::{Ints, inverse_of_half, nearest};
use crate::single;

pub(crate) struct Q8_0;

/// With 255 levels the error of a scale is near to chance: what helps is to try several, none much larger than needed.
const TARGETS: [f32; 16] = [
    127.0, 127.4, 126.6, 126.2, 125.8, 125.4, 125.0, 124.6, 124.2, 123.8, 123.4, 123.0, 122.6, 122.2, 121.8,
    121.4,
];

impl Format for Q8_0 {
    const NAME: &'static str = "Q8_0";
    const GGML: u32 = 8;
    const LEN: usize = 32;
    const BYTES: usize = 34;
    const GROUP: usize = 32;
    const CAN_QUANTIZE: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale[0] = f16_at(block, 0);
        for i in 0..32 {
            q[i] = block[2 + i] as i8;
        }
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let d = single::scale::<Ints<-127, 127>, 32, 16>(src, importance, &TARGETS);
        let inverse = inverse_of_half(d);
        block[..2].copy_from_slice(&d.to_le_bytes());
        for i in 0..32 {
            block[2 + i] = nearest::<-127, 127>(src[i] * inverse) as u8;
        }
    }
}
