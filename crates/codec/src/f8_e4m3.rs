//! F8_E4M3: an 8-bit float with 4 bits of exponent around 7 and 3 of mantissa, without infinities.
//!
//! Exponent 0 holds multiples of 2^-9; the largest number is 448; only 0x7f and 0xff are no numbers. Source: OCP 8-bit
//! Floating Point Specification (OFP8) v1.0. Read only, in safetensors files.

use crate::float::Number;

pub(crate) struct F8E4M3;

impl Number for F8E4M3 {
    const NAME: &'static str = "F8_E4M3";
    const GGML: Option<u32> = None;
    const BYTES: usize = 1;
    const FLOAT: bool = false;

    #[inline(always)]
    fn load(bytes: &[u8]) -> f32 {
        let magnitude = u32::from(bytes[0] & 0x7f);
        let sign = u32::from(bytes[0] & 0x80) << 24;
        let subnormal = magnitude as f32 * (1.0 / 512.0);
        // Others only need their exponent moved.
        let normal = f32::from_bits((magnitude << 20) + ((127 - 7) << 23));
        let wide = if magnitude == 0x7f {
            f32::NAN
        } else if magnitude < 8 {
            subnormal
        } else {
            normal
        };
        f32::from_bits(wide.to_bits() | sign)
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
            let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
            let magnitude = match exponent {
                0 => mantissa / 8.0 * 2f64.powi(-6),
                e => (1.0 + mantissa / 8.0) * 2f64.powi(e - 7),
            };
            let want = if byte & 0x80 == 0 { magnitude } else { -magnitude } as f32;
            let got = F8E4M3::load(&[byte]);
            if byte & 0x7f == 0x7f {
                assert!(got.is_nan());
            } else {
                assert_eq!(got.to_bits(), want.to_bits(), "{byte:#x}");
            }
        }
        assert_eq!(F8E4M3::load(&[0x7e]), 448.0);
    }
}
