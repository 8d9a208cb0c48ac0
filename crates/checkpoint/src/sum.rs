//! Tensors that are stored as sums: whether their terms fit together, and their values.
//!
//! A sum begins at +0; its terms are added in the order in which they are listed, each as one `f32` addition. A
//! product's own sum runs over the rank from 0 on, begins at +0 as well, and has a rounded product and a rounded
//! addition for each step. So every reader gives the same bits, whichever rows it is asked for.
//!
//! Both containers that have sums (QSF version 2, CAWSF version 2) check them with [`check`] when a file is opened or
//! written, and answer [`Checkpoint::bytes`] and [`Checkpoint::read`] by [`bytes`] and [`read`].

use crate::{Checkpoint, Error, TensorInfo, Term};
use fonio_codec::{DType, list};
use fonio_simd::Isa;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// Most bytes that a sum's `F32` may have for each byte of its planes: a few diagonals or one factor make a large matrix
/// of very little, but a file of a kilobyte must not ask for a gigabyte.
const MAX_GROWTH: u64 = 1 << 14;
/// Rows that are computed together: what a product reads of its right side is used for all of them.
const BLOCK: u64 = 64;

/// A plane's type and shape, as [`check`] asks for them.
pub(crate) type Plane<'a> = (DType, &'a [u64]);

/// Rows of a tensor as long as its last dimension, and that length. Shapes are checked not to overflow.
pub(crate) fn rows_cols(shape: &[u64]) -> (u64, u64) {
    let rows = shape.iter().rev().skip(1).fold(1u64, |n, &d| n.saturating_mul(d));
    (rows, shape.last().copied().unwrap_or(1))
}

/// Whether the terms' planes have the types and shapes that a sum of this shape needs. The reason if not.
pub(crate) fn check<'a>(
    shape: &[u64],
    terms: &[Term],
    plane: impl Fn(usize) -> Option<Plane<'a>>,
) -> Result<(), String> {
    let nbytes = crate::opened::checked_nbytes(list::F32, shape)?;
    let get = |n: usize| plane(n).ok_or_else(|| format!("there is no plane {n}"));
    let mut stored = 0u64;
    for term in terms {
        check_term(shape, *term, &get)?;
        for n in term.planes() {
            let (dtype, shape) = get(n)?;
            stored = stored.saturating_add(crate::opened::checked_nbytes(dtype, shape)?);
        }
    }
    if nbytes > stored.saturating_mul(MAX_GROWTH) {
        return Err(format!("{nbytes} bytes are the sum of planes of {stored}: too little for so much"));
    }
    Ok(())
}

fn check_term<'a>(
    shape: &[u64],
    term: Term,
    get: &impl Fn(usize) -> Result<Plane<'a>, String>,
) -> Result<(), String> {
    let (rows, cols) = rows_cols(shape);
    // Integer types have no blocks, so a plane's number of dimensions is all that its shape can be wrong in besides.
    let want = |n: usize, what: &str, wanted: &[Option<u64>]| -> Result<Vec<u64>, String> {
        let (_, shape) = get(n)?;
        let fits = shape.len() == wanted.len()
            && shape.iter().zip(wanted).all(|(have, want)| want.is_none_or(|want| want == *have));
        let wanted = || wanted.iter().map(|d| d.map_or("any".into(), |d| d.to_string())).collect::<Vec<_>>();
        match fits {
            true => Ok(shape.to_vec()),
            false => Err(format!("{what} have the shape {shape:?} in place of [{}]", wanted().join(", "))),
        }
    };
    let typed = |n: usize, what: &str, dtype: DType| match get(n)?.0 {
        found if found == dtype => Ok(()),
        found => Err(format!("{what} are {found} in place of {dtype}")),
    };
    let stacked = shape.len() > 2 && !matches!(term, Term::Whole { .. } | Term::Sparse { .. });
    if stacked {
        return Err(format!("a tensor of the shape {shape:?} has whole and single values as terms alone"));
    }
    match term {
        Term::Whole { plane } => {
            let whole: Vec<Option<u64>> = shape.iter().copied().map(Some).collect();
            want(plane, "whole values", &whole).map(drop)
        }
        Term::Product { left, right } => {
            let rank = want(left, "left factors", &[Some(rows), None])?.get(1).copied();
            want(right, "right factors", &[rank, Some(cols)]).map(drop)
        }
        Term::Band { plane, first } => {
            let n = want(plane, "diagonals", &[None, Some(rows.min(cols))])?.first().copied();
            let last = i64::try_from(n.unwrap_or(0)).ok().and_then(|n| first.checked_add(n));
            last.map(drop).ok_or_else(|| format!("the diagonals begin at column {first}"))
        }
        Term::Sparse { starts, columns, values } => {
            match shape {
                // Experts: each by itself.
                [units, rows, _] => {
                    want(starts, "rows' places", &[Some(*units), rows.checked_add(1)])?;
                    want(columns, "columns", &[Some(*units), None])?;
                }
                _ => {
                    want(starts, "rows' places", &[rows.checked_add(1)])?;
                    want(columns, "columns", &[None])?;
                }
            }
            typed(starts, "rows' places", list::U32)?;
            typed(columns, "columns", list::U32)?;
            let shape: Vec<Option<u64>> = get(columns)?.1.iter().copied().map(Some).collect();
            want(values, "single values", &shape).map(drop)
        }
        Term::Vectors { codes, tables } => {
            let tables = want(tables, "tables", &[None, None, None])?;
            let (m, len) = (tables.first().copied().unwrap_or(0), tables.get(2).copied().unwrap_or(0));
            if m == 0 || len == 0 {
                return Err(format!("tables of the shape {tables:?}"));
            }
            typed(codes, "codes", list::U8)?;
            want(codes, "codes", &[Some(rows), Some(cols.div_ceil(len))]).map(drop)
        }
    }
}

