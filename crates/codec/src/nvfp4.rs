//! NVFP4: 64 values of 4-bit floating point (E2M1) of 4.5 bits, with a scale in unsigned E4M3 for each 16.
//!
//! Layout (36 bytes): four scale bytes (4 bits of exponent around 7, 3 of mantissa, the top bit has no meaning; 0x7f
//! counts as 0); for each group of 16 values 8 bytes, value i in the low nibble of byte i, value i + 8 in its high
//! nibble. `value = scale · e2m1`, here half the scale times twice the number, which is whole. Source: ggml, whose
//! reading of scales with the top bit set is followed.

use crate::block::Format;
use crate::mxfp4::twice_e2m1;

pub(crate) struct Nvfp4;

impl Format for Nvfp4 {
    const NAME: &'static str = "NVFP4";
    const GGML: Option<u32> = Some(40);
    const LEN: usize = 64;
    const BYTES: usize = 36;
    const GROUP: usize = 16;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        for g in 0..4 {
            scale[g] = half_e4m3(block[g]);
            for i in 0..8 {
                let byte = block[4 + 8 * g + i];
                q[16 * g + i] = twice_e2m1(byte & 15);
                q[16 * g + i + 8] = twice_e2m1(byte >> 4);
            }
        }
    }
}

/// Half the number behind a scale byte.
#[inline(always)]
fn half_e4m3(byte: u8) -> f32 {
    let bits = u32::from(byte & 0x7f);
    // Subnormal numbers are multiples of 2^-9; others only need their exponent moved.
    let subnormal = bits as f32 * (1.0 / 1024.0);
    let normal = f32::from_bits((bits << 20) + ((127 - 7 - 1) << 23));
    if byte == 0x7f {
        0.0
    } else if bits < 8 {
        subnormal
    } else {
        normal
    }
}
