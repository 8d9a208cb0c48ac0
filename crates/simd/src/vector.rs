//! Portable vector operations: one trait, one implementation for each instruction set.
//!
//! Code generic over [`Simd`] is written once as a [`VectorTask`] and compiled for every level by
//! [`crate::Isa::vector`]. Values of the implementing types are witnesses: they are made only there, after the CPU was
//! asked, which is what makes their methods safe.

/// Bytes of a cache line.
const LINE: usize = 64;
/// How far behind what is computed it is fetched. The CPU by itself stops at each page's end.
pub const AHEAD: usize = 8192;

/// What [`Simd::group_sums`] multiplies: bytes that are somewhere, or made of others. Mark all functions and what they call
/// with `#[inline(always)]`.
pub trait Bytes: Copy {
    /// `4 · LANES` bytes from `at` on, a multiple of that.
    fn at<S: Simd>(self, s: S, at: usize) -> S::I;
    /// `N` bytes from `at` on, so that the compiler knows how many there are. `N` and `at` are multiples of 512.
    fn part<const N: usize>(self, at: usize) -> Self;
    /// All bytes from `at` on, a multiple of 512.
    fn rest(self, at: usize) -> Self;
}

impl Bytes for &[u8] {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, at: usize) -> S::I {
        s.load_bytes(&self[at..])
    }
    #[inline(always)]
    fn part<const N: usize>(self, at: usize) -> Self {
        &self[at..at + N]
    }
    #[inline(always)]
    fn rest(self, at: usize) -> Self {
        &self[at..]
    }
}

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
    /// Whether [`Simd::lane_dots`] multiplies wide bytes as they are.
    const BIASED: bool;
    /// Whether a vector is a register: bits of one are moved in fewer steps than through memory.
    const REGISTERS: bool = true;

    /// The same number in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// The first `LANES` numbers.
    fn load(self, x: &[f32]) -> Self::F;
    /// All of fewer than `LANES` numbers, and zeros behind them.
    #[inline(always)]
    fn load_first(self, x: &[f32]) -> Self::F {
        let mut all = [0.0; 16];
        for i in 0..16 {
            all[i] = if i < x.len() { x[i] } else { 0.0 };
        }
        self.load(&all)
    }
    /// The first `LANES` half-precision numbers of these bytes.
    fn load_f16(self, x: &[u8]) -> Self::F;
    /// The first `LANES` bfloat16 numbers of these bytes.
    fn load_bf16(self, x: &[u8]) -> Self::F;
    /// The first `LANES` numbers of these bytes.
    fn load_f32(self, x: &[u8]) -> Self::F;
    /// The first `LANES` of these bytes, integers with a sign.
    fn load_i8(self, x: &[u8]) -> Self::I;
    /// Puts the lanes into the first `LANES` places.
    fn store(self, v: Self::F, out: &mut [f32]);
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger of each two; of a NaN and another, either.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each two; of a NaN and another, either.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`; rounded once where the CPU can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The sum of the lanes: halves are added until one lane is left.
    fn sum(self, v: Self::F) -> f32;
    /// The largest lane; of a NaN and others, any.
    #[inline(always)]
    fn highest(self, v: Self::F) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        self.store(v, &mut lanes);
        let mut highest = lanes[0];
        for x in lanes {
            highest = if x > highest { x } else { highest };
        }
        highest
    }
    /// The [`Simd::sum`] of each of the first `LANES` of these vectors.
    #[inline(always)]
    fn sums(self, v: [Self::F; 16]) -> Self::F {
        let mut sums = [0f32; 16];
        for i in 0..Self::LANES {
            sums[i] = self.sum(v[i]);
        }
        self.load(&sums)
    }
    /// The first four numbers of four rows, turned: the first of all rows, then the second ones, and so on.
    #[inline(always)]
    fn turn(self, rows: [&[f32]; 4]) -> [[f32; 4]; 4] {
        let mut turned = [[0.0; 4]; 4];
        for r in 0..4 {
            for i in 0..4 {
                turned[i][r] = rows[r][i];
            }
        }
        turned
    }
    /// Lane `l` of the first `LANES` of these vectors, which becomes lane `i` of vector `l` for vector `i`.
    #[inline(always)]
    fn transposed(self, v: [Self::I; 16]) -> [Self::I; 16] {
        let (mut rows, mut turned) = ([[0u8; 64]; 16], v);
        for r in 0..Self::LANES {
            self.store_bytes(v[r], &mut rows[r]);
        }
        for l in 0..Self::LANES {
            let mut lanes = [0u8; 64];
            for r in 0..Self::LANES {
                for i in 0..4 {
                    lanes[4 * r + i] = rows[r][4 * l + i];
                }
            }
            turned[l] = self.load_bytes(&lanes);
        }
        turned
    }
    /// The bits of numbers, as integers.
    fn bits_of(self, v: Self::F) -> Self::I;
    /// The nearest `f32` of each integer.
    fn to_f32(self, v: Self::I) -> Self::F;
    /// The first `LANES` integers.
    fn load_i(self, x: &[i32]) -> Self::I;
    /// The same integer in every lane.
    fn splat_i(self, x: i32) -> Self::I;
    /// The first `4 · LANES` bytes, four to a lane.
    fn load_bytes(self, x: &[u8]) -> Self::I;
    /// Puts the bytes into the first `4 · LANES` places.
    fn store_bytes(self, v: Self::I, out: &mut [u8]);
    /// Puts the lowest byte of each lane into the first `LANES` places.
    #[inline(always)]
    fn store_low_bytes(self, v: Self::I, out: &mut [i8]) {
        let mut bytes = [0u8; 64];
        self.store_bytes(v, &mut bytes);
        for l in 0..Self::LANES {
            out[l] = bytes[4 * l] as i8;
        }
    }
    /// The larger of each two, which have a sign.
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// 32 bytes at each of `LANES / 8` places, `step` bytes apart.
    fn blocks(self, x: &[u8], step: usize) -> Self::I;
    /// Of 16 bytes at each of `LANES / 8` places, `step` bytes apart, all low nibbles, then all high ones.
    fn nibbles(self, x: &[u8], step: usize) -> Self::I;
    /// 32 integers of `BITS` bits (2, 3 or 4) at each of `LANES / 8` places, `step` bytes apart: one stream from the lowest
    /// bit on.
    fn bits<const BITS: usize>(self, x: &[u8], step: usize) -> Self::I;
    /// The first 32 bytes, again and again.
    fn repeat(self, x: &[u8]) -> Self::I;
    /// Bytes `x` where a bit is set of the 32 at each of `LANES / 8` places, `step` bytes apart, the lowest first; else 0.
    fn bytes_where(self, x: u8, bits: &[u8], step: usize) -> Self::I;
    /// What the table has for each byte from 0 to 15.
    fn look_up(self, table: &[u8; 16], v: Self::I) -> Self::I;
    /// All lanes shifted to the right, the first eight by `first` bits, the next eight by `second`.
    fn shift_right(self, v: Self::I, first: u32, second: u32) -> Self::I;
    /// All lanes shifted to the left.
    fn shift_left<const N: u32>(self, v: Self::I) -> Self::I;
    /// The bits that are in both.
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// The bits that are in one or both.
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// The bits that are in one.
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    /// [`Simd::and`] of each byte and `x`.
    #[inline(always)]
    fn and_bytes(self, v: Self::I, x: u8) -> Self::I {
        self.and(v, self.splat_i(i32::from_le_bytes([x; 4])))
    }
    /// [`Simd::xor`] of each byte and `x`.
    #[inline(always)]
    fn xor_bytes(self, v: Self::I, x: u8) -> Self::I {
        self.xor(v, self.splat_i(i32::from_le_bytes([x; 4])))
    }
    /// Adds to lane `l` the products of the four bytes of lane `l` of `w` with those of `a`, which are from −127 to 127.
    /// The bytes of `w` have no sign, and are at most 127 if not `WIDE`. If `WIDE` and not [`Simd::BIASED`], 128 less of
    /// them is multiplied.
    fn lane_dots<const WIDE: bool>(self, sum: Self::I, w: Self::I, a: i32) -> Self::I;
    /// The sums of `(w[i] − offset) · a[i]` over `LANES` groups of `GROUP` (16 or 32) values, from value `at` on, exactly,
    /// for `a` in −127 … 127. The bytes of `w` are at most 127 if not `WIDE`; if they may be more, `offset` is 128. `sums` are
    /// the sums of `a` over these groups.
    ///
    /// `at` is a multiple of the values of `LANES` groups. `w` has as many bytes as `a` values, a multiple of 64. Lanes of
    /// groups behind the last get anything.
    fn group_sums<const GROUP: usize, const WIDE: bool>(
        self,
        w: impl Bytes,
        a: &[i8],
        at: usize,
        sums: &[i32],
        offset: i32,
    ) -> Self::I;
    /// One half-precision number.
    #[inline(always)]
    fn widen_half(self, half: u16) -> f32 {
        widen(half)
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
    /// Tells the CPU that what is here, if anything is, will be read before long.
    #[inline(always)]
    fn prefetch(self, _at: *const u8) {}
    /// The same of what is [`AHEAD`] bytes behind the bytes `from..to` of `x`. Call it with a few bytes between what is
    /// computed of them: many lines at once would leave no room for loads that wait for nothing but a nearer cache.
    #[inline(always)]
    fn fetch_ahead(self, x: &[u8], from: usize, to: usize) {
        let mut line = from.next_multiple_of(LINE);
        while line < to {
            self.prefetch(x.as_ptr().wrapping_add(line + AHEAD));
            line += LINE;
        }
    }
}

/// The second half of [`Simd::bits`]: lanes of 32 bits have four integers of two bits each, four of three or, in halves,
/// two times two of four, lowest first.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn spread<S: Simd, const BITS: usize>(s: S, x: S::I) -> S::I {
    match BITS {
        2 => {
            // Byte i is integer i after a shift by 6·i, between other bits.
            let x = s.or(x, s.shift_left::<12>(x));
            s.and_bytes(s.or(x, s.shift_left::<6>(x)), 3)
        }
        3 => {
            let x = s.and(x, s.splat_i(0xfff));
            let x = s.and(s.or(x, s.shift_left::<10>(x)), s.splat_i(0x3f_003f));
            s.and_bytes(s.or(x, s.shift_left::<5>(x)), 7)
        }
        _ => s.and_bytes(s.or(x, s.shift_left::<4>(x)), 15),
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
    const BIASED: bool = false;
    const REGISTERS: bool = false;

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
    fn load_f16(self, x: &[u8]) -> [f32; 8] {
        let mut v = [0.0; 8];
        for (v, x) in v.iter_mut().zip(x[..16].as_chunks::<2>().0) {
            *v = widen(u16::from_le_bytes(*x));
        }
        v
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8]) -> [i32; 8] {
        let mut v = [0; 8];
        for (v, x) in v.iter_mut().zip(&x[..8]) {
            *v = i32::from(*x as i8);
        }
        v
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8]) -> [f32; 8] {
        let mut v = [0.0; 8];
        for (v, x) in v.iter_mut().zip(x[..16].as_chunks::<2>().0) {
            *v = f32::from_bits(u32::from(u16::from_le_bytes(*x)) << 16);
        }
        v
    }
    #[inline(always)]
    fn load_f32(self, x: &[u8]) -> [f32; 8] {
        let mut v = [0.0; 8];
        for (v, x) in v.iter_mut().zip(x[..32].as_chunks::<4>().0) {
            *v = f32::from_le_bytes(*x);
        }
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
    fn max(self, mut a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        for (a, b) in a.iter_mut().zip(b) {
            *a = a.max(b);
        }
        a
    }
    #[inline(always)]
    fn min(self, mut a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        for (a, b) in a.iter_mut().zip(b) {
            *a = a.min(b);
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
    fn bits_of(self, v: [f32; 8]) -> [i32; 8] {
        v.map(|x| x.to_bits() as i32)
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
    fn load_bytes(self, x: &[u8]) -> [i32; 8] {
        let mut v = [0; 8];
        for (lane, x) in v.iter_mut().zip(x[..32].as_chunks::<4>().0) {
            *lane = i32::from_le_bytes(*x);
        }
        v
    }
    #[inline(always)]
    fn store_bytes(self, v: [i32; 8], out: &mut [u8]) {
        for (out, lane) in out[..32].chunks_exact_mut(4).zip(v) {
            out.copy_from_slice(&lane.to_le_bytes());
        }
    }
    #[inline(always)]
    fn max_i(self, mut a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        for (a, b) in a.iter_mut().zip(b) {
            *a = (*a).max(b);
        }
        a
    }
    #[inline(always)]
    fn blocks(self, x: &[u8], _: usize) -> [i32; 8] {
        self.load_bytes(x)
    }
    #[inline(always)]
    fn nibbles(self, x: &[u8], _: usize) -> [i32; 8] {
        let x = &x[..16];
        from_bytes(|i| if i < 16 { x[i] & 15 } else { x[i - 16] >> 4 })
    }
    #[inline(always)]
    fn bits<const BITS: usize>(self, x: &[u8], _: usize) -> [i32; 8] {
        from_bytes(|i| {
            // Eight integers are `BITS` whole bytes.
            let word = (0..BITS).fold(0, |word, b| word | u32::from(x[i / 8 * BITS + b]) << (8 * b));
            (word >> (BITS * (i % 8))) as u8 & ((1 << BITS) - 1)
        })
    }
    #[inline(always)]
    fn repeat(self, x: &[u8]) -> [i32; 8] {
        self.load_bytes(x)
    }
    #[inline(always)]
    fn bytes_where(self, x: u8, bits: &[u8], _: usize) -> [i32; 8] {
        from_bytes(|i| (bits[i / 8] >> (i % 8) & 1) * x)
    }
    #[inline(always)]
    fn look_up(self, table: &[u8; 16], v: [i32; 8]) -> [i32; 8] {
        let mut bytes = [0; 32];
        self.store_bytes(v, &mut bytes);
        from_bytes(|i| table[usize::from(bytes[i] & 15)])
    }
    #[inline(always)]
    fn shift_right(self, v: [i32; 8], first: u32, _: u32) -> [i32; 8] {
        v.map(|x| (x as u32 >> first) as i32)
    }
    #[inline(always)]
    fn shift_left<const N: u32>(self, v: [i32; 8]) -> [i32; 8] {
        v.map(|x| x << N)
    }
    #[inline(always)]
    fn and(self, mut a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        for (a, b) in a.iter_mut().zip(b) {
            *a &= b;
        }
        a
    }
    #[inline(always)]
    fn xor(self, mut a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        for (a, b) in a.iter_mut().zip(b) {
            *a ^= b;
        }
        a
    }
    #[inline(always)]
    fn or(self, mut a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        for (a, b) in a.iter_mut().zip(b) {
            *a |= b;
        }
        a
    }
    #[inline(always)]
    fn lane_dots<const WIDE: bool>(self, mut sum: [i32; 8], w: [i32; 8], a: i32) -> [i32; 8] {
        // Signed on both sides: products of 16 bits, of which CPUs add pairs at once.
        let flip = if WIDE { i32::from_le_bytes([128; 4]) } else { 0 };
        for (sum, w) in sum.iter_mut().zip(w) {
            for i in 0..4 {
                *sum += i32::from(((w ^ flip) >> (8 * i)) as i8) * i32::from((a >> (8 * i)) as i8);
            }
        }
        sum
    }
    #[inline(always)]
    fn group_sums<const GROUP: usize, const WIDE: bool>(
        self,
        w: impl Bytes,
        a: &[i8],
        at: usize,
        sums: &[i32],
        offset: i32,
    ) -> [i32; 8] {
        let (mut out, mut bytes) = ([0; 8], [0; 32]);
        let end = a.len().min(at + 8 * GROUP);
        for (i, a) in a[at..end].chunks_exact(32).enumerate() {
            self.store_bytes(w.at(self, at + 32 * i), &mut bytes);
            for (g, (w, a)) in bytes.chunks_exact(GROUP).zip(a.chunks_exact(GROUP)).enumerate() {
                let g = i * (32 / GROUP) + g;
                let (flip, offset) = if WIDE { (128, 0) } else { (0, offset) };
                let mut sum = 0;
                for (&w, &a) in w.iter().zip(a) {
                    sum += i32::from((w ^ flip) as i8) * i32::from(a);
                }
                out[g] = sum - offset * sums[g];
            }
        }
        out
    }
}

/// Lanes of four bytes each, the first lowest.
#[inline(always)]
fn from_bytes(byte: impl Fn(usize) -> u8) -> [i32; 8] {
    let mut v = [0; 8];
    for (l, lane) in v.iter_mut().enumerate() {
        *lane = i32::from_le_bytes([byte(4 * l), byte(4 * l + 1), byte(4 * l + 2), byte(4 * l + 3)]);
    }
    v
}

#[cfg(test)]
mod tests;
