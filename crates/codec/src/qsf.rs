//! The blocks of QSF files: `B` values (32, 64, 128 or 256) that share a scale.
//!
//! | kind | layout | values |
//! |---|---|---|
//! | `2bit`, `3bit`, `4bit` | scale `f16`; minimum `f16`; the integers from the lowest bit on, one stream of bits | `scale · q + min` |
//! | `4bit_sym` | scale `f16`; two zero bytes; nibbles, the lower first | `scale · q − 8 · scale` |
//! | `2bit_sym` | scale `f16`; two-bit integers from the lowest bit on | `scale · (2q − 3)` |
//! | `8bit` | scale `f16`; bytes from −127 to 127 | `scale · q` |
//! | `ternary` | scale `f16`; `⌈B/5⌉` bytes of ternary digits | `scale · (digit − 1)` |
//!
//! The first four are those of version 1 of the format, which is why symmetric nibbles have two zeros where others have
//! a minimum; a reader passes over them. Version 2 has the rest.
//!
//! Two bits without a minimum mean ±1 and ±3: both tails get the same reach, and the root mean square of the error is 4,
//! 6 and 8 % less than with −2 … 1 for blocks of 64, 128 and 256 of a normal distribution (3, 5 and 6 % on the weights of
//! MiniLM; of 32: the same). Ternary digits are five to a byte (1.875 bits for `B` = 64, where two bits for each were
//! 2.25): digit n of byte i is value `n · ⌈B/5⌉ + i`, so that each digit is one run; places behind the last value
//! hold digit 0. A byte is a fraction b/256 in base 3, as in TQ1_0: digit n is the whole part of three times what is left
//! after n digits.

use crate::DType;
use crate::block::{Format, Head, f16_at, f16_to_f32};
use crate::search::{Ints, Levels, inverse_of_half, nearest, round};
use crate::single::{refined_scale, refined_scale_and_offset};
use fonio_simd::{Isa, Simd, Task};
use std::marker::PhantomData;

/// The kinds, as they begin the names of types: `2bit_64` has blocks of 64.
pub const KINDS: &[&str] = &["2bit", "3bit", "4bit", "2bit_sym", "4bit_sym", "8bit", "ternary"];
/// Values that a block may have.
pub const BLOCKS: &[usize] = &[32, 64, 128, 256];

/// The type of this kind, in any case, with `block` values in a block.
pub fn named(kind: &str, block: usize) -> Option<DType> {
    let kind = KINDS.iter().find(|k| k.eq_ignore_ascii_case(kind))?;
    DType::named(&format!("{kind}_{block}"))
}

/// Which kind and how many values in a block a type of QSF's has.
pub fn kind(dtype: DType) -> Option<(&'static str, usize)> {
    let kind = dtype.name().rsplit_once('_')?.0;
    Some((KINDS.iter().copied().find(|k| *k == kind)?, dtype.block_len()))
}

/// What blocks of all lengths have in common.
pub(crate) trait Kind: Sync + Send + 'static {
    /// Names by length, from 32 on.
    const NAMES: [&'static str; 4];
    /// Bits of an integer; 0 for ternary digits, five to a byte.
    const BITS: usize;
    /// Bytes before the integers.
    const HEAD: usize;
    /// How a block begins.
    const BEGIN: Head;
    /// Reads the integers.
    fn integers(data: &[u8], q: &mut [i8]);
    /// As [`Format::OFFSET`] and [`Format::DIRECT`].
    const OFFSET: u8;
    /// See there.
    const DIRECT: bool = true;
    /// The integers with `OFFSET` added, 32 at each of as many places as a vector has room for, `step` bytes apart.
    #[inline(always)]
    fn bytes<S: Simd>(_s: S, _data: &[u8], _step: usize) -> S::I {
        unreachable!("asked only where it is there")
    }
    /// Packs a block, which comes as zeros.
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]);
}

/// Blocks of `B` values of a kind.
pub(crate) struct Blocks<K, const B: usize>(PhantomData<K>);

