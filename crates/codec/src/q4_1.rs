//! Q4_1: 32 values, a half-precision scale and offset, and nibbles.
//!
//! Layout (20 bytes): scale `f16`; offset `f16`; 16 bytes, value i in the low nibble of byte i, value i + 16 in its
//! high nibble. `value = scale · nibble + offset`; the offset is the minimum with its sign changed.

use crate::block::{Format, Head, f16_at};
use crate::q4_0::nibbles;
use crate::search::Starts;
use crate::search::{Ints, inverse_of_half, nearest};
use crate::single;
use fonio_simd::Simd;

pub(crate) struct Q4_1;

const STARTS: Starts<(f32, f32), 16, 16> = Starts {
    plain: [
        (0.0, 0.0),
        (-0.7, 0.2),
        (0.35, -0.1),
        (-0.1, 0.35),
        (0.35, 0.35),
        (0.5, -0.2),
        (-0.2, 0.5),
        (0.0, -0.7),
        (0.2, 0.0),
        (0.0, 0.2),
        (-0.7, -0.1),
        (-0.9, -0.9),
        (0.2, 0.7),
        (0.7, 0.2),
        (-0.9, 0.0),
        (-0.35, -0.9),
    ],
    weighted: [
        (0.0, 0.0),
        (-0.25, 0.5),
        (0.5, 0.0),
        (0.0, -0.8),
        (0.5, 0.8),
        (1.2, 0.25),
        (0.25, 1.8),
        (2.5, 0.25),
        (-0.8, -0.8),
        (0.0, 2.5),
        (3.5, 0.25),
        (-0.8, 0.0),
        (0.5, 5.0),
        (0.25, 1.2),
        (1.8, 0.25),
        (0.8, 0.5),
    ],
};

impl Format for Q4_1 {
    const NAME: &'static str = "Q4_1";
    const GGML: Option<u32> = Some(3);
    const LEN: usize = 32;
    const BYTES: usize = 20;
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const CAN_QUANTIZE: bool = true;
    const HEAD: Head = Head::ScaleAndOffset;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], min: &mut [f32]) {
        scale[0] = f16_at(block, 0);
        min[0] = -f16_at(block, 2);
        nibbles(&block[4..], q, 0);
    }

    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        s.nibbles(&blocks[at / 32 * Self::BYTES + 4..], Self::BYTES)
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let (d, m) = single::scale_and_offset::<Ints<0, 15>, 32, _, _>(src, importance, 15.0, &STARTS);
        let (inverse, offset) = (inverse_of_half(d), crate::block::f16_to_f32(m));
        let nibble = |x: f32| nearest::<0, 15>((x - offset) * inverse) as u8;
        block[..2].copy_from_slice(&d.to_le_bytes());
        block[2..4].copy_from_slice(&m.to_le_bytes());
        for i in 0..16 {
            block[4 + i] = nibble(src[i]) | nibble(src[i + 16]) << 4;
        }
    }
}
