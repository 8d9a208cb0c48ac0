//! The instructions.

use super::{Grouped, STEP, Sums, TILE, Tile};
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Asked once: the system's answer does not change.
pub(super) fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| cpu_has_it() && system_allows_it())
}

fn cpu_has_it() -> bool {
    /// Bits of leaf 7: AMX-BF16, AMX-TILE.
    const FEATURES: u32 = 1 << 22 | 1 << 24;
    /// The state of tiles and of their configuration.
    const STATE: u64 = 3 << 17;
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx512f") && has!("avx512bw") && has!("avx512bf16") && has!("xsave")) {
        return false;
    }
    if __cpuid(0).eax < 0x1d || __cpuid_count(7, 0).edx & FEATURES != FEATURES {
        return false;
    }
    // Palette 1: eight tiles of 16 rows of 64 bytes.
    let palette = __cpuid_count(0x1d, 1);
    let is_usual = palette.ebx == (8 << 16 | 64) && palette.ecx & 0xffff == TILE as u32;
    // SAFETY: the CPU has XSAVE.
    is_usual && unsafe { _xgetbv(0) } & STATE == STATE
}

/// Linux gives tiles to processes that ask (its documentation of XSTATE features): 8 KiB more for each thread that uses them.
#[cfg(target_os = "linux")]
fn system_allows_it() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XTILEDATA: u64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call that touches no memory of ours.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    result == 0
}

/// Others are not known to.
#[cfg(not(target_os = "linux"))]
fn system_allows_it() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// # Safety
/// The CPU and the system have tiles.
pub(super) unsafe fn configure() {
    let mut config =
        Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    config.row_bytes[..8].fill(64);
    config.rows[..8].fill(TILE as u8);
    // SAFETY: 64 bytes are read.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) }
}

/// # Safety
/// The CPU and the system have tiles.
pub(super) unsafe fn release() {
    // SAFETY: no memory is touched.
    unsafe { asm!("tilerelease", options(nostack, nomem)) }
}

/// # Safety
/// Tiles are configured as above; there are as many tiles of each, and at least one.
pub(super) unsafe fn multiply(rows: [&[Tile]; 2], columns: [&[Tile]; 2], sums: &mut [Sums; 4], add: bool) {
    // SAFETY: all tiles that are read are in the slices, all that are written in `sums`. Four loads for four products: each
    // tile of a matrix is multiplied with two of the other.
    unsafe {
        asm!(
            "test {add:e}, {add:e}",
            "jz 2f",
            "tileloadd tmm0, [{sums} + {row}]",
            "tileloadd tmm1, [{sums} + {row} + 1024]",
            "tileloadd tmm2, [{sums} + {row} + 2048]",
            "tileloadd tmm3, [{sums} + {row} + 3072]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm6, [{b} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{d} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{c} + {row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 1024",
            "add {b}, 1024",
            "add {c}, 1024",
            "add {d}, 1024",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{sums} + {row}], tmm0",
            "tilestored [{sums} + {row} + 1024], tmm1",
            "tilestored [{sums} + {row} + 2048], tmm2",
            "tilestored [{sums} + {row} + 3072], tmm3",
            add = in(reg) u32::from(add),
            a = inout(reg) rows[0].as_ptr() => _,
            b = inout(reg) columns[0].as_ptr() => _,
            c = inout(reg) rows[1].as_ptr() => _,
            d = inout(reg) columns[1].as_ptr() => _,
            steps = inout(reg) rows[0].len() => _,
            sums = in(reg) sums.as_mut_ptr(),
            row = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}

/// # Safety
/// The CPU has AVX-512 F, BW and BF16; there are scales, and minima if any, of all groups, and tiles for all values.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn round_grouped(from: Grouped<'_>, row: usize, to: &mut [Tile]) {
    let Grouped { q, offset, group, scale, min } = from;
    let offset = -f32::from(offset);
    let per_step = STEP / group;
    for (step, tile) in to.iter_mut().enumerate() {
        let at = step * STEP;
        let mut last = [0u8; STEP];
        let q = match q.get(at..at + STEP) {
            Some(whole) => whole,
            None => {
                let rest = &q[at.min(q.len())..];
                last[..rest.len()].copy_from_slice(rest);
                &last
            }
        };
        let mut halves = [_mm512_setzero_ps(); 2];
        for half in 0..2 {
            let g = step * per_step + half * (per_step - 1);
            // Groups behind the end are zeros.
            let d = if g < scale.len() { scale[g] } else { 0.0 };
            let m = if g < min.len() { min[g] } else { 0.0 };
            // SAFETY: 16 bytes from 0 or 16 on, of 32.
            let bytes = unsafe { _mm_loadu_si128(q[half * 16..].as_ptr().cast()) };
            let ints = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
            halves[half] = _mm512_fmadd_ps(ints, _mm512_set1_ps(d), _mm512_set1_ps(offset * d - m));
        }
        let values = _mm512_cvtne2ps_pbh(halves[1], halves[0]);
        // SAFETY: a row has 64 bytes, and is aligned to as many.
        unsafe { tile.0[row].as_mut_ptr().cast::<__m512bh>().write(values) };
    }
}

/// 32 values: rounded, and what is left.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn halves(values: [__m512; 2]) -> (__m512i, __m512i) {
    let high = rounded(values);
    let wide = [_mm512_castsi512_si256(high), _mm512_extracti64x4_epi64::<1>(high)]
        .map(|half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half))));
    (high, rounded([_mm512_sub_ps(values[0], wide[0]), _mm512_sub_ps(values[1], wide[1])]))
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn rounded(values: [__m512; 2]) -> __m512i {
    // SAFETY: the same bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(values[1], values[0])) }
}

