//! Rows of a weight's integers, zero points and scales, from planes of any orientation.
//!
//! A weight has `rows` outputs and `columns` inputs. A plane of the file has outputs along its first dimension or along
//! its second ([`Plane::turned`]), and integers of a few bits are packed into 32-bit words along either. Packed
//! integers follow one another from the lowest bit of a word on, across words where their width does not divide 32 (so
//! that 32 of them fill as many words as they have bits).

use super::{buffer, corrupt};
use fonio_checkpoint::{Checkpoint, Error as FileError, TensorInfo};
use fonio_codec::DType;
use fonio_simd::Isa;
use std::ops::Range;

/// Lines that are taken together where a plane is turned: 64 bytes of words.
const LINES: usize = 16;

/// A matrix of the file.
#[derive(Clone, Copy)]
pub(super) struct Plane {
    /// The tensor.
    pub at: usize,
    /// Lines of the file, and elements in each.
    pub shape: (usize, usize),
    /// Whether outputs run along a line, so that lines are inputs or groups.
    pub turned: bool,
}

impl Plane {
    fn info<'a>(&self, inner: &'a dyn Checkpoint) -> Result<&'a TensorInfo, FileError> {
        inner.tensors().get(self.at).ok_or_else(|| FileError::Refused {
            file: inner.files().first().cloned().unwrap_or_default(),
            reason: format!("there is no tensor {}", self.at),
        })
    }

    /// Bytes of a part of some lines, line by line.
    fn read(
        &self,
        inner: &dyn Checkpoint,
        lines: Range<usize>,
        part: Range<usize>,
    ) -> Result<Vec<u8>, FileError> {
        let size = self.info(inner)?.dtype.block_bytes();
        let (line, width) = (self.shape.1 * size, part.len() * size);
        let mut bytes = buffer(inner, lines.len() * width)?;
        if part.len() == self.shape.1 {
            inner.read(self.at, (lines.start * line) as u64, &mut bytes)?;
        } else if width > 0 {
            for (i, dst) in lines.zip(bytes.chunks_exact_mut(width)) {
                inner.read(self.at, (i * line + part.start * size) as u64, dst)?;
            }
        }
        Ok(bytes)
    }

    /// The part of the plane that outputs `rows` need, where `per` of them share an element: lines, elements.
    fn part(&self, rows: &Range<usize>, per: usize) -> (Range<usize>, Range<usize>) {
        let along = rows.start / per..rows.end.div_ceil(per);
        if self.turned { (0..self.shape.0, along) } else { (along, 0..self.shape.1) }
    }

    /// Everything, in pieces of whole lines.
    fn each_piece(
        &self,
        inner: &dyn Checkpoint,
        mut look: impl FnMut(&[u8]) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let step = ((1 << 18) / self.shape.1.max(1)).max(1);
        let mut first = 0;
        while first < self.shape.0 {
            let end = (first + step).min(self.shape.0);
            look(&self.read(inner, first..end, 0..self.shape.1)?)?;
            first = end;
        }
        Ok(())
    }
}

/// Numbers that become scales.
#[derive(Clone, Copy)]
pub(super) enum Scales {
    /// One for all.
    One(f32),
    /// One for each output and group.
    Each(Plane),
}

impl Scales {
    /// The scales of some outputs, `groups` for each.
    pub(super) fn rows(
        &self,
        inner: &dyn Checkpoint,
        rows: Range<usize>,
        groups: usize,
    ) -> Result<Vec<f32>, FileError> {
        let mut out = buffer(inner, rows.len() * groups)?;
        let plane = match self {
            Scales::One(scale) => {
                out.fill(*scale);
                return Ok(out);
            }
            Scales::Each(plane) => plane,
        };
        let (lines, part) = plane.part(&rows, 1);
        let values = floats(inner, plane.info(inner)?, &plane.read(inner, lines, part)?)?;
        if !plane.turned {
            return Ok(values);
        }
        for (g, line) in values.chunks_exact(rows.len().max(1)).enumerate() {
            for (r, &scale) in line.iter().enumerate() {
                out[r * groups + g] = scale;
            }
        }
        Ok(out)
    }

