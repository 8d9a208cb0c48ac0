//! Vectors of 512 bits.

use super::{halves, prefetch, turn, twelve_bits};
use crate::vector::{Bytes, Simd, spread};
use std::arch::x86_64::*;

/// 512-bit vectors: AVX-512 F, BW, VL, DQ; `VNNI` says whether byte dot products are an instruction.
#[derive(Clone, Copy)]
pub struct Avx512<const VNNI: bool>(());

impl<const VNNI: bool> Avx512<VNNI> {
    /// # Safety
    /// The CPU has AVX-512 F, BW, VL and DQ, and VNNI if `VNNI`.
    pub(crate) unsafe fn new() -> Self {
        Avx512(())
    }
}

/// Word `at` of each of 16 blocks of `step` bytes, an even number up to 42. Inserting them one by one takes several times as
/// many shuffles, and a gather is slower still.
///
/// # Safety
/// The CPU has AVX-512 F and BW.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn words(src: &[u8], step: usize, at: usize) -> __m256i {
    let src = &src[..15 * step + 4];
    // Blocks whose words are in the 64 of two vectors.
    let many = (63 - at) / (step / 2) + 1;
    let mut first = 0;
    unsafe {
        let mut all = _mm512_setzero_si512();
        while first < 16 {
            let bytes = src.len() - first * step;
            let from: *const i8 = src[first * step..].as_ptr().cast();
            let (a, b) = if bytes >= 128 {
                (_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(64).cast()))
            } else {
                let more = bytes.saturating_sub(64);
                let there = if bytes < 64 { (1u64 << bytes) - 1 } else { u64::MAX };
                let more = (1u64 << more) - 1;
                (_mm512_maskz_loadu_epi8(there, from), _mm512_maskz_loadu_epi8(more, from.wrapping_add(64)))
            };
            let (mut order, mut wanted) = ([0i16; 32], 0u32);
            let mut l = first;
            while l < 16 && l < first + many {
                order[l] = ((l - first) * step / 2 + at) as i16;
                wanted |= 1 << l;
                l += 1;
            }
            let order = _mm512_loadu_si512(order.as_ptr().cast());
            all = _mm512_or_si512(all, _mm512_maskz_permutex2var_epi16(wanted, a, order, b));
            first += many;
        }
        _mm512_castsi512_si256(all)
    }
}

/// As [`dots32`].
///
/// # Safety
/// The CPU has AVX-512 F and BW, and VNNI if `VNNI`.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn dots64<const VNNI: bool, const WIDE: bool>(
    s: Avx512<VNNI>,
    w: impl Bytes,
    a: &[i8],
    at: usize,
) -> __m512i {
    unsafe {
        if at >= a.len() {
            return _mm512_setzero_si512();
        }
        let (w, a) = (w.at(s, at), _mm512_loadu_si512(a[at..at + 64].as_ptr().cast()));
        match VNNI {
            true => _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, a),
            false => four64::<WIDE>(w, a),
        }
    }
}

/// # Safety
/// The CPU has AVX-512 F and BW.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn four64<const WIDE: bool>(mut w: __m512i, mut a: __m512i) -> __m512i {
    unsafe {
        if WIDE {
            w = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
            let negative = _mm512_movepi8_mask(w);
            a = _mm512_mask_sub_epi8(a, negative, _mm512_setzero_si512(), a);
            w = _mm512_abs_epi8(w);
        }
        _mm512_madd_epi16(_mm512_maddubs_epi16(w, a), _mm512_set1_epi16(1))
    }
}

/// Four vectors of products from `at` on: lane 4·j + v has the sum of the four lanes from 4·j on of vector v.
///
/// # Safety
/// The CPU has AVX-512 F and BW, and VNNI if `VNNI`.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn quarters64<const VNNI: bool, const WIDE: bool>(
    s: Avx512<VNNI>,
    w: impl Bytes,
    a: &[i8],
    at: usize,
) -> __m512i {
    unsafe {
        let (x, y) = (dots64::<VNNI, WIDE>(s, w, a, at), dots64::<VNNI, WIDE>(s, w, a, at + 64));
        let (z, u) = (dots64::<VNNI, WIDE>(s, w, a, at + 128), dots64::<VNNI, WIDE>(s, w, a, at + 192));
        let xy = _mm512_add_epi32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
        let zu = _mm512_add_epi32(_mm512_unpacklo_epi32(z, u), _mm512_unpackhi_epi32(z, u));
        _mm512_add_epi32(_mm512_unpacklo_epi64(xy, zu), _mm512_unpackhi_epi64(xy, zu))
    }
}

// What `sums` is made of: not closures, which would not be compiled for the level.

