//! F8_E5M2: an 8-bit float with 5 bits of exponent and 2 of mantissa, the upper byte of a half-precision number,
//! infinities and NaNs included. Source: OCP 8-bit Floating Point Specification (OFP8) v1.0. Read only, in safetensors
//! files.

use crate::block::f16_to_f32;
use crate::float::Number;

pub(crate) struct F8E5M2;

impl Number for F8E5M2 {
    const NAME: &'static str = "F8_E5M2";
    const GGML: Option<u32> = None;
    const BYTES: usize = 1;
    const FLOAT: bool = false;

    #[inline(always)]
    fn load(bytes: &[u8]) -> f32 {
        f16_to_f32(u16::from(bytes[0]) << 8)
    }

    fn store(_: f32, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_is_what_the_specification_says() {
        for byte in 0..=u8::MAX {
            let (exponent, mantissa) = (i32::from(byte >> 2 & 31), byte & 3);
            let magnitude = match exponent {
                0 => f64::from(mantissa) / 4.0 * 2f64.powi(-14),
                31 => f64::INFINITY,
                e => (1.0 + f64::from(mantissa) / 4.0) * 2f64.powi(e - 15),
            };
            let want = if byte & 0x80 == 0 { magnitude } else { -magnitude } as f32;
            let got = F8E5M2::load(&[byte]);
            if exponent == 31 && mantissa != 0 {
                assert!(got.is_nan());
            } else {
                assert_eq!(got.to_bits(), want.to_bits(), "{byte:#x}");
            }
        }
        assert_eq!(F8E5M2::load(&[0x7b]), 57_344.0);
    }
}
