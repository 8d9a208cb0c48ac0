//! MXFP4: 32 values of 4-bit floating point (E2M1) with a power of two as scale, 4.25 bits.
//!
//! Layout (17 bytes): scale byte e, the scale being 2^(e − 127); 16 bytes, value i in the low nibble of byte i,
//! value i + 16 in its high nibble. `value = scale · e2m1`, here half the scale times twice the number, which is
//! whole. Source: OCP Microscaling Formats (MX) v1.0; ggml for the order, and for e = 255 (NaN in the
//! specification), which it reads as 2^128.
//!
//! Elsewhere (openai/gpt-oss, microscaling) the numbers of a block lie in pairs: value 2i in the low nibble of byte i,
//! value 2i + 1 in its high nibble, and the scale bytes in a tensor of their own. [`join`] and [`split`] re-arrange
//! them; no bit of a number or scale changes.
//!
//! Quantizing: of eight powers of two, from one that leaves the largest value in the lower part of the range to those that
//! cut off all that is larger than a fraction of it, the one with the least error.

use crate::Error;
use crate::block::Format;
use crate::search::{Levels, MAGIC, Tile, clamp, lanes, least, peak};
use crate::uneven::up;
use fonio_simd::Simd;

pub(crate) struct Mxfp4;

/// Twice the number behind the lower nibble: a sign, two bits of exponent and one of mantissa.
/// The magnitudes 0, 1, 2, 3, 4, 6, 8, 12 grow by 1, from 4 on by 2, from 8 on by 4.
#[inline(always)]
pub(crate) const fn twice_e2m1(nibble: u8) -> i8 {
    let m = nibble & 7;
    let magnitude = (m + m.saturating_sub(4) + 2 * m.saturating_sub(6)) as i8;
    if nibble & 8 == 0 { magnitude } else { -magnitude }
}

/// What [`twice_e2m1`] is of each nibble, 128 higher.
const TWICE_E2M1_UP: [u8; 16] = up(&{
    let (mut values, mut i) = ([0; 16], 0);
    while i < 16 {
        values[i] = twice_e2m1(i as u8);
        i += 1;
    }
    values
});

/// 2^(e − 128), half of the scale: subnormal for e < 2.
#[inline(always)]
fn half_scale(e: u8) -> f32 {
    let e = u32::from(e);
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
}

impl Format for Mxfp4 {
    const NAME: &'static str = "MXFP4";
    const GGML: Option<u32> = Some(39);
    const LEN: usize = 32;
    const BYTES: usize = 17;
    const GROUP: usize = 32;
    const CAN_QUANTIZE: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], _: &mut [f32]) {
        scale[0] = half_scale(block[0]);
        for i in 0..16 {
            let byte = block[1 + i];
            q[i] = twice_e2m1(byte);
            q[i + 16] = twice_e2m1(byte >> 4);
        }
    }

    const DIRECT: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        s.look_up(&TWICE_E2M1_UP, s.nibbles(&blocks[at / 32 * Self::BYTES + 1..], Self::BYTES))
    }

    #[inline(always)]
    fn scales<S: Simd>(_: S, block: &[u8], scale: &mut [f32], _: &mut [f32]) {
        scale[0] = half_scale(block[0]);
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        let e = match importance {
            None => best_scale::<0>(src, &[]),
            Some(w) => best_scale::<1>(src, w),
        };
        block[0] = e as u8;
        let inverse = power(128 - e);
        for i in 0..16 {
            block[1 + i] = nibble(src[i] * inverse) | nibble(src[i + 16] * inverse) << 4;
        }
    }
}

/// Bytes of a block's numbers.
pub const NUMBERS: usize = 16;

/// Makes blocks of numbers in pairs ([`NUMBERS`] bytes each) and their scale bytes.
pub fn join(pairs: &[u8], scales: &[u8], dst: &mut [u8]) -> Result<(), Error> {
    check(dst.len(), pairs.len(), scales.len())?;
    let blocks = dst.chunks_exact_mut(Mxfp4::BYTES).zip(pairs.chunks_exact(NUMBERS)).zip(scales);
    for ((block, pairs), &scale) in blocks {
        block[0] = scale;
        for i in 0..8 {
            let (first, second) = (pairs[i], pairs[i + 8]);
            block[1 + 2 * i] = first & 15 | second << 4;
            block[2 + 2 * i] = first >> 4 | second & 0xf0;
        }
    }
    Ok(())
}

/// Takes blocks apart: the inverse of [`join`], byte for byte.
pub fn split(src: &[u8], pairs: &mut [u8], scales: &mut [u8]) -> Result<(), Error> {
    check(src.len(), pairs.len(), scales.len())?;
    let blocks = src.chunks_exact(Mxfp4::BYTES).zip(pairs.chunks_exact_mut(NUMBERS)).zip(scales);
    for ((block, pairs), scale) in blocks {
        *scale = block[0];
        for i in 0..8 {
            let (even, odd) = (block[1 + 2 * i], block[2 + 2 * i]);
            pairs[i] = even & 15 | odd << 4;
            pairs[i + 8] = even >> 4 | odd & 0xf0;
        }
    }
    Ok(())
}

