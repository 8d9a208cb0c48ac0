//! What packed weight bytes mean.
//!
//! A *codec* turns rows of `f32` into packed blocks and back. [`DType`] is a handle to one; everything that
//! converts, multiplies, tests or fuzzes iterates [`list::ALL`], so a new type is one file and one line there.
//!
//! Quantized block formats share one description, [`block::Format`]: a block is a run of small integers with a
//! scale (and for some a minimum) for each *group* of 16 or 32 of them, `value = scale · q − min`. Dequantizing,
//! the integer dot products of decoding and the panels of prefill all derive from that one function.
#![forbid(unsafe_code)]
#![allow(clippy::needless_range_loop, reason = "layouts and lanes are said by index")]

pub mod block;
pub mod dot;
pub mod exact;
#[doc(hidden)]
pub mod fuzz;
pub mod list;
pub mod mxfp4;
pub mod outlier;
pub mod qsf;

mod f8_e4m3;
mod f8_e5m2;
mod f8_e8m0;
mod float;
mod grid;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
mod nvfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod q8_k;
mod search;
mod single;
mod sixteen;
mod superblock;
mod tq1_0;
mod tq2_0;
mod uneven;

use fonio_simd::{Isa, Task};
use std::fmt;

/// A handle to a codec: what a tensor's bytes are.
#[derive(Clone, Copy)]
pub struct DType(&'static dyn Codec);

/// Why bytes could not be encoded or decoded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The number of values is not a whole number of blocks.
    #[error("{dtype}: {len} values are not a whole number of blocks of {block_len}")]
    NotWholeBlocks {
        /// Name of the type.
        dtype: &'static str,
        /// Number of values given.
        len: usize,
        /// Values in a block.
        block_len: usize,
    },
    /// The number of bytes does not belong to the number of values.
    #[error("{dtype}: {len} values need {want} bytes, not {got}")]
    WrongSize {
        /// Name of the type.
        dtype: &'static str,
        /// Number of values given.
        len: usize,
        /// Bytes that they need.
        want: usize,
        /// Bytes given.
        got: usize,
    },
    /// The importance weights have another length than a row or than the values.
    #[error("{dtype}: {got} importance weights for {len} values")]
    WrongImportance {
        /// Name of the type.
        dtype: &'static str,
        /// Number of values given.
        len: usize,
        /// Importance weights given.
        got: usize,
    },
    /// The type can be read but not made.
    #[error("quantizing to {dtype} is not supported")]
    CannotQuantize {
        /// Name of the type.
        dtype: &'static str,
    },
    /// An integer that the type cannot hold.
    #[error("{dtype}: integer {index} is out of range")]
    OutOfRange {
        /// Name of the type.
        dtype: &'static str,
        /// Index of the first such integer.
        index: usize,
    },
    /// A value that the type cannot hold.
    #[error("{dtype}: value {index} is not finite")]
    NotFinite {
        /// Name of the type.
        dtype: &'static str,
        /// Index of the first such value.
        index: usize,
    },
}

/// One packed format. Lengths are checked by [`DType`] before any of these is called.
pub trait Codec: Sync {
    /// The field's name for the type: `Q4_K`, `F16`.
    fn name(&self) -> &'static str;
    /// Its number in GGUF files, if it has one.
    fn ggml_type(&self) -> Option<u32>;
    /// Values in a block.
    fn block_len(&self) -> usize;
    /// Bytes of a block.
    fn block_bytes(&self) -> usize;
    /// Whether values are small integers with scales, as opposed to plain numbers.
    fn is_quantized(&self) -> bool;
    /// Whether [`Codec::quantize`] works.
    fn can_quantize(&self) -> bool;
    /// Unpacks whole blocks into `f32`, the same bits at every `isa`.
    fn dequantize(&self, isa: Isa, src: &[u8], dst: &mut [f32]);
    /// Packs finite values, one row or several rows of whole blocks. `importance`, if there, has one
    /// non-negative weight for each value: the squared error is weighted with it. The same bits at every `isa`.
    fn quantize(&self, isa: Isa, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]);
    /// The integer view of the blocks, for quantized types whose blocks have one.
    fn groups(&self) -> Option<&dyn block::Groups> {
        None
    }
}

impl DType {
    /// Makes a handle; used by the list.
    pub const fn new(codec: &'static dyn Codec) -> DType {
        DType(codec)
    }

