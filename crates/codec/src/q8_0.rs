//! Q8_0: 32 values, a half-precision scale and signed bytes.
//!
//! Layout (34 bytes): scale `f16`; 32 × `i8`. `value = scale · q`.

use crate::block::{Format, f16_at};
use half::f16;

pub(crate) struct Q8_0;

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
    fn quantize(src: &[f32], _: Option<&[f32]>, block: &mut [u8]) {
        let max = src.iter().fold(0f32, |m, x| m.max(x.abs()));
        let d = max / 127.0;
        let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
        block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        for (q, &x) in block[2..].iter_mut().zip(src) {
            *q = (x * inverse).round() as i8 as u8;
        }
    }
}
