//! Q5_0: 32 values, a half-precision scale and unsigned five-bit integers around 16.
//!
//! Layout (22 bytes): scale `f16`; 32 bits (little-endian), bit i the highest bit of value i; 16 bytes, the lower bits of
//! value i in the low nibble of byte i, of value i + 16 in its high nibble. `value = scale · (q − 16)`.

use crate::block::{Format, Head, f16_at};
use crate::search::{Ints, Starts, inverse_of_half, nearest};
use crate::single;
use crate::sixteen::{self, OneScale};
use fonio_simd::{Isa, Simd};

pub(crate) struct Q5_0;

const STARTS: Starts<f32, 16, 16> = Starts {
    plain: [
        -16.0, 15.0, -16.56, 14.04, 9.24, -15.6, -16.32, 13.08, 10.44, 15.24, 14.76, -16.8, -11.28, 14.28,
        -15.84, -12.0,
    ],
    weighted: [
        -16.0, -17.52, -14.88, -20.88, -13.92, -16.56, -12.96, -18.72, -24.0, -12.0, -15.36, 10.2, -19.68,
        -11.04, 9.0, -22.32,
    ],
};

/// Packs integers from −16 to 15.
pub(crate) fn pack(scale: u16, q: &[i8], block: &mut [u8]) {
    block[..2].copy_from_slice(&scale.to_le_bytes());
    let mut high = 0u32;
    for i in 0..16 {
        let (a, b) = ((q[i] + 16) as u8, (q[i + 16] + 16) as u8);
        high |= u32::from(a >> 4) << i | u32::from(b >> 4) << (i + 16);
        block[6 + i] = (a & 15) | b << 4;
    }
    block[2..6].copy_from_slice(&high.to_le_bytes());
}

impl Format for Q5_0 {
    const NAME: &'static str = "Q5_0";
    const GGML: Option<u32> = Some(6);
    const LEN: usize = 32;
    const BYTES: usize = 22;
    const GROUP: usize = 32;
    const CAN_QUANTIZE: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale[0] = f16_at(block, 0);
        unpack5(&block[2..6], &block[6..22], q, 16);
    }

    const HEAD: Head = Head::Scale;

    const OFFSET: u8 = 16;
    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        let blocks = &blocks[at / 32 * Self::BYTES..];
        s.or(s.nibbles(&blocks[6..], Self::BYTES), s.bytes_where(16, &blocks[2..], Self::BYTES))
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        Self::fill(src, single::scale::<Ints<-16, 15>, 32, _, _>(src, importance, &STARTS), block);
    }

    fn quantize_all(isa: Isa, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
        sixteen::quantize::<Self>(isa, src, importance, dst);
    }
}

impl OneScale for Q5_0 {
    const RANGE: (f32, f32) = (-16.0, 15.0);
    const TARGETS: &'static [f32] = &STARTS.plain;

    #[inline(always)]
    fn fill(src: &[f32], d: u16, block: &mut [u8]) {
        let inverse = inverse_of_half(d);
        block[..2].copy_from_slice(&d.to_le_bytes());
        pack5(src, &mut block[2..], |x| (nearest::<-16, 15>(x * inverse) + 16) as u8);
    }
}

/// Unpacks 32 five-bit integers less `bias`.
#[inline(always)]
pub(crate) fn unpack5(high: &[u8], low: &[u8], q: &mut [i8], bias: i8) {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    for i in 0..16 {
        let bit = |n: usize| ((high >> n) & 1) as u8 * 16;
        q[i] = (low[i] & 15 | bit(i)) as i8 - bias;
        q[i + 16] = (low[i] >> 4 | bit(i + 16)) as i8 - bias;
    }
}

/// Packs 32 values that `int` turns into five-bit integers: 4 bytes of highest bits, 16 of nibbles.
#[inline(always)]
pub(crate) fn pack5(src: &[f32], out: &mut [u8], int: impl Fn(f32) -> u8) {
    let mut q = [0u8; 32];
    for i in 0..32 {
        q[i] = int(src[i]);
    }
    let mut high = 0u32;
    for (i, q) in q.iter().enumerate() {
        high |= u32::from(q >> 4) << i;
    }
    out[..4].copy_from_slice(&high.to_le_bytes());
    for i in 0..16 {
        out[4 + i] = q[i] & 15 | q[i + 16] << 4;
    }
}