/// The values of some rows of a tensor that is a sum: `dst` has as many as the rows have.
///
/// # Errors
/// Those of reading the planes, and *corrupt* if indices in them lead out of the matrix.
pub fn rows(
    checkpoint: &dyn Checkpoint,
    tensor: usize,
    rows: Range<u64>,
    dst: &mut [f32],
) -> Result<(), Error> {
    let (_, sum) = Sum::new(checkpoint, tensor)?;
    sum.rows(rows, dst)
}

/// [`Checkpoint::read`] of a tensor that is a sum, or a stack of sums.
pub(crate) fn read(
    checkpoint: &dyn Checkpoint,
    tensor: usize,
    offset: u64,
    dst: &mut [u8],
) -> Result<(), Error> {
    let stack = checkpoint.matrices(tensor);
    if !stack.is_empty() {
        return read_stack(checkpoint, stack, offset, dst);
    }
    let (info, sum) = Sum::new(checkpoint, tensor)?;
    let end = offset.checked_add(dst.len() as u64).filter(|&end| end <= info.nbytes);
    let (Some(end), row_bytes) = (end, sum.cols.saturating_mul(4)) else {
        let (name, nbytes, len) = (&info.name, info.nbytes, dst.len());
        let reason = format!("{name:?} has {nbytes} bytes; {len} from byte {offset} on were asked for");
        return Err(Error::Refused { file: sum.file(), reason });
    };
    if dst.is_empty() {
        return Ok(());
    }
    let touched = offset.checked_div(row_bytes).unwrap_or(0)..end.div_ceil(row_bytes.max(1));
    let mut left = dst;
    let mut skip = sum.size(offset.checked_rem(row_bytes).unwrap_or(0))?;
    let mut values = Vec::new();
    for block in blocks(touched) {
        let n = sum.size(block.end.saturating_sub(block.start).saturating_mul(sum.cols))?;
        values.clear();
        values.resize(n, 0.0);
        sum.rows(block, &mut values)?;
        let size = n.saturating_mul(4).saturating_sub(skip).min(left.len());
        let (now, later) = left.split_at_mut_checked(size).unwrap_or((&mut [], &mut []));
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).skip(skip);
        now.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        left = later;
        skip = 0;
    }
    Ok(())
}