/// The sums of the quarters of vectors `i`, `i + 4`, `i + 8` and `i + 12`.
///
/// # Safety
/// The CPU has AVX-512 F.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn four64f(v: &[__m512; 16], i: usize) -> __m512 {
    unsafe {
        let (a, b) = (halves64f(v[i], v[i + 4]), halves64f(v[i + 8], v[i + 12]));
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
        )
    }
}

/// The sums of the halves of two vectors.
///
/// # Safety
/// The CPU has AVX-512 F.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn halves64f(a: __m512, b: __m512) -> __m512 {
    unsafe {
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
        )
    }
}

/// The sums of the halves of the quarters of two vectors.
///
/// # Safety
/// The CPU has AVX-512 F.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn eighths64f(a: __m512, b: __m512) -> __m512 {
    unsafe {
        _mm512_add_ps(_mm512_shuffle_ps::<0b01_00_01_00>(a, b), _mm512_shuffle_ps::<0b11_10_11_10>(a, b))
    }
}

// SAFETY (all blocks below): the witness was made only after the CPU was found to have the features, and
// pointers come from slices whose length was checked.

#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Simd for Avx512<VNNI> {
    type F = __m512;
    type I = __m512i;
    const LANES: usize = 16;
    const BIASED: bool = VNNI;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        unsafe { _mm512_loadu_ps(x[..16].as_ptr()) }
    }
    #[inline(always)]
    fn load_first(self, x: &[f32]) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(((1u32 << x.len().min(16)) - 1) as u16, x.as_ptr()) }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x[..32].as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8]) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x[..32].as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8]) -> __m512i {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(x[..16].as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_f32(self, x: &[u8]) -> __m512 {
        unsafe { _mm512_loadu_ps(x[..64].as_ptr().cast()) }
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
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        unsafe {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn highest(self, v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    fn sums(self, v: [__m512; 16]) -> __m512 {
        // Halves of two vectors are added at once, then quarters of four, and so on.
        unsafe {
            // Vector 4 · k + i ends up in lane i of quarter k.
            let x = eighths64f(four64f(&v, 0), four64f(&v, 1));
            let y = eighths64f(four64f(&v, 2), four64f(&v, 3));
            _mm512_add_ps(_mm512_shuffle_ps::<0b10_00_10_00>(x, y), _mm512_shuffle_ps::<0b11_01_11_01>(x, y))
        }
    }
    #[inline(always)]
    fn turn(self, rows: [&[f32]; 4]) -> [[f32; 4]; 4] {
        unsafe { turn(rows) }
    }
    #[inline(always)]
    fn transposed(self, v: [__m512i; 16]) -> [__m512i; 16] {
        let mut turned = v;
        unsafe {
            // Pairs of rows, then fours: four columns of four rows in each, then the quarters of four of those.
            let (mut pairs, mut fours) = (v, v);
            for i in 0..8 {
                pairs[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
                pairs[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
            }
            for i in 0..4 {
                let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
                fours[4 * i] = _mm512_unpacklo_epi64(a, c);
                fours[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
                fours[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
                fours[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
            }
            for i in 0..4 {
                let [a, b, c, d] = [fours[i], fours[4 + i], fours[8 + i], fours[12 + i]];
                let (x, y) = (
                    _mm512_shuffle_i32x4::<0b01_00_01_00>(a, b),
                    _mm512_shuffle_i32x4::<0b01_00_01_00>(c, d),
                );
                turned[i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(x, y);
                turned[4 + i] = _mm512_shuffle_i32x4::<0b11_01_11_01>(x, y);
                let (x, y) = (
                    _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b),
                    _mm512_shuffle_i32x4::<0b11_10_11_10>(c, d),
                );
                turned[8 + i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(x, y);
                turned[12 + i] = _mm512_shuffle_i32x4::<0b11_01_11_01>(x, y);
            }
        }
        turned
    }
    #[inline(always)]
    fn bits_of(self, v: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(v) }
    }
    #[inline(always)]
    fn to_f32(self, v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        prefetch(at);
    }
    #[inline(always)]
    fn blocks(self, x: &[u8], step: usize) -> __m512i {
        unsafe {
            let first = _mm256_loadu_si256(x[..32].as_ptr().cast());
            let second = _mm256_loadu_si256(x[step..step + 32].as_ptr().cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
        }
    }
    #[inline(always)]
    fn nibbles(self, x: &[u8], step: usize) -> __m512i {
        unsafe {
            let first = _mm_loadu_si128(x[..16].as_ptr().cast());
            let second = _mm_loadu_si128(x[step..step + 16].as_ptr().cast());
            let both = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(first), 0xff00, second);
            let high = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
            _mm512_and_si512(_mm512_srlv_epi64(both, high), _mm512_set1_epi8(15))
        }
    }
    #[inline(always)]
    fn bits<const BITS: usize>(self, x: &[u8], step: usize) -> __m512i {
        let (x, y) = (&x[..4 * BITS], &x[step..step + 4 * BITS]);
        unsafe {
            let x = match BITS {
                2 => {
                    let first = _mm_loadl_epi64(x.as_ptr().cast());
                    _mm512_cvtepu8_epi32(_mm_unpacklo_epi64(first, _mm_loadl_epi64(y.as_ptr().cast())))
                }
                3 => _mm512_inserti64x4::<1>(_mm512_castsi256_si512(twelve_bits(x)), twelve_bits(y)),
                _ => {
                    let first = _mm_loadu_si128(x.as_ptr().cast());
                    let both = _mm256_set_m128i(_mm_loadu_si128(y.as_ptr().cast()), first);
                    _mm512_cvtepu8_epi16(both)
                }
            };
            spread::<Self, BITS>(self, x)
        }
    }
    #[inline(always)]
    fn repeat(self, x: &[u8]) -> __m512i {
        unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(x[..32].as_ptr().cast())) }
    }
    #[inline(always)]
    fn bytes_where(self, x: u8, bits: &[u8], step: usize) -> __m512i {
        let first = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
        let bits = &bits[step..];
        let second = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
        unsafe { _mm512_maskz_set1_epi8(u64::from(first) | u64::from(second) << 32, x as i8) }
    }
    #[inline(always)]
    fn look_up(self, table: &[u8; 16], v: __m512i) -> __m512i {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, v)
        }
    }
    #[inline(always)]
    fn shift_right(self, v: __m512i, first: u32, second: u32) -> __m512i {
        let (a, b) = (i64::from(first), i64::from(second));
        unsafe {
            let by = _mm512_setr_epi64(a, a, a, a, b, b, b, b);
            _mm512_srlv_epi32(v, _mm512_or_si512(by, _mm512_slli_epi64::<32>(by)))
        }
    }
    #[inline(always)]
    fn shift_left<const N: u32>(self, v: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<N>(v) }
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn widen_half(self, half: u16) -> f32 {
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(half)))) }
    }
    #[inline(always)]
    fn half_pairs(self, src: &[u8], step: usize, first: &mut [f32; 16], second: &mut [f32; 16]) {
        unsafe {
            let (a, b) = if step.is_multiple_of(2) && step <= 42 {
                (words(src, step, 0), words(src, step, 1))
            } else {
                let (a, b) = halves(src, step);
                (_mm256_loadu_si256(a.as_ptr().cast()), _mm256_loadu_si256(b.as_ptr().cast()))
            };
            _mm512_storeu_ps(first.as_mut_ptr(), _mm512_cvtph_ps(a));
            _mm512_storeu_ps(second.as_mut_ptr(), _mm512_cvtph_ps(b));
        }
    }
    #[inline(always)]
    fn load_i(self, x: &[i32]) -> __m512i {
        unsafe { _mm512_loadu_si512(x[..16].as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8]) -> __m512i {
        unsafe { _mm512_loadu_si512(x[..64].as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, v: __m512i, out: &mut [u8]) {
        unsafe { _mm512_storeu_si512(out[..64].as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn store_low_bytes(self, v: __m512i, out: &mut [i8]) {
        unsafe { _mm_storeu_si128(out[..16].as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)) }
    }
    #[inline(always)]
    fn max_i(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_max_epi32(a, b) }
    }
    #[inline(always)]
    fn lane_dots<const WIDE: bool>(self, sum: __m512i, w: __m512i, a: i32) -> __m512i {
        unsafe {
            let a = _mm512_set1_epi32(a);
            match VNNI {
                true => _mm512_dpbusd_epi32(sum, w, a),
                false => _mm512_add_epi32(sum, four64::<WIDE>(w, a)),
            }
        }
    }
    #[inline(always)]
    fn group_sums<const GROUP: usize, const WIDE: bool>(
        self,
        w: impl Bytes,
        a: &[i8],
        at: usize,
        sums: &[i32],
        offset: i32,
    ) -> __m512i {
        const { assert!(GROUP == 16 || GROUP == 32) };
        let sums = sums[..16].as_ptr();
        unsafe {
            let first = quarters64::<VNNI, WIDE>(self, w, a, at);
            let all = if GROUP == 32 {
                let second = quarters64::<VNNI, WIDE>(self, w, a, at + 256);
                let all = _mm512_add_epi32(
                    _mm512_shuffle_i32x4::<0b10_00_10_00>(first, second),
                    _mm512_shuffle_i32x4::<0b11_01_11_01>(first, second),
                );
                let order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
                _mm512_permutexvar_epi32(order, all)
            } else {
                let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
                _mm512_permutexvar_epi32(order, first)
            };
            // Without VNNI wide bytes counted 128 less already.
            let offset = _mm512_set1_epi32(if WIDE && !VNNI { 0 } else { offset });
            _mm512_sub_epi32(all, _mm512_mullo_epi32(_mm512_loadu_si512(sums.cast()), offset))
        }
    }
}