    /// The type with this name, in any case.
    pub fn named(name: &str) -> Option<DType> {
        list::ALL.iter().copied().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// The type with this number in GGUF files.
    pub fn from_ggml(id: u32) -> Option<DType> {
        list::ALL.iter().copied().find(|t| t.ggml_type() == Some(id))
    }

    /// The field's name for the type.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// Its number in GGUF files, if it has one.
    pub fn ggml_type(self) -> Option<u32> {
        self.0.ggml_type()
    }

    /// Values in a block; 1 for plain numbers.
    pub fn block_len(self) -> usize {
        self.0.block_len()
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.0.block_bytes()
    }

    /// Whether values are small integers with scales.
    pub fn is_quantized(self) -> bool {
        self.0.is_quantized()
    }

    /// Whether [`DType::quantize`] can make this type.
    pub fn can_quantize(self) -> bool {
        self.0.can_quantize()
    }

    /// Bits for each value, scales included.
    pub fn bits_per_weight(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }

    /// The codec itself.
    pub fn codec(self) -> &'static dyn Codec {
        self.0
    }

    /// Bytes of `len` values, or `None` if that is no whole number of blocks or overflows.
    pub fn bytes_for(self, len: u64) -> Option<u64> {
        let block = self.block_len() as u64;
        if !len.is_multiple_of(block) {
            return None;
        }
        (len / block).checked_mul(self.block_bytes() as u64)
    }

    fn check(self, len: usize, bytes: usize) -> Result<(), Error> {
        let block_len = self.block_len();
        if !len.is_multiple_of(block_len) {
            return Err(Error::NotWholeBlocks { dtype: self.name(), len, block_len });
        }
        let want = len / block_len * self.block_bytes();
        if bytes != want {
            return Err(Error::WrongSize { dtype: self.name(), len, want, got: bytes });
        }
        Ok(())
    }

    /// Unpacks `src` into `dst`; both are whole blocks of the same number of values.
    pub fn dequantize(self, isa: Isa, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
        self.check(dst.len(), src.len())?;
        self.0.dequantize(isa, src, dst);
        Ok(())
    }

    /// Packs `src` into `dst`; both are whole blocks of the same number of values. `importance` is one weight
    /// for each value, or one row of weights that repeats over the rows of `src`.
    pub fn quantize(
        self,
        isa: Isa,
        src: &[f32],
        importance: Option<&[f32]>,
        dst: &mut [u8],
    ) -> Result<(), Error> {
        self.check(src.len(), dst.len())?;
        if !self.can_quantize() {
            return Err(Error::CannotQuantize { dtype: self.name() });
        }
        if self.is_quantized()
            && !isa.run(AllFinite(src))
            && let Some(index) = src.iter().position(|x| !x.is_finite())
        {
            return Err(Error::NotFinite { dtype: self.name(), index });
        }
        let Some(weights) = importance else {
            self.0.quantize(isa, src, None, dst);
            return Ok(());
        };
        let row = weights.len();
        if row == 0 || !src.len().is_multiple_of(row) || !row.is_multiple_of(self.block_len()) {
            return Err(Error::WrongImportance { dtype: self.name(), len: src.len(), got: row });
        }
        let row_bytes = row / self.block_len() * self.block_bytes();
        for (values, packed) in src.chunks_exact(row).zip(dst.chunks_exact_mut(row_bytes)) {
            self.0.quantize(isa, values, Some(weights), packed);
        }
        Ok(())
    }
}

/// Whether there is neither an infinite value nor one that is no number. It looks at all of them, which is faster than to
/// stop at the first.
struct AllFinite<'a>(&'a [f32]);

impl Task for AllFinite<'_> {
    type Output = bool;
    #[inline(always)]
    fn run(self, _: Isa) -> bool {
        const EXPONENT: u32 = 0x7f80_0000;
        let mut bad = 0;
        for x in self.0 {
            // Of what is not finite, all bits of the exponent are set: one more carries into the sign.
            bad |= (x.to_bits() & EXPONENT) + (1 << 23);
        }
        bad >> 31 == 0
    }
}

impl PartialEq for DType {
    fn eq(&self, other: &DType) -> bool {
        self.name() == other.name()
    }
}
impl Eq for DType {}

impl std::hash::Hash for DType {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl fmt::Debug for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
