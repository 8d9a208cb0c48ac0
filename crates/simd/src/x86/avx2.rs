//! Vectors of 256 bits.

use super::{halves, prefetch, turn, twelve_bits};
use crate::vector::{Bytes, Simd, spread};
use std::arch::x86_64::*;

/// 256-bit vectors: AVX2, FMA; `VNNI` says whether byte dot products are an instruction.
#[derive(Clone, Copy)]
pub struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// # Safety
    /// The CPU has AVX2 and FMA, and AVX-VNNI if `VNNI`.
    pub(crate) unsafe fn new() -> Self {
        Avx2(())
    }
}

/// Lane `l` is the sum of `w[i] · a[i]` for the four `i` from `at + 4·l` on, where bytes that are `WIDE` count 128 less
/// than they are; zeros behind the end. With `VNNI` all bytes count as they are.
///
/// # Safety
/// The CPU has AVX2, and AVX-VNNI if `VNNI`.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn dots32<const VNNI: bool, const WIDE: bool>(
    s: Avx2<VNNI>,
    w: impl Bytes,
    a: &[i8],
    at: usize,
) -> __m256i {
    unsafe {
        if at >= a.len() {
            return _mm256_setzero_si256();
        }
        let (w, a) = (w.at(s, at), _mm256_loadu_si256(a[at..at + 32].as_ptr().cast()));
        match VNNI {
            true => _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), w, a),
            false => four32::<WIDE>(w, a),
        }
    }
}

/// # Safety
/// The CPU has AVX2.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn four32<const WIDE: bool>(mut w: __m256i, mut a: __m256i) -> __m256i {
    unsafe {
        if WIDE {
            let signed = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
            (w, a) = (_mm256_abs_epi8(signed), _mm256_sign_epi8(a, signed));
        }
        // w ≤ 128 and |a| ≤ 127: a pair's sum is at most 32,512 and never saturates.
        _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1))
    }
}

/// Four vectors of products from `at` on: the lower half has the sums of their lower halves, the upper half the others.
///
/// # Safety
/// The CPU has AVX2, and AVX-VNNI if `VNNI`.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn quarters32<const VNNI: bool, const WIDE: bool>(
    s: Avx2<VNNI>,
    w: impl Bytes,
    a: &[i8],
    at: usize,
) -> __m256i {
    unsafe {
        // A closure would be compiled for the baseline CPU.
        let (x, y) = (dots32::<VNNI, WIDE>(s, w, a, at), dots32::<VNNI, WIDE>(s, w, a, at + 32));
        let (z, u) = (dots32::<VNNI, WIDE>(s, w, a, at + 64), dots32::<VNNI, WIDE>(s, w, a, at + 96));
        _mm256_hadd_epi32(_mm256_hadd_epi32(x, y), _mm256_hadd_epi32(z, u))
    }
}

/// The sums of the halves of two vectors.
///
/// # Safety
/// The CPU has AVX2.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn halves32f(a: __m256, b: __m256) -> __m256 {
    unsafe { _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)) }
}

