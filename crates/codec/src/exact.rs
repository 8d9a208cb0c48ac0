//! Blocks of integers that are known already: no search, no rounding.
//!
//! Checkpoints that were quantized elsewhere hold integers around zero with a scale. Where 32 of them share a
//! half-precision scale they are a block of one of these types, value for value.

use crate::{DType, Error, list};

/// Integers in a block of each of these types.
pub const LEN: usize = 32;

/// A type whose blocks are 32 integers around zero with one half-precision scale.
pub struct Exact {
    /// The type.
    pub dtype: DType,
    /// The least integer that it holds.
    pub lo: i8,
    /// The largest integer that it holds.
    pub hi: i8,
    pack: fn(scale: u16, q: &[i8], block: &mut [u8]),
}

/// These types, from the narrowest.
pub const ALL: &[Exact] = &[
    Exact { dtype: list::Q4_0, lo: -8, hi: 7, pack: crate::q4_0::pack },
    Exact { dtype: list::Q5_0, lo: -16, hi: 15, pack: crate::q5_0::pack },
    Exact { dtype: list::Q8_0, lo: -128, hi: 127, pack: crate::q8_0::pack },
];

/// The narrowest type that holds integers from `lo` to `hi`.
pub fn holding(lo: i32, hi: i32) -> Option<&'static Exact> {
    ALL.iter().find(|exact| i32::from(exact.lo) <= lo && hi <= i32::from(exact.hi))
}

impl Exact {
    /// Packs a block for each of `scales`, which are half-precision numbers' bits: `value = scale · q`. An integer
    /// that the type does not hold is an error.
    pub fn pack(&self, scales: &[u16], q: &[i8], dst: &mut [u8]) -> Result<(), Error> {
        self.dtype.check(q.len(), dst.len())?;
        let dtype = self.dtype.name();
        if scales.len() * LEN != q.len() {
            return Err(Error::NotWholeBlocks { dtype, len: q.len(), block_len: LEN });
        }
        if let Some(index) = q.iter().position(|q| !(self.lo..=self.hi).contains(q)) {
            return Err(Error::OutOfRange { dtype, index });
        }
        let blocks = q.chunks_exact(LEN).zip(dst.chunks_exact_mut(self.dtype.block_bytes()));
        for (&scale, (q, block)) in scales.iter().zip(blocks) {
            (self.pack)(scale, q, block);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fonio_simd::Isa;

    #[test]
    fn packed_integers_come_back() {
        for exact in ALL {
            // Every integer at every place of a block.
            let width = i32::from(exact.hi) - i32::from(exact.lo) + 1;
            let q: Vec<i8> = (0..width * 32)
                .map(|i| (i32::from(exact.lo) + (i / 32 + 7 * (i % 32)) % width) as i8)
                .collect();
            let scales: Vec<u16> = (0..q.len() / LEN).map(|i| [0x3c00, 0xb555, 0x0001, 0][i % 4]).collect();
            let mut packed = vec![0; q.len() / LEN * exact.dtype.block_bytes()];
            exact.pack(&scales, &q, &mut packed).unwrap();
            let mut values = vec![0f32; q.len()];
            exact.dtype.dequantize(Isa::scalar(), &packed, &mut values).unwrap();
            for (i, (&q, &value)) in q.iter().zip(&values).enumerate() {
                let want = half::f16::from_bits(scales[i / LEN]).to_f32() * f32::from(q);
                assert_eq!(value.to_bits(), want.to_bits(), "{} {i}", exact.dtype);
            }
        }
    }

    #[test]
    fn the_narrowest_type_that_holds_a_range() {
        let name = |lo, hi| holding(lo, hi).map(|exact| exact.dtype.name());
        assert_eq!(name(-8, 7), Some("Q4_0"));
        assert_eq!(name(-4, 3), Some("Q4_0"));
        assert_eq!(name(-9, 7), Some("Q5_0"));
        assert_eq!(name(0, 15), Some("Q5_0"));
        assert_eq!(name(-128, 127), Some("Q8_0"));
        assert_eq!(name(-129, 0), None);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let q4 = &ALL[0];
        let mut block = [0; 18];
        assert!(q4.pack(&[0x3c00], &[8; 32], &mut block).is_err());
        assert!(q4.pack(&[0x3c00], &[0; 31], &mut block).is_err());
        assert!(q4.pack(&[], &[0; 32], &mut block).is_err());
        assert!(q4.pack(&[0x3c00], &[0; 32], &mut block[..17]).is_err());
    }
}