impl<K: Kind, const B: usize> Format for Blocks<K, B> {
    const NAME: &'static str = K::NAMES[(B / 32).ilog2() as usize];
    const LEN: usize = B;
    const BYTES: usize = K::HEAD + if K::BITS == 0 { B.div_ceil(5) } else { B * K::BITS / 8 };
    const GROUP: usize = 32;
    const HAS_MIN: bool = !matches!(K::BEGIN, Head::Scale);
    const CAN_QUANTIZE: bool = true;
    const HEAD: Head = K::BEGIN;

    #[inline(always)]
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], min: &mut [f32]) {
        let d = f16_at(block, 0);
        scale.fill(d);
        match K::BEGIN {
            Head::ScaleAndOffset => min.fill(-f16_at(block, 2)),
            Head::ScaleAroundEight => min.fill(8.0 * d),
            Head::Scale | Head::Own => {}
        }
        K::integers(&block[K::HEAD..], q);
    }

    const OFFSET: u8 = K::OFFSET;
    const DIRECT: bool = K::DIRECT;

    #[inline(always)]
    fn bytes<S: Simd>(s: S, blocks: &[u8], at: usize) -> S::I {
        let data = &blocks[at / B * Self::BYTES + K::HEAD + at % B / 8 * K::BITS..];
        K::bytes(s, data, if B == 32 { Self::BYTES } else { 4 * K::BITS })
    }

    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        block.fill(0);
        K::quantize(src, importance, block);
    }

    fn quantize_all(isa: Isa, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
        dst.fill(0);
        isa.run(Quantize::<K> { src, importance, dst, len: B, kind: PhantomData });
    }
}

/// One search for all lengths of a kind: it is long, and a length that is known would not make it faster.
struct Quantize<'a, K> {
    src: &'a [f32],
    importance: Option<&'a [f32]>,
    dst: &'a mut [u8],
    len: usize,
    kind: PhantomData<K>,
}

impl<K: Kind> Task for Quantize<'_, K> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let blocks = self.src.chunks_exact(self.len);
        let bytes = self.dst.len() / blocks.len().max(1);
        for (i, (values, block)) in blocks.zip(self.dst.chunks_exact_mut(bytes.max(1))).enumerate() {
            K::quantize(values, self.importance.map(|w| &w[i * self.len..(i + 1) * self.len]), block);
        }
    }
}

/// Unpacks integers of `BITS` bits, one stream from the lowest bit on.
#[inline(always)]
fn unpack_bits<const BITS: usize>(packed: &[u8], out: &mut [i8]) {
    // Eight integers are `BITS` whole bytes.
    for (bytes, out) in packed.chunks_exact(BITS).zip(out.chunks_exact_mut(8)) {
        let mut word = 0u32;
        for (i, &byte) in bytes.iter().enumerate() {
            word |= u32::from(byte) << (8 * i);
        }
        for (i, out) in out.iter_mut().enumerate() {
            *out = (word >> (BITS * i)) as i8 & ((1 << BITS) - 1);
        }
    }
}

/// Writes what [`unpack_bits`] reads, of what `int` makes of the values.
#[inline(always)]
fn pack_bits<const BITS: usize>(src: &[f32], data: &mut [u8], int: impl Fn(f32) -> i32) {
    for (bytes, x) in data.chunks_exact_mut(BITS).zip(src.chunks_exact(8)) {
        let mut word = 0u32;
        for (i, x) in x.iter().enumerate() {
            word |= (int(*x) as u32) << (BITS * i);
        }
        for i in 0..BITS {
            bytes[i] = (word >> (8 * i)) as u8;
        }
    }
}

/// Integers of `BITS` bits with a minimum.
pub(crate) struct Offset<const BITS: usize>;

