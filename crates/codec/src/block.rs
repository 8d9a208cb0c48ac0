//! The shape that quantized block formats share.
//!
//! A block holds `LEN` integers in groups of `GROUP`, each group with a scale and, for some formats, a minimum:
//! `value = scale · q − min`, in `f32`, rounded after each operation. [`Format::unpack`] is all that a format has to
//! say to be dequantized and multiplied; [`Packed`] derives the rest, compiled for every instruction set. Products want
//! integers as bytes without a sign, so [`Format::OFFSET`] is added to them. A format whose bytes vectors can make of the
//! packed ones says how in [`Format::bytes`].

use crate::Codec;
use crate::dot::{Acts, Row, Scratch, dots};
pub(crate) use fonio_simd::widen as f16_to_f32;
use fonio_simd::{Bytes, Isa, Simd, Task, VectorTask};
use std::marker::PhantomData;

/// Most values in a block of any format.
pub const MAX_BLOCK: usize = 256;
/// Most groups in a block of any format.
pub const MAX_GROUPS: usize = 16;

/// How a block begins, for formats with one scale for each block: then scales of many blocks are widened together.
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

    /// How a block begins.
    const HEAD: Head = Head::Own;

    /// What integers are less than the bytes that are multiplied: 0 for formats with minima, 128 for others, or what makes
    /// all of them 0 … 127, which is faster.
    const OFFSET: u8 = if Self::HAS_MIN { 0 } else { 128 };

    /// Whether [`Format::bytes`] is there (and [`Format::scales`], if a block begins in a way of its own).
    const DIRECT: bool = false;

    /// The integers from `at` on of these blocks, with [`Format::OFFSET`] added: as many as there are bytes in a vector, 32
    /// or 64. `at` is a multiple of that. Must be `#[inline(always)]`.
    #[inline(always)]
    fn bytes<S: Simd>(_s: S, _blocks: &[u8], _at: usize) -> S::I {
        unreachable!("asked only where it is there")
    }

    /// The scales and minima that [`Format::unpack`] gives. Must be `#[inline(always)]`.
    #[inline(always)]
    fn scales<S: Simd>(_s: S, _block: &[u8], _scale: &mut [f32], _min: &mut [f32]) {
        unreachable!("asked only where it is there")
    }

    /// Packs `LEN` finite values into one block of exactly `BYTES` bytes, with the least squared error weighted
    /// by `importance` (`LEN` weights) where it is given.
    fn quantize(_src: &[f32], _importance: Option<&[f32]>, _block: &mut [u8]) {}

    /// Packs whole blocks with [`Format::quantize`]. Formats that share its code may do so here.
    fn quantize_all(isa: Isa, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8])
    where
        Self: Sized,
    {
        one_by_one::<Self>(isa, src, importance, dst);
    }
}

/// Packs whole blocks, each by itself.
pub(crate) fn one_by_one<F: Format>(isa: Isa, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    isa.run(Quantize::<F>(src, importance, dst, PhantomData));
}

/// The integer view of whole blocks: what integer dot products work on.
pub trait Groups: Sync {
    /// Values that share a scale: 16 or 32.
    fn group_len(&self) -> usize;
    /// Whether groups have a minimum.
    fn has_min(&self) -> bool;
    /// What integers are less than the bytes that [`Groups::unpack`] gives; those are at most 127 if this is not 128.
    fn offset(&self) -> u8;
    /// Unpacks whole blocks: `q` has a place for each value, `scale` (and `min`, if [`Groups::has_min`], else it is
    /// left alone) one for each group.
    fn unpack(&self, isa: Isa, src: &[u8], q: &mut [u8], scale: &mut [f32], min: &mut [f32]);
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
        assert!(F::OFFSET <= 128 && (!F::HAS_MIN || F::OFFSET == 0));
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
    q: &'a mut [u8],
    scale: &'a mut [f32],
    min: &'a mut [f32],
    format: PhantomData<F>,
}

impl<F: Format> VectorTask for Unpack<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if is_direct::<F, S>(self.q.len()) {
            scales::<F, S>(s, self.src, self.scale, self.min);
            let mut at = 0;
            while at < self.q.len() {
                let direct = Direct::<F>(self.src, PhantomData);
                s.store_bytes(direct.at(s, at), &mut self.q[at..]);
                at += 4 * S::LANES;
            }
        } else {
            unpack_all::<F>(self.src, self.q, self.scale, self.min);
        }
    }
}

/// Whether integers of rows of this length are made in vectors. Without registers for those it pays for short blocks, whose
/// bytes have few parts.
#[inline(always)]
const fn is_direct<F: Format, S: Simd>(cols: usize) -> bool {
    F::DIRECT && (S::REGISTERS || F::LEN < 256) && cols.is_multiple_of(64)
}

/// Unpacks whole blocks one by one.
#[inline(always)]
fn unpack_all<F: Format>(src: &[u8], q: &mut [u8], scale: &mut [f32], min: &mut [f32]) {
    let n = F::LEN / F::GROUP;
    let (mut own, mut unused) = ([0i8; MAX_BLOCK], [0f32; MAX_GROUPS]);
    for i in 0..src.len() / F::BYTES {
        let groups = i * n..(i + 1) * n;
        let min = if F::HAS_MIN { &mut min[groups.clone()] } else { &mut unused[..n] };
        F::unpack(&src[i * F::BYTES..(i + 1) * F::BYTES], &mut own[..F::LEN], &mut scale[groups], min);
        let q = &mut q[i * F::LEN..(i + 1) * F::LEN];
        for l in 0..F::LEN {
            q[l] = (own[l] as u8).wrapping_add(F::OFFSET);
        }
    }
}

