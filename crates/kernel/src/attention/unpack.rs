//! Keys and values of a block of the cache as plain numbers.

use super::KvView;
use super::cells::{Cells, Packed, with};
use super::store::{BLOCK, PAD};
use fonio_codec::list;
use fonio_simd::{Isa, Lines, Simd};

impl<'a> KvView<'a> {
    /// The bytes of a head of the block that a position is in.
    #[inline(always)]
    pub(super) fn block(&self, head: usize, position: usize) -> &'a [u8] {
        &self.bytes[self.shape.block(head, position)]
    }

    /// A block as it is, if it needs no unpacking.
    #[inline(always)]
    fn packed(&self, block: &'a [u8]) -> Option<Packed<'a>> {
        match self.shape.dtype() {
            t if t == list::F16 => Some(Packed::Halves(block)),
            t if t == list::BF16 => Some(Packed::Brains(block)),
            t if t == list::F32 => Some(Packed::Singles(block)),
            t if t == list::Q8_0 => Some(Packed::Eights(block)),
            _ => None,
        }
    }

    /// A head of a block whose keys are turned, as it is.
    #[inline(always)]
    pub(super) fn packed_columns(&self, head: usize, position: usize) -> Option<Packed<'a>> {
        self.shape.is_turned().then(|| self.packed(self.block(head, position))).flatten()
    }

    /// A head of a block whose rows are whole squares, as it is. Rows begin as far apart as heads have values.
    #[inline(always)]
    pub(super) fn packed_rows(&self, head: usize, position: usize) -> Option<Packed<'a>> {
        let whole = !self.shape.is_turned() && self.head_dim.is_multiple_of(PAD);
        whole.then(|| self.packed(self.block(head, position))).flatten()
    }
}

/// Unpacks a head of a block, value `d` of all positions after value `d − 1` of all. Places of positions that are not there
/// get what does not matter.
#[inline(always)]
pub(super) fn columns<S: Simd>(
    s: S,
    isa: Isa,
    from: &KvView<'_>,
    (head, first, n): (usize, usize, usize),
    unpacked: &mut Lines<f32>,
    out: &mut Lines<f32>,
) {
    let padded = from.head_dim.next_multiple_of(PAD);
    out.resize(from.head_dim * BLOCK);
    match from.packed_columns(head, first) {
        Some(packed) => with!(packed, C, bytes => widen_columns::<S, C>(s, bytes, out)),
        None => {
            out.resize(padded * BLOCK);
            unpacked.resize(padded * BLOCK);
            rows(s, isa, from, (head, first, n), unpacked);
            turn(s, unpacked, padded, padded, out.bytes_mut());
        }
    }
}

/// Unpacks a head of `n` positions of a block, from position `first` on, into rows that are padded with zeros.
#[inline(always)]
pub(super) fn rows<S: Simd>(
    s: S,
    isa: Isa,
    from: &KvView<'_>,
    (head, first, n): (usize, usize, usize),
    out: &mut Lines<f32>,
) {
    let dim = from.head_dim;
    if let Some(packed) = from.packed_columns(head, first) {
        return with!(packed, C, bytes => turn_back::<S, C>(s, bytes, dim, n, out.bytes_mut()));
    }
    let (padded, out) = (dim.next_multiple_of(PAD), &mut out[..]);
    let (codec, step) = (from.shape.dtype().codec(), from.shape.head_bytes());
    if let Some(packed) = from.packed_rows(head, first) {
        return with!(packed, C, bytes => widen_rows::<S, C>(s, bytes, step, dim, &mut out[..n * dim]));
    }
    let bytes = &from.block(head, first)[..n * step];
    if from.size() == step && dim == padded {
        return codec.dequantize(isa, bytes, &mut out[..n * dim]);
    }
    for (bytes, row) in bytes.chunks_exact(step).zip(out.chunks_exact_mut(padded)) {
        codec.dequantize(isa, &bytes[..from.size()], &mut row[..dim]);
        row[dim..].fill(0.0);
    }
}

/// Widens rows of `dim` values that begin `step` bytes apart.
#[inline(always)]
fn widen_rows<S: Simd, C: Cells>(s: S, bytes: &[u8], step: usize, dim: usize, out: &mut [f32]) {
    let mut i = 0;
    while i < out.len() / dim {
        let (row, out) = (&bytes[i * step..(i + 1) * step], &mut out[i * dim..(i + 1) * dim]);
        let mut d = 0;
        while d < dim {
            s.store(C::of_part(s, C::part(row, 0, d, S::LANES), 0), &mut out[d..]);
            d += S::LANES;
        }
        i += 1;
    }
}

