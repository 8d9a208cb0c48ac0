//! Tensors that are stored as blocks and, beside them, the values that blocks hold worst: a sum of two terms.
//!
//! How many values stand beside the blocks is settled before any is chosen, so that an output's layout is known from its
//! plan: each piece of rows has exactly its quota. Where fewer than that gain anything, the rest are zeros at the first
//! free places, which change nothing.

use crate::Error;
use fonio_checkpoint::{Group, Rows, TensorPlan, Term};
use fonio_codec::outlier::{self, Outliers, quota};
use fonio_codec::{DType, list};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// What a plane of a sum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The blocks.
    Blocks,
    /// Where each row's outliers begin.
    Starts,
    /// Their columns.
    Columns,
    /// Their values.
    Values,
}

/// A tensor that is planned as a sum.
#[derive(Clone, Debug)]
pub(crate) struct Sum {
    /// The places in the plan of blocks, starts, columns and values.
    pub(crate) planes: [usize; 4],
    fraction: f64,
    /// Experts, or 1; each has equally many outliers.
    units: u64,
    /// Rows of each.
    rows: u64,
    cols: u64,
    /// Rows of a piece.
    step: u64,
}

impl Sum {
    /// Plans the planes of a tensor, which will be at `first` and behind it in the plan, and the sum behind them. `None`
    /// if there would be no outliers.
    pub(crate) fn plan(
        first: usize,
        tensor: &TensorPlan,
        fraction: f64,
        piece: u64,
    ) -> Option<(Sum, Vec<TensorPlan>)> {
        let (cols, name) = (*tensor.shape.last()?, &tensor.name);
        let all: u64 = tensor.shape.iter().rev().skip(1).product();
        let units = match tensor.group {
            Group::Experts(_) if tensor.shape.len() > 2 => tensor.shape[0].max(1),
            _ => 1,
        };
        let rows = all / units;
        let each = quota(fraction, 0, rows * cols) as u64;
        if each == 0 {
            return None;
        }
        // One row's places count all outliers, so they are needed with every expert.
        let together = match tensor.group {
            Group::Experts(layer) => Group::Layer(layer),
            group => group,
        };
        let shape = if units > 1 { vec![units, each] } else { vec![each] };
        let plane = |part: &str, dtype: DType, shape: Vec<u64>, group: Group| {
            let plan = TensorPlan::new(format!("{name}.{part}"), dtype, shape);
            TensorPlan { group, ..plan }
        };
        let planes = vec![
            plane("blocks", tensor.dtype, tensor.shape.clone(), tensor.group),
            plane("outlier_starts", list::U32, vec![all + 1], together),
            plane("outlier_columns", list::U32, shape.clone(), tensor.group),
            plane("outlier_values", list::F16, shape, tensor.group),
        ];
        let at = [first, first + 1, first + 2, first + 3];
        let terms =
            vec![Term::Whole { plane: at[0] }, Term::Sparse { starts: at[1], columns: at[2], values: at[3] }];
        let sum = TensorPlan { dtype: list::F32, terms, ..tensor.clone() };
        let step = (piece / cols.max(1)).max(1);
        let made = Sum { planes: at, fraction, units, rows, cols, step };
        Some((made, planes.into_iter().chain([sum]).collect()))
    }

    /// What a place in the plan is to this sum.
    pub(crate) fn role(&self, at: usize) -> Option<Role> {
        let roles = [Role::Blocks, Role::Starts, Role::Columns, Role::Values];
        self.planes.iter().position(|plane| *plane == at).map(|i| roles[i])
    }

    /// Cuts a range of rows, which is all of one or more units, into the pieces in which outliers are chosen.
    fn pieces(&self, rows: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let units = rows.start / self.rows.max(1)..rows.end.div_ceil(self.rows.max(1));
        units.flat_map(move |unit| {
            let (begin, end) = (unit * self.rows, (unit + 1) * self.rows);
            (0..self.rows.div_ceil(self.step)).map(move |i| {
                let first = begin + i * self.step;
                first..end.min(first + self.step)
            })
        })
    }

    /// The pieces that some rows of one of its planes are made of.
    pub(crate) fn needed(&self, role: Role, wanted: &Rows) -> Vec<Range<u64>> {
        match role {
            Role::Blocks => vec![wanted.rows.clone()],
            // Rows of these are units, where there are several.
            Role::Columns | Role::Values => {
                self.pieces(wanted.rows.start * self.rows..wanted.rows.end * self.rows).collect()
            }
            Role::Starts => self.pieces(0..self.units * self.rows).collect(),
        }
    }

    /// How many outliers a piece of rows has, and where in its unit they begin.
    fn quota(&self, rows: &Range<u64>) -> usize {
        let first = rows.start % self.rows.max(1);
        quota(self.fraction, first * self.cols, (rows.end - rows.start) * self.cols)
    }

