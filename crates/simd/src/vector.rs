//! Portable vector operations: one trait, one implementation for each instruction set.
//!
//! Code generic over [`Simd`] is written once as a [`VectorTask`] and compiled for every level by
//! [`crate::Isa::vector`]. Values of the implementing types are witnesses: they are made only there, after the CPU was
//! asked, which is what makes their methods safe.

/// Values of which [`Simd::group_dots`] takes whole runs.
pub const SPAN: usize = 256;

/// Vectors of `LANES` `f32` or `i32`.
///
/// Slices that are too short panic. Every method must be inlined into a function that was compiled with the
/// features of its level.
pub trait Simd: Copy + Send + Sync {
    /// `LANES` single-precision numbers.
    type F: Copy;
    /// `LANES` 32-bit integers.
    type I: Copy;
    /// Lanes of a vector.
    const LANES: usize;
    /// Whether [`Simd::lane_dots`] takes signed bytes with 128 added.
    const BIASED: bool = false;

    /// The same number in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// The first `LANES` numbers.
    fn load(self, x: &[f32]) -> Self::F;
    /// Puts the lanes into the first `LANES` places.
    fn store(self, v: Self::F, out: &mut [f32]);
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`; rounded once where the CPU can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The sum of the lanes: halves are added until one lane is left.
    fn sum(self, v: Self::F) -> f32;
    /// The nearest `f32` of each integer.
    fn to_f32(self, v: Self::I) -> Self::F;
    /// The first `LANES` integers.
    fn load_i(self, x: &[i32]) -> Self::I;
    /// The same integer in every lane.
    fn splat_i(self, x: i32) -> Self::I;
    /// The first `4 · LANES` bytes, four to a lane.
    fn load_bytes(self, x: &[i8]) -> Self::I;
    /// Adds to lane `l` the products of the four bytes of lane `l` of `w` with those of `a`, which are from −127 to 127.
    /// The bytes of `w` are any if `SIGNED`, else from 0 to 127. With [`Simd::BIASED`], signed bytes are `w + 128` without
    /// a sign, and count as such.
    fn lane_dots<const SIGNED: bool>(self, sum: Self::I, w: Self::I, a: i32) -> Self::I;
    /// The sums of `w[i] · a[i]` over groups of `GROUP` (16 or 32) values, exactly, for `a` in −127 … 127. `w` is of all
    /// bytes if `SIGNED`, else of 0 … 127. `sums` are the sums of `a` over the groups.
    ///
    /// `w` and `a` are equally long, a multiple of 64; `sums` and `out` have a place for each group of as many whole
    /// [`SPAN`]s. What `out` gets behind the last group is anything.
    #[inline(always)]
    fn group_dots<const GROUP: usize, const SIGNED: bool>(
        self,
        w: &[i8],
        a: &[i8],
        _sums: &[i32],
        out: &mut [i32],
    ) {
        for ((out, w), a) in out.iter_mut().zip(w.chunks_exact(GROUP)).zip(a.chunks_exact(GROUP)) {
            *out = 0;
            for (&w, &a) in w.iter().zip(a) {
                *out += i32::from(w) * i32::from(a);
            }
        }
    }
    /// The two half-precision numbers at each of 16 places `step` bytes apart: the first ones, and the second ones.
    #[inline(always)]
    fn half_pairs(self, src: &[u8], step: usize, first: &mut [f32; 16], second: &mut [f32; 16]) {
        let (mut a, mut b) = ([0u16; 16], [0u16; 16]);
        for i in 0..16 {
            let pair = &src[i * step..][..4];
            a[i] = u16::from_le_bytes([pair[0], pair[1]]);
            b[i] = u16::from_le_bytes([pair[2], pair[3]]);
        }
        for i in 0..16 {
            first[i] = widen(a[i]);
            second[i] = widen(b[i]);
        }
    }
    /// Tells the CPU that as many bytes as these are will be read `ahead` bytes behind them, wherever that is.
    #[inline(always)]
    fn prefetch(self, _bytes: &[u8], _ahead: usize) {}
    /// What 32 nibbles stand for: first the lower ones of 16 bytes, then the upper ones.
    #[inline(always)]
    fn nibbles(self, levels: &[i8; 16], bytes: &[u8], out: &mut [i8]) {
        let (bytes, out) = (&bytes[..16], &mut out[..32]);
        for i in 0..16 {
            out[i] = levels[usize::from(bytes[i] & 15)];
            out[i + 16] = levels[usize::from(bytes[i] >> 4)];
        }
    }
    /// Adds `x` to those of 32 integers whose bit is set, the lowest first.
    #[inline(always)]
    fn add_where(self, bits: u32, x: i8, out: &mut [i8]) {
        for (i, out) in out[..32].iter_mut().enumerate() {
            *out = out.wrapping_add(((bits >> i) & 1) as i8 * x);
        }
    }
    /// Unpacks integers of `BITS` bits (2, 3 or 4), one stream from the lowest bit on, as they are: from 0 on. `out` has
    /// a multiple of 32 places and `packed` as many bytes as fill them; more are left alone.
    #[inline(always)]
    fn unpack_bits<const BITS: usize>(self, packed: &[u8], out: &mut [i8]) {
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
}

/// Widens a half-precision number in plain arithmetic, so that it is inlined and vectorized with its caller.
#[inline(always)]
pub fn widen(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let magnitude = u32::from(h & 0x7fff);
    // Subnormal halves are exact multiples of 2^-24; others only need their exponent moved.
    let normal = f32::from_bits((magnitude << 13) + ((127 - 15) << 23));
    let special = f32::from_bits((magnitude << 13) | 0x7f80_0000);
    let subnormal = magnitude as f32 * (1.0 / 16_777_216.0);
    let wide = if magnitude >= 0x7c00 {
        special
    } else if magnitude < 0x0400 {
        subnormal
    } else {
        normal
    };
    f32::from_bits(wide.to_bits() | sign)
}

/// Work generic over the vectors. Mark `run` and what it calls with `#[inline(always)]`.
pub trait VectorTask {
    /// What the work returns.
    type Output;
    /// Does the work with these vectors.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Eight lanes in plain Rust: the reference, and the fallback on CPUs without a version of their own.
#[derive(Clone, Copy)]
pub struct Scalar(());

impl Scalar {
    /// Every CPU has these.
    #[allow(clippy::new_without_default, reason = "levels are made in one way")]
    #[inline(always)]
    pub const fn new() -> Self {
        Scalar(())
    }
}

impl Simd for Scalar {
    type F = [f32; 8];
    type I = [i32; 8];
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> [f32; 8] {
        let mut v = [0.0; 8];
        v.copy_from_slice(&x[..8]);
        v
    }
    #[inline(always)]
    fn store(self, v: [f32; 8], out: &mut [f32]) {
        out[..8].copy_from_slice(&v);
    }
    #[inline(always)]
    fn add(self, mut a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
        a
    }
    #[inline(always)]
    fn mul(self, mut a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        for (a, b) in a.iter_mut().zip(b) {
            *a *= b;
        }
        a
    }
    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn sum(self, v: [f32; 8]) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    fn to_f32(self, v: [i32; 8]) -> [f32; 8] {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    fn load_i(self, x: &[i32]) -> [i32; 8] {
        let mut v = [0; 8];
        v.copy_from_slice(&x[..8]);
        v
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> [i32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn load_bytes(self, x: &[i8]) -> [i32; 8] {
        let mut v = [0; 8];
        for (lane, x) in v.iter_mut().zip(x[..32].chunks_exact(4)) {
            *lane = i32::from_le_bytes([x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8]);
        }
        v
    }
    #[inline(always)]
    fn lane_dots<const SIGNED: bool>(self, mut sum: [i32; 8], w: [i32; 8], a: i32) -> [i32; 8] {
        for (sum, w) in sum.iter_mut().zip(w) {
            for i in 0..4 {
                *sum += i32::from((w >> (8 * i)) as i8) * i32::from((a >> (8 * i)) as i8);
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    struct Dots<'a, const GROUP: usize, const SIGNED: bool>(&'a [i8], &'a [i8], &'a [i32], &'a mut [i32]);
    impl<const GROUP: usize, const SIGNED: bool> VectorTask for Dots<'_, GROUP, SIGNED> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            s.group_dots::<GROUP, SIGNED>(self.0, self.1, self.2, self.3);
        }
    }

    struct Bits<'a, const BITS: usize>(&'a [u8], &'a mut [i8]);
    impl<const BITS: usize> VectorTask for Bits<'_, BITS> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            s.unpack_bits::<BITS>(self.0, self.1);
        }
    }

    fn bits_are_read_from_the_lowest_on<const BITS: usize>() {
        for len in [0, 32, 64, 96, 128, 160, 256] {
            let packed: Vec<u8> = (0..len * BITS / 8).map(|i| (i * 73 + i * i * 29 + 5) as u8).collect();
            let bit = |n: usize| (packed[n / 8] >> (n % 8)) as i8 & 1;
            let want: Vec<i8> =
                (0..len).map(|i| (0..BITS).map(|b| bit(i * BITS + b) << b).sum::<i8>()).collect();
            for isa in Isa::available() {
                let mut out = vec![-1; len];
                isa.vector(Bits::<BITS>(&packed, &mut out));
                assert_eq!(out, want, "{BITS} bits, {len}, {isa}");
            }
        }
    }

    #[test]
    fn bits_are_unpacked_at_every_level() {
        bits_are_read_from_the_lowest_on::<2>();
        bits_are_read_from_the_lowest_on::<3>();
        bits_are_read_from_the_lowest_on::<4>();
    }

    fn dots_of_groups_are_exact<const GROUP: usize, const SIGNED: bool>() {
        for len in (64..=576).step_by(64) {
            // Extremes that would saturate 16-bit sums, then a spread of values.
            let least = if SIGNED { -128i8 } else { 0 };
            let w: Vec<i8> = (0..len)
                .map(|i| match i % 96 {
                    0..32 => least,
                    32..64 => 127,
                    _ => ((i * 91 + i / 7) % (if SIGNED { 256 } else { 128 })) as u8 as i8,
                })
                .collect();
            let a: Vec<i8> = (0..len)
                .map(|i| if i % 160 < 64 { [127, -127][i / 160 % 2] } else { ((i * 37) % 255) as i16 as i8 })
                .map(|a| a.max(-127))
                .collect();
            let room = len.next_multiple_of(SPAN) / GROUP;
            let mut sums: Vec<i32> =
                a.chunks_exact(GROUP).map(|a| a.iter().map(|&a| i32::from(a)).sum()).collect();
            sums.resize(room, 0);
            let products =
                |(w, a): (&[i8], &[i8])| w.iter().zip(a).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum();
            let want: Vec<i32> = w.chunks_exact(GROUP).zip(a.chunks_exact(GROUP)).map(products).collect();
            for isa in Isa::available() {
                let mut out = vec![i32::MIN; room];
                isa.vector(Dots::<GROUP, SIGNED>(&w, &a, &sums, &mut out));
                assert_eq!(out[..want.len()], want, "{GROUP} {SIGNED} {len} {isa}");
            }
        }
    }

    struct Halves<'a>(&'a [u8], usize, &'a mut [[f32; 16]; 2]);
    impl VectorTask for Halves<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let [first, second] = self.2;
            s.half_pairs(self.0, self.1, first, second);
        }
    }