/// The same of matrices that follow each other, all of the same size. What goes beyond the last is refused as it
/// would be of that.
fn read_stack(
    checkpoint: &dyn Checkpoint,
    stack: Range<usize>,
    offset: u64,
    dst: &mut [u8],
) -> Result<(), Error> {
    let each = checkpoint.info(stack.start).map_or(1, |info| info.nbytes).max(1);
    let last = stack.len().saturating_sub(1);
    let (mut left, mut from) = (dst, offset);
    while !left.is_empty() {
        let place = from.checked_div(each).and_then(|place| usize::try_from(place).ok()).unwrap_or(last);
        let place = place.min(last);
        let within = from.saturating_sub(each.saturating_mul(place as u64));
        let size = usize::try_from(each.saturating_sub(within)).unwrap_or(usize::MAX);
        let size = if place == last { left.len() } else { size.min(left.len()) };
        let (now, later) = left.split_at_mut_checked(size).unwrap_or((&mut [], &mut []));
        read(checkpoint, stack.start.saturating_add(place), within, now)?;
        from = from.saturating_add(size as u64);
        left = later;
    }
    Ok(())
}

/// [`Checkpoint::bytes`] of a tensor that is a sum, or a stack of sums.
pub(crate) fn bytes(checkpoint: &dyn Checkpoint, tensor: usize) -> Result<Vec<u8>, Error> {
    let nbytes = checkpoint.info(tensor).map_or(0, |info| info.nbytes);
    let mut out = Vec::new();
    let len = usize::try_from(nbytes).unwrap_or(usize::MAX);
    out.try_reserve_exact(len).map_err(|e| Error::Limit {
        file: checkpoint.files().first().cloned().unwrap_or_default(),
        tensor: checkpoint.info(tensor).map(|info| info.name.clone()),
        reason: e.to_string(),
    })?;
    out.resize(len, 0);
    read(checkpoint, tensor, 0, &mut out)?;
    Ok(out)
}

/// Ranges of at most [`BLOCK`] rows.
fn blocks(rows: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let step = usize::try_from(BLOCK).unwrap_or(1);
    rows.clone().step_by(step).map(move |first| first..rows.end.min(first.saturating_add(BLOCK)))
}

/// A tensor whose terms are evaluated.
struct Sum<'a> {
    checkpoint: &'a dyn Checkpoint,
    info: &'a TensorInfo,
    terms: &'a [Term],
    n_rows: u64,
    cols: u64,
    isa: Isa,
    /// Planes that every block of rows needs whole.
    whole: RefCell<Vec<(usize, Rc<[f32]>)>>,
}

impl<'a> Sum<'a> {
    fn new(checkpoint: &'a dyn Checkpoint, tensor: usize) -> Result<(&'a TensorInfo, Sum<'a>), Error> {
        let terms = checkpoint.terms(tensor);
        let info = checkpoint.info(tensor).filter(|_| !terms.is_empty()).ok_or_else(|| Error::Refused {
            file: checkpoint.files().first().cloned().unwrap_or_default(),
            reason: format!("tensor number {tensor} is not stored as a sum"),
        })?;
        let (n_rows, cols) = rows_cols(&info.shape);
        Ok((
            info,
            Sum { checkpoint, info, terms, n_rows, cols, isa: Isa::detect(), whole: RefCell::default() },
        ))
    }

    fn rows(&self, rows: Range<u64>, dst: &mut [f32]) -> Result<(), Error> {
        let n = rows.end.checked_sub(rows.start).and_then(|n| n.checked_mul(self.cols));
        if rows.end > self.n_rows || n != Some(dst.len() as u64) {
            let (name, len) = (&self.info.name, dst.len());
            let reason = format!("rows {} to {} of {name:?} are not {len} values", rows.start, rows.end);
            return Err(Error::Refused { file: self.file(), reason });
        }
        let row = self.size(self.cols)?;
        let mut left = dst;
        for block in blocks(rows) {
            let size = row.saturating_mul(self.size(block.end.saturating_sub(block.start))?);
            let (now, later) = left.split_at_mut_checked(size).unwrap_or((&mut [], &mut []));
            now.fill(0.0);
            for term in self.terms.iter().filter(|_| row > 0) {
                self.add(*term, block.clone(), now, row)?;
            }
            left = later;
        }
        Ok(())
    }

