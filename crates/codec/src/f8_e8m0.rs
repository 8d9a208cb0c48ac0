//! F8_E8M0: a power of two, 2^(byte − 127), which scales are stored as; 255 is no number. Source: OCP Microscaling
//! Formats (MX) v1.0. Read only, in safetensors files.

use crate::float::Number;

pub(crate) struct F8E8M0;

impl Number for F8E8M0 {
    const NAME: &'static str = "F8_E8M0";
    const GGML: Option<u32> = None;
    const BYTES: usize = 1;
    const FLOAT: bool = false;

    #[inline(always)]
    fn load(bytes: &[u8]) -> f32 {
        match bytes[0] {
            // 2^-127 is subnormal.
            0 => f32::from_bits(0x0040_0000),
            255 => f32::NAN,
            e => f32::from_bits(u32::from(e) << 23),
        }
    }

    fn store(_: f32, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_is_a_power_of_two() {
        for byte in 0..255u8 {
            let want = 2f64.powi(i32::from(byte) - 127) as f32;
            assert_eq!(F8E8M0::load(&[byte]).to_bits(), want.to_bits());
        }
        assert!(F8E8M0::load(&[255]).is_nan());
    }
}
