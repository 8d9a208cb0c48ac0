//! The shape that quantized block formats share.
//!
//! A block holds `LEN` integers in groups of `GROUP`, each group with a scale and, for some formats, a minimum:
//! `value = scale · q − min`, in `f32`, rounded after each operation. [`Format::unpack`] is all that a format has to
//! say to be dequantized and multiplied; [`Packed`] derives the rest, compiled for every instruction set.

use crate::Codec;
use crate::dot::{Acts, Scratch, weigh};
pub(crate) use fonio_simd::widen as f16_to_f32;
use fonio_simd::{Isa, SPAN, Simd, Task, VectorTask};
use std::marker::PhantomData;

/// Most values in a block of any format.
pub const MAX_BLOCK: usize = 256;
/// Most groups in a block of any format.
pub const MAX_GROUPS: usize = 16;

/// How a block begins, for formats with one scale for each block: then scales of many blocks are widened together,
/// and [`Format::integers`] reads the rest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// In another way.
    Own,
    /// With a half-precision scale.
    Scale,
    /// With a half-precision scale and an offset, which is the minimum with its sign changed.
    ScaleAndOffset,
    /// With a half-precision scale; the minimum is eight of it.
    ScaleAroundEight,
}

/// A quantized block format, as data and one function.
pub trait Format: Sync + Send + 'static {
    /// The field's name for the type.
    const NAME: &'static str;
    /// Its number in GGUF files, if it has one.
    const GGML: Option<u32> = None;
    /// Values in a block, at most [`MAX_BLOCK`].
    const LEN: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Values that share a scale: 16 or 32.
    const GROUP: usize;
    /// Whether groups have a minimum beside the scale; without, `unpack` leaves `min` alone. With a minimum, integers
    /// are not negative.
    const HAS_MIN: bool = false;
    /// Whether [`Format::quantize`] is there.
    const CAN_QUANTIZE: bool = false;

    /// Unpacks one block of exactly `BYTES` bytes into `LEN` integers and `LEN / GROUP` scales and minima.
    /// Must be `#[inline(always)]`. Every pattern of bytes is a valid block.
    fn unpack(block: &[u8], q: &mut [i8], scale: &mut [f32], min: &mut [f32]);

    /// The same as [`Format::unpack`] with vectors, where they help. Must be `#[inline(always)]`.
    #[inline(always)]
    fn unpack_with<S: Simd>(_s: S, block: &[u8], q: &mut [i8], scale: &mut [f32], min: &mut [f32]) {
        Self::unpack(block, q, scale, min);
    }

    /// How a block begins; if not in a way of its own, [`Format::integers`] is there.
    const HEAD: Head = Head::Own;

    /// Unpacks the integers of one block with vectors, the same as [`Format::unpack`]. Must be `#[inline(always)]`.
    fn integers<S: Simd>(_s: S, _block: &[u8], _q: &mut [i8]) {}

    /// Packs `LEN` finite values into one block of exactly `BYTES` bytes, with the least squared error weighted
    /// by `importance` (`LEN` weights) where it is given.
    fn quantize(_src: &[f32], _importance: Option<&[f32]>, _block: &mut [u8]) {}

    /// Packs whole blocks with [`Format::quantize`]. Formats that share its code may do so here.
    fn quantize_all(isa: Isa, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8])
    where
        Self: Sized,
    {
        isa.run(Quantize::<Self>(src, importance, dst, PhantomData));
    }
}