    /// Adds a term's values in some rows to `dst`.
    fn add(&self, term: Term, rows: Range<u64>, dst: &mut [f32], row: usize) -> Result<(), Error> {
        match term {
            Term::Whole { plane } => {
                let first = rows.start.saturating_mul(self.cols);
                let values = self.values(plane, first..first.saturating_add(dst.len() as u64))?;
                add_all(dst, &values);
                Ok(())
            }
            Term::Product { left, right } => self.product(left, right, rows, dst, row),
            Term::Band { plane, first } => self.band(plane, first, rows, dst, row),
            Term::Sparse { starts, columns, values } => {
                self.sparse((starts, columns, values), rows, dst, row)
            }
            Term::Vectors { codes, tables } => self.vectors(codes, tables, rows, dst, row),
        }
    }

    fn product(
        &self,
        left: usize,
        right: usize,
        rows: Range<u64>,
        dst: &mut [f32],
        row: usize,
    ) -> Result<(), Error> {
        let rank = self.plane(left)?.shape.last().copied().unwrap_or(0);
        let from = rows.start.saturating_mul(rank);
        let factors = self.values(left, from..rows.end.saturating_mul(rank))?;
        let width = self.size(rank)?;
        let mut own = vec![0f32; dst.len()];
        for (at, line) in self.whole(right)?.chunks_exact(row).enumerate() {
            for (sums, factors) in own.chunks_exact_mut(row).zip(factors.chunks_exact(width.max(1))) {
                let factor = factors.get(at).copied().unwrap_or(0.0);
                sums.iter_mut().zip(line).for_each(|(sum, x)| *sum += factor * x);
            }
        }
        add_all(dst, &own);
        Ok(())
    }

    fn band(
        &self,
        plane: usize,
        first: i64,
        rows: Range<u64>,
        dst: &mut [f32],
        row: usize,
    ) -> Result<(), Error> {
        let shape = &self.plane(plane)?.shape;
        let (n, len) = (shape.first().copied().unwrap_or(0), shape.get(1).copied().unwrap_or(0));
        let inside = rows.start.min(len)..rows.end.min(len);
        if inside.is_empty() {
            return Ok(());
        }
        for d in 0..n {
            let from = d.saturating_mul(len);
            let range = from.saturating_add(inside.start)..from.saturating_add(inside.end);
            let values = self.values(plane, range)?;
            let shift = first.saturating_add_unsigned(d);
            for ((i, x), line) in inside.clone().zip(values).zip(dst.chunks_exact_mut(row)) {
                let column = i.checked_add_signed(shift).and_then(|c| usize::try_from(c).ok());
                if let Some(y) = column.and_then(|c| line.get_mut(c)) {
                    *y += x;
                }
            }
        }
        Ok(())
    }

    fn sparse(
        &self,
        planes: (usize, usize, usize),
        rows: Range<u64>,
        dst: &mut [f32],
        row: usize,
    ) -> Result<(), Error> {
        // Rows of a matrix, or of each of several.
        let per = self.plane(planes.0)?.row_len().saturating_sub(1).max(1);
        let (mut at, mut left) = (rows.start, dst);
        while at < rows.end {
            let unit = at.checked_div(per).unwrap_or(0);
            let end = unit.saturating_add(1).saturating_mul(per).min(rows.end);
            let len = self.size(end.saturating_sub(at))?.saturating_mul(row);
            let (now, later) = left.split_at_mut_checked(len).unwrap_or((&mut [], &mut []));
            let first = unit.saturating_mul(per);
            let local = at.saturating_sub(first)..end.saturating_sub(first);
            self.sparse_unit(planes, (unit, per), local, now, row)?;
            (at, left) = (end, later);
        }
        Ok(())
    }

