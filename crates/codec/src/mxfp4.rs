//! MXFP4: 32 values of 4-bit floating point (E2M1) with a power of two as scale, 4.25 bits.
//!
//! Layout (17 bytes): scale byte e, the scale being 2^(e − 127); 16 bytes, value i in the low nibble of byte i,
//! value i + 16 in its high nibble. `value = scale · e2m1`, here half the scale times twice the number, which is
//! whole. Source: OCP Microscaling Formats (MX) v1.0; ggml for the order, and for e = 255 (NaN in the
//! specification), which it reads as 2^128.

use crate::block::Format;

pub(crate) struct Mxfp4;

/// Twice the number behind the lower nibble: a sign, two bits of exponent and one of mantissa.
/// The magnitudes 0, 1, 2, 3, 4, 6, 8, 12 grow by 1, from 4 on by 2, from 8 on by 4.
#[inline(always)]
pub(crate) fn twice_e2m1(nibble: u8) -> i8 {
    let m = nibble & 7;
    let magnitude = (m + m.saturating_sub(4) + 2 * m.saturating_sub(6)) as i8;
    if nibble & 8 == 0 { magnitude } else { -magnitude }
}

/// 2^(e − 128), half of the scale: subnormal for e < 2.
#[inline(always)]
fn half_scale(e: u8) -> f32 {
    let e = u32::from(e);
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
}

impl Format for Mxfp4 {
    const NAME: &'static str = "MXFP4";
    const GGML: u32 = 39;
    const LEN: usize = 32;
    const BYTES: usize = 17;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale[0] = half_scale(block[0]);
        for i in 0..16 {
            let byte = block[1 + i];
            q[i] = twice_e2m1(byte);
            q[i + 16] = twice_e2m1(byte >> 4);
        }
    }
}
