//! Vectors of x86-64.

use crate::vector::Simd;
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
                    0, 1, 2, -1, -1, -1, -1, -1, 3, 4, 5, -1, -1, -1, -1, -1, 6, 7, 8, -1, -1, -1, -1, -1, 9,
                    10, 11, -1, -1, -1, -1, -1,
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
                    0, 1, 2, 0, 0, 0, 0, 0, 3, 4, 5, 0, 0, 0, 0, 0, 6, 7, 8, 0, 0, 0, 0, 0, 9, 10, 11, 0, 0,
                    0, 0, 0,
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

/// # Safety
/// The CPU has AVX2.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn nibbles(levels: &[i8; 16], bytes: &[u8], out: &mut [i8]) {
    let (bytes, out) = (&bytes[..16], &mut out[..32]);
    unsafe {
        let packed = _mm_loadu_si128(bytes.as_ptr().cast());
        let both = _mm256_set_m128i(_mm_srli_epi16::<4>(packed), packed);
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(levels.as_ptr().cast()));
        let values = _mm256_shuffle_epi8(table, _mm256_and_si256(both, _mm256_set1_epi8(15)));
        _mm256_storeu_si256(out.as_mut_ptr().cast(), values);
    }
}

/// # Safety
/// None needed: a prefetch of any address is allowed.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn prefetch(bytes: &[u8], ahead: usize) {
    let mut at = 0;
    while at < bytes.len() {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(ahead + at).cast()) };
        at += 64;
    }
}

/// Lane `l` is the sum of `w[i] · a[i]` for the four `i` from `at + 4·l` on; zeros behind the end.
///
/// # Safety
/// The CPU has AVX2.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn dots32<const SIGNED: bool>(w: &[i8], a: &[i8], at: usize) -> __m256i {
    unsafe {
        if at >= w.len() {
            return _mm256_setzero_si256();
        }
        let (w, a) = (w[at..at + 32].as_ptr(), a[at..at + 32].as_ptr());
        let (mut w, mut a) = (_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(a.cast()));
        if SIGNED {
            (w, a) = (_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
        }
        // |w| ≤ 128 and |a| ≤ 127: a pair's sum is at most 32,512 and never saturates.
        _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1))
    }
}