    /// As [`Sum::sparse`], of one matrix of `per` rows.
    fn sparse_unit(
        &self,
        (starts, columns, values): (usize, usize, usize),
        (unit, per): (u64, u64),
        rows: Range<u64>,
        dst: &mut [f32],
        row: usize,
    ) -> Result<(), Error> {
        let n = self.plane(columns)?.row_len();
        let from = unit.saturating_mul(per.saturating_add(1));
        let places = rows.start.saturating_add(from)..rows.end.saturating_add(from).saturating_add(1);
        let places = self.indices(starts, places)?;
        let first = places.first().copied().unwrap_or(0);
        let last = places.last().copied().unwrap_or(0);
        let ends = (rows.start > 0 || first == 0) && (rows.end < per || u64::from(last) == n);
        if !places.is_sorted() || u64::from(last) > n || !ends {
            return Err(self.corrupt(starts, format!("the rows' places are not those of {n} values")));
        }
        let from = unit.saturating_mul(n);
        let range = u64::from(first).saturating_add(from)..u64::from(last).saturating_add(from);
        let (columns_found, found) = (self.indices(columns, range.clone())?, self.values(values, range)?);
        let mut rest = columns_found.into_iter().zip(found);
        for (pair, line) in places.windows(2).zip(dst.chunks_exact_mut(row)) {
            let count = match pair {
                [from, to] => to.saturating_sub(*from),
                _ => 0,
            };
            let mut before = None;
            for (column, x) in rest.by_ref().take(usize::try_from(count).unwrap_or(usize::MAX)) {
                let place = usize::try_from(column).ok().and_then(|c| line.get_mut(c));
                let Some(y) = place.filter(|_| before < Some(column)) else {
                    return Err(self.corrupt(columns, format!("column {column} is not after {before:?}")));
                };
                before = Some(column);
                *y += x;
            }
        }
        Ok(())
    }

    fn vectors(
        &self,
        codes: usize,
        tables: usize,
        rows: Range<u64>,
        dst: &mut [f32],
        row: usize,
    ) -> Result<(), Error> {
        let info = self.plane(tables)?;
        let dim = |i: usize| self.size(info.shape.get(i).copied().unwrap_or(0));
        let (m, k, len) = (dim(0)?, dim(1)?, dim(2)?);
        let pieces = self.plane(codes)?.shape.last().copied().unwrap_or(0);
        let from = rows.start.saturating_mul(pieces);
        let found = self.raw(codes, from..rows.end.saturating_mul(pieces))?;
        let values = self.whole(tables)?;
        let table_len = k.saturating_mul(len);
        for (line, codes_of) in dst.chunks_exact_mut(row).zip(found.chunks(self.size(pieces)?.max(1))) {
            let tables = (0..m).cycle().map(|t| t.saturating_mul(table_len));
            for ((piece, code), table) in line.chunks_mut(len).zip(codes_of).zip(tables) {
                let code = usize::from(*code);
                if code >= k {
                    return Err(self.corrupt(codes, format!("code {code} of tables with {k} rows")));
                }
                let at = table.saturating_add(code.saturating_mul(len));
                add_all(piece, values.get(at..).unwrap_or_default());
            }
        }
        Ok(())
    }

    fn plane(&self, plane: usize) -> Result<&'a TensorInfo, Error> {
        self.checkpoint.info(plane).ok_or_else(|| Error::Refused {
            file: self.file(),
            reason: format!("{:?} is a sum of a plane {plane}, which is not there", self.info.name),
        })
    }

    /// Values of a plane, counted from its first to its last.
    fn values(&self, plane: usize, range: Range<u64>) -> Result<Vec<f32>, Error> {
        let dtype = self.plane(plane)?.dtype;
        let block = dtype.block_len() as u64;
        let first = range.start.checked_div(block).unwrap_or(0);
        let blocks = first..range.end.div_ceil(block.max(1));
        let bytes = self.raw(plane, blocks.clone())?;
        let count = blocks.end.saturating_sub(blocks.start).saturating_mul(block);
        let mut values = vec![0f32; self.size(count)?];
        dtype.dequantize(self.isa, &bytes, &mut values).map_err(|e| self.corrupt(plane, e.to_string()))?;
        let skip = self.size(range.start.saturating_sub(first.saturating_mul(block)))?;
        values.drain(..skip.min(values.len()));
        values.truncate(self.size(range.end.saturating_sub(range.start))?);
        Ok(values)
    }

    /// All values of a plane, read once.
    fn whole(&self, plane: usize) -> Result<Rc<[f32]>, Error> {
        if let Some((_, found)) = self.whole.borrow().iter().find(|(at, _)| *at == plane) {
            return Ok(found.clone());
        }
        let values: Rc<[f32]> = self.values(plane, 0..self.plane(plane)?.len())?.into();
        self.whole.borrow_mut().push((plane, values.clone()));
        Ok(values)
    }

    /// Numbers of a plane of `U32`.
    fn indices(&self, plane: usize, range: Range<u64>) -> Result<Vec<u32>, Error> {
        let bytes = self.raw(plane, range)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect())
    }

    /// Bytes of some blocks of a plane.
    fn raw(&self, plane: usize, blocks: Range<u64>) -> Result<Vec<u8>, Error> {
        let info = self.plane(plane)?;
        let size = info.dtype.block_bytes() as u64;
        let (from, to) = (blocks.start.saturating_mul(size), blocks.end.saturating_mul(size));
        if from > to || to > info.nbytes {
            let reason = format!("blocks {} to {} are not in the plane", blocks.start, blocks.end);
            return Err(self.corrupt(plane, reason));
        }
        let mut bytes = vec![0; self.size(to.saturating_sub(from))?];
        self.checkpoint.read(plane, from, &mut bytes)?;
        Ok(bytes)
    }

    fn size(&self, n: u64) -> Result<usize, Error> {
        usize::try_from(n).map_err(|_| self.limit(format!("{n} values do not fit into memory")))
    }

    fn file(&self) -> std::path::PathBuf {
        self.checkpoint.files().get(self.info.file).cloned().unwrap_or_default()
    }

    fn limit(&self, reason: String) -> Error {
        Error::Limit { file: self.file(), tensor: Some(self.info.name.clone()), reason }
    }

    fn corrupt(&self, plane: usize, reason: String) -> Error {
        let info = self.checkpoint.info(plane);
        let file = info.and_then(|info| self.checkpoint.files().get(info.file)).cloned();
        Error::Corrupt {
            file: file.unwrap_or_default(),
            tensor: info.map(|info| info.name.clone()),
            offset: info.map(|info| info.offset),
            reason,
        }
    }
}