    struct Nibbles<'a>(&'a [u8], u32, &'a mut [i8]);
    impl VectorTask for Nibbles<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            s.nibbles(&std::array::from_fn(|i| (i * i / 2) as i8 - 100), self.0, self.2);
            s.add_where(self.1, 16, self.2);
        }
    }

    #[test]
    fn nibbles_are_looked_up_and_high_bits_added_at_every_level() {
        let bytes: Vec<u8> = (0..16).map(|i| (i * 59 + 3) as u8).collect();
        let bits = 0x9a3c_0f51_u32;
        let want: Vec<i8> = (0..32)
            .map(|i| {
                let nibble = bytes[i % 16] >> (i / 16 * 4) & 15;
                (i32::from(nibble).pow(2) / 2) as i8 - 100 + 16 * (bits >> i & 1) as i8
            })
            .collect();
        for isa in Isa::available() {
            let mut out = [0; 32];
            isa.vector(Nibbles(&bytes, bits, &mut out));
            assert_eq!(out[..], want, "{isa}");
        }
    }

    #[test]
    fn pairs_of_halves_are_widened_at_every_level() {
        for step in [4, 18, 20, 34, 66] {
            for start in (0..=u16::MAX).step_by(29) {
                let mut bytes = vec![0u8; 15 * step + 4];
                let half = |i: usize| start.wrapping_add(i as u16 * 2111);
                for i in 0..16 {
                    bytes[i * step..i * step + 2].copy_from_slice(&half(2 * i).to_le_bytes());
                    bytes[i * step + 2..i * step + 4].copy_from_slice(&half(2 * i + 1).to_le_bytes());
                }
                for isa in Isa::available() {
                    let mut out = [[f32::NAN; 16]; 2];
                    isa.vector(Halves(&bytes, step, &mut out));
                    for (i, pair) in (0..16).map(|i| (i, [out[0][i], out[1][i]])) {
                        for (k, x) in pair.into_iter().enumerate() {
                            let want = widen(half(2 * i + k));
                            assert!(x.to_bits() == want.to_bits() || x.is_nan() && want.is_nan(), "{isa}");
                        }
                    }
                }
            }
        }
    }

