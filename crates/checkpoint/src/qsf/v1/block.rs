//! What the data of a tensor mean.
//!
//! A block has `B` values (the header's `block_size`, 64 by default): an `f16` scale, an `f16` minimum, and `B` integers
//! from the lowest bit on; `value = scale · q + min`. 2 bits take 20 bytes, 3 bits 28 (one stream of bits), 4 bits 36.
//! Symmetric 4 bits have zeros in the minimum's place and hold `q + 8`. Outlier types begin with a `u32` count and as
//! many pairs of a `u32` index into the tensor and an `f16` value, which stands instead of what the block gives there.
//!
//! The product of an `f16` and an integer of 4 bits is exact in `f32`, so a value is rounded once, by the addition.

use fonio_codec::{DType, list};

/// What the data of one tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Coding {
    kind: Kind,
    /// Values in a block.
    block: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Half,
    Blocks { bits: u32, symmetric: bool, outliers: bool },
}

/// Blocks around some values.
pub(super) struct Span {
    /// The first block's first value.
    pub first: u64,
    /// Where it begins, from the first block on.
    pub byte: u64,
    /// How long they are.
    pub bytes: u64,
}

/// The format's name for a number, for errors.
fn name(quant: u32) -> &'static str {
    match quant {
        1 => "symmetric 2-bit",
        5 => "ternary",
        6 => "8-bit",
        8 => "mixed",
        255 => "default",
        _ => "unknown",
    }
}

impl Coding {
    /// What a number means, or why it is not supported.
    pub(super) fn of(quant: u32, block: u32) -> Result<Coding, String> {
        let blocks = |bits, symmetric, outliers| Kind::Blocks { bits, symmetric, outliers };
        let kind = match quant {
            0 => blocks(2, false, false),
            2 => blocks(3, false, false),
            3 => blocks(4, false, false),
            4 => blocks(4, true, false),
            7 => Kind::Half,
            9 => blocks(2, false, true),
            10 => blocks(4, false, true),
            _ => return Err(format!("weights of type {quant} ({})", name(quant))),
        };
        Ok(Coding { kind, block })
    }

    pub(super) fn is_half(self) -> bool {
        self.kind == Kind::Half
    }

    pub(super) fn has_outliers(self) -> bool {
        matches!(self.kind, Kind::Blocks { outliers: true, .. })
    }

    /// What the tensor is seen as.
    pub(super) fn dtype(self) -> DType {
        if self.is_half() { list::F16 } else { list::F32 }
    }

    /// Bytes of one block.
    fn size(self) -> u64 {
        match self.kind {
            Kind::Half => 2,
            Kind::Blocks { bits, .. } => {
                (u64::from(self.block) / 8).saturating_mul(bits.into()).saturating_add(4)
            }
        }
    }

    fn values_in_block(self) -> u64 {
        if self.is_half() { 1 } else { u64::from(self.block).max(1) }
    }

    /// Bytes of all blocks of a tensor, without its outliers.
    pub(super) fn block_bytes_of(self, len: u64) -> u64 {
        len.div_ceil(self.values_in_block()).saturating_mul(self.size())
    }

    /// Bytes of a tensor; the count of outliers is asked for only where there is one.
    pub(super) fn bytes_of<E>(self, len: u64, outliers: impl FnOnce() -> Result<u32, E>) -> Result<u64, E> {
        let blocks = self.block_bytes_of(len);
        if !self.has_outliers() {
            return Ok(blocks);
        }
        Ok(u64::from(outliers()?).saturating_mul(6).saturating_add(4).saturating_add(blocks))
    }

    /// The blocks that hold the values from `from` to before `to`.
    pub(super) fn span(self, from: u64, to: u64) -> Span {
        let (len, size) = (self.values_in_block(), self.size());
        let (first, last) = (from.checked_div(len).unwrap_or(0), to.div_ceil(len));
        Span {
            first: first.saturating_mul(len),
            byte: first.saturating_mul(size),
            bytes: last.saturating_sub(first).saturating_mul(size),
        }
    }

    /// The values of whole blocks.
    pub(super) fn unpack(self, bytes: &[u8]) -> Vec<f32> {
        let Kind::Blocks { bits, symmetric, .. } = self.kind else { return Vec::new() };
        let size = usize::try_from(self.size()).unwrap_or(usize::MAX);
        let blocks = bytes.chunks_exact(size);
        let mut values = Vec::with_capacity(blocks.len().saturating_mul(self.block as usize));
        for block in blocks {
            let Some((&[s0, s1, m0, m1], data)) = block.split_first_chunk() else { continue };
            let scale = half(u16::from_le_bytes([s0, s1]));
            // Without a minimum the integers are around 8; both products are exact.
            let min = if symmetric { -8.0 * scale } else { half(u16::from_le_bytes([m0, m1])) };
            let mask = u32::MAX.wrapping_shr(32u32.wrapping_sub(bits));
            // Eight integers of n bits are n whole bytes.
            for eight in data.chunks_exact(bits as usize) {
                let mut word =
                    eight.iter().rev().fold(0u32, |word, &byte| word.wrapping_shl(8) | u32::from(byte));
                for _ in 0..8 {
                    values.push(scale * (word & mask) as f32 + min);
                    word = word.wrapping_shr(bits);
                }
            }
        }
        values
    }
}

/// Half precision as a number.
fn half(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

/// Values that stand instead of what blocks give.
pub(super) struct Outliers(Vec<(u32, f32)>);

impl Outliers {
    /// Reads a count and so many pairs, which are all of `bytes`, for a tensor of `len` values.
    pub(super) fn read(bytes: &[u8], len: u64) -> Result<Outliers, String> {
        let Some((count, pairs)) = bytes.split_first_chunk() else {
            return Err("the count of outliers is missing".into());
        };
        let count = u32::from_le_bytes(*count);
        if u64::from(count).saturating_mul(6) != pairs.len() as u64 {
            return Err(format!("{count} outliers do not fit the tensor's size"));
        }
        let mut all = Vec::with_capacity(pairs.len() / 6);
        for pair in pairs.chunks_exact(6) {
            let &[a, b, c, d, lo, hi] = pair else { continue };
            let index = u32::from_le_bytes([a, b, c, d]);
            if u64::from(index) >= len {
                return Err(format!("outlier {index} of {len} values"));
            }
            all.push((index, half(u16::from_le_bytes([lo, hi]))));
        }
        // A stable order: of two for one value the later one stands, as if each were put in its place in turn.
        all.sort_by_key(|(index, _)| *index);
        Ok(Outliers(all))
    }

    /// Puts them in their places in `values`, which begin with the tensor's value `first`.
    pub(super) fn replace(&self, first: u64, values: &mut [f32]) {
        let from = self.0.partition_point(|(index, _)| u64::from(*index) < first);
        for (index, value) in self.0.get(from..).unwrap_or_default() {
            let at = usize::try_from(u64::from(*index).saturating_sub(first)).unwrap_or(usize::MAX);
            match values.get_mut(at) {
                Some(to) => *to = *value,
                None => break,
            }
        }
    }
}