fn check(blocks: usize, pairs: usize, scales: usize) -> Result<(), Error> {
    let dtype = Mxfp4::NAME;
    for (got, each) in [(blocks, Mxfp4::BYTES), (pairs, NUMBERS)] {
        if scales.checked_mul(each) != Some(got) {
            let len = scales.saturating_mul(Mxfp4::LEN);
            return Err(Error::WrongSize { dtype, len, want: scales.saturating_mul(each), got });
        }
    }
    Ok(())
}

/// The scale byte with the least error.
#[inline(always)]
fn best_scale<const W: usize>(src: &[f32], importance: &[f32]) -> i32 {
    // Below 2, half the scale is subnormal; above 252 the largest value would be infinite.
    const LO: i32 = 2;
    const HI: i32 = 252;
    // Scales reach much lower than those in half precision: the tile gets values that are near 1.
    let raise = exponent(peak(src)).min(126);
    let mut values = [0f32; 32];
    for (value, &x) in values.iter_mut().zip(src) {
        *value = x * power(-raise);
    }
    let Some(tile) = Tile::<32, 1, W, false>::new(&values, importance) else { return LO };
    let unit = exponent(tile.unit) + raise;
    let e = |l: usize| (128 + unit - l as i32).clamp(LO, HI);
    let scale: [f32; 8] = lanes(|l| power(e(l) - 128 - unit));
    e(least(&tile.scale_error::<TwiceE2m1, 8>(&scale)))
}

/// The exponent e of a number between 2^e and 2^(e + 1), −127 for subnormal numbers and 0.
#[inline(always)]
fn exponent(x: f32) -> i32 {
    (x.to_bits() >> 23 & 255) as i32 - 127
}

/// 2^e for e from −126 to 127.
#[inline(always)]
fn power(e: i32) -> f32 {
    f32::from_bits(((e + 127) as u32) << 23)
}

/// Doubled E2M1 numbers as what a scale is searched for.
struct TwiceE2m1;

impl Levels for TwiceE2m1 {
    #[inline(always)]
    fn nearest(t: f32) -> f32 {
        let a = clamp(t.abs(), 0.0, 12.0);
        // Half the power of two below `a` is the distance of neighbours, from 2 on.
        let half = f32::from_bits(a.to_bits() & 0x7f80_0000) * 0.5;
        let magic = MAGIC * if half > 1.0 { half } else { 1.0 };
        ((a + magic) - magic).copysign(t)
    }
}

/// The nibble of the number nearest to `t`, which is doubled.
#[inline(always)]
fn nibble(t: f32) -> u8 {
    let mut below = 0u32;
    for middle in [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0] {
        below += u32::from(t.abs() > middle);
    }
    below as u8 | if t < -0.5 { 8 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_in_pairs_are_the_same_numbers_and_come_back() {
        let pairs: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(37).wrapping_add(11)).collect();
        let scales = [0, 120, 127, 252];
        let mut blocks = [0; 4 * 17];
        join(&pairs, &scales, &mut blocks).unwrap();
        let mut values = [0f32; 128];
        crate::list::MXFP4.dequantize(fonio_simd::Isa::scalar(), &blocks, &mut values).unwrap();
        let e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (i, &value) in values.iter().enumerate() {
            let nibble = pairs[i / 2] >> (4 * (i % 2)) & 15;
            let sign = if nibble < 8 { 1.0 } else { -1.0 };
            let scale = 2f64.powi(i32::from(scales[i / 32]) - 127);
            assert_eq!(f64::from(value), sign * e2m1[usize::from(nibble & 7)] * scale, "{i}");
        }
        let (mut back, mut back_scales) = ([0; 64], [0; 4]);
        split(&blocks, &mut back, &mut back_scales).unwrap();
        assert_eq!((&back[..], back_scales), (&pairs[..], scales));
        assert!(join(&pairs[1..], &scales, &mut blocks).is_err());
        assert!(split(&blocks[1..], &mut back, &mut back_scales).is_err());
    }

    #[test]
    fn nearest_is_nearest() {
        for i in -1500..1500 {
            let t = i as f32 * 0.01;
            let distance = |level: f32| (level - t).abs();
            let least = (0..16).map(|n| distance(f32::from(twice_e2m1(n)))).fold(f32::MAX, f32::min);
            assert_eq!(distance(TwiceE2m1::nearest(t)), least, "{t}");
            assert_eq!(distance(f32::from(twice_e2m1(nibble(t)))), least, "{t}");
        }
        assert_eq!([TwiceE2m1::nearest(f32::NEG_INFINITY), TwiceE2m1::nearest(f32::INFINITY)], [-12.0, 12.0]);
    }
}
