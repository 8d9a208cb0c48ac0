//! Q8_0: 32 values, a half-precision scale and signed bytes.
//!
//! Layout (34 bytes): scale `f16`; 32 × `i8`. `value = scale · q`. −128 is never written: integer dot products that take
//! absolute values have no room for it.

use crate::block::{Format, Head, f16_at};
use crate::search::{Ints, Starts, inverse_of_half, nearest};
use crate::single;
use crate::sixteen::{self, OneScale};
use fonio_simd::{Isa, Simd};

pub(crate) struct Q8_0;

/// With 255 levels the error of a scale is near to chance: what helps is to try several, none much larger than needed.
const STARTS: Starts<f32, 16, 16> = Starts {
    plain: [
        127.0, 127.4, 126.5, 126.0, 125.5, 125.0, 124.5, 124.0, 123.5, 123.0, 122.5, 122.0, 121.0, 120.0,
        118.0, 112.4,
    ],
    weighted: [
        -127.0, -112.39, -123.83, -120.02, -125.73, -121.92, -116.2, -118.11, -114.3, -108.58, -127.64,
        -106.68, -129.54, -102.87, -110.49, -104.78,
    ],
};

#[inline(always)]
fn bytes(block: &[u8], q: &mut [i8]) {
    let (block, q) = (&block[..32], &mut q[..32]);
    for i in 0..32 {
        q[i] = block[i] as i8;
    }
}

/// Packs integers. −128 may come from elsewhere, and weights may have it: only activations have no room for it.
pub(crate) fn pack(scale: u16, q: &[i8], block: &mut [u8]) {
    block[..2].copy_from_slice(&scale.to_le_bytes());
    for (byte, &q) in block[2..].iter_mut().zip(q) {
        *byte = q as u8;
    }
}

impl Format for Q8_0 {
    const NAME: &'static str = "Q8_0";
    const GGML: Option<u32> = Some(8);
    const LEN: usize = 32;
    const BYTES: usize = 34;
    const GROUP: usize = 32;
    const CAN_QUANTIZE: bool = true;
    const HEAD: Head = Head::Scale;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale[0] = f16_at(block, 0);
        bytes(&block[2..], q);
    }

    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        s.xor_bytes(s.blocks(&blocks[at / 32 * Self::BYTES + 2..], Self::BYTES), 128)
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        Self::fill(src, single::scale::<Ints<-127, 127>, 32, _, _>(src, importance, &STARTS), block);
    }

    fn quantize_all(isa: Isa, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
        sixteen::quantize::<Self>(isa, src, importance, dst);
    }
}

impl OneScale for Q8_0 {
    const RANGE: (f32, f32) = (-127.0, 127.0);
    const TARGETS: &'static [f32] = &STARTS.plain;

    #[inline(always)]
    fn fill(src: &[f32], d: u16, block: &mut [u8]) {
        let inverse = inverse_of_half(d);
        block[..2].copy_from_slice(&d.to_le_bytes());
        for i in 0..32 {
            block[2 + i] = nearest::<-127, 127>(src[i] * inverse) as u8;
        }
    }
}
