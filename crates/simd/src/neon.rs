//! Vectors of AArch64, little-endian.

use crate::vector::{Bytes, Simd};
use std::arch::aarch64::*;
use std::arch::asm;

/// Pairs of 128-bit vectors; `DOT` and `I8MM` say whether dot products of bytes that all have a sign, and of those of
/// which the first have none, are instructions.
#[derive(Clone, Copy)]
pub struct Neon<const DOT: bool, const I8MM: bool>(());

impl<const DOT: bool, const I8MM: bool> Neon<DOT, I8MM> {
    /// # Safety
    /// The CPU has NEON, FEAT_DotProd if `DOT`, and FEAT_I8MM if `I8MM`; without the first there is no second.
    pub(crate) unsafe fn new() -> Self {
        const { assert!(DOT || !I8MM) };
        Neon(())
    }
}

/// Adds to each lane the products of four bytes: all have a sign. The standard library's function is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction only changes its register, and this function's CPU has it.
    unsafe {
        asm!("sdot {:v}.4s, {:v}.16b, {:v}.16b", inout(vreg) sum, in(vreg) w, in(vreg) a,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// As [`sdot`]; the bytes of `w` have no sign.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn usdot(mut sum: int32x4_t, w: uint8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: as above.
    unsafe {
        asm!("usdot {:v}.4s, {:v}.16b, {:v}.16b", inout(vreg) sum, in(vreg) w, in(vreg) a,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// The sums of neighbours, those in `a` first. The compiler takes the standard library's function apart where something is
/// subtracted from its result.
#[inline]
#[target_feature(enable = "neon")]
fn addp(mut a: int32x4_t, b: int32x4_t) -> int32x4_t {
    // SAFETY: as above.
    unsafe {
        asm!("addp {0:v}.4s, {0:v}.4s, {1:v}.4s", inout(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    a
}

/// Four rows of four, turned.
///
/// # Safety
/// The CPU has NEON.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn transposed4(v: [int32x4_t; 4]) -> [int32x4_t; 4] {
    unsafe {
        let wide = |v: int32x4_t| vreinterpretq_s64_s32(v);
        let (a, b) = (wide(vtrn1q_s32(v[0], v[1])), wide(vtrn2q_s32(v[0], v[1])));
        let (c, d) = (wide(vtrn1q_s32(v[2], v[3])), wide(vtrn2q_s32(v[2], v[3])));
        [vtrn1q_s64(a, c), vtrn1q_s64(b, d), vtrn2q_s64(a, c), vtrn2q_s64(b, d)]
            .map(|v| vreinterpretq_s32_s64(v))
    }
}

/// # Safety
/// The CPU has NEON.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn pair(low: uint8x16_t, high: uint8x16_t) -> int32x4x2_t {
    unsafe { int32x4x2_t(vreinterpretq_s32_u8(low), vreinterpretq_s32_u8(high)) }
}

/// # Safety
/// The CPU has NEON.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn bytes(v: int32x4x2_t) -> [uint8x16_t; 2] {
    unsafe { [vreinterpretq_u8_s32(v.0), vreinterpretq_u8_s32(v.1)] }
}

/// The first 16 bytes.
///
/// # Safety
/// The CPU has NEON.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn load16(x: &[u8]) -> uint8x16_t {
    unsafe { vld1q_u8(x[..16].as_ptr()) }
}

/// The first 8 bytes, and zeros.
///
/// # Safety
/// The CPU has NEON.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn load8(x: &[u8]) -> uint8x16_t {
    unsafe { vcombine_u8(vld1_u8(x[..8].as_ptr()), vdup_n_u8(0)) }
}

/// For each of two vectors of places: the bytes of `x` that are there.
///
/// # Safety
/// The CPU has NEON.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn spread(x: uint8x16_t, places: &[[u8; 16]; 2]) -> [uint8x16_t; 2] {
    unsafe { [vqtbl1q_u8(x, load16(&places[0])), vqtbl1q_u8(x, load16(&places[1]))] }
}

/// Bytes with a sign: wide ones are 128 less.
///
/// # Safety
/// The CPU has NEON.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn signed<const WIDE: bool>(w: uint8x16_t) -> int8x16_t {
    unsafe { vreinterpretq_s8_u8(if WIDE { veorq_u8(w, vdupq_n_u8(128)) } else { w }) }
}

