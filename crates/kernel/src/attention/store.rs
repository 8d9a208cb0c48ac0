//! Where a cache has the keys or values of a position, and how they are put there.

use super::unpack::turn;
use crate::Kernels;
use crate::share::Shared;
use fonio_codec::{DType, list};
use fonio_simd::{Isa, Lines, Simd, VectorTask};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Positions of which a cache has all of one head, then all of the next: what is attended to at once is in one place.
pub(super) const BLOCK: usize = 64;
/// Blocks' values are turned as squares of so many.
pub(super) const PAD: usize = 16;
/// Positions that are worth the waking of threads.
const MANY: usize = 8;

/// How one layer's keys or values are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    dtype: DType,
    heads: usize,
    head_dim: usize,
    head_bytes: usize,
    turned: bool,
}

impl KvShape {
    /// Heads of `head_dim` values each, one position's after another's. `None` if they are not whole blocks of the type, or
    /// nothing can be packed as it.
    pub fn new(dtype: DType, heads: usize, head_dim: usize) -> Option<KvShape> {
        let bytes = dtype.can_quantize().then(|| dtype.bytes_for(head_dim as u64)).flatten()?;
        let head_bytes = usize::try_from(bytes).ok()?;
        Some(KvShape { dtype, heads, head_dim, head_bytes, turned: false })
    }

    /// For keys: of a block of positions value `d` of all lies before value `d + 1` of any, so that scores of many
    /// positions are added up side by side. Only types whose values have bytes of their own can be turned; others stay as they are.
    pub fn turned(self) -> KvShape {
        KvShape { turned: [list::F32, list::F16, list::BF16, list::Q8_0].contains(&self.dtype), ..self }
    }

    /// What values are packed as.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Heads of a position.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Values of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Bytes of a head.
    pub fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    pub(super) fn is_turned(&self) -> bool {
        self.turned
    }

    /// Bytes of a cache for so many positions.
    pub const fn bytes(&self, positions: usize) -> usize {
        positions.next_multiple_of(BLOCK) * self.heads * self.head_bytes
    }

    /// Where a cache has a head of the block that a position is in.
    pub(super) fn block(&self, head: usize, position: usize) -> Range<usize> {
        let len = BLOCK * self.head_bytes;
        let at = (position / BLOCK * self.heads + head) * len;
        at..at + len
    }

    /// What a head is packed of, each time bytes of a scale, values, and bytes of one. Not turned, it is like one scale.
    fn cut(&self) -> Cut {
        let (bytes, count) = (self.dtype.block_bytes(), self.dtype.block_len());
        match (self.turned, count) {
            (false, _) => Cut { scale: self.head_bytes, count: 0, size: 0 },
            (true, 1) => Cut { scale: 0, count, size: bytes },
            (true, _) => Cut { scale: bytes - count, count, size: 1 },
        }
    }

    /// Copies the packed bytes of a head of a position out of a cache.
    pub fn get(&self, cache: &[u8], position: usize, head: usize, out: &mut [u8]) {
        let (block, i) = (&cache[self.block(head, position)], position % BLOCK);
        self.cut().each(self.head_bytes, |turned, packed, size| {
            out[packed..packed + size].copy_from_slice(&block[turned + i * size..][..size]);
        });
    }

    /// Copies the packed bytes of a head of a position into a cache.
    pub fn set(&self, cache: &mut [u8], position: usize, head: usize, bytes: &[u8]) {
        self.set_rows(&mut cache[self.block(head, position)], position % BLOCK, bytes);
    }

    /// Copies packed heads, one position's after another's, into a block, from its position `first` on.
    fn set_rows(&self, block: &mut [u8], first: usize, rows: &[u8]) {
        let step = self.head_bytes;
        self.cut().each(step, |turned, packed, size| match size {
            1 => spread::<1>(&mut block[turned + first..], rows, packed, step),
            2 => spread::<2>(&mut block[turned + 2 * first..], rows, packed, step),
            4 => spread::<4>(&mut block[turned + 4 * first..], rows, packed, step),
            _ => {
                let to = block[turned + first * size..].chunks_exact_mut(size);
                to.zip(rows.chunks_exact(step))
                    .for_each(|(to, row)| to.copy_from_slice(&row[packed..][..size]));
            }
        });
    }
}

/// Bytes of a scale, the values that share it, and bytes of a value.
struct Cut {
    scale: usize,
    count: usize,
    size: usize,
}

impl Cut {
    /// Calls `f` for each scale and value of a head: where those of all positions begin in a turned block, where it is in the
    /// packed head, and how many bytes it has.
    fn each(&self, head_bytes: usize, mut f: impl FnMut(usize, usize, usize)) {
        let Cut { scale, count, size } = *self;
        for at in (0..head_bytes).step_by(scale + count * size) {
            if scale > 0 {
                f(at * BLOCK, at, scale);
            }
            for k in 0..count {
                f((at + scale + k * size) * BLOCK, at + scale + k * size, size);
            }
        }
    }
}