    /// Packs the blocks of a piece, less its outliers.
    pub(crate) fn split(
        &self,
        isa: fonio_simd::Isa,
        dtype: DType,
        rows: &Range<u64>,
        values: &[f32],
        packed: &mut [u8],
    ) -> Result<Outliers, fonio_codec::Error> {
        let (cols, quota) = (usize::try_from(self.cols).unwrap_or(usize::MAX), self.quota(rows));
        let found = outlier::split(isa, dtype, cols, values, None, quota, packed)?;
        Ok(filled(found, cols, quota))
    }

    /// Bytes of some rows of a plane that is not the blocks.
    pub(crate) fn plane(&self, role: Role, wanted: &Rows, kept: &Kept) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let mut count = 0u32;
        if role == Role::Starts {
            bytes.extend(0u32.to_le_bytes());
        }
        for piece in self.needed(role, wanted) {
            let found = kept.get(self.planes[0], piece.start).ok_or_else(|| {
                let reason = format!("the outliers of rows {} to {} are missing", piece.start, piece.end);
                Error::Request(reason)
            })?;
            match role {
                Role::Blocks => {}
                Role::Columns => bytes.extend(found.column.iter().flat_map(|c| c.to_le_bytes())),
                Role::Values => bytes.extend(found.value.iter().flat_map(|v| v.to_le_bytes())),
                Role::Starts => {
                    let ends = found.row_start.iter().skip(1);
                    bytes.extend(ends.flat_map(|end| (count + *end as u32).to_le_bytes()));
                    count += found.len() as u32;
                }
            }
        }
        Ok(bytes)
    }
}

/// Adds zeros at the first free places until there are `quota`.
fn filled(found: Outliers, cols: usize, quota: usize) -> Outliers {
    let mut more = quota.saturating_sub(found.len());
    if more == 0 {
        return found;
    }
    let mut out = Outliers { row_start: vec![0], ..Outliers::default() };
    for row in found.row_start.windows(2) {
        let own = row[0]..row[1];
        let mut taken = own.clone().peekable();
        for column in 0..cols {
            let is_own = taken.peek().is_some_and(|i| found.column[*i] as usize == column);
            if is_own || more > 0 {
                out.column.push(column as u32);
                out.value.push(if is_own { found.value[taken.next().unwrap_or(0)] } else { 0 });
                more -= usize::from(!is_own);
            }
            if more == 0 && taken.peek().is_none() {
                break;
            }
        }
        out.row_start.push(out.column.len());
    }
    out
}

/// Outliers of pieces whose blocks are packed, until their planes are written.
#[derive(Default)]
pub(crate) struct Kept(Mutex<HashMap<(usize, u64), std::sync::Arc<Outliers>>>);

impl Kept {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(usize, u64), std::sync::Arc<Outliers>>> {
        // A thread that panicked leaves whole entries.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of the piece that begins at this row.
    pub(crate) fn get(&self, blocks: usize, row: u64) -> Option<std::sync::Arc<Outliers>> {
        self.lock().get(&(blocks, row)).cloned()
    }

    pub(crate) fn put(&self, blocks: usize, row: u64, found: Outliers) {
        self.lock().insert((blocks, row), std::sync::Arc::new(found));
    }

    /// Forgets a tensor's.
    pub(crate) fn drop_all(&self, blocks: usize) {
        self.lock().retain(|(of, _), _| *of != blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_filled_with_zeros_at_free_places() {
        let found = Outliers { row_start: vec![0, 1, 1, 3], column: vec![1, 0, 3], value: vec![7, 8, 9] };
        let all = filled(found.clone(), 4, 9);
        assert_eq!(all.row_start, [0, 4, 7, 9]);
        assert_eq!(all.column, [0, 1, 2, 3, 0, 1, 2, 0, 3]);
        assert_eq!(all.value, [0, 7, 0, 0, 0, 0, 0, 8, 9]);
        assert_eq!(filled(found.clone(), 4, 3), found);
        assert_eq!(filled(found, 4, 12).column.len(), 12);
    }

    #[test]
    fn pieces_of_experts_have_equal_quotas() {
        let tensor = TensorPlan::new("x", list::Q8_0, [3, 50, 64]);
        let tensor = TensorPlan { group: Group::Experts(1), ..tensor };
        let (sum, planes) = Sum::plan(4, &tensor, 0.01, 1000).unwrap();
        assert_eq!(planes[2].shape, [3, 32]);
        assert_eq!(planes[1].group, Group::Layer(1));
        let wanted = Rows { tensor: 6, rows: 1..2 };
        let pieces = sum.needed(Role::Columns, &wanted);
        assert_eq!((pieces[0].clone(), pieces.last().unwrap().end), (50..65, 100));
        assert_eq!(pieces.iter().map(|p| sum.quota(p)).sum::<usize>(), 32);
        assert!(Sum::plan(0, &tensor, 1e-6, 1000).is_none());
    }
}