    /// Whether a condition holds for all.
    pub(super) fn all(
        &self,
        inner: &dyn Checkpoint,
        holds: impl Fn(&[f32]) -> bool,
    ) -> Result<bool, FileError> {
        match self {
            Scales::One(scale) => Ok(holds(&[*scale])),
            Scales::Each(plane) => {
                let info = plane.info(inner)?;
                let mut all = true;
                plane.each_piece(inner, |bytes| {
                    all = all && holds(&floats(inner, info, bytes)?);
                    Ok(())
                })?;
                Ok(all)
            }
        }
    }
}

/// Plain numbers as `f32`.
pub(super) fn floats(inner: &dyn Checkpoint, info: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>, FileError> {
    let mut values = buffer(inner, bytes.len() / info.dtype.block_bytes())?;
    let done = info.dtype.dequantize(Isa::scalar(), bytes, &mut values);
    done.map_err(|e| corrupt(inner, info, e.to_string()))?;
    Ok(values)
}

/// The bits of half-precision numbers if all of `values` are finite ones, value for value.
pub(super) fn halves(values: &[f32]) -> Option<Vec<u16>> {
    let half: DType = fonio_codec::list::F16;
    let mut bytes = vec![0; values.len() * 2];
    half.quantize(Isa::scalar(), values, None, &mut bytes).ok()?;
    let mut back = vec![0f32; values.len()];
    half.dequantize(Isa::scalar(), &bytes, &mut back).ok()?;
    let same = values.iter().zip(&back).all(|(a, b)| a.is_finite() && a.to_bits() == b.to_bits());
    same.then(|| bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect())
}

/// Integers of up to 8 bits.
#[derive(Clone, Copy)]
pub(super) enum Ints {
    /// One for all.
    One(i16),
    /// Signed bytes.
    Bytes(Plane),
    /// Packed unsigned ones.
    Packed(Packed),
}

/// Unsigned integers in words.
#[derive(Clone, Copy)]
pub(super) struct Packed {
    /// The words.
    pub plane: Plane,
    /// Bits of an integer: 2, 3, 4 or 8.
    pub bits: usize,
    /// Whether outputs are packed; else what a row has.
    pub along_rows: bool,
    /// Where the integers of a word are, in units of their width; `None` for their own order.
    pub order: Option<&'static [usize; 8]>,
    /// What is added to each.
    pub bias: i16,
}

/// Integers that fill whole words, and these words.
pub(super) fn unit(bits: usize) -> (usize, usize) {
    if 32 % bits.max(1) == 0 { (32 / bits.max(1), 1) } else { (32, bits) }
}

impl Ints {
    /// The integers of some outputs, `width` for each.
    pub(super) fn rows(
        &self,
        inner: &dyn Checkpoint,
        rows: Range<usize>,
        width: usize,
    ) -> Result<Vec<i16>, FileError> {
        let mut out = buffer(inner, rows.len() * width)?;
        match self {
            Ints::One(q) => out.fill(*q),
            Ints::Bytes(plane) => {
                let bytes = plane.read(inner, rows, 0..plane.shape.1)?;
                for (q, byte) in out.iter_mut().zip(bytes) {
                    *q = i16::from(byte as i8);
                }
            }
            Ints::Packed(packed) => packed.rows(inner, rows, width, &mut out)?,
        }
        Ok(out)
    }

    /// The least and the largest of all; of packed ones with those that fill the last words up.
    pub(super) fn range(&self, inner: &dyn Checkpoint) -> Result<(i16, i16), FileError> {
        let (mut lo, mut hi) = (i16::MAX, i16::MIN);
        let mut see = |q: i16| (lo, hi) = (lo.min(q), hi.max(q));
        match self {
            Ints::One(q) => see(*q),
            Ints::Bytes(plane) => plane.each_piece(inner, |bytes| {
                bytes.iter().for_each(|&byte| see(i16::from(byte as i8)));
                Ok(())
            })?,
            Ints::Packed(packed) => packed.each(inner, see)?,
        }
        Ok((lo, hi))
    }
}

impl Packed {
    /// The integers of some outputs, in order of outputs.
    fn rows(
        &self,
        inner: &dyn Checkpoint,
        rows: Range<usize>,
        width: usize,
        out: &mut [i16],
    ) -> Result<(), FileError> {
        let (per, words_per) = unit(self.bits);
        // Outputs that are packed come in whole units of words.
        let (lines, part) = if self.along_rows {
            let units = rows.start / per..rows.end.div_ceil(per);
            let words = units.start * words_per..units.end * words_per;
            if self.plane.turned { (0..self.plane.shape.0, words) } else { (words, 0..self.plane.shape.1) }
        } else {
            self.plane.part(&rows, 1)
        };
        let stride = part.len();
        let bytes = self.plane.read(inner, lines, part)?;
        let words = bytes.as_chunks::<4>().0;
        // What is packed lies in `packed` places from `skip` on; `others` is the other dimension.
        let (others, packed, skip) =
            if self.along_rows { (width, rows.len(), rows.start % per) } else { (rows.len(), width, 0) };
        // Packed along lines of the file, or across them.
        let along_lines = self.along_rows == self.plane.turned;
        let (word_step, other_step) = if along_lines { (1, stride) } else { (stride, 1) };
        let (packed_step, other_out) = if self.along_rows { (width, 1) } else { (1, width) };
        let mut unit_values = [0i16; 32];
        let mut first = 0;
        while first < others {
            let end = (first + LINES).min(others);
            for number in 0..(skip + packed).div_ceil(per) {
                for other in first..end {
                    let at = other * other_step + number * words_per * word_step;
                    let word = |j: usize| words.get(at + j * word_step).map_or(0, |w| u32::from_le_bytes(*w));
                    self.unpack(word, &mut unit_values);
                    for (k, &q) in unit_values[..per].iter().enumerate() {
                        if let Some(place) = (number * per + k).checked_sub(skip).filter(|&p| p < packed) {
                            out[place * packed_step + other * other_out] = q;
                        }
                    }
                }
            }
            first = end;
        }
        Ok(())
    }

    /// The integers of one unit of words.
    #[inline(always)]
    fn unpack(&self, word: impl Fn(usize) -> u32, out: &mut [i16; 32]) {
        let (per, words_per) = unit(self.bits);
        let mask = (1u32 << self.bits) - 1;
        if words_per == 1 {
            let word = word(0);
            for (k, q) in out[..per].iter_mut().enumerate() {
                let place = self.order.map_or(k, |order| order[k & 7]);
                *q = (word >> (place * self.bits) & mask) as i16 + self.bias;
            }
            return;
        }
        for (k, q) in out[..per].iter_mut().enumerate() {
            let bit = k * self.bits;
            let high = if bit / 32 + 1 < words_per { word(bit / 32 + 1) } else { 0 };
            let both = u64::from(word(bit / 32)) | u64::from(high) << 32;
            *q = ((both >> (bit % 32)) as u32 & mask) as i16 + self.bias;
        }
    }

    /// Every integer in the words, in the order of the file.
    fn each(&self, inner: &dyn Checkpoint, mut see: impl FnMut(i16)) -> Result<(), FileError> {
        let (per, words_per) = unit(self.bits);
        let mut values = [0i16; 32];
        if words_per == 1 {
            return self.plane.each_piece(inner, |bytes| {
                for word in bytes.as_chunks::<4>().0 {
                    self.unpack(|_| u32::from_le_bytes(*word), &mut values);
                    values[..per].iter().for_each(|&q| see(q));
                }
                Ok(())
            });
        }
        let along_lines = self.along_rows == self.plane.turned;
        let (lines, width) = self.plane.shape;
        let (step, stride) = if along_lines { (1, 1) } else { (words_per, width) };
        let mut first = 0;
        while first < lines {
            let end = (first + step).min(lines);
            let bytes = self.plane.read(inner, first..end, 0..width)?;
            let words = bytes.as_chunks::<4>().0;
            let units = if along_lines { width / words_per } else { width };
            for number in 0..units {
                let at = if along_lines { number * words_per } else { number };
                let word = |j: usize| words.get(at + j * stride).map_or(0, |w| u32::from_le_bytes(*w));
                self.unpack(word, &mut values);
                values[..per].iter().for_each(|&q| see(q));
            }
            first = end;
        }
        Ok(())
    }
}