/// The sums of the halves of the halves of two vectors.
///
/// # Safety
/// The CPU has AVX2.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn quarters32f(a: __m256, b: __m256) -> __m256 {
    unsafe {
        _mm256_add_ps(_mm256_shuffle_ps::<0b01_00_01_00>(a, b), _mm256_shuffle_ps::<0b11_10_11_10>(a, b))
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = __m256;
    type I = __m256i;
    const LANES: usize = 8;
    const BIASED: bool = VNNI;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m256 {
        unsafe { _mm256_loadu_ps(x[..8].as_ptr()) }
    }
    #[inline(always)]
    fn load_first(self, x: &[f32]) -> __m256 {
        // Lane by lane, whether its number is less than the length.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let wanted = _mm256_cmpgt_epi32(_mm256_set1_epi32(x.len().min(8) as i32), lanes);
            _mm256_maskload_ps(x.as_ptr(), wanted)
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8]) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(x[..16].as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8]) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(x[..16].as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8]) -> __m256i {
        unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(x[..8].as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_f32(self, x: &[u8]) -> __m256 {
        unsafe { _mm256_loadu_ps(x[..32].as_ptr().cast()) }
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
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
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
    fn highest(self, v: __m256) -> f32 {
        unsafe {
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn sums(self, v: [__m256; 16]) -> __m256 {
        // Halves of two vectors are added at once, then quarters of four, then single lanes of eight.
        unsafe {
            let x = quarters32f(halves32f(v[0], v[4]), halves32f(v[1], v[5]));
            let y = quarters32f(halves32f(v[2], v[6]), halves32f(v[3], v[7]));
            _mm256_add_ps(_mm256_shuffle_ps::<0b10_00_10_00>(x, y), _mm256_shuffle_ps::<0b11_01_11_01>(x, y))
        }
    }
    #[inline(always)]
    fn turn(self, rows: [&[f32]; 4]) -> [[f32; 4]; 4] {
        unsafe { turn(rows) }
    }
    #[inline(always)]
    fn transposed(self, v: [__m256i; 16]) -> [__m256i; 16] {
        let mut turned = v;
        unsafe {
            // Pairs of rows, then fours: four columns of four rows in each, then the halves of two of those.
            let (mut pairs, mut fours) = (v, v);
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
            }
            for i in 0..2 {
                let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
                fours[4 * i] = _mm256_unpacklo_epi64(a, c);
                fours[4 * i + 1] = _mm256_unpackhi_epi64(a, c);
                fours[4 * i + 2] = _mm256_unpacklo_epi64(b, d);
                fours[4 * i + 3] = _mm256_unpackhi_epi64(b, d);
            }
            for i in 0..4 {
                turned[i] = _mm256_permute2x128_si256::<0x20>(fours[i], fours[4 + i]);
                turned[4 + i] = _mm256_permute2x128_si256::<0x31>(fours[i], fours[4 + i]);
            }
        }
        turned
    }
    #[inline(always)]
    fn bits_of(self, v: __m256) -> __m256i {
        unsafe { _mm256_castps_si256(v) }
    }
    #[inline(always)]
    fn to_f32(self, v: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        prefetch(at);
    }
    #[inline(always)]
    fn blocks(self, x: &[u8], _: usize) -> __m256i {
        self.load_bytes(x)
    }
    #[inline(always)]
    fn nibbles(self, x: &[u8], _: usize) -> __m256i {
        unsafe {
            let packed = _mm_loadu_si128(x[..16].as_ptr().cast());
            let both = _mm256_set_m128i(_mm_srli_epi16::<4>(packed), packed);
            _mm256_and_si256(both, _mm256_set1_epi8(15))
        }
    }
    #[inline(always)]
    fn bits<const BITS: usize>(self, x: &[u8], _: usize) -> __m256i {
        let x = &x[..4 * BITS];
        unsafe {
            let x = match BITS {
                2 => _mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().cast())),
                3 => twelve_bits(x),
                _ => _mm256_cvtepu8_epi16(_mm_loadu_si128(x.as_ptr().cast())),
            };
            spread::<Self, BITS>(self, x)
        }
    }
    #[inline(always)]
    fn repeat(self, x: &[u8]) -> __m256i {
        self.load_bytes(x)
    }
    #[inline(always)]
    fn bytes_where(self, x: u8, bits: &[u8], _: usize) -> __m256i {
        let bits = i32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
        unsafe {
            // Each byte of a quarter gets the byte of `bits` that its bit is in.
            let own = _mm256_setr_epi8(
                0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3,
                3,
            );
            let bits = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), own);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bits, bit), bit);
            _mm256_and_si256(is_set, _mm256_set1_epi8(x as i8))
        }
    }
    #[inline(always)]
    fn look_up(self, table: &[u8; 16], v: __m256i) -> __m256i {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, v)
        }
    }
    #[inline(always)]
    fn shift_right(self, v: __m256i, first: u32, _: u32) -> __m256i {
        unsafe { _mm256_srl_epi32(v, _mm_cvtsi32_si128(first as i32)) }
    }
    #[inline(always)]
    fn shift_left<const N: u32>(self, v: __m256i) -> __m256i {
        unsafe { _mm256_sll_epi32(v, _mm_cvtsi32_si128(N as i32)) }
    }
    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn widen_half(self, half: u16) -> f32 {
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(half)))) }
    }
    #[inline(always)]
    fn half_pairs(self, src: &[u8], step: usize, first: &mut [f32; 16], second: &mut [f32; 16]) {
        let (a, b) = halves(src, step);
        unsafe {
            for h in 0..2 {
                let narrow = |x: &[u64; 4]| _mm_set_epi64x(x[2 * h + 1] as i64, x[2 * h] as i64);
                _mm256_storeu_ps(first[8 * h..].as_mut_ptr(), _mm256_cvtph_ps(narrow(&a)));
                _mm256_storeu_ps(second[8 * h..].as_mut_ptr(), _mm256_cvtph_ps(narrow(&b)));
            }
        }
    }
    #[inline(always)]
    fn load_i(self, x: &[i32]) -> __m256i {
        unsafe { _mm256_loadu_si256(x[..8].as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8]) -> __m256i {
        unsafe { _mm256_loadu_si256(x[..32].as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_bytes(self, v: __m256i, out: &mut [u8]) {
        unsafe { _mm256_storeu_si256(out[..32].as_mut_ptr().cast(), v) }
    }
    #[inline(always)]
    fn store_low_bytes(self, v: __m256i, out: &mut [i8]) {
        unsafe {
            let order = _mm256_setr_epi8(
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1,
                -1, -1, -1, -1, -1, -1, -1,
            );
            let low = _mm256_shuffle_epi8(v, order);
            let both = _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256::<1>(low));
            _mm_storel_epi64(out[..8].as_mut_ptr().cast(), both);
        }
    }
    #[inline(always)]
    fn max_i(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_max_epi32(a, b) }
    }
    #[inline(always)]
    fn lane_dots<const WIDE: bool>(self, sum: __m256i, w: __m256i, a: i32) -> __m256i {
        unsafe {
            let a = _mm256_set1_epi32(a);
            match VNNI {
                true => _mm256_dpbusd_avx_epi32(sum, w, a),
                false => _mm256_add_epi32(sum, four32::<WIDE>(w, a)),
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
    ) -> __m256i {
        const { assert!(GROUP == 16 || GROUP == 32) };
        let sums = sums[..8].as_ptr();
        unsafe {
            let first = quarters32::<VNNI, WIDE>(self, w, a, at);
            let all = if GROUP == 32 {
                let second = quarters32::<VNNI, WIDE>(self, w, a, at + 128);
                let low = _mm256_permute2x128_si256::<0x20>(first, second);
                _mm256_add_epi32(low, _mm256_permute2x128_si256::<0x31>(first, second))
            } else {
                _mm256_permutevar8x32_epi32(first, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
            };
            // Without VNNI wide bytes counted 128 less already.
            let offset = _mm256_set1_epi32(if WIDE && !VNNI { 0 } else { offset });
            _mm256_sub_epi32(all, _mm256_mullo_epi32(_mm256_loadu_si256(sums.cast()), offset))
        }
    }
}
