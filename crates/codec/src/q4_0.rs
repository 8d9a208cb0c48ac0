//! Q4_0: 32 values, a half-precision scale and unsigned nibbles around 8.
//!
//! Layout (18 bytes): scale `f16`; 16 bytes, value i in the low nibble of byte i, value i + 16 in its high nibble.
//! `value = scale · (nibble − 8)`.

use crate::block::{Format, Head, f16_at};
use crate::search::{Ints, Starts, inverse_of_half, nearest};
use crate::single;
use crate::sixteen::{self, OneScale};
use fonio_simd::{Isa, Simd};

pub(crate) struct Q4_0;

/// The scale's sign decides which end of −8..7 the largest value goes to.
const STARTS: Starts<f32, 8, 16> = Starts {
    plain: [-8.0, -8.52, 7.22, -8.88, -7.68, -8.28, 6.89, -6.12],
    weighted: [
        -8.0, -9.24, -10.8, -7.08, -8.52, -12.0, -6.12, 9.35, -9.96, 8.46, -7.68, -5.16, 9.8, -6.72, -8.88,
        -11.4,
    ],
};

/// 32 nibbles less `bias`: first the lower ones of 16 bytes, then the upper ones.
#[inline(always)]
pub(crate) fn nibbles(bytes: &[u8], q: &mut [i8], bias: i8) {
    let (bytes, q) = (&bytes[..16], &mut q[..32]);
    for i in 0..16 {
        q[i] = (bytes[i] & 15) as i8 - bias;
    }
    for i in 0..16 {
        q[i + 16] = (bytes[i] >> 4) as i8 - bias;
    }
}

/// Packs integers from −8 to 7.
pub(crate) fn pack(scale: u16, q: &[i8], block: &mut [u8]) {
    block[..2].copy_from_slice(&scale.to_le_bytes());
    for i in 0..16 {
        block[2 + i] = (q[i] + 8) as u8 | ((q[i + 16] + 8) as u8) << 4;
    }
}

impl Format for Q4_0 {
    const NAME: &'static str = "Q4_0";
    const GGML: Option<u32> = Some(2);
    const LEN: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;
    const CAN_QUANTIZE: bool = true;
    const HEAD: Head = Head::Scale;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale[0] = f16_at(block, 0);
        nibbles(&block[2..], q, 8);
    }

    const OFFSET: u8 = 8;
    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        s.nibbles(&blocks[at / 32 * Self::BYTES + 2..], Self::BYTES)
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        Self::fill(src, single::scale::<Ints<-8, 7>, 32, _, _>(src, importance, &STARTS), block);
    }

    fn quantize_all(isa: Isa, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
        sixteen::quantize::<Self>(isa, src, importance, dst);
    }
}

impl OneScale for Q4_0 {
    const RANGE: (f32, f32) = (-8.0, 7.0);
    const TARGETS: &'static [f32] = &STARTS.plain;

    #[inline(always)]
    fn fill(src: &[f32], d: u16, block: &mut [u8]) {
        let inverse = inverse_of_half(d);
        let nibble = |x: f32| (nearest::<-8, 7>(x * inverse) + 8) as u8;
        block[..2].copy_from_slice(&d.to_le_bytes());
        for i in 0..16 {
            block[2 + i] = nibble(src[i]) | nibble(src[i + 16]) << 4;
        }
    }
}
