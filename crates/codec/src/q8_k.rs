//! Q8_K: 256 values, a single-precision scale and signed bytes. An intermediate type of ggml for activations.
//!
//! Layout (292 bytes): scale `f32`; 256 × `i8`; 16 × `i16`, sums of 16 bytes each, which do not matter here.
//! `value = scale · q`.

use crate::block::Format;

pub(crate) struct Q8K;

impl Format for Q8K {
    const NAME: &'static str = "Q8_K";
    const GGML: Option<u32> = Some(15);
    const LEN: usize = 256;
    const BYTES: usize = 292;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale.fill(f32::from_le_bytes([block[0], block[1], block[2], block[3]]));
        for i in 0..256 {
            q[i] = block[4 + i] as i8;
        }
    }
}
