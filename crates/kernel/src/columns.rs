//! What recurrent operations read and keep: columns of row-major activations, so that parts of a projection are read
//! where they are, and states.

use std::ops::Range;

/// Columns of rows of activations: row `t` is `t · stride + columns` of the values.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    values: &'a [f32],
    stride: usize,
    first: usize,
    len: usize,
}

impl<'a> Columns<'a> {
    /// These columns of rows of `stride` values.
    pub fn new(values: &'a [f32], stride: usize, columns: Range<usize>) -> Columns<'a> {
        assert!(columns.start <= columns.end && columns.end <= stride, "columns of a row");
        assert!(stride > 0 && values.len().is_multiple_of(stride), "whole rows");
        Columns { values, stride, first: columns.start, len: columns.len() }
    }

    /// All columns.
    pub fn all(values: &'a [f32], stride: usize) -> Columns<'a> {
        Columns::new(values, stride, 0..stride)
    }

    /// Rows that there are.
    pub fn rows(&self) -> usize {
        self.values.len() / self.stride
    }

    /// Values of a row.
    pub fn width(&self) -> usize {
        self.len
    }

    /// One row.
    #[inline(always)]
    pub fn row(&self, t: usize) -> &'a [f32] {
        &self.values[t * self.stride + self.first..][..self.len]
    }
}

/// A recurrent state before and after some tokens. It is not changed in place: should a later operation fail, the state
/// before is still there.
pub struct Kept<'a> {
    before: &'a [f32],
    after: &'a mut [f32],
}

impl<'a> Kept<'a> {
    /// The state that there is, and the place of the next one, of the same length.
    pub fn new(before: &'a [f32], after: &'a mut [f32]) -> Kept<'a> {
        assert_eq!(before.len(), after.len(), "a state of the same size");
        Kept { before, after }
    }

    /// Values of the state.
    pub fn len(&self) -> usize {
        self.before.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty()
    }

    /// The first `n` values, and the others.
    pub fn split_at(self, n: usize) -> (Kept<'a>, Kept<'a>) {
        let ((a, b), (c, d)) = (self.before.split_at(n), self.after.split_at_mut(n));
        (Kept::new(a, c), Kept::new(b, d))
    }

    pub(crate) fn parts(self) -> (&'a [f32], &'a mut [f32]) {
        (self.before, self.after)
    }
}

/// Columns of a recurrent state that one piece of work takes: they are kept in an array of this width while the loop
/// goes over the tokens. Four vectors of 256 bits or two of 512: what registers hold beside the operands.
pub(crate) const LANES: usize = 32;

/// One value for each column of a piece.
pub(crate) type Lanes = [f32; LANES];

/// At most [`LANES`] values, padded with zeros.
#[inline(always)]
pub(crate) fn load(from: &[f32]) -> Lanes {
    let mut lanes = [0.0; LANES];
    match from.first_chunk::<LANES>() {
        Some(whole) => lanes = *whole,
        None => lanes[..from.len()].copy_from_slice(from),
    }
    lanes
}

/// The first lanes, as many as there is place for.
#[inline(always)]
pub(crate) fn store(lanes: &Lanes, to: &mut [f32]) {
    match to.first_chunk_mut::<LANES>() {
        Some(whole) => *whole = *lanes,
        None => to.copy_from_slice(&lanes[..to.len()]),
    }
}

/// Columns `range` of `n` rows of `stride` values from `at` on, as rows of lanes.
#[inline(always)]
pub(crate) fn gather(from: &[f32], n: usize, stride: usize, range: &Range<usize>, to: &mut Vec<Lanes>) {
    to.clear();
    to.extend((0..n).map(|i| load(&from[i * stride + range.start..i * stride + range.end])));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_where_they_should() {
        let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let middle = Columns::new(&x, 4, 1..3);
        assert_eq!((middle.rows(), middle.width()), (3, 2));
        assert_eq!(middle.row(2), [9.0, 10.0]);
        assert_eq!(Columns::all(&x, 6).row(1), &x[6..]);
        let lanes = load(middle.row(1));
        assert_eq!(lanes[..3], [5.0, 6.0, 0.0]);
        let mut out = [0.0; 2];
        store(&lanes, &mut out);
        assert_eq!(out, [5.0, 6.0]);
        let mut rows = Vec::new();
        gather(&x, 3, 4, &(2..4), &mut rows);
        assert_eq!(rows[2][..3], [10.0, 11.0, 0.0]);
    }
}