    struct LaneDots<'a, const SIGNED: bool>(&'a [i8], &'a [i8]);
    impl<const SIGNED: bool> VectorTask for LaneDots<'_, SIGNED> {
        /// What is in the lanes, and how much larger signed bytes counted.
        type Output = (Vec<f32>, i32);
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let more = if SIGNED && S::BIASED { 128 } else { 0 };
            let mut sum = s.splat_i(5);
            for (w, a) in self.0.chunks_exact(4 * S::LANES).zip(self.1.chunks_exact(4)) {
                let w: Vec<i8> = w.iter().map(|w| w.wrapping_add(more as u8 as i8)).collect();
                let a = i32::from_le_bytes([a[0], a[1], a[2], a[3]].map(|a| a as u8));
                sum = s.lane_dots::<SIGNED>(sum, s.load_bytes(&w), a);
            }
            let mut lanes = vec![0.0; S::LANES];
            s.store(s.to_f32(sum), &mut lanes);
            (lanes, more)
        }
    }

    fn dots_of_lanes_are_exact<const SIGNED: bool>() {
        // Extremes that would be the first to saturate sums of 16 bits, then a spread of values.
        let least = if SIGNED { -128i8 } else { 0 };
        let w: Vec<i8> = (0..1024)
            .map(|i| match i {
                0..256 => 127,
                256..512 => least,
                _ => ((i * 37 + i / 9) % (if SIGNED { 256 } else { 128 })) as u8 as i8,
            })
            .collect();
        let a: Vec<i8> = (0..128).map(|i| if i < 32 { -127 } else { ((i * 91) % 255 - 127) as i8 }).collect();
        for isa in Isa::available() {
            let (lanes, more) = isa.vector(LaneDots::<SIGNED>(&w, &a));
            for (l, &lane) in lanes.iter().enumerate() {
                let own = (0..w.len()).filter(|i| i / 4 % lanes.len() == l);
                let product =
                    |i: usize| (i32::from(w[i]) + more) * i32::from(a[i / (4 * lanes.len()) * 4 + i % 4]);
                // At most 128 products below 2^15, so exact as f32.
                assert_eq!(lane, (own.map(product).sum::<i32>() + 5) as f32, "lane {l}, {SIGNED}, {isa}");
            }
        }
    }

    #[test]
    fn dots_of_lanes_are_exact_at_every_level() {
        dots_of_lanes_are_exact::<false>();
        dots_of_lanes_are_exact::<true>();
    }

    #[test]
    fn dots_of_groups_are_exact_at_every_level() {
        dots_of_groups_are_exact::<16, false>();
        dots_of_groups_are_exact::<16, true>();
        dots_of_groups_are_exact::<32, false>();
        dots_of_groups_are_exact::<32, true>();
    }
}