/// Up to 32 values from `at` on, and zeros: rounded, and what is left.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn split(x: &[f32], at: usize) -> (__m512i, __m512i) {
    let at = at.min(x.len());
    let there = ((1u64 << (x.len() - at).min(STEP)) - 1) as u32;
    let from = x[at..].as_ptr();
    // SAFETY: only values before the end are read.
    let values = unsafe {
        [
            _mm512_maskz_loadu_ps(there as u16, from),
            _mm512_maskz_loadu_ps((there >> 16) as u16, from.wrapping_add(16)),
        ]
    };
    halves(values)
}

/// # Safety
/// The CPU has AVX-512 F, BW and BF16; `x` has 32 rows for each tile, and there are as many tiles of both.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn split_block(x: &[f32], stride: usize, high: &mut [Tile], low: &mut [Tile]) {
    // Value n of the first row, then of the second.
    let mut order = [0u16; 32];
    for n in 0..16 {
        order[2 * n] = n as u16;
        order[2 * n + 1] = n as u16 + 16;
    }
    // SAFETY: 64 bytes are read; rows of tiles have as many, and are aligned to them.
    unsafe {
        let order = _mm512_loadu_si512(order.as_ptr().cast());
        for (step, (high, low)) in high.iter_mut().zip(low).enumerate() {
            for pair in 0..TILE {
                let at = (step * STEP + 2 * pair) * stride;
                let rows = [&x[at..at + TILE], &x[at + stride..at + stride + TILE]];
                let values = halves([_mm512_loadu_ps(rows[0].as_ptr()), _mm512_loadu_ps(rows[1].as_ptr())]);
                let to = [&mut high.0[pair], &mut low.0[pair]];
                for (to, values) in to.into_iter().zip([values.0, values.1]) {
                    to.as_mut_ptr().cast::<__m512i>().write(_mm512_permutexvar_epi16(order, values));
                }
            }
        }
    }
}

/// # Safety
/// The CPU has AVX-512 F, BW and BF16; there are as many tiles of both, for all values.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn split_row(x: &[f32], row: usize, high: &mut [Tile], low: &mut [Tile]) {
    for (step, (high, low)) in high.iter_mut().zip(low).enumerate() {
        let values = split(x, step * STEP);
        // SAFETY: a row has 64 bytes, and is aligned to as many.
        unsafe {
            high.0[row].as_mut_ptr().cast::<__m512i>().write(values.0);
            low.0[row].as_mut_ptr().cast::<__m512i>().write(values.1);
        }
    }
}

/// # Safety
/// The CPU has AVX-512 F, BW and BF16; `x` has up to 16 vectors of `len` values, and there are tiles for all, as many of both
/// if any of `low`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn split_columns(x: &[f32], len: usize, high: &mut [Tile], low: &mut [Tile]) {
    for (step, high) in high.iter_mut().enumerate() {
        let mut rows = [[_mm512_setzero_si512(); TILE]; 2];
        for (i, column) in x.chunks_exact(len).enumerate() {
            (rows[0][i], rows[1][i]) = split(column, step * STEP);
        }
        // SAFETY: a tile has the bytes of 16 vectors, and is aligned to those of one.
        unsafe {
            (&raw mut high.0).cast::<[__m512i; TILE]>().write(turned(rows[0]));
            if let Some(low) = low.get_mut(step) {
                (&raw mut low.0).cast::<[__m512i; TILE]>().write(turned(rows[1]));
            }
        }
    }
}

/// # Safety
/// The CPU has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn turn(sums: &Sums) -> Sums {
    let mut new = Sums::ZERO;
    // SAFETY: sums have the bytes of 16 vectors, and are aligned to those of one.
    unsafe {
        let rows = (&raw const sums.0).cast::<[__m512i; TILE]>().read();
        (&raw mut new.0).cast::<[__m512i; TILE]>().write(turned(rows));
    }
    new
}

/// Makes rows of columns: first in squares of four, then of whole rows.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn turned(r: [__m512i; TILE]) -> [__m512i; TILE] {
    let mut u = r;
    for j in (0..TILE).step_by(4) {
        let (a, b) = (_mm512_unpacklo_epi32(r[j], r[j + 1]), _mm512_unpackhi_epi32(r[j], r[j + 1]));
        let (c, d) = (_mm512_unpacklo_epi32(r[j + 2], r[j + 3]), _mm512_unpackhi_epi32(r[j + 2], r[j + 3]));
        u[j] = _mm512_unpacklo_epi64(a, c);
        u[j + 1] = _mm512_unpackhi_epi64(a, c);
        u[j + 2] = _mm512_unpacklo_epi64(b, d);
        u[j + 3] = _mm512_unpackhi_epi64(b, d);
    }
    let mut columns = r;
    for c in 0..4 {
        // Quarter `l` of `u[j + c]` has column `4·l + c` of rows `j …`.
        const EVEN: i32 = 0b10_00_10_00;
        const ODD: i32 = 0b11_01_11_01;
        let (a, b) =
            (_mm512_shuffle_i32x4::<EVEN>(u[c], u[4 + c]), _mm512_shuffle_i32x4::<EVEN>(u[8 + c], u[12 + c]));
        columns[c] = _mm512_shuffle_i32x4::<EVEN>(a, b);
        columns[8 + c] = _mm512_shuffle_i32x4::<ODD>(a, b);
        let (a, b) =
            (_mm512_shuffle_i32x4::<ODD>(u[c], u[4 + c]), _mm512_shuffle_i32x4::<ODD>(u[8 + c], u[12 + c]));
        columns[4 + c] = _mm512_shuffle_i32x4::<EVEN>(a, b);
        columns[12 + c] = _mm512_shuffle_i32x4::<ODD>(a, b);
    }
    columns
}
