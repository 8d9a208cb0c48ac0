//! Portable vector operations: one trait, one implementation for each instruction set.
//!
//! Code generic over [`Simd`] is written once as a [`VectorTask`] and compiled for every level by
//! [`crate::Isa::vector`]. Values of the implementing types are witnesses: they are made only there, after the CPU was
//! asked, which is what makes their methods safe.

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
    /// The sum of the lanes.
    fn sum(self, v: Self::F) -> f32;
    /// The nearest `f32` of each integer.
    fn to_f32(self, v: Self::I) -> Self::F;
    /// Lane `l` is the sum of `a[i] · b[i]` for the four `i` from `4·l` on: exact for `a` and `b` in −127 … 127
    /// (and `b` = −128). Both have `4 · LANES` values.
    fn dot4(self, a: &[i8], b: &[i8]) -> Self::I;
    /// Spreads `LANES · 4 / GROUP` numbers over the lanes: lane `l` is `x[4·l / GROUP]`. `GROUP` is 16 or 32.
    fn spread<const GROUP: usize>(self, x: &[f32]) -> Self::F;
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
    fn dot4(self, a: &[i8], b: &[i8]) -> [i32; 8] {
        let mut v = [0; 8];
        for (lane, (a, b)) in v.iter_mut().zip(a[..32].chunks_exact(4).zip(b[..32].chunks_exact(4))) {
            for (&a, &b) in a.iter().zip(b) {
                *lane += i32::from(a) * i32::from(b);
            }
        }
        v
    }
    #[inline(always)]
    fn spread<const GROUP: usize>(self, x: &[f32]) -> [f32; 8] {
        std::array::from_fn(|l| x[4 * l / GROUP])
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// 256-bit vectors: AVX2, FMA.
    #[derive(Clone, Copy)]
    pub struct Avx2(());
    /// 512-bit vectors: AVX-512 F, BW, VL, DQ; `VNNI` says whether byte dot products are an instruction.
    #[derive(Clone, Copy)]
    pub struct Avx512<const VNNI: bool>(());

    impl Avx2 {
        /// # Safety
        /// The CPU has AVX2 and FMA.
        pub(crate) unsafe fn new() -> Self {
            Avx2(())
        }
    }
    impl<const VNNI: bool> Avx512<VNNI> {
        /// # Safety
        /// The CPU has AVX-512 F, BW, VL and DQ, and VNNI if `VNNI`.
        pub(crate) unsafe fn new() -> Self {
            Avx512(())
        }
    }

    /// 32 integers of `BITS` bits.
    ///
    /// # Safety
    /// The CPU has AVX2.
    #[allow(clippy::undocumented_unsafe_blocks)]
    #[inline(always)]
    unsafe fn unpack32<const BITS: usize>(packed: &[u8], out: &mut [i8]) {
        let packed = &packed[..4 * BITS];
        let out = out[..32].as_mut_ptr().cast();
        unsafe {
            match BITS {
                2 => {
                    // Byte i of a 32-bit lane is integer i after a shift by 6·i, between other bits.
                    let x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(packed.as_ptr().cast()));
                    let x = _mm256_or_si256(x, _mm256_slli_epi32::<12>(x));
                    let x = _mm256_or_si256(x, _mm256_slli_epi32::<6>(x));
                    _mm256_storeu_si256(out, _mm256_and_si256(x, _mm256_set1_epi8(3)));
                }
                3 => {
                    // Three bytes to each 64-bit lane, then halves, quarters and eighths of its 24 bits to their places.
                    let low = _mm_loadl_epi64(packed.as_ptr().cast());
                    let high =
                        _mm_cvtsi32_si128(i32::from_le_bytes([packed[8], packed[9], packed[10], packed[11]]));
                    let x = _mm256_broadcastsi128_si256(_mm_unpacklo_epi64(low, high));
                    let lanes = _mm256_setr_epi8(
                        0, 1, 2, -1, -1, -1, -1, -1, 3, 4, 5, -1, -1, -1, -1, -1, 6, 7, 8, -1, -1, -1, -1,
                        -1, 9, 10, 11, -1, -1, -1, -1, -1,
                    );
                    let x = _mm256_shuffle_epi8(x, lanes);
                    let x = _mm256_or_si256(x, _mm256_slli_epi64::<20>(x));
                    let x = _mm256_and_si256(x, _mm256_set1_epi32(0xfff));
                    let x = _mm256_or_si256(x, _mm256_slli_epi32::<10>(x));
                    let x = _mm256_and_si256(x, _mm256_set1_epi16(0x3f));
                    let x = _mm256_or_si256(x, _mm256_slli_epi16::<5>(x));
                    _mm256_storeu_si256(out, _mm256_and_si256(x, _mm256_set1_epi8(7)));
                }
                _ => {
                    let x = _mm256_cvtepu8_epi16(_mm_loadu_si128(packed.as_ptr().cast()));
                    let x = _mm256_or_si256(x, _mm256_slli_epi16::<4>(x));
                    _mm256_storeu_si256(out, _mm256_and_si256(x, _mm256_set1_epi8(15)));
                }
            }
        }
    }

    /// 64 integers of `BITS` bits, as [`unpack32`].
    ///
    /// # Safety
    /// The CPU has AVX-512 F and BW.
    #[allow(clippy::undocumented_unsafe_blocks)]
    #[inline(always)]
    unsafe fn unpack64<const BITS: usize>(packed: &[u8], out: &mut [i8]) {
        let packed = &packed[..8 * BITS];
        let out = out[..64].as_mut_ptr().cast();
        unsafe {
            match BITS {
                2 => {
                    let x = _mm512_cvtepu8_epi32(_mm_loadu_si128(packed.as_ptr().cast()));
                    let x = _mm512_or_si512(x, _mm512_slli_epi32::<12>(x));
                    let x = _mm512_or_si512(x, _mm512_slli_epi32::<6>(x));
                    _mm512_storeu_si512(out, _mm512_and_si512(x, _mm512_set1_epi8(3)));
                }
                3 => {
                    let low = _mm_loadu_si128(packed.as_ptr().cast());
                    let high = _mm_loadl_epi64(packed[16..].as_ptr().cast());
                    let x = _mm512_castsi256_si512(_mm256_set_m128i(high, low));
                    // Six bytes to each 128-bit lane, then three to each half of it.
                    let words: [u16; 32] = [
                        0, 1, 2, 0, 0, 0, 0, 0, 3, 4, 5, 0, 0, 0, 0, 0, 6, 7, 8, 0, 0, 0, 0, 0, 9, 10, 11, 0,
                        0, 0, 0, 0,
                    ];
                    let x = _mm512_permutexvar_epi16(_mm512_loadu_si512(words.as_ptr().cast()), x);
                    let bytes = _mm_setr_epi8(0, 1, 2, -1, -1, -1, -1, -1, 3, 4, 5, -1, -1, -1, -1, -1);
                    let x = _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(bytes));
                    let x = _mm512_or_si512(x, _mm512_slli_epi64::<20>(x));
                    let x = _mm512_and_si512(x, _mm512_set1_epi32(0xfff));
                    let x = _mm512_or_si512(x, _mm512_slli_epi32::<10>(x));
                    let x = _mm512_and_si512(x, _mm512_set1_epi16(0x3f));
                    let x = _mm512_or_si512(x, _mm512_slli_epi16::<5>(x));
                    _mm512_storeu_si512(out, _mm512_and_si512(x, _mm512_set1_epi8(7)));
                }
                _ => {
                    let x = _mm512_cvtepu8_epi16(_mm256_loadu_si256(packed.as_ptr().cast()));
                    let x = _mm512_or_si512(x, _mm512_slli_epi16::<4>(x));
                    _mm512_storeu_si512(out, _mm512_and_si512(x, _mm512_set1_epi8(15)));
                }
            }
        }
    }

    // SAFETY (all blocks below): the witness was made only after the CPU was found to have the features, and
    // pointers come from slices whose length was checked.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx2 {
        type F = __m256;
        type I = __m256i;
        const LANES: usize = 8;

        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, x: &[f32]) -> __m256 {
            unsafe { _mm256_loadu_ps(x[..8].as_ptr()) }
        }
        #[inline(always)]
        fn store(self, v: __m256, out: &mut [f32]) {
            unsafe { _mm256_storeu_ps(out[..8].as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn sum(self, v: __m256) -> f32 {
            unsafe {
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
            }
        }
        #[inline(always)]
        fn to_f32(self, v: __m256i) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(v) }
        }
        #[inline(always)]
        fn dot4(self, a: &[i8], b: &[i8]) -> __m256i {
            unsafe {
                let a = _mm256_loadu_si256(a[..32].as_ptr().cast());
                let b = _mm256_loadu_si256(b[..32].as_ptr().cast());
                // |b| ≤ 128 and |a| ≤ 127: a pair's sum is at most 32,512 and never saturates.
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(b), _mm256_sign_epi8(a, b));
                _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
            }
        }
        #[inline(always)]
        fn spread<const GROUP: usize>(self, x: &[f32]) -> __m256 {
            unsafe {
                if GROUP == 32 {
                    _mm256_set1_ps(x[0])
                } else {
                    _mm256_set_m128(_mm_set1_ps(x[1]), _mm_set1_ps(x[0]))
                }
            }
        }
        #[inline(always)]
        fn unpack_bits<const BITS: usize>(self, packed: &[u8], out: &mut [i8]) {
            const { assert!(2 <= BITS && BITS <= 4) };
            let mut i = 0;
            while i + 32 <= out.len() {
                unsafe { unpack32::<BITS>(&packed[i / 8 * BITS..], &mut out[i..]) };
                i += 32;
            }
        }
    }

    #[allow(clippy::undocumented_unsafe_blocks)]
    impl<const VNNI: bool> Simd for Avx512<VNNI> {
        type F = __m512;
        type I = __m512i;
        const LANES: usize = 16;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, x: &[f32]) -> __m512 {
            unsafe { _mm512_loadu_ps(x[..16].as_ptr()) }
        }
        #[inline(always)]
        fn store(self, v: __m512, out: &mut [f32]) {
            unsafe { _mm512_storeu_ps(out[..16].as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn sum(self, v: __m512) -> f32 {
            unsafe { _mm512_reduce_add_ps(v) }
        }
        #[inline(always)]
        fn to_f32(self, v: __m512i) -> __m512 {
            unsafe { _mm512_cvtepi32_ps(v) }
        }
        #[inline(always)]
        fn dot4(self, a: &[i8], b: &[i8]) -> __m512i {
            unsafe {
                let a = _mm512_loadu_si512(a[..64].as_ptr().cast());
                let b = _mm512_loadu_si512(b[..64].as_ptr().cast());
                let negative = _mm512_movepi8_mask(b);
                let magnitude = _mm512_abs_epi8(b);
                let a = _mm512_mask_sub_epi8(a, negative, _mm512_setzero_si512(), a);
                if VNNI {
                    _mm512_dpbusd_epi32(_mm512_setzero_si512(), magnitude, a)
                } else {
                    _mm512_madd_epi16(_mm512_maddubs_epi16(magnitude, a), _mm512_set1_epi16(1))
                }
            }
        }
        #[inline(always)]
        fn spread<const GROUP: usize>(self, x: &[f32]) -> __m512 {
            unsafe {
                if GROUP == 32 {
                    let low = _mm512_castps256_ps512(_mm256_set1_ps(x[0]));
                    _mm512_insertf32x8::<1>(low, _mm256_set1_ps(x[1]))
                } else {
                    let four = _mm512_castps128_ps512(_mm_loadu_ps(x[..4].as_ptr()));
                    let lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
                    _mm512_permutexvar_ps(lanes, four)
                }
            }
        }
        #[inline(always)]
        fn unpack_bits<const BITS: usize>(self, packed: &[u8], out: &mut [i8]) {
            const { assert!(2 <= BITS && BITS <= 4) };
            let mut i = 0;
            while i + 64 <= out.len() {
                unsafe { unpack64::<BITS>(&packed[i / 8 * BITS..], &mut out[i..]) };
                i += 64;
            }
            if i + 32 <= out.len() {
                unsafe { unpack32::<BITS>(&packed[i / 8 * BITS..], &mut out[i..]) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    struct Dot<'a>(&'a [i8], &'a [i8], &'a [f32]);
    impl VectorTask for Dot<'_> {
        type Output = (i64, f32, f32);
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let (mut ints, mut by16, mut by32) = (0f64, s.splat(0.0), s.splat(0.0));
            let step = 4 * S::LANES;
            let mut lanes = vec![0f32; S::LANES];
            for (i, (a, b)) in self.0.chunks_exact(step).zip(self.1.chunks_exact(step)).enumerate() {
                let d = s.to_f32(s.dot4(a, b));
                s.store(d, &mut lanes);
                ints += lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
                by16 = s.fma(d, s.spread::<16>(&self.2[i * step / 16..]), by16);
                by32 = s.fma(d, s.spread::<32>(&self.2[i * step / 32..]), by32);
            }
            (ints as i64, s.sum(by16), s.sum(by32))
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

    #[test]
    fn byte_dots_and_group_scales_are_right_at_every_level() {
        // Extremes that would saturate 16-bit sums, then a spread of values.
        let mut a = vec![127i8; 256];
        let mut b = vec![-128i8; 256];
        a.extend((0..256).map(|i| ((i * 37) % 255 - 127) as i8));
        b.extend((0..256).map(|i| ((i * 91) % 256 - 128) as i8));
        let scale: Vec<f32> = (0..32).map(|i| ((i % 5) as f32 - 1.0) * 0.25).collect();
        let product = |i: usize| i64::from(a[i]) * i64::from(b[i]);
        let want: i64 = (0..512).map(product).sum();
        let want16: f64 = (0..512).map(|i| product(i) as f64 * f64::from(scale[i / 16])).sum();
        let want32: f64 = (0..512).map(|i| product(i) as f64 * f64::from(scale[i / 32])).sum();
        // Every partial sum is a multiple of 1/4 below 2^22, so exact in f32.
        for isa in Isa::available() {
            let (ints, by16, by32) = isa.vector(Dot(&a, &b, &scale));
            assert_eq!(ints, want, "{isa}");
            assert_eq!(f64::from(by16), want16, "{isa}");
            assert_eq!(f64::from(by32), want32, "{isa}");
        }
    }
}
