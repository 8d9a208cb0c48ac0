//! The 16 uneven levels of IQ4_NL and IQ4_XS: looking them up, finding the nearest.

use crate::search::{Levels, Starts, ratio};

/// The levels, finer near 0, where weights are many.
pub(crate) const LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The levels, 128 higher.
pub(crate) const LEVELS_UP: [u8; 16] = up(&LEVELS);

/// Integers, 128 higher.
pub(crate) const fn up(integers: &[i8; 16]) -> [u8; 16] {
    let (mut bytes, mut i) = ([0; 16], 0);
    while i < 16 {
        bytes[i] = (integers[i] as u8).wrapping_add(128);
        i += 1;
    }
    bytes
}

/// The level behind the lower nibble.
#[inline(always)]
pub(crate) fn level(nibble: u8) -> i8 {
    LEVELS[usize::from(nibble & 15)]
}

/// Halfway between level i and the next.
const fn middle(i: usize) -> f32 {
    (LEVELS[i] as i32 + LEVELS[i + 1] as i32) as f32 * 0.5
}

/// The nibble of the level nearest to `t`.
#[inline(always)]
fn nibble(t: f32) -> u8 {
    let mut below = 0u32;
    for i in 0..15 {
        below += u32::from(t > middle(i));
    }
    below as u8
}

/// [`LEVELS`] as what a scale is searched for.
pub(crate) struct Uneven;

impl Levels for Uneven {
    #[inline(always)]
    fn nearest(t: f32) -> f32 {
        let mut nearest = f32::from(LEVELS[0]);
        for i in 0..15 {
            nearest = if t > middle(i) { f32::from(LEVELS[i + 1]) } else { nearest };
        }
        nearest
    }
}

/// Where the search starts: chosen one after another by what each gains on real weights. Scales may be
/// negative, and the levels reach further below zero than above.
pub(crate) const STARTS: Starts<f32, 16, 16> = Starts {
    plain: [
        -128.0, 114.0, -137.0, -122.0, -107.0, 123.0, -131.0, 108.0, -113.0, 117.0, -140.0, -101.0, -125.0,
        90.0, -119.0, -134.0,
    ],
    weighted: [
        -134.0, 117.0, -113.0, -158.0, 138.0, 93.0, 162.0, -125.0, -89.0, -194.0, -104.0, 105.0, 204.0,
        -143.0, 126.0, 72.0,
    ],
};

/// Writes 16 bytes of nibbles: the levels nearest to 32 values at a scale.
#[inline(always)]
pub(crate) fn pack(src: &[f32], scale: f32, bytes: &mut [u8]) {
    let inverse = ratio(1.0, scale);
    let mut nibbles = [0u8; 32];
    for (out, &x) in nibbles.iter_mut().zip(src) {
        *out = nibble(x * inverse);
    }
    for (i, byte) in bytes[..16].iter_mut().enumerate() {
        *byte = nibbles[i] | nibbles[i + 16] << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_is_nearest() {
        for i in -1400..1400 {
            let t = i as f32 * 0.1;
            let distance = |l: f32| (l - t).abs();
            let least = LEVELS.iter().map(|&l| distance(f32::from(l))).fold(f32::MAX, f32::min);
            assert_eq!(distance(Uneven::nearest(t)), least, "{t}");
            assert_eq!(f32::from(level(nibble(t))), Uneven::nearest(t), "{t}");
        }
        assert_eq!([Uneven::nearest(f32::NEG_INFINITY), Uneven::nearest(f32::INFINITY)], [-127.0, 113.0]);
    }
}