/// The scales (and minima) of whole blocks.
#[inline(always)]
fn scales<F: Format, S: Simd>(s: S, src: &[u8], scale: &mut [f32], min: &mut [f32]) {
    if !matches!(F::HEAD, Head::Own) {
        return heads::<F, S>(s, src, scale, min);
    }
    let n = F::LEN / F::GROUP;
    let mut unused = [0f32; MAX_GROUPS];
    for i in 0..src.len() / F::BYTES {
        let groups = i * n..(i + 1) * n;
        let min = if F::HAS_MIN { &mut min[groups.clone()] } else { &mut unused[..n] };
        F::scales(s, &src[i * F::BYTES..(i + 1) * F::BYTES], &mut scale[groups], min);
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
        // The last ones are taken together with some that are done: one by one they would take longer.
        if first > 0 && blocks - first < MANY {
            first = blocks - MANY;
        }
        let many = if blocks < MANY { blocks } else { MANY };
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
        if F::HAS_MIN {
            for l in 0..MANY {
                offset[l] = match F::HEAD {
                    Head::ScaleAndOffset => -offset[l],
                    _ => 8.0 * wide[l],
                };
            }
            spread::<F>(&offset, many, &mut mins[first * n..]);
        }
        spread::<F>(&wide, many, &mut scales[first * n..]);
        first += many;
    }
}

/// Each number of `many` blocks for all groups of the block.
#[inline(always)]
fn spread<F: Format>(x: &[f32; 16], many: usize, out: &mut [f32]) {
    let n = F::LEN / F::GROUP;
    if n == 1 && many == 16 {
        // Of a length that is not known, a copy is a call.
        return out[..16].copy_from_slice(x);
    }
    for b in 0..many {
        let out = &mut out[b * n..(b + 1) * n];
        for g in 0..n {
            out[g] = x[b];
        }
    }
}

/// Rows times one row of activations.
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
        let Dots { rows, acts, scratch, out, .. } = self;
        let row_bytes = rows.len() / out.len().max(1);
        let cols = row_bytes / F::BYTES * F::LEN;
        let offset = i32::from(F::OFFSET);
        let direct = is_direct::<F, S>(cols);
        let many = if direct { (acts.q.len() / cols.max(1)).max(1) } else { 1 };
        scratch.resize(many * cols, F::GROUP);
        let Scratch { q, scale, min, sums } = scratch;
        if many > 1 {
            for (bytes, out) in rows.chunks(many * row_bytes).zip(out.chunks_mut(many)) {
                scales::<F, S>(s, bytes, scale, min);
                let w = Direct::<F>(bytes, PhantomData);
                any_dots::<F, S, true>(s, w, Row { scale, min, offset }, &acts, sums, (cols, out));
            }
            return;
        }
        for (bytes, out) in rows.chunks_exact(row_bytes).zip(out.chunks_mut(1)) {
            if direct {
                scales::<F, S>(s, bytes, scale, min);
                let w = Direct::<F>(bytes, PhantomData);
                any_dots::<F, S, false>(s, w, Row { scale, min, offset }, &acts, sums, (cols, out));
            } else {
                unpack_all::<F>(bytes, &mut q[..cols], scale, min);
                any_dots::<F, S, false>(s, &q[..], Row { scale, min, offset }, &acts, sums, (cols, out));
            }
        }
    }
}

/// Bytes that are made of packed ones as they are multiplied.
struct Direct<'a, F>(&'a [u8], PhantomData<F>);

impl<F> Clone for Direct<'_, F> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<F> Copy for Direct<'_, F> {}

impl<F: Format> Bytes for Direct<'_, F> {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, at: usize) -> S::I {
        let end = at + 4 * S::LANES;
        s.fetch_ahead(self.0, at * F::BYTES / F::LEN, end * F::BYTES / F::LEN);
        F::bytes(s, self.0, at)
    }
    #[inline(always)]
    fn part<const N: usize>(self, at: usize) -> Self {
        Direct(&self.0[at / F::LEN * F::BYTES..][..N / F::LEN * F::BYTES], PhantomData)
    }
    #[inline(always)]
    fn rest(self, at: usize) -> Self {
        Direct(&self.0[at / F::LEN * F::BYTES..], PhantomData)
    }
}

#[inline(always)]
fn any_dots<F: Format, S: Simd, const MANY: bool>(
    s: S,
    w: impl Bytes,
    row: Row<'_>,
    acts: &Acts<'_>,
    sums: &mut [f32],
    out: (usize, &mut [f32]),
) {
    match (F::GROUP, F::OFFSET, F::HAS_MIN) {
        (16, _, true) => dots::<S, 16, false, true, MANY>(s, w, row, acts, sums, out),
        (16, 128, _) => dots::<S, 16, true, false, MANY>(s, w, row, acts, sums, out),
        (16, _, _) => dots::<S, 16, false, false, MANY>(s, w, row, acts, sums, out),
        (_, _, true) => dots::<S, 32, false, true, MANY>(s, w, row, acts, sums, out),
        (_, 128, _) => dots::<S, 32, true, false, MANY>(s, w, row, acts, sums, out),
        (_, _, _) => dots::<S, 32, false, false, MANY>(s, w, row, acts, sums, out),
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
    fn offset(&self) -> u8 {
        F::OFFSET
    }
    fn unpack(&self, isa: Isa, src: &[u8], q: &mut [u8], scale: &mut [f32], min: &mut [f32]) {
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

/// The same, in an instruction where there is one.
#[inline(always)]
pub(crate) fn half_at<S: Simd>(s: S, block: &[u8], at: usize) -> f32 {
    s.widen_half(u16::from_le_bytes([block[at], block[at + 1]]))
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