/// Where searches begin, by bits from 2 on: how many steps of the least and of the largest value are cut off. Each start
/// is the one that helps most beside those before it, on a bell curve and on real weights, for blocks of all lengths;
/// three more are for values far from the rest. The last is not looked at.
const OFFSETS: [[(f32, f32); 16]; 3] = [
    [
        (0.82, 0.82),
        (1.17, 0.46),
        (0.46, 1.17),
        (0.82, 1.17),
        (1.17, 0.82),
        (0.11, 0.11),
        (1.52, 0.46),
        (0.46, 1.52),
        (1.52, 1.52),
        (1.88, 1.17),
        (0.46, 0.11),
        (1.17, 1.88),
        (3.0, 3.0),
        (0.3, 4.0),
        (4.0, 0.3),
        (0.0, 0.0),
    ],
    [
        (0.82, 0.82),
        (0.46, 1.17),
        (1.17, 0.46),
        (0.11, 0.11),
        (1.52, 1.52),
        (0.46, -0.25),
        (0.11, 0.46),
        (0.82, 1.88),
        (1.88, 1.17),
        (0.82, 1.17),
        (0.82, 0.46),
        (2.23, 0.82),
        (3.5, 3.5),
        (0.3, 5.0),
        (5.0, 0.3),
        (0.0, 0.0),
    ],
    [
        (0.46, 0.46),
        (0.82, 0.11),
        (0.11, 0.82),
        (0.11, -0.6),
        (-0.25, 0.11),
        (0.82, 1.17),
        (1.17, 0.82),
        (0.11, -0.25),
        (-0.6, 0.11),
        (0.82, 1.52),
        (1.52, 0.82),
        (0.46, 0.11),
        (4.0, 4.0),
        (0.3, 6.0),
        (6.0, 0.3),
        (0.0, 0.0),
    ],
];

macro_rules! offset {
    ($bits:literal, $levels:literal, $top:literal, $names:expr) => {
        impl Kind for Offset<$bits> {
            const NAMES: [&'static str; 4] = $names;
            const BITS: usize = $bits;
            const HEAD: usize = 4;
            const BEGIN: Head = Head::ScaleAndOffset;

            #[inline(always)]
            fn integers(data: &[u8], q: &mut [i8]) {
                unpack_bits::<$bits>(data, q);
            }
            const OFFSET: u8 = 0;
            #[inline(always)]
            fn bytes<S: Simd>(s: S, data: &[u8], step: usize) -> S::I {
                s.bits::<$bits>(data, step)
            }
            #[inline(always)]
            fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
                let starts = &OFFSETS[$bits - 2];
                let (d, m) = refined_scale_and_offset::<Ints<0, $levels>, 16>(src, importance, $top, starts);
                let (inverse, offset) = (inverse_of_half(d), f16_to_f32(m));
                block[..2].copy_from_slice(&d.to_le_bytes());
                block[2..4].copy_from_slice(&m.to_le_bytes());
                pack_bits::<$bits>(src, &mut block[4..], |x| nearest::<0, $levels>((x - offset) * inverse));
            }
        }
    };
}

offset!(2, 3, 3.0, ["2bit_32", "2bit_64", "2bit_128", "2bit_256"]);
offset!(3, 7, 7.0, ["3bit_32", "3bit_64", "3bit_128", "3bit_256"]);
offset!(4, 15, 15.0, ["4bit_32", "4bit_64", "4bit_128", "4bit_256"]);

/// Nibbles around 8. The minimum is that of the whole range: value and minimum are exact products of the scale.
pub(crate) struct Symmetric4;

impl Kind for Symmetric4 {
    const NAMES: [&'static str; 4] = ["4bit_sym_32", "4bit_sym_64", "4bit_sym_128", "4bit_sym_256"];
    const BITS: usize = 4;
    const HEAD: usize = 4;
    const BEGIN: Head = Head::ScaleAroundEight;

    #[inline(always)]
    fn integers(data: &[u8], q: &mut [i8]) {
        unpack_bits::<4>(data, q);
    }
    const OFFSET: u8 = 0;
    #[inline(always)]
    fn bytes<S: Simd>(s: S, data: &[u8], step: usize) -> S::I {
        s.bits::<4>(data, step)
    }
    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        /// Levels of the value with the largest magnitude: the sign decides which end of −8 … 7 it goes to.
        const STARTS: [f32; 16] =
            [-8.0, -8.5, 7.2, -9.0, -7.5, 8.0, -9.6, -7.0, -10.4, 9.0, -6.3, 10.0, -11.4, -12.6, -14.0, 7.0];
        let d = refined_scale::<Ints<-8, 7>, 16>(src, importance, 7.0, &STARTS);
        let inverse = inverse_of_half(d);
        block[..2].copy_from_slice(&d.to_le_bytes());
        pack_bits::<4>(src, &mut block[4..], |x| nearest::<-8, 7>(x * inverse) + 8);
    }
}