/// Pairs of halves at four places `step` bytes apart.
///
/// # Safety
/// The CPU has NEON.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn four_pairs(src: &[u8], step: usize) -> uint16x8_t {
    let src = &src[..3 * step + 4];
    let mut words = [0; 4];
    for (i, word) in words.iter_mut().enumerate() {
        let x = &src[i * step..i * step + 4];
        *word = u32::from_le_bytes([x[0], x[1], x[2], x[3]]);
    }
    unsafe { vreinterpretq_u16_u32(vld1q_u32(words.as_ptr())) }
}

/// Widens 8 halves into the first 8 places.
///
/// # Safety
/// The CPU has NEON.
#[allow(clippy::undocumented_unsafe_blocks)]
#[inline(always)]
unsafe fn widen_to(x: uint16x8_t, out: &mut [f32]) {
    let out = out[..8].as_mut_ptr();
    unsafe {
        let x = vreinterpretq_f16_u16(x);
        vst1q_f32(out, vcvt_f32_f16(vget_low_f16(x)));
        vst1q_f32(out.add(4), vcvt_high_f32_f16(x));
    }
}

// SAFETY (all blocks below): the witness was made only after the CPU was found to have the features, and
// pointers come from slices whose length was checked.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const DOT: bool, const I8MM: bool> Neon<DOT, I8MM> {
    /// Adds the products of 16 bytes to the lanes, in any order. Wide bytes count 128 less: most that are made where they are
    /// multiplied had 128 added as the last step, which then falls away.
    #[inline(always)]
    fn add_products<const WIDE: bool>(self, sum: int32x4_t, w: uint8x16_t, a: int8x16_t) -> int32x4_t {
        unsafe {
            let w = signed::<WIDE>(w);
            if DOT {
                return sdot(sum, w, a);
            }
            // |w| ≤ 128 and |a| ≤ 127: the sum of two is at most 32,512.
            let two = vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(a)), w, a);
            vpadalq_s16(sum, two)
        }
    }

    /// Adds to each lane the products of its four bytes.
    #[inline(always)]
    fn add_lane_products<const WIDE: bool>(self, sum: int32x4_t, w: uint8x16_t, a: int8x16_t) -> int32x4_t {
        unsafe {
            if WIDE && I8MM {
                return usdot(sum, w, a);
            }
            let w = signed::<WIDE>(w);
            if DOT {
                return sdot(sum, w, a);
            }
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(a));
            vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(w, a)))
        }
    }

    /// The sums of the products of four groups from `at` on; of groups behind the end, zeros.
    #[inline(always)]
    fn four_groups<const GROUP: usize, const WIDE: bool>(
        self,
        w: impl Bytes,
        a: &[i8],
        at: usize,
    ) -> int32x4_t {
        unsafe {
            let mut parts = [vdupq_n_s32(0); 4];
            for i in 0..4 * GROUP / 32 {
                let at = at + 32 * i;
                if at >= a.len() {
                    break;
                }
                let a = a[at..at + 32].as_ptr();
                let [low, high] = bytes(w.at(self, at));
                let (first, second) = (32 * i / GROUP, (32 * i + 16) / GROUP);
                parts[first] = self.add_products::<WIDE>(parts[first], low, vld1q_s8(a));
                parts[second] = self.add_products::<WIDE>(parts[second], high, vld1q_s8(a.add(16)));
            }
            addp(addp(parts[0], parts[1]), addp(parts[2], parts[3]))
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl<const DOT: bool, const I8MM: bool> Simd for Neon<DOT, I8MM> {
    type F = float32x4x2_t;
    type I = int32x4x2_t;
    const LANES: usize = 8;
    const BIASED: bool = I8MM;

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4x2_t {
        unsafe { float32x4x2_t(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> float32x4x2_t {
        let x = x[..8].as_ptr();
        unsafe { float32x4x2_t(vld1q_f32(x), vld1q_f32(x.add(4))) }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8]) -> float32x4x2_t {
        unsafe {
            let x = vreinterpretq_f16_u8(load16(x));
            float32x4x2_t(vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x))
        }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8]) -> float32x4x2_t {
        unsafe {
            let x = vreinterpretq_u16_u8(load16(x));
            let (low, high) = (vshll_n_u16::<16>(vget_low_u16(x)), vshll_high_n_u16::<16>(x));
            float32x4x2_t(vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
        }
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8]) -> int32x4x2_t {
        unsafe {
            let wide = vmovl_s8(vld1_s8(x[..8].as_ptr().cast()));
            int32x4x2_t(vmovl_s16(vget_low_s16(wide)), vmovl_high_s16(wide))
        }
    }
    #[inline(always)]
    fn load_f32(self, x: &[u8]) -> float32x4x2_t {
        unsafe { float32x4x2_t(vreinterpretq_f32_u8(load16(x)), vreinterpretq_f32_u8(load16(&x[16..]))) }
    }
    #[inline(always)]
    fn store(self, v: float32x4x2_t, out: &mut [f32]) {
        let out = out[..8].as_mut_ptr();
        unsafe {
            vst1q_f32(out, v.0);
            vst1q_f32(out.add(4), v.1);
        }
    }
    #[inline(always)]
    fn add(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        unsafe { float32x4x2_t(vaddq_f32(a.0, b.0), vaddq_f32(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        unsafe { float32x4x2_t(vmulq_f32(a.0, b.0), vmulq_f32(a.1, b.1)) }
    }
    #[inline(always)]
    fn max(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        unsafe { float32x4x2_t(vmaxnmq_f32(a.0, b.0), vmaxnmq_f32(a.1, b.1)) }
    }
    #[inline(always)]
    fn min(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        unsafe { float32x4x2_t(vminnmq_f32(a.0, b.0), vminnmq_f32(a.1, b.1)) }
    }
    #[inline(always)]
    fn fma(self, a: float32x4x2_t, b: float32x4x2_t, c: float32x4x2_t) -> float32x4x2_t {
        unsafe { float32x4x2_t(vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
    }
    #[inline(always)]
    fn sum(self, v: float32x4x2_t) -> f32 {
        unsafe {
            let v = vaddq_f32(v.0, v.1);
            vpadds_f32(vadd_f32(vget_low_f32(v), vget_high_f32(v)))
        }
    }
    #[inline(always)]
    fn transposed(self, v: [int32x4x2_t; 16]) -> [int32x4x2_t; 16] {
        let mut turned = v;
        unsafe {
            for i in 0..2 {
                let rows = [v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]];
                let left = transposed4([rows[0].0, rows[1].0, rows[2].0, rows[3].0]);
                let right = transposed4([rows[0].1, rows[1].1, rows[2].1, rows[3].1]);
                for l in 0..4 {
                    if i == 0 {
                        (turned[l].0, turned[4 + l].0) = (left[l], right[l]);
                    } else {
                        (turned[l].1, turned[4 + l].1) = (left[l], right[l]);
                    }
                }
            }
        }
        turned
    }
    #[inline(always)]
    fn bits_of(self, v: float32x4x2_t) -> int32x4x2_t {
        unsafe { int32x4x2_t(vreinterpretq_s32_f32(v.0), vreinterpretq_s32_f32(v.1)) }
    }
    #[inline(always)]
    fn to_f32(self, v: int32x4x2_t) -> float32x4x2_t {
        unsafe { float32x4x2_t(vcvtq_f32_s32(v.0), vcvtq_f32_s32(v.1)) }
    }
    #[inline(always)]
    fn load_i(self, x: &[i32]) -> int32x4x2_t {
        let x = x[..8].as_ptr();
        unsafe { int32x4x2_t(vld1q_s32(x), vld1q_s32(x.add(4))) }
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> int32x4x2_t {
        unsafe { int32x4x2_t(vdupq_n_s32(x), vdupq_n_s32(x)) }
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8]) -> int32x4x2_t {
        let x = &x[..32];
        unsafe { pair(load16(x), load16(&x[16..])) }
    }
    #[inline(always)]
    fn store_bytes(self, v: int32x4x2_t, out: &mut [u8]) {
        let out = out[..32].as_mut_ptr();
        unsafe {
            let [low, high] = bytes(v);
            vst1q_u8(out, low);
            vst1q_u8(out.add(16), high);
        }
    }
    #[inline(always)]
    fn blocks(self, x: &[u8], _: usize) -> int32x4x2_t {
        self.load_bytes(x)
    }
    #[inline(always)]
    fn nibbles(self, x: &[u8], _: usize) -> int32x4x2_t {
        unsafe {
            let x = load16(x);
            pair(vandq_u8(x, vdupq_n_u8(15)), vshrq_n_u8::<4>(x))
        }
    }
    #[inline(always)]
    fn bits<const BITS: usize>(self, x: &[u8], _: usize) -> int32x4x2_t {
        let x = &x[..4 * BITS];
        unsafe {
            match BITS {
                2 => {
                    let from = [
                        [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3],
                        [4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7],
                    ];
                    let by = [0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6, 0, -2, -4, -6];
                    let (by, low) = (vld1q_s8(by.as_ptr()), vdupq_n_u8(3));
                    let [first, second] = spread(load8(x), &from);
                    pair(vandq_u8(vshlq_u8(first, by), low), vandq_u8(vshlq_u8(second, by), low))
                }
                3 => {
                    // Two integers in each 16 bits, of which a copy five bits higher has the second one in its upper byte.
                    let from = [0, 1, 0, 1, 1, 2, 2, 3, 3, 4, 3, 4, 4, 5, 5, 5];
                    let by = [0, -6, -4, -2, 0, -6, -4, -2];
                    let (from, by) = (load16(&from), vld1q_s16(by.as_ptr()));
                    // The last six bytes are the same to the second half as the first six to the first.
                    let second = vextq_u8::<2>(load8(&x[4..]), vdupq_n_u8(0));
                    let [first, second] = [load8(x), second].map(|x| {
                        let two = vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(x, from)), by);
                        vandq_u8(vreinterpretq_u8_u16(vsliq_n_u16::<5>(two, two)), vdupq_n_u8(7))
                    });
                    pair(first, second)
                }
                _ => {
                    let x = load16(x);
                    let (even, odd) = (vandq_u8(x, vdupq_n_u8(15)), vshrq_n_u8::<4>(x));
                    pair(vzip1q_u8(even, odd), vzip2q_u8(even, odd))
                }
            }
        }
    }
    #[inline(always)]
    fn repeat(self, x: &[u8]) -> int32x4x2_t {
        self.load_bytes(x)
    }
    #[inline(always)]
    fn bytes_where(self, x: u8, bits: &[u8], _: usize) -> int32x4x2_t {
        let bits = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
        let from = [
            [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
            [2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3],
        ];
        unsafe {
            let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let [first, second] = spread(vreinterpretq_u8_u32(vdupq_n_u32(bits)), &from);
            let x = vdupq_n_u8(x);
            pair(vandq_u8(vtstq_u8(first, bit), x), vandq_u8(vtstq_u8(second, bit), x))
        }
    }
    #[inline(always)]
    fn look_up(self, table: &[u8; 16], v: int32x4x2_t) -> int32x4x2_t {
        unsafe {
            let (table, [low, high]) = (load16(table), bytes(v));
            pair(vqtbl1q_u8(table, low), vqtbl1q_u8(table, high))
        }
    }
    #[inline(always)]
    fn shift_right(self, v: int32x4x2_t, first: u32, _: u32) -> int32x4x2_t {
        unsafe {
            let by = vdupq_n_s32(-(first as i32));
            let [low, high] = [v.0, v.1].map(|v| vshlq_u32(vreinterpretq_u32_s32(v), by));
            int32x4x2_t(vreinterpretq_s32_u32(low), vreinterpretq_s32_u32(high))
        }
    }
    #[inline(always)]
    fn shift_left<const N: u32>(self, v: int32x4x2_t) -> int32x4x2_t {
        unsafe {
            let by = vdupq_n_s32(N as i32);
            int32x4x2_t(vshlq_s32(v.0, by), vshlq_s32(v.1, by))
        }
    }
    #[inline(always)]
    fn and(self, a: int32x4x2_t, b: int32x4x2_t) -> int32x4x2_t {
        unsafe { int32x4x2_t(vandq_s32(a.0, b.0), vandq_s32(a.1, b.1)) }
    }
    #[inline(always)]
    fn or(self, a: int32x4x2_t, b: int32x4x2_t) -> int32x4x2_t {
        unsafe { int32x4x2_t(vorrq_s32(a.0, b.0), vorrq_s32(a.1, b.1)) }
    }
    #[inline(always)]
    fn xor(self, a: int32x4x2_t, b: int32x4x2_t) -> int32x4x2_t {
        unsafe { int32x4x2_t(veorq_s32(a.0, b.0), veorq_s32(a.1, b.1)) }
    }
    #[inline(always)]
    fn store_low_bytes(self, v: int32x4x2_t, out: &mut [i8]) {
        unsafe {
            let halves = vcombine_s16(vmovn_s32(v.0), vmovn_s32(v.1));
            vst1_s8(out[..8].as_mut_ptr(), vmovn_s16(halves));
        }
    }
    #[inline(always)]
    fn max_i(self, a: int32x4x2_t, b: int32x4x2_t) -> int32x4x2_t {
        unsafe { int32x4x2_t(vmaxq_s32(a.0, b.0), vmaxq_s32(a.1, b.1)) }
    }
    #[inline(always)]
    fn lane_dots<const WIDE: bool>(self, sum: int32x4x2_t, w: int32x4x2_t, a: i32) -> int32x4x2_t {
        unsafe {
            let (a, [low, high]) = (vreinterpretq_s8_s32(vdupq_n_s32(a)), bytes(w));
            int32x4x2_t(
                self.add_lane_products::<WIDE>(sum.0, low, a),
                self.add_lane_products::<WIDE>(sum.1, high, a),
            )
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
    ) -> int32x4x2_t {
        const { assert!(GROUP == 16 || GROUP == 32) };
        let sums = self.load_i(sums);
        // Wide bytes counted 128 less already.
        let offset = if WIDE { 0 } else { offset };
        let first = self.four_groups::<GROUP, WIDE>(w, a, at);
        let second = self.four_groups::<GROUP, WIDE>(w, a, at + 4 * GROUP);
        unsafe { int32x4x2_t(vmlsq_n_s32(first, sums.0, offset), vmlsq_n_s32(second, sums.1, offset)) }
    }
    #[inline(always)]
    fn half_pairs(self, src: &[u8], step: usize, first: &mut [f32; 16], second: &mut [f32; 16]) {
        unsafe {
            for h in 0..2 {
                let src = &src[8 * h * step..];
                let (a, b) = (four_pairs(src, step), four_pairs(&src[4 * step..], step));
                widen_to(vuzp1q_u16(a, b), &mut first[8 * h..]);
                widen_to(vuzp2q_u16(a, b), &mut second[8 * h..]);
            }
        }
    }
    /// Into the second-level cache, as on x86-64.
    #[allow(
        clippy::pointers_in_nomem_asm_block,
        reason = "a hint accesses no memory that the compiler knows"
    )]
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch of any address is allowed. The standard library's function is not stable.
        unsafe { asm!("prfm pldl2keep, [{}]", in(reg) at, options(nomem, nostack, preserves_flags)) }
    }
}