/// Puts the `N` bytes at `at` of each row side by side.
fn spread<const N: usize>(to: &mut [u8], rows: &[u8], at: usize, step: usize) {
    for (to, row) in to.as_chunks_mut::<N>().0.iter_mut().zip(rows.chunks_exact(step)) {
        to.copy_from_slice(&row[at..at + N]);
    }
}

impl Kernels {
    /// Packs rows of positions from `start` on, `heads · head_dim` values each, into a cache that has place for them.
    pub fn put(
        &self,
        shape: &KvShape,
        cache: &mut [u8],
        start: usize,
        x: &[f32],
    ) -> Result<(), fonio_codec::Error> {
        let width = shape.heads * shape.head_dim;
        assert!(width > 0 && x.len().is_multiple_of(width), "whole rows");
        let end = start + x.len() / width;
        assert!(cache.len() >= shape.bytes(end), "cache holds the positions");
        if x.is_empty() {
            return Ok(());
        }
        let (blocks, cache) = (start / BLOCK..end.div_ceil(BLOCK), Shared::new(cache));
        let failed = Mutex::new(Ok(()));
        let items = blocks.len() * shape.heads;
        let piece = if end - start < MANY { items } else { 1 };
        self.pool().each(items, piece, Place::default, |place, range| {
            for i in range {
                let (block, head) = (blocks.start + i / shape.heads, i % shape.heads);
                let positions = start.max(block * BLOCK)..end.min((block + 1) * BLOCK);
                let to = shape.block(head, block * BLOCK);
                // SAFETY: each head of each block is in one range.
                let to = unsafe { cache.part(to.start, to.len()) };
                let x = &x[(positions.start - start) * width + head * shape.head_dim..];
                if let Err(e) = place.put(shape, self.isa(), positions, x, to) {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(e);
                }
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a thread keeps between blocks.
#[derive(Default)]
struct Place {
    turned: Lines<f32>,
    packed: Vec<u8>,
}

impl Place {
    /// Packs one head of some positions of a block. Rows of `x` begin as far apart as positions have values.
    fn put(
        &mut self,
        shape: &KvShape,
        isa: Isa,
        positions: Range<usize>,
        x: &[f32],
        block: &mut [u8],
    ) -> Result<(), fonio_codec::Error> {
        let (dim, width) = (shape.head_dim, shape.heads * shape.head_dim);
        if shape.turned && shape.dtype.block_len() == 1 && positions.len() == BLOCK && dim.is_multiple_of(PAD)
        {
            self.turned.resize(dim * BLOCK);
            isa.vector(Turn { rows: x, width, dim, out: self.turned.bytes_mut() });
            return shape.dtype.quantize(isa, &self.turned, None, block);
        }
        self.packed.resize(positions.len() * shape.head_bytes, 0);
        for (row, x) in self.packed.chunks_exact_mut(shape.head_bytes).zip(x.chunks(width)) {
            shape.dtype.quantize(isa, &x[..dim], None, row)?;
        }
        shape.set_rows(block, positions.start % BLOCK, &self.packed);
        Ok(())
    }
}

struct Turn<'a> {
    rows: &'a [f32],
    width: usize,
    dim: usize,
    out: &'a mut [u8],
}

impl VectorTask for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        turn(s, self.rows, self.width, self.dim, self.out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_where_it_is_looked_for_however_it_came() {
        for (dtype, dim) in
            [(list::F16, 32), (list::F32, 20), (list::BF16, 48), (list::Q8_0, 64), (list::Q4_0, 32)]
        {
            let (heads, n) = (3, 150);
            let x: Vec<f32> = (0..n * heads * dim).map(|i| (i % 1009) as f32 - 500.0).collect();
            let rows = KvShape::new(dtype, heads, dim).unwrap();
            for shape in [rows, rows.turned()] {
                let mut all = vec![0; shape.bytes(n)];
                let kernels = Kernels::new(2, Isa::detect());
                kernels.put(&shape, &mut all, 0, &x).unwrap();
                let (mut one, mut copied) = (vec![0; all.len()], vec![0; all.len()]);
                let (mut bytes, mut want) = (vec![0; shape.head_bytes()], vec![0; shape.head_bytes()]);
                for (position, x) in x.chunks_exact(heads * dim).enumerate() {
                    kernels.put(&shape, &mut one, position, x).unwrap();
                    for (head, x) in x.chunks_exact(dim).enumerate() {
                        dtype.quantize(Isa::scalar(), x, None, &mut want).unwrap();
                        shape.get(&all, position, head, &mut bytes);
                        assert_eq!(bytes, want, "{dtype} {position} {head}");
                        shape.set(&mut copied, position, head, &bytes);
                    }
                }
                assert!(all == one && all == copied, "{dtype}");
            }
        }
    }
}
