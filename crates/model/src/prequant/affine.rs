//! Weights of integers with a scale and a zero point for each group of inputs: `value = scale · (q − zero)`.
//!
//! GPTQ, AWQ and the integer formats of compressed-tensors differ in where the numbers are, not in what they mean.

use super::plane::{Ints, Scales, halves};
use super::{Maker, corrupt};
use fonio_checkpoint::{Checkpoint, Error as FileError};
use fonio_codec::exact::{self, Exact};
use fonio_codec::{DType, list};

/// Which group each input belongs to.
pub(super) enum Groups {
    /// Groups of this many neighbours.
    Even(usize),
    /// For each input its group, below the number of groups.
    Listed(Vec<u32>),
}

impl Groups {
    /// What a map of inputs says, `None` if one of them has no group. Neighbours in order need no map.
    pub(super) fn of_map(map: Vec<u32>, groups: usize, size: usize) -> Option<Groups> {
        if map.iter().any(|&g| g as usize >= groups) {
            return None;
        }
        let even = map.iter().enumerate().all(|(i, &g)| i / size.max(1) == g as usize);
        Some(if even { Groups::Even(size) } else { Groups::Listed(map) })
    }

    fn of(&self, column: usize) -> usize {
        match self {
            Groups::Even(size) => column / size.max(&1),
            Groups::Listed(map) => map.get(column).map_or(0, |&g| g as usize),
        }
    }

    /// Whether all inputs of a block are in one group, for every block.
    fn have_blocks(&self, columns: usize) -> bool {
        columns.is_multiple_of(exact::LEN)
            && match self {
                Groups::Even(size) => *size >= columns || size.is_multiple_of(exact::LEN),
                Groups::Listed(map) => {
                    map.chunks(exact::LEN).all(|block| block.iter().all(|g| *g == block[0]))
                }
            }
    }
}

/// A weight of integers.
pub(super) struct Affine {
    /// The tensor that errors name.
    pub named: usize,
    /// Inputs.
    pub columns: usize,
    /// Groups of each output.
    pub groups: usize,
    /// Which inputs they have.
    pub map: Groups,
    /// The integers.
    pub codes: Ints,
    /// The integers' least and largest value, by their width.
    pub range: (i16, i16),
    /// The zero points.
    pub zeros: Ints,
    /// The scales.
    pub scales: Scales,
    /// Whether the integers' plane has outputs along its lines.
    pub gathers: bool,
}

impl Affine {
    /// Decides the type: looks at all scales and zero points.
    pub(super) fn decide(self, inner: &dyn Checkpoint) -> Result<(DType, Box<dyn Maker>), FileError> {
        let mut exact = None;
        if self.map.have_blocks(self.columns) {
            let (least, largest) = self.zeros.range(inner)?;
            let lo = i32::from(self.range.0) - i32::from(largest);
            let hi = i32::from(self.range.1) - i32::from(least);
            exact = exact::holding(lo, hi);
        }
        if exact.is_some() && !self.scales.all(inner, |scales| halves(scales).is_some())? {
            exact = None;
        }
        let dtype = exact.map_or(list::F32, |exact| exact.dtype);
        Ok((dtype, Box::new(Decided { affine: self, exact })))
    }
}

/// A weight of integers with its type.
struct Decided {
    affine: Affine,
    exact: Option<&'static Exact>,
}

impl Maker for Decided {
    fn gathers(&self) -> bool {
        self.affine.gathers
    }

    fn widen(&mut self, dtype: DType) -> bool {
        let holds = |exact: &&Exact| {
            exact.dtype == dtype && self.exact.is_some_and(|now| now.lo >= exact.lo && now.hi <= exact.hi)
        };
        match exact::ALL.iter().find(holds) {
            Some(exact) => self.exact = Some(exact),
            None if dtype == list::F32 => self.exact = None,
            None => return false,
        }
        true
    }

    fn rows(
        &self,
        inner: &dyn Checkpoint,
        first: usize,
        count: usize,
        dst: &mut [u8],
    ) -> Result<(), FileError> {
        let affine = &self.affine;
        let (columns, groups, rows) = (affine.columns, affine.groups, first..first + count);
        let codes = affine.codes.rows(inner, rows.clone(), columns)?;
        let zeros = affine.zeros.rows(inner, rows.clone(), groups)?;
        let scales = affine.scales.rows(inner, rows, groups)?;
        let row_bytes = dst.len() / count.max(1);
        let values =
            codes.chunks_exact(columns).zip(zeros.chunks_exact(groups)).zip(scales.chunks_exact(groups));
        for (((codes, zeros), scales), dst) in values.zip(dst.chunks_exact_mut(row_bytes.max(1))) {
            match self.exact {
                None => affine.float_row(codes, zeros, scales, dst),
                Some(exact) => affine.block_row(exact, codes, zeros, scales, dst).map_err(|reason| {
                    let file = || FileError::Refused {
                        file: inner.files().first().cloned().unwrap_or_default(),
                        reason: reason.clone(),
                    };
                    inner.tensors().get(affine.named).map_or_else(file, |info| corrupt(inner, info, &*reason))
                })?,
            }
        }
        Ok(())
    }
}

impl Affine {
    fn float_row(&self, codes: &[i16], zeros: &[i16], scales: &[f32], dst: &mut [u8]) {
        let value = |q: i16, g: usize| {
            let (zero, scale) = (zeros.get(g).copied().unwrap_or(0), scales.get(g).copied().unwrap_or(0.0));
            (scale * f32::from(q - zero)).to_le_bytes()
        };
        let places = dst.as_chunks_mut::<4>().0;
        match &self.map {
            Groups::Even(size) => {
                let size = (*size).clamp(1, self.columns.max(1));
                for (g, (codes, places)) in codes.chunks(size).zip(places.chunks_mut(size)).enumerate() {
                    codes.iter().zip(places).for_each(|(&q, place)| *place = value(q, g));
                }
            }
            Groups::Listed(map) => {
                for ((&q, place), &g) in codes.iter().zip(places).zip(map) {
                    *place = value(q, g as usize);
                }
            }
        }
    }

    fn block_row(
        &self,
        exact: &Exact,
        codes: &[i16],
        zeros: &[i16],
        scales: &[f32],
        dst: &mut [u8],
    ) -> Result<(), String> {
        // The files were looked at when they were opened; they may have changed since.
        let changed = || "scales or zero points are not those that were there when it was opened".to_owned();
        let halves = halves(scales).ok_or_else(changed)?;
        let bytes = exact.dtype.block_bytes();
        let mut block = [0i8; exact::LEN];
        for (i, (codes, dst)) in codes.chunks_exact(exact::LEN).zip(dst.chunks_exact_mut(bytes)).enumerate() {
            let g = self.map.of(i * exact::LEN);
            let (zero, scale) = (zeros.get(g).ok_or_else(changed)?, halves.get(g).ok_or_else(changed)?);
            for (q, &code) in block.iter_mut().zip(codes) {
                *q = i8::try_from(code - zero).map_err(|_| changed())?;
            }
            exact.pack(&[*scale], &block, dst).map_err(|_| changed())?;
        }
        Ok(())
    }
}