/// The levels −3, −1, 1 and 3.
pub(crate) struct Symmetric2;

struct Odd;

impl Levels for Odd {
    #[inline(always)]
    fn nearest(t: f32) -> f32 {
        2.0 * round(crate::search::clamp(0.5 * t + 1.5, 0.0, 3.0)) - 3.0
    }
}

impl Kind for Symmetric2 {
    const NAMES: [&'static str; 4] = ["2bit_sym_32", "2bit_sym_64", "2bit_sym_128", "2bit_sym_256"];
    const BITS: usize = 2;
    const HEAD: usize = 2;
    const BEGIN: Head = Head::Scale;

    #[inline(always)]
    fn integers(data: &[u8], q: &mut [i8]) {
        unpack_bits::<2>(data, q);
        for i in 0..q.len() {
            q[i] = 2 * q[i] - 3;
        }
    }
    const OFFSET: u8 = 3;
    #[inline(always)]
    fn bytes<S: Simd>(s: S, data: &[u8], step: usize) -> S::I {
        s.shift_left::<1>(s.bits::<2>(data, step))
    }
    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        const STARTS: [f32; 16] =
            [3.0, 3.3, 3.6, 3.9, 4.2, 4.5, 4.8, 5.2, 5.6, 6.2, 7.0, 8.0, 9.5, 12.0, 2.6, 3.0];
        let d = refined_scale::<Odd, 16>(src, importance, 3.0, &STARTS);
        let inverse = inverse_of_half(d);
        block[..2].copy_from_slice(&d.to_le_bytes());
        pack_bits::<2>(src, &mut block[2..], |x| nearest::<0, 3>(0.5 * (x * inverse) + 1.5));
    }
}

/// Bytes. −128 is never written, as in Q8_0.
pub(crate) struct Byte;

impl Kind for Byte {
    const NAMES: [&'static str; 4] = ["8bit_32", "8bit_64", "8bit_128", "8bit_256"];
    const BITS: usize = 8;
    const HEAD: usize = 2;
    const BEGIN: Head = Head::Scale;

    #[inline(always)]
    fn integers(data: &[u8], q: &mut [i8]) {
        let data = &data[..q.len()];
        for i in 0..q.len() {
            q[i] = data[i] as i8;
        }
    }
    const OFFSET: u8 = 128;
    #[inline(always)]
    fn bytes<S: Simd>(s: S, data: &[u8], step: usize) -> S::I {
        s.xor_bytes(s.blocks(data, step), 128)
    }
    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        /// With 255 levels the error of a scale is near to chance: what helps is to try several.
        const STARTS: [f32; 16] = [
            127.0, 127.4, 126.5, 126.0, 125.5, 125.0, 124.5, 124.0, 123.5, 123.0, 122.5, 122.0, 121.0, 120.0,
            118.0, 127.0,
        ];
        let d = refined_scale::<Ints<-127, 127>, 16>(src, importance, 127.0, &STARTS);
        let inverse = inverse_of_half(d);
        block[..2].copy_from_slice(&d.to_le_bytes());
        for (byte, x) in block[2..].iter_mut().zip(src) {
            *byte = nearest::<-127, 127>(x * inverse) as u8;
        }
    }
}

/// −1, 0 and 1.
pub(crate) struct Ternary;