fn add_all(dst: &mut [f32], src: &[f32]) {
    dst.iter_mut().zip(src).for_each(|(y, x)| *y += x);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metadata;
    use proptest::prelude::*;
    use std::borrow::Cow;
    use std::path::PathBuf;

    /// A sum and its planes, in memory.
    struct Held {
        infos: Vec<TensorInfo>,
        data: Vec<Vec<u8>>,
        terms: Vec<Term>,
        metadata: Metadata,
    }

    impl Held {
        fn new(shape: &[u64]) -> Held {
            let mut held = Held { infos: vec![], data: vec![], terms: vec![], metadata: Metadata::new() };
            held.push(list::F32, shape, Vec::new());
            held.infos[0].nbytes = shape.iter().product::<u64>() * 4;
            held
        }
        fn push(&mut self, dtype: DType, shape: &[u64], data: Vec<u8>) -> usize {
            let (name, nbytes) = (format!("p{}", self.infos.len()), data.len() as u64);
            self.infos.push(TensorInfo { name, dtype, shape: shape.into(), file: 0, offset: 0, nbytes });
            self.data.push(data);
            self.infos.len() - 1
        }
        fn floats(&mut self, shape: &[u64], values: &[f32]) -> usize {
            self.push(list::F32, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
        }
        fn numbers(&mut self, values: &[u32]) -> usize {
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            self.push(list::U32, &[values.len() as u64], bytes)
        }
        fn checked(&self) -> Result<(), String> {
            check(&self.infos[0].shape, &self.terms, |n| {
                self.infos.get(n).filter(|_| n > 0).map(|i| (i.dtype, &i.shape[..]))
            })
        }
        fn all(&self) -> Result<Vec<f32>, Error> {
            let bytes = bytes(self, 0)?;
            Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
    }

    impl Checkpoint for Held {
        fn container(&self) -> &'static str {
            "held"
        }
        fn files(&self) -> &[PathBuf] {
            &[]
        }
        fn metadata(&self) -> &Metadata {
            &self.metadata
        }
        fn tensors(&self) -> &[TensorInfo] {
            &self.infos[..1]
        }
        fn planes(&self) -> &[TensorInfo] {
            &self.infos[1..]
        }
        fn terms(&self, tensor: usize) -> &[Term] {
            if tensor == 0 { &self.terms } else { &[] }
        }
        fn find(&self, _: &str) -> Option<usize> {
            None
        }
        fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, Error> {
            Ok(Cow::Borrowed(&self.data[tensor]))
        }
        fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
            dst.copy_from_slice(&self.data[tensor][offset as usize..][..dst.len()]);
            Ok(())
        }
    }

    /// Numbers that round when they are added in another order.
    fn number(i: usize) -> f32 {
        ((i * 7919 % 1009) as f32 - 504.0) / 3.0 * [1.0, 1e-3, 1e4][i % 3]
    }

    fn numbers(n: u64) -> Vec<f32> {
        (0..n as usize).map(number).collect()
    }

    /// All five kinds of terms, and the sum by their definition.
    fn everything(rows: u64, cols: u64, rank: u64, first: i64, n: u64, len: u64) -> (Held, Vec<f32>) {
        let mut held = Held::new(&[rows, cols]);
        let (r, c) = (rows as usize, cols as usize);
        let whole = numbers(rows * cols);
        let plane = held.floats(&[rows, cols], &whole);
        held.terms.push(Term::Whole { plane });
        let (a, b) = (numbers(rows * rank), numbers(rank * cols));
        let left = held.floats(&[rows, rank], &a);
        let right = held.floats(&[rank, cols], &b);
        held.terms.push(Term::Product { left, right });
        let short = rows.min(cols);
        let diagonals = numbers(n * short);
        let plane = held.floats(&[n, short], &diagonals);
        held.terms.push(Term::Band { plane, first });
        let mut at = Vec::new();
        let (mut starts, mut columns) = (vec![0u32], Vec::new());
        for row in 0..r {
            for col in (0..c).filter(|col| (row * 5 + col * 3) % 7 == 0) {
                at.push((row, col));
                columns.push(col as u32);
            }
            starts.push(columns.len() as u32);
        }
        let single = numbers(columns.len() as u64);
        let starts = held.numbers(&starts);
        let columns = held.numbers(&columns);
        let values = held.floats(&[single.len() as u64], &single);
        held.terms.push(Term::Sparse { starts, columns, values });
        let (m, k) = (2u64, 3u64);
        let (table, pieces) = (numbers(m * k * len), cols.div_ceil(len));
        let found: Vec<u8> = (0..rows * pieces).map(|i| (i * 5 % k) as u8).collect();
        let tables = held.floats(&[m, k, len], &table);
        let codes = held.push(list::U8, &[rows, pieces], found.clone());
        held.terms.push(Term::Vectors { codes, tables });
        let mut want = Vec::new();
        for i in 0..r {
            for j in 0..c {
                let mut sum = 0.0 + whole[i * c + j];
                let mut product = 0.0;
                for l in 0..rank as usize {
                    product += a[i * rank as usize + l] * b[l * c + j];
                }
                sum += product;
                for d in 0..n as usize {
                    if i < short as usize && i as i64 + first + d as i64 == j as i64 {
                        sum += diagonals[d * short as usize + i];
                    }
                }
                if let Some(p) = at.iter().position(|p| *p == (i, j)) {
                    sum += single[p];
                }
                let p = j / len as usize;
                let code = usize::from(found[i * pieces as usize + p]);
                sum += table[((p % 2) * 3 + code) * len as usize + j % len as usize];
                want.push(sum);
            }
        }
        (held, want)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn sums_are_their_definition(
            (rows, cols, rank) in (1u64..150, 1u64..40, 0u64..5),
            (first, n, len) in (-160i64..45, 0u64..5, 1u64..9),
            (from, to) in (0u64..150, 0u64..150),
        ) {
            let (held, want) = everything(rows, cols, rank, first, n, len);
            prop_assert_eq!(held.checked(), Ok(()));
            let same = |got: &[f32], want: &[f32]| {
                got.iter().map(|x| x.to_bits()).eq(want.iter().map(|x| x.to_bits()))
            };
            prop_assert!(same(&held.all().unwrap(), &want));
            let (from, to) = (from.min(rows).min(to), from.max(to).min(rows));
            let part = from as usize * cols as usize..to as usize * cols as usize;
            let mut got = vec![7.0; part.len()];
            super::rows(&held, 0, from..to, &mut got).unwrap();
            prop_assert!(same(&got, &want[part.clone()]));
            // Bytes that begin and end anywhere.
            let (skip, all) = (usize::from(!part.is_empty()), want.iter().flat_map(|x| x.to_le_bytes()));
            let mut some = vec![0; (part.len() * 4).saturating_sub(2 * skip)];
            super::read(&held, 0, (part.start * 4 + skip) as u64, &mut some).unwrap();
            prop_assert!(some.iter().copied().eq(all.skip(part.start * 4 + skip).take(some.len())));
        }
    }

    #[test]
    fn packed_planes_are_unpacked() {
        let mut held = Held::new(&[3, 64]);
        let values: Vec<f32> = (0..192).map(|i| (i % 13) as f32 - 6.0).collect();
        let mut packed = vec![0; 6 * 34];
        list::Q8_0.quantize(Isa::detect(), &values, None, &mut packed).unwrap();
        let mut want = vec![0.0; 192];
        list::Q8_0.dequantize(Isa::detect(), &packed, &mut want).unwrap();
        let plane = held.push(list::Q8_0, &[3, 64], packed);
        held.terms.push(Term::Whole { plane });
        assert_eq!(held.checked(), Ok(()));
        assert_eq!(held.all().unwrap(), want);
    }

    #[test]
    fn planes_that_do_not_fit_are_refused() {
        let fine = || everything(6, 5, 2, -1, 2, 2).0;
        assert_eq!(fine().checked(), Ok(()));
        // The planes in the order in which `everything` makes them.
        for (plane, shape) in [
            (1, vec![5, 6]),
            (1, vec![30]),
            (2, vec![5, 2]),
            (3, vec![3, 5]),
            (4, vec![2, 6]),
            (5, vec![6]),
            (6, vec![1, 9]),
            (7, vec![3]),
            (8, vec![2, 0, 2]),
            (8, vec![2, 3, 0]),
            (8, vec![0, 3, 2]),
            (8, vec![2, 3, 1]),
            (9, vec![6, 2]),
        ] {
            let mut held = fine();
            held.infos[plane].shape = shape.clone();
            // A table without rows has codes that no row belongs to, which is found when it is read.
            let bad = held.checked().is_err() || (shape == [2, 0, 2] && held.all().is_err());
            assert!(bad, "{plane} {shape:?}");
        }
        for (plane, dtype) in [(5, list::I32), (6, list::F32), (9, list::I8)] {
            let mut held = fine();
            held.infos[plane].dtype = dtype;
            assert!(held.checked().is_err(), "{plane} {dtype}");
        }
        for bad in [Term::Whole { plane: 99 }, Term::Whole { plane: 0 }] {
            let mut held = fine();
            held.terms.push(bad);
            assert!(held.checked().is_err(), "{bad:?}");
        }
        let mut held = fine();
        held.terms[2] = Term::Band { plane: 4, first: i64::MAX };
        assert!(held.checked().is_err(), "columns overflow");
        let mut held = Held::new(&[1 << 20, 1 << 20]);
        let (left, right) =
            (held.push(list::F32, &[1 << 20, 0], vec![]), held.push(list::F32, &[0, 1 << 20], vec![]));
        held.terms.push(Term::Product { left, right });
        assert!(held.checked().unwrap_err().contains("too little"));
    }

    #[test]
    fn indices_that_lead_out_are_corrupt() {
        let corrupt = |what: &str, plane: usize, at: usize, bytes: &[u8]| {
            let mut held = everything(6, 5, 2, -1, 2, 2).0;
            held.data[plane][at..][..bytes.len()].copy_from_slice(bytes);
            let e = held.all().unwrap_err();
            let named = matches!(&e, Error::Corrupt { tensor: Some(t), .. } if *t == format!("p{plane}"));
            assert!(named, "{what}: {e}");
        };
        corrupt("begins late", 5, 0, &1u32.to_le_bytes());
        corrupt("falls", 5, 8, &0u32.to_le_bytes());
        corrupt("too many", 5, 24, &u32::MAX.to_le_bytes());
        corrupt("too few", 5, 24, &3u32.to_le_bytes());
        corrupt("a column that is not there", 6, 0, &5u32.to_le_bytes());
        corrupt("a code that is not there", 9, 0, &[3]);
        let mut held = everything(6, 9, 2, -1, 2, 2).0;
        held.data[6][4..8].copy_from_slice(&0u32.to_le_bytes());
        assert!(matches!(held.all(), Err(Error::Corrupt { .. })), "a column twice");
    }
}
