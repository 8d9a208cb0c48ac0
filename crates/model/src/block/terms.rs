//! Weights that are stored as sums, multiplied term by term: the dense matrix is never made.

use super::{Linear, matrix};
use crate::Error;
use crate::bind::Binder;
use fonio_checkpoint as checkpoint;
use fonio_codec::DType;
use fonio_kernel::{Band, Kernels, OutOfBounds, Product, Sparse, Vectors, Window};
use fonio_weights::{Lease, Part, WeightId};

/// A plane that was bound: its bytes, its type, and its dimensions as a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Plane {
    pub id: WeightId,
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
}

/// One summand.
#[derive(Clone, Copy)]
pub(crate) enum Term {
    Whole(Plane),
    Product { left: Plane, right: Plane },
    Band { plane: Plane, first: i64 },
    Sparse { starts: Plane, columns: Plane, values: Plane },
    Vectors { codes: Plane, tables: Plane, m: usize },
}

impl Term {
    /// Binds the planes of a term of `rows` rows. `slice` of `count` is which equal part of the planes is meant, where
    /// a tensor of three dimensions has one for each of the first.
    pub(crate) fn bind(
        binder: &mut Binder,
        part: Part,
        term: checkpoint::Term,
        (slice, count): (usize, usize),
    ) -> Result<Term, Error> {
        let mut plane = |number| binder.plane(part, number, slice, count);
        Ok(match term {
            checkpoint::Term::Whole { plane: p } => Term::Whole(plane(p)?.0),
            checkpoint::Term::Product { left, right } => {
                Term::Product { left: plane(left)?.0, right: plane(right)?.0 }
            }
            checkpoint::Term::Band { plane: p, first } => Term::Band { plane: plane(p)?.0, first },
            checkpoint::Term::Sparse { starts, columns, values } => Term::Sparse {
                starts: plane(starts)?.0,
                columns: plane(columns)?.0,
                values: plane(values)?.0,
            },
            checkpoint::Term::Vectors { codes, tables } => {
                // Tables are few and serve several weights.
                let (tables, shape) = binder.plane(Part::Shared, tables, 0, 1)?;
                Term::Vectors {
                    codes: binder.plane(part, codes, slice, count)?.0,
                    tables,
                    m: shape.first().map_or(1, |&m| m as usize),
                }
            }
        })
    }

    /// Adds what the term makes of the rows of `x`.
    pub(crate) fn add(
        &self,
        kernels: &Kernels,
        lease: &Lease<'_>,
        linear: &Linear,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<(), Error> {
        let window = Window { first: linear.first, rows: linear.rows, cols: linear.cols };
        let broken = |OutOfBounds| Error::Input("a weight's single values or codes point out of it".into());
        let rows = linear.first..linear.first + linear.rows;
        match self {
            Term::Whole(plane) => {
                let weight = matrix(lease, plane.id, plane.dtype, rows, linear.cols)?;
                let mut more = vec![0.0; out.len()];
                kernels.matmul(x, &mut [Product { weight, out: &mut more }]);
                out.iter_mut().zip(&more).for_each(|(out, more)| *out += more);
            }
            Term::Product { left, right } => {
                let rank = right.rows;
                let right = matrix(lease, right.id, right.dtype, 0..rank, linear.cols)?;
                let mut inner = vec![0.0; x.len() / linear.cols * rank];
                kernels.matmul(x, &mut [Product { weight: right, out: &mut inner }]);
                let left = matrix(lease, left.id, left.dtype, rows, rank)?;
                let mut more = vec![0.0; out.len()];
                kernels.matmul(&inner, &mut [Product { weight: left, out: &mut more }]);
                out.iter_mut().zip(&more).for_each(|(out, more)| *out += more);
            }
            Term::Band { plane, first } => {
                let values = matrix(lease, plane.id, plane.dtype, 0..plane.rows, plane.cols)?;
                kernels.add_band(x, Band { values, first: *first }, window, out);
            }
            Term::Sparse { starts, columns, values } => {
                let part = Sparse {
                    starts: lease.bytes(starts.id)?,
                    columns: lease.bytes(columns.id)?,
                    dtype: values.dtype,
                    values: lease.bytes(values.id)?,
                };
                kernels.add_sparse(x, part, window, out).map_err(broken)?;
            }
            Term::Vectors { codes, tables, m } => {
                let part = Vectors {
                    codes: lease.bytes(codes.id)?,
                    tables: matrix(lease, tables.id, tables.dtype, 0..tables.rows, tables.cols)?,
                    m: *m,
                };
                kernels.add_vectors(x, part, window, out).map_err(broken)?;
            }
        }
        Ok(())
    }
}
