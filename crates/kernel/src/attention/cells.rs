//! How values of a cache are packed that can be multiplied as they are loaded.

use super::store::BLOCK;
use crate::floats::Load;
use fonio_simd::Simd;

/// Values of a block that are a scale and bytes (Q8_0): so many, and all their bytes.
const EIGHTS: usize = 32;
const EIGHTS_BYTES: usize = 2 + EIGHTS;

/// A head of a block of the cache.
#[derive(Clone, Copy)]
pub(super) enum Packed<'a> {
    Halves(&'a [u8]),
    Brains(&'a [u8]),
    Singles(&'a [u8]),
    Eights(&'a [u8]),
}

/// Does something with the cells of a [`Packed`]: `with!(packed, C, bytes => …)`.
macro_rules! with {
    ($packed:expr, $cells:ident, $bytes:ident => $what:expr) => {
        match $packed {
            Packed::Halves($bytes) => {
                type $cells = $crate::floats::Halves;
                $what
            }
            Packed::Brains($bytes) => {
                type $cells = $crate::floats::Brains;
                $what
            }
            Packed::Singles($bytes) => {
                type $cells = $crate::floats::Singles;
                $what
            }
            Packed::Eights($bytes) => {
                type $cells = $crate::attention::cells::Eights;
                $what
            }
        }
    };
}
pub(super) use with;

/// One value of all positions of a turned block.
#[derive(Clone, Copy)]
pub(super) struct Column<'a> {
    values: &'a [u8],
    scales: &'a [u8],
}

/// Values of a row: the bytes of whole blocks, and the first value's place in them.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    bytes: &'a [u8],
    first: usize,
}

/// Values as they are packed. All functions must be `#[inline(always)]`.
pub(super) trait Cells {
    /// Value `d` of all positions of a turned block.
    fn column(block: &[u8], d: usize) -> Column<'_>;
    /// `LANES` positions of it, from `at` on.
    fn of_column<S: Simd>(s: S, column: Column<'_>, at: usize) -> S::F;
    /// `n` values, from `at` on, of the row that begins `before` values behind the first one. `at` is a multiple of `n`, a power
    /// of two.
    fn part(rows: &[u8], before: usize, at: usize, n: usize) -> Part<'_>;
    /// `LANES` values of it, from the `i`th on.
    fn of_part<S: Simd>(s: S, part: Part<'_>, i: usize) -> S::F;
}

impl<L: Load> Cells for L {
    #[inline(always)]
    fn column(block: &[u8], d: usize) -> Column<'_> {
        Column { values: &block[d * BLOCK * L::BYTES..][..BLOCK * L::BYTES], scales: &[] }
    }
    #[inline(always)]
    fn of_column<S: Simd>(s: S, column: Column<'_>, at: usize) -> S::F {
        L::load(s, &column.values[at * L::BYTES..])
    }
    #[inline(always)]
    fn part(rows: &[u8], before: usize, at: usize, n: usize) -> Part<'_> {
        Part { bytes: &rows[(before + at) * L::BYTES..][..n * L::BYTES], first: 0 }
    }
    #[inline(always)]
    fn of_part<S: Simd>(s: S, part: Part<'_>, i: usize) -> S::F {
        L::load(s, &part.bytes[i * L::BYTES..])
    }
}

/// A half-precision scale before 32 integers of a byte each. A product of both is exact in `f32`.
pub(super) struct Eights;

impl Cells for Eights {
    #[inline(always)]
    fn column(block: &[u8], d: usize) -> Column<'_> {
        let group = &block[d / EIGHTS * EIGHTS_BYTES * BLOCK..][..EIGHTS_BYTES * BLOCK];
        let (scales, values) = group.split_at(2 * BLOCK);
        Column { values: &values[d % EIGHTS * BLOCK..][..BLOCK], scales }
    }
    #[inline(always)]
    fn of_column<S: Simd>(s: S, column: Column<'_>, at: usize) -> S::F {
        let scale = s.load_f16(&column.scales[2 * at..]);
        s.mul(s.to_f32(s.load_i8(&column.values[at..])), scale)
    }
    #[inline(always)]
    fn part(rows: &[u8], before: usize, at: usize, n: usize) -> Part<'_> {
        let bytes = n.div_ceil(EIGHTS) * EIGHTS_BYTES;
        Part { bytes: &rows[(before + at) / EIGHTS * EIGHTS_BYTES..][..bytes], first: at % EIGHTS }
    }
    #[inline(always)]
    fn of_part<S: Simd>(s: S, part: Part<'_>, i: usize) -> S::F {
        let at = part.first + i;
        let block = &part.bytes[at / EIGHTS * EIGHTS_BYTES..][..EIGHTS_BYTES];
        let scale = s.splat(s.widen_half(u16::from_le_bytes([block[0], block[1]])));
        s.mul(s.to_f32(s.load_i8(&block[2 + at % EIGHTS..])), scale)
    }
}
