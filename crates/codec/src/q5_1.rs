//! Q5_1: 32 values, a half-precision scale and offset, and five-bit integers.
//!
//! Layout (24 bytes): scale `f16`; offset `f16`; highest bits and nibbles as in Q5_0.
//! `value = scale · q + offset`; the offset is the minimum with its sign changed.

use crate::block::{Format, Head, f16_at, f16_to_f32};
use crate::q5_0::{pack5, unpack5};
use crate::search::Starts;
use crate::search::{Ints, inverse_of_half, nearest};
use crate::single;
use fonio_simd::Simd;

pub(crate) struct Q5_1;

const STARTS: Starts<(f32, f32), 16, 16> = Starts {
    plain: [
        (0.0, 0.0),
        (-0.9, 0.1),
        (-1.6, -0.5),
        (-0.9, -0.9),
        (-1.6, -1.6),
        (-0.1, 0.35),
        (0.35, -0.1),
        (0.2, -1.2),
        (-0.1, -0.7),
        (0.35, 0.35),
        (-1.6, -0.9),
        (-0.2, 0.5),
        (0.5, -0.2),
        (0.1, -0.1),
        (-0.1, 0.1),
        (-0.7, -1.2),
    ],
    weighted: [
        (0.0, 0.0),
        (-0.8, 0.25),
        (-0.8, -0.8),
        (0.8, 0.0),
        (0.0, 0.5),
        (-1.2, -0.5),
        (-0.8, -1.2),
        (0.5, 0.25),
        (0.25, 1.2),
        (1.8, 0.0),
        (0.25, 3.5),
        (2.5, 0.0),
        (0.25, 2.5),
        (-0.25, -1.2),
        (0.25, -1.2),
        (3.5, 0.0),
    ],
};

impl Format for Q5_1 {
    const NAME: &'static str = "Q5_1";
    const GGML: Option<u32> = Some(7);
    const LEN: usize = 32;
    const BYTES: usize = 24;
    const GROUP: usize = 32;
    const HAS_MIN: bool = true;
    const CAN_QUANTIZE: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], min: &mut [f32]) {
        scale[0] = f16_at(block, 0);
        min[0] = -f16_at(block, 2);
        unpack5(&block[4..8], &block[8..24], q, 0);
    }

    const HEAD: Head = Head::ScaleAndOffset;

    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        let blocks = &blocks[at / 32 * Self::BYTES..];
        s.or(s.nibbles(&blocks[8..], Self::BYTES), s.bytes_where(16, &blocks[4..], Self::BYTES))
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let (d, m) = single::scale_and_offset::<Ints<0, 31>, 32, _, _>(src, importance, 31.0, &STARTS);
        let (inverse, offset) = (inverse_of_half(d), f16_to_f32(m));
        block[..2].copy_from_slice(&d.to_le_bytes());
        block[2..4].copy_from_slice(&m.to_le_bytes());
        pack5(src, &mut block[4..], |x| nearest::<0, 31>((x - offset) * inverse) as u8);
    }
}
