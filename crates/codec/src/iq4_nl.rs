//! IQ4_NL: 32 values of 4.5 bits: a half-precision scale and 4-bit numbers of 16 uneven levels.
//!
//! Layout (18 bytes): scale `f16`; 16 bytes, value i in the low nibble of byte i, value i + 16 in its high nibble.
//! `value = scale · LEVELS[nibble]`.

use crate::block::{Format, Head, f16_at, f16_to_f32};
use crate::single;
use crate::uneven::{LEVELS_UP, STARTS, Uneven, level, pack};
use fonio_simd::Simd;

pub(crate) struct Iq4Nl;

impl Format for Iq4Nl {
    const NAME: &'static str = "IQ4_NL";
    const GGML: Option<u32> = Some(20);
    const LEN: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;
    const CAN_QUANTIZE: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale[0] = f16_at(block, 0);
        for i in 0..16 {
            let byte = block[2 + i];
            q[i] = level(byte);
            q[i + 16] = level(byte >> 4);
        }
    }

    const HEAD: Head = Head::Scale;

    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        s.look_up(&LEVELS_UP, s.nibbles(&blocks[at / 32 * Self::BYTES + 2..], Self::BYTES))
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let d = single::scale::<Uneven, 32, _, _>(src, importance, &STARTS);
        block[..2].copy_from_slice(&d.to_le_bytes());
        pack(src, f16_to_f32(d), &mut block[2..]);
    }
}