/// The integer view of whole blocks: what integer dot products work on.
pub trait Groups: Sync {
    /// Values that share a scale: 16 or 32.
    fn group_len(&self) -> usize;
    /// Whether groups have a minimum.
    fn has_min(&self) -> bool;
    /// Unpacks whole blocks: `q` has a place for each value, `scale` (and `min`, if [`Groups::has_min`], else it is
    /// left alone) one for each group.
    fn unpack(&self, isa: Isa, src: &[u8], q: &mut [i8], scale: &mut [f32], min: &mut [f32]);
    /// The dot products of packed rows with one row of activations, one for each place of `out`.
    fn dots(&self, isa: Isa, rows: &[u8], acts: Acts<'_>, scratch: &mut Scratch, out: &mut [f32]);
}

/// The codec of a [`Format`].
pub struct Packed<F>(PhantomData<F>);

impl<F: Format> Packed<F> {
    /// The one value of this type.
    pub const fn new() -> Self {
        assert!(F::LEN <= MAX_BLOCK && F::LEN.is_multiple_of(F::GROUP));
        assert!(F::GROUP == 16 || F::GROUP == 32);
        Packed(PhantomData)
    }
}

impl<F: Format> Default for Packed<F> {
    fn default() -> Self {
        Self::new()
    }
}

struct Dequantize<'a, F>(&'a [u8], &'a mut [f32], PhantomData<F>);

impl<F: Format> Task for Dequantize<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let mut q = [0i8; MAX_BLOCK];
        let mut scale = [0f32; MAX_GROUPS];
        let mut min = [0f32; MAX_GROUPS];
        for (block, out) in self.0.chunks_exact(F::BYTES).zip(self.1.chunks_exact_mut(F::LEN)) {
            F::unpack(
                block,
                &mut q[..F::LEN],
                &mut scale[..F::LEN / F::GROUP],
                &mut min[..F::LEN / F::GROUP],
            );
            for (g, values) in out.chunks_exact_mut(F::GROUP).enumerate() {
                let (d, m) = (scale[g], min[g]);
                let ints = &q[g * F::GROUP..(g + 1) * F::GROUP];
                for (value, &int) in values.iter_mut().zip(ints) {
                    // `x − 0` is `x` for every x, the sign of zero included.
                    *value = d * f32::from(int) - m;
                }
            }
        }
    }
}

struct Quantize<'a, F>(&'a [f32], Option<&'a [f32]>, &'a mut [u8], PhantomData<F>);

impl<F: Format> Task for Quantize<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run(self, _: Isa) {
        let blocks = self.0.chunks_exact(F::LEN).zip(self.2.chunks_exact_mut(F::BYTES));
        for (i, (values, block)) in blocks.enumerate() {
            F::quantize(values, self.1.map(|w| &w[i * F::LEN..(i + 1) * F::LEN]), block);
        }
    }
}

struct Unpack<'a, F> {
    src: &'a [u8],
    q: &'a mut [i8],
    scale: &'a mut [f32],
    min: &'a mut [f32],
    format: PhantomData<F>,
}

impl<F: Format> VectorTask for Unpack<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if matches!(F::HEAD, Head::Own) { self.one_by_one(s) } else { self.together(s) }
    }
}

impl<F: Format> Unpack<'_, F> {
    #[inline(always)]
    fn one_by_one<S: Simd>(self, s: S) {
        let n = F::LEN / F::GROUP;
        let mut unused = [0f32; MAX_GROUPS];
        for (i, block) in self.src.chunks_exact(F::BYTES).enumerate() {
            let min = if F::HAS_MIN { &mut self.min[i * n..(i + 1) * n] } else { &mut unused[..n] };
            F::unpack_with(
                s,
                block,
                &mut self.q[i * F::LEN..(i + 1) * F::LEN],
                &mut self.scale[i * n..(i + 1) * n],
                min,
            );
        }
    }

    #[inline(always)]
    fn together<S: Simd>(self, s: S) {
        heads::<F, S>(s, self.src, self.scale, self.min);
        for (block, q) in self.src.chunks_exact(F::BYTES).zip(self.q.chunks_exact_mut(F::LEN)) {
            F::integers(s, block, q);
        }
    }
}