/// As [`dots32`]; with `VNNI` and `SIGNED` the bytes of `w` count 128 more than they are.
///
/// # Safety
/// The CPU has AVX-512 F and BW, and VNNI if `VNNI`.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn dots64<const VNNI: bool, const SIGNED: bool>(w: &[i8], a: &[i8], at: usize) -> __m512i {
    unsafe {
        if at >= w.len() {
            return _mm512_setzero_si512();
        }
        let (w, a) = (w[at..at + 64].as_ptr(), a[at..at + 64].as_ptr());
        let (mut w, mut a) = (_mm512_loadu_si512(w.cast()), _mm512_loadu_si512(a.cast()));
        if VNNI {
            if SIGNED {
                w = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
            }
            return _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, a);
        }
        if SIGNED {
            let negative = _mm512_movepi8_mask(w);
            a = _mm512_mask_sub_epi8(a, negative, _mm512_setzero_si512(), a);
            w = _mm512_abs_epi8(w);
        }
        _mm512_madd_epi16(_mm512_maddubs_epi16(w, a), _mm512_set1_epi16(1))
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
    fn prefetch(self, bytes: &[u8], ahead: usize) {
        unsafe { prefetch(bytes, ahead) }
    }
    #[inline(always)]
    fn nibbles(self, levels: &[i8; 16], bytes: &[u8], out: &mut [i8]) {
        unsafe { nibbles(levels, bytes, out) }
    }
    #[inline(always)]
    fn add_where(self, bits: u32, x: i8, out: &mut [i8]) {
        let out: *mut __m256i = out[..32].as_mut_ptr().cast();
        unsafe {
            // Each byte of a quarter gets the byte of `bits` that its bit is in.
            let own = _mm256_setr_epi8(
                0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3,
                3,
            );
            let bits = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), own);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bits, bit), bit);
            let x = _mm256_and_si256(is_set, _mm256_set1_epi8(x));
            _mm256_storeu_si256(out, _mm256_add_epi8(_mm256_loadu_si256(out), x));
        }
    }
    #[inline(always)]
    fn half_pairs(self, src: &[u8], step: usize, first: &mut [f32; 16], second: &mut [f32; 16]) {
        let src = &src[..15 * step + 4];
        let mut at = 0;
        while at < 16 {
            unsafe {
                let count = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                let places = _mm256_mullo_epi32(count, _mm256_set1_epi32(step as i32));
                let pairs = _mm256_i32gather_epi32::<1>(src[at * step..].as_ptr().cast(), places);
                // The lower halves of all lanes, then the upper ones.
                let order = _mm256_setr_epi8(
                    0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6,
                    7, 10, 11, 14, 15,
                );
                let halves = _mm256_permute4x64_epi64::<0b1101_1000>(_mm256_shuffle_epi8(pairs, order));
                let a = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
                let b = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves));
                _mm256_storeu_ps(first[at..at + 8].as_mut_ptr(), a);
                _mm256_storeu_ps(second[at..at + 8].as_mut_ptr(), b);
            }
            at += 8;
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
    fn load_bytes(self, x: &[i8]) -> __m256i {
        unsafe { _mm256_loadu_si256(x[..32].as_ptr().cast()) }
    }
    #[inline(always)]
    fn lane_dots<const SIGNED: bool>(self, sum: __m256i, w: __m256i, a: i32) -> __m256i {
        unsafe {
            let (mut w, mut a) = (w, _mm256_set1_epi32(a));
            if SIGNED {
                (w, a) = (_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
            }
            let four = _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1));
            _mm256_add_epi32(sum, four)
        }
    }
    #[inline(always)]
    fn group_dots<const GROUP: usize, const SIGNED: bool>(
        self,
        w: &[i8],
        a: &[i8],
        _: &[i32],
        out: &mut [i32],
    ) {
        const { assert!(GROUP == 16 || GROUP == 32) };
        let mut i = 0;
        while i < w.len() {
            let n = (w.len() - i).min(128);
            let (w, a) = (&w[i..i + n], &a[i..i + n]);
            let out = out[i / GROUP..][..128 / GROUP].as_mut_ptr();
            unsafe {
                // A closure would be compiled for the baseline CPU.
                let (x, y) = (dots32::<SIGNED>(w, a, 0), dots32::<SIGNED>(w, a, 32));
                let (z, u) = (dots32::<SIGNED>(w, a, 64), dots32::<SIGNED>(w, a, 96));
                // The lower half has the sums of the lower halves of the four, the upper half the others.
                let halves = _mm256_hadd_epi32(_mm256_hadd_epi32(x, y), _mm256_hadd_epi32(z, u));
                let (low, high) = (_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
                if GROUP == 32 {
                    _mm_storeu_si128(out.cast(), _mm_add_epi32(low, high));
                } else {
                    _mm_storeu_si128(out.cast(), _mm_unpacklo_epi32(low, high));
                    _mm_storeu_si128(out.add(4).cast(), _mm_unpackhi_epi32(low, high));
                }
            }
            i += 128;
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
        unsafe {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn to_f32(self, v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn prefetch(self, bytes: &[u8], ahead: usize) {
        unsafe { prefetch(bytes, ahead) }
    }
    #[inline(always)]
    fn nibbles(self, levels: &[i8; 16], bytes: &[u8], out: &mut [i8]) {
        unsafe { nibbles(levels, bytes, out) }
    }
    #[inline(always)]
    fn add_where(self, bits: u32, x: i8, out: &mut [i8]) {
        let out: *mut __m256i = out[..32].as_mut_ptr().cast();
        unsafe {
            let q = _mm256_loadu_si256(out);
            _mm256_storeu_si256(out, _mm256_mask_add_epi8(q, bits, q, _mm256_set1_epi8(x)));
        }
    }
    #[inline(always)]
    fn half_pairs(self, src: &[u8], step: usize, first: &mut [f32; 16], second: &mut [f32; 16]) {
        let src = &src[..15 * step + 4];
        unsafe {
            let count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let places = _mm512_mullo_epi32(count, _mm512_set1_epi32(step as i32));
            let pairs = _mm512_i32gather_epi32::<1>(places, src.as_ptr().cast());
            let a = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs));
            let b = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(pairs)));
            _mm512_storeu_ps(first.as_mut_ptr(), a);
            _mm512_storeu_ps(second.as_mut_ptr(), b);
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
    fn load_bytes(self, x: &[i8]) -> __m512i {
        unsafe { _mm512_loadu_si512(x[..64].as_ptr().cast()) }
    }
    #[inline(always)]
    fn lane_dots<const SIGNED: bool>(self, sum: __m512i, w: __m512i, a: i32) -> __m512i {
        unsafe {
            let (mut w, mut a) = (w, _mm512_set1_epi32(a));
            if VNNI {
                return _mm512_dpbusd_epi32(sum, w, a);
            }
            if SIGNED {
                let negative = _mm512_movepi8_mask(w);
                a = _mm512_mask_sub_epi8(a, negative, _mm512_setzero_si512(), a);
                w = _mm512_abs_epi8(w);
            }
            let four = _mm512_madd_epi16(_mm512_maddubs_epi16(w, a), _mm512_set1_epi16(1));
            _mm512_add_epi32(sum, four)
        }
    }
    #[inline(always)]
    fn group_dots<const GROUP: usize, const SIGNED: bool>(
        self,
        w: &[i8],
        a: &[i8],
        sums: &[i32],
        out: &mut [i32],
    ) {
        const { assert!(GROUP == 16 || GROUP == 32) };
        let mut i = 0;
        while i < w.len() {
            let n = (w.len() - i).min(256);
            let (w, a) = (&w[i..i + n], &a[i..i + n]);
            let groups = i / GROUP..(i + 256) / GROUP;
            let (sums, out) = (sums[groups.clone()].as_ptr(), out[groups].as_mut_ptr());
            unsafe {
                // A closure would be compiled for the baseline CPU.
                let (x, y) = (dots64::<VNNI, SIGNED>(w, a, 0), dots64::<VNNI, SIGNED>(w, a, 64));
                let (z, u) = (dots64::<VNNI, SIGNED>(w, a, 128), dots64::<VNNI, SIGNED>(w, a, 192));
                // Lane 4·j + v of the sum is the sum of the four lanes from 4·j on of vector v.
                let xy = _mm512_add_epi32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
                let zu = _mm512_add_epi32(_mm512_unpacklo_epi32(z, u), _mm512_unpackhi_epi32(z, u));
                let all = _mm512_add_epi32(_mm512_unpacklo_epi64(xy, zu), _mm512_unpackhi_epi64(xy, zu));
                // A byte that is `w + 128` made each product `128 · a` too large.
                let excess = VNNI && SIGNED;
                if GROUP == 16 {
                    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
                    let mut all = _mm512_permutexvar_epi32(order, all);
                    if excess {
                        let sums = _mm512_loadu_si512(sums.cast());
                        all = _mm512_sub_epi32(all, _mm512_slli_epi32::<7>(sums));
                    }
                    _mm512_storeu_si512(out.cast(), all);
                } else {
                    let order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
                    let all = _mm512_permutexvar_epi32(order, all);
                    let mut all =
                        _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
                    if excess {
                        let sums = _mm256_loadu_si256(sums.cast());
                        all = _mm256_sub_epi32(all, _mm256_slli_epi32::<7>(sums));
                    }
                    _mm256_storeu_si256(out.cast(), all);
                }
            }
            i += 256;
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