impl Kind for Ternary {
    const NAMES: [&'static str; 4] = ["ternary_32", "ternary_64", "ternary_128", "ternary_256"];
    const BITS: usize = 0;
    const HEAD: usize = 2;
    const BEGIN: Head = Head::Scale;

    const OFFSET: u8 = 1;
    const DIRECT: bool = false;

    #[inline(always)]
    fn integers(data: &[u8], q: &mut [i8]) {
        // Runs are a little longer than they should be, so that vectors are whole; the next one goes over what is too
        // much.
        const MOST: usize = 64;
        let run = data.len();
        let whole = run.next_power_of_two();
        let (mut bytes, mut digits) = ([0u8; MOST], [0i8; 5 * MOST]);
        bytes[..run].copy_from_slice(data);
        let mut power = 1u8;
        for n in 0..5 {
            let digits = &mut digits[n * run..n * run + whole];
            for i in 0..whole {
                digits[i] = ((u16::from(bytes[i].wrapping_mul(power)) * 3) >> 8) as i8 - 1;
            }
            power = power.wrapping_mul(3);
        }
        q.copy_from_slice(&digits[..q.len()]);
    }
    #[inline(always)]
    fn quantize(src: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
        const STARTS: [f32; 16] =
            [1.0, 1.15, 1.3, 1.45, 1.6, 1.75, 1.9, 2.05, 2.2, 2.4, 2.6, 2.9, 3.3, 4.0, 5.0, 1.0];
        let d = refined_scale::<Ints<-1, 1>, 16>(src, importance, 1.0, &STARTS);
        let inverse = inverse_of_half(d);
        block[..2].copy_from_slice(&d.to_le_bytes());
        let data = &mut block[2..];
        let run = data.len();
        for i in 0..run {
            let mut number = 0u16;
            for n in 0..5 {
                let digit = src.get(n * run + i).map_or(0, |x| nearest::<-1, 1>(x * inverse) + 1);
                number = number * 3 + digit as u16;
            }
            // The least fraction of 256 that is not below number/243.
            data[i] = (number * 256).div_ceil(243) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list;

    #[test]
    fn every_kind_has_every_length() {
        for kind in KINDS {
            for &block in BLOCKS {
                let t = named(&kind.to_uppercase(), block).unwrap();
                assert_eq!((t.name(), t.block_len()), (&*format!("{kind}_{block}"), block));
                assert_eq!(super::kind(t), Some((*kind, block)));
                assert_eq!(t.ggml_type(), None);
            }
            assert!(named(kind, 16).is_none());
        }
        assert!(named("Q4", 0).is_none() && super::kind(list::Q4_0).is_none());
        assert_eq!(list::ALL.iter().filter(|t| super::kind(**t).is_some()).count(), 28);
        let bits = |kind| named(kind, 64).unwrap().block_bytes();
        assert_eq!(KINDS.iter().map(|k| bits(k)).collect::<Vec<_>>(), [20, 28, 36, 18, 36, 66, 15]);
    }

    /// Version 1's rule: `scale · q + min` in `f32`, read bit by bit.
    #[test]
    fn values_of_version_1_are_its_own_bit_for_bit() {
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        for (kind, bits) in [("2bit", 2), ("3bit", 3), ("4bit", 4), ("4bit_sym", 4)] {
            for &len in BLOCKS {
                let t = named(kind, len).unwrap();
                for _ in 0..500 {
                    let block: Vec<u8> = (0..t.block_bytes()).map(|_| random()).collect();
                    let half = |at| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
                    let scale = half(0);
                    let min = if kind == "4bit_sym" { -8.0 * scale } else { half(2) };
                    let bit = |n: usize| u32::from(block[4 + n / 8] >> (n % 8) & 1);
                    let want = (0..len).map(|i| {
                        let q = (0..bits).map(|b| bit(i * bits + b) << b).sum::<u32>();
                        scale * q as f32 + min
                    });
                    let mut got = vec![0.0; len];
                    t.dequantize(Isa::detect(), &block, &mut got).unwrap();
                    for (got, want) in got.iter().zip(want) {
                        assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{t}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_the_levels_are_is_kept() {
        for (kind, levels) in [
            ("2bit", &[0.5f32, 0.75, 1.0, 1.25][..]),
            ("2bit_sym", &[-0.75, -0.25, 0.25, 0.75]),
            ("ternary", &[-0.5, 0.0, 0.5]),
            ("8bit", &[-127.0, 0.0, 1.0, 64.0, 127.0]),
            ("4bit_sym", &[-8.0, -7.0, 0.0, 3.0, 7.0]),
        ] {
            for &block in BLOCKS {
                let t = named(kind, block).unwrap();
                let values: Vec<f32> = (0..block).map(|i| levels[i * i % 101 % levels.len()]).collect();
                let (mut packed, mut back) = (vec![0; t.block_bytes()], vec![0.0; block]);
                t.quantize(Isa::detect(), &values, None, &mut packed).unwrap();
                t.dequantize(Isa::detect(), &packed, &mut back).unwrap();
                assert_eq!(back, values, "{t}");
            }
        }
    }
}