/// The scales of all blocks, 16 at once. Plain loops: adapters of iterators are calls where they are not inlined.
#[inline(always)]
fn heads<F: Format, S: Simd>(s: S, src: &[u8], scales: &mut [f32], mins: &mut [f32]) {
    const MANY: usize = 16;
    let n = F::LEN / F::GROUP;
    let blocks = src.len() / F::BYTES;
    let mut first = 0;
    while first < blocks {
        let many = if blocks - first < MANY { blocks - first } else { MANY };
        let (mut wide, mut offset) = ([0f32; MANY], [0f32; MANY]);
        if many == MANY {
            s.half_pairs(&src[first * F::BYTES..], F::BYTES, &mut wide, &mut offset);
        } else {
            for b in 0..many {
                let block = &src[(first + b) * F::BYTES..][..F::BYTES];
                wide[b] = f16_at(block, 0);
                offset[b] = f16_at(block, 2);
            }
        }
        let mut min = [0f32; MANY];
        if F::HAS_MIN {
            for l in 0..MANY {
                min[l] = match F::HEAD {
                    Head::ScaleAndOffset => -offset[l],
                    _ => 8.0 * wide[l],
                };
            }
        }
        for b in 0..many {
            let groups = (first + b) * n..(first + b + 1) * n;
            if F::HAS_MIN {
                let min_of = &mut mins[groups.clone()];
                for g in 0..n {
                    min_of[g] = min[b];
                }
            }
            let scale_of = &mut scales[groups];
            for g in 0..n {
                scale_of[g] = wide[b];
            }
        }
        first += many;
    }
}

/// How far ahead of what is multiplied weights are fetched. The CPU by itself stops at each page's end.
const AHEAD: usize = 2048;

/// Rows times one row of activations: integers go from the packed bytes to their products by way of the nearest cache.
struct Dots<'a, F> {
    rows: &'a [u8],
    acts: Acts<'a>,
    scratch: &'a mut Scratch,
    out: &'a mut [f32],
    format: PhantomData<F>,
}

impl<F: Format> VectorTask for Dots<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let row_bytes = self.rows.len() / self.out.len().max(1);
        let cols = row_bytes / F::BYTES * F::LEN;
        self.scratch.resize(cols, F::GROUP);
        let Scratch { ints, scale, min } = self.scratch;
        for (row, out) in self.rows.chunks_exact(row_bytes).zip(self.out) {
            if !matches!(F::HEAD, Head::Own) {
                heads::<F, S>(s, row, scale, min);
            }
            let mut first = 0;
            while first < cols {
                let n = if cols - first < SPAN { cols - first } else { SPAN };
                let bytes = &row[first / F::LEN * F::BYTES..(first + n) / F::LEN * F::BYTES];
                let groups = first / F::GROUP..;
                let (scale, min) = (&mut scale[groups.clone()], &mut min[groups.clone()]);
                // Of a whole span the compiler knows all lengths.
                let acts =
                    Acts { q: &self.acts.q[first..], sum: &self.acts.sum[groups.clone()], ..self.acts };
                if n == SPAN {
                    span::<F, S>(s, SPAN, bytes, scale, min, &acts, &mut ints[groups]);
                } else {
                    span::<F, S>(s, n, bytes, scale, min, &acts, &mut ints[groups]);
                }
                first += SPAN;
            }
            *out = if F::HAS_MIN {
                weigh::<S, true>(s, ints, scale, min, &self.acts)
            } else {
                weigh::<S, false>(s, ints, scale, min, &self.acts)
            };
        }
    }
}