/// Widens the columns of a turned block.
#[inline(always)]
fn widen_columns<S: Simd, C: Cells>(s: S, bytes: &[u8], out: &mut [f32]) {
    let mut d = 0;
    while d < out.len() / BLOCK {
        let (column, out) = (C::column(bytes, d), &mut out[d * BLOCK..(d + 1) * BLOCK]);
        let mut at = 0;
        while at < BLOCK {
            s.store(C::of_column(s, column, at), &mut out[at..]);
            at += S::LANES;
        }
        d += 1;
    }
}

/// Turns the first `dim` values of the rows of a block, which begin `stride` values apart.
#[inline(always)]
pub(super) fn turn<S: Simd>(s: S, rows: &[f32], stride: usize, dim: usize, out: &mut [u8]) {
    let mut first = 0;
    while first < BLOCK {
        let mut d = 0;
        while d < dim {
            let mut square = [s.splat_i(0); PAD];
            let mut j = 0;
            while j < S::LANES {
                square[j] = s.bits_of(s.load(&rows[(first + j) * stride + d..]));
                j += 1;
            }
            let square = s.transposed(square);
            let mut i = 0;
            while i < S::LANES {
                s.store_bytes(square[i], &mut out[4 * ((d + i) * BLOCK + first)..]);
                i += 1;
            }
            d += S::LANES;
        }
        first += S::LANES;
    }
}

/// Makes `n` rows of turned ones.
#[inline(always)]
fn turn_back<S: Simd, C: Cells>(s: S, bytes: &[u8], dim: usize, n: usize, out: &mut [u8]) {
    let padded = dim.next_multiple_of(PAD);
    let mut first = 0;
    while first < n {
        let mut d = 0;
        while d < padded {
            let mut square = [s.splat_i(0); PAD];
            let mut i = 0;
            while i < S::LANES && d + i < dim {
                square[i] = s.bits_of(C::of_column(s, C::column(bytes, d + i), first));
                i += 1;
            }
            let square = s.transposed(square);
            let mut j = 0;
            while j < S::LANES && first + j < n {
                s.store_bytes(square[j], &mut out[4 * ((first + j) * padded + d)..]);
                j += 1;
            }
            d += S::LANES;
        }
        first += S::LANES;
    }
}

#[cfg(test)]
mod tests {
    use super::super::KvShape;
    use super::*;
    use crate::Kernels;
    use fonio_simd::VectorTask;

    struct Unpack<'a>(KvView<'a>, Isa, &'a mut Lines<f32>, bool);

    impl VectorTask for Unpack<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let place = (1, BLOCK, 37);
            match self.3 {
                true => columns(s, self.1, &self.0, place, &mut Lines::default(), self.2),
                false => rows(s, self.1, &self.0, place, self.2),
            }
        }
    }

    #[test]
    fn rows_and_columns_are_the_same_numbers_however_they_lie() {
        let (heads, positions) = (2, BLOCK + 37);
        for (dtype, dim) in
            [(list::F16, 64), (list::F32, 40), (list::BF16, 24), (list::Q8_0, 96), (list::Q4_0, 32)]
        {
            let x: Vec<f32> = (0..positions * heads * dim).map(|i| (i % 997) as f32 * 0.01 - 5.0).collect();
            let plain = KvShape::new(dtype, heads, dim).unwrap();
            for (shape, isa) in [plain, plain.turned()]
                .into_iter()
                .flat_map(|s| Isa::available().into_iter().map(move |isa| (s, isa)))
            {
                let mut bytes = vec![0; shape.bytes(positions)];
                Kernels::new(1, isa).put(&shape, &mut bytes, 0, &x).unwrap();
                let view = KvView { shape, bytes: &bytes, head_dim: dim };
                let padded = dim.next_multiple_of(PAD);
                let (mut by_row, mut by_column) = (Lines::default(), Lines::default());
                by_row.resize(BLOCK * padded);
                isa.vector(Unpack(view, isa, &mut by_row, false));
                isa.vector(Unpack(view, isa, &mut by_column, true));
                let (mut packed, mut want) = (vec![0; shape.head_bytes()], vec![0.0; dim]);
                for i in 0..37 {
                    shape.get(&bytes, BLOCK + i, 1, &mut packed);
                    dtype.dequantize(isa, &packed, &mut want).unwrap();
                    let row = &by_row[i * padded..(i + 1) * padded];
                    assert!(row[..dim] == want && row[dim..].iter().all(|&x| x == 0.0), "{dtype} {isa} {i}");
                    assert!((0..dim).all(|d| by_column[d * BLOCK + i] == want[d]), "{dtype} {isa} {i}");
                }
            }
        }
    }
}
