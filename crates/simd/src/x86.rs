//! Vectors of x86-64.

mod avx2;
mod avx512;

use std::arch::x86_64::*;

pub use avx2::Avx2;
pub use avx512::Avx512;

/// What [`Simd::half_pairs`] widens, four to a number.
#[inline(always)]
fn halves(src: &[u8], step: usize) -> ([u64; 4], [u64; 4]) {
    let src = &src[..15 * step + 4];
    let (mut a, mut b) = ([0u64; 4], [0u64; 4]);
    for i in 0..16 {
        let pair = &src[i * step..i * step + 4];
        a[i / 4] |= u64::from(u16::from_le_bytes([pair[0], pair[1]])) << (i % 4 * 16);
        b[i / 4] |= u64::from(u16::from_le_bytes([pair[2], pair[3]])) << (i % 4 * 16);
    }
    (a, b)
}

/// What [`Simd::turn`] gives.
///
/// # Safety
/// The CPU has AVX2.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn turn(rows: [&[f32]; 4]) -> [[f32; 4]; 4] {
    let mut turned = [[0.0f32; 4]; 4];
    unsafe {
        let (mut a, mut b) = (_mm_loadu_ps(rows[0][..4].as_ptr()), _mm_loadu_ps(rows[1][..4].as_ptr()));
        let (mut c, mut d) = (_mm_loadu_ps(rows[2][..4].as_ptr()), _mm_loadu_ps(rows[3][..4].as_ptr()));
        _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
        _mm_storeu_ps(turned[0].as_mut_ptr(), a);
        _mm_storeu_ps(turned[1].as_mut_ptr(), b);
        _mm_storeu_ps(turned[2].as_mut_ptr(), c);
        _mm_storeu_ps(turned[3].as_mut_ptr(), d);
    }
    turned
}

/// The first 12 bytes, and zeros.
///
/// # Safety
/// The CPU has AVX2.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn load12(x: &[u8]) -> __m128i {
    let x = &x[..12];
    let high = i32::from_le_bytes([x[8], x[9], x[10], x[11]]);
    unsafe { _mm_unpacklo_epi64(_mm_loadl_epi64(x.as_ptr().cast()), _mm_cvtsi32_si128(high)) }
}

/// A lane with two bytes for each twelve bits of 12 bytes, as often as there are lanes; behind the bits is anything.
///
/// # Safety
/// The CPU has AVX2.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn twelve_bits(x: &[u8]) -> __m256i {
    unsafe {
        let order = _mm256_setr_epi8(
            0, 1, -1, -1, 1, 2, -1, -1, 3, 4, -1, -1, 4, 5, -1, -1, 6, 7, -1, -1, 7, 8, -1, -1, 9, 10, -1,
            -1, 10, 11, -1, -1,
        );
        let x = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load12(x)), order);
        _mm256_srlv_epi32(x, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4))
    }
}

/// Into the second-level cache: it takes more at once, and is on its way to the first when it is needed.
#[inline(always)]
fn prefetch(at: *const u8) {
    // SAFETY: a prefetch of any address is allowed, and all CPUs of this kind have it.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
}