/// Unpacks and multiplies `n` values, at most a [`SPAN`].
#[inline(always)]
fn span<F: Format, S: Simd>(
    s: S,
    n: usize,
    bytes: &[u8],
    scale: &mut [f32],
    min: &mut [f32],
    acts: &Acts<'_>,
    ints: &mut [i32],
) {
    s.prefetch(bytes, AHEAD);
    let mut q = [0i8; SPAN];
    let groups = F::LEN / F::GROUP;
    for b in 0..n / F::LEN {
        let block = &bytes[b * F::BYTES..(b + 1) * F::BYTES];
        let q = &mut q[b * F::LEN..(b + 1) * F::LEN];
        if matches!(F::HEAD, Head::Own) {
            let places = b * groups..(b + 1) * groups;
            F::unpack_with(s, block, q, &mut scale[places.clone()], &mut min[places]);
        } else {
            F::integers(s, block, q);
        }
    }
    let len = n.next_multiple_of(64);
    let (q, a) = (&q[..len], &acts.q[..len]);
    match (F::GROUP, F::HAS_MIN) {
        (16, false) => s.group_dots::<16, true>(q, a, acts.sum, ints),
        (16, true) => s.group_dots::<16, false>(q, a, acts.sum, ints),
        (_, false) => s.group_dots::<32, true>(q, a, acts.sum, ints),
        (_, true) => s.group_dots::<32, false>(q, a, acts.sum, ints),
    }
}

impl<F: Format> Codec for Packed<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }
    fn ggml_type(&self) -> Option<u32> {
        F::GGML
    }
    fn block_len(&self) -> usize {
        F::LEN
    }
    fn block_bytes(&self) -> usize {
        F::BYTES
    }
    fn is_quantized(&self) -> bool {
        true
    }
    fn can_quantize(&self) -> bool {
        F::CAN_QUANTIZE
    }
    fn dequantize(&self, isa: Isa, src: &[u8], dst: &mut [f32]) {
        isa.run(Dequantize::<F>(src, dst, PhantomData));
    }
    fn quantize(&self, isa: Isa, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
        F::quantize_all(isa, src, importance, dst);
    }
    fn groups(&self) -> Option<&dyn Groups> {
        Some(self)
    }
}

impl<F: Format> Groups for Packed<F> {
    fn group_len(&self) -> usize {
        F::GROUP
    }
    fn has_min(&self) -> bool {
        F::HAS_MIN
    }
    fn unpack(&self, isa: Isa, src: &[u8], q: &mut [i8], scale: &mut [f32], min: &mut [f32]) {
        isa.vector(Unpack::<F> { src, q, scale, min, format: PhantomData });
    }
    fn dots(&self, isa: Isa, rows: &[u8], acts: Acts<'_>, scratch: &mut Scratch, out: &mut [f32]) {
        isa.vector(Dots::<F> { rows, acts, scratch, out, format: PhantomData });
    }
}

/// The half-precision number at byte `at` of a block, as `f32`.
#[inline(always)]
pub(crate) fn f16_at(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Rounds to half precision, ties to even, in plain arithmetic like [`f16_to_f32`]. What is too large becomes the
/// largest finite number of its sign: a scale must never be infinite.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    let normal = ((magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13).wrapping_sub((127 - 15) << 10);
    // The last place of 0.5 is 2^-24, that of a subnormal half.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let half = if magnitude < (127 - 14) << 23 { subnormal } else { normal.min(0x7bff) };
    sign | half as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_equals_half_crate_and_saturates() {
        // Every half, its neighbours and the middle to the next half, and a stride through all of f32.
        let exact = (0..=u16::MAX).map(|h| half::f16::from_bits(h).to_f32().to_bits());
        let near =
            exact.flat_map(|b| [b, b.wrapping_add(1), b.wrapping_sub(1), b + 0xfff, b + 0x1000, b + 0x1001]);
        let strided = (0..u32::MAX / 65_521).map(|i| i * 65_521);
        for bits in near.chain(strided) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                continue;
            }
            let want = half::f16::from_f32(x);
            let want = if want.is_infinite() { half::f16::MAX.copysign(want) } else { want };
            assert_eq!(f32_to_f16(x), want.to_bits(), "{x:e}");
        }
    }

    #[test]
    fn widening_equals_half_crate_for_every_pattern() {
        for h in 0..=u16::MAX {
            let want = half::f16::from_bits(h).to_f32();
            let got = f16_to_f32(h);
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{h:#x}");
        }
    }
}
