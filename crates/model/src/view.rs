//! A checkpoint seen under other names and layouts.
//!
//! Every tensor keeps its bytes where that is possible; rows that the other side orders differently are gathered when
//! they are read, and small tensors whose values change are made when they are asked for.

use crate::Error;
use fonio_checkpoint::{Checkpoint, Checksums, Error as FileError, Location, Metadata, TensorInfo};
use fonio_codec::{DType, list};
use fonio_simd::Isa;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Rows of a tensor: `count` of them from `first` on, `step` apart. A vector's rows are its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    tensor: usize,
    first: u64,
    step: u64,
    count: u64,
}

impl Run {
    pub(crate) fn new(tensor: usize, first: u64, step: u64, count: u64) -> Run {
        Run { tensor, first, step, count }
    }
}

/// Which columns become the rows of a transposed matrix: every `step`th from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    pub first: u64,
    pub step: u64,
}

impl Columns {
    pub(crate) const ALL: Columns = Columns { first: 0, step: 1 };
}

/// How a tensor of the view is made. Tensors of the files have their own numbers; hidden ones follow them.
enum Maker {
    /// A tensor of the files, as it is.
    Same(usize),
    /// Rows of tensors of the files, one run after the other.
    Rows(Rows),
    /// The same, each matrix of so many gathered rows with rows and columns in each other's place.
    Transposed(Rows, u64, Columns),
    /// Ready little-endian `f32`.
    Ready(Vec<u8>),
    /// A tensor of the files as `F32`, each value changed.
    Mapped(usize, fn(f32) -> f32),
}

/// Gathered rows.
struct Rows {
    runs: Vec<Run>,
    /// How many rows there are before each run.
    before: Vec<u64>,
    row_bytes: u64,
}

impl Rows {
    fn new(runs: Vec<Run>, row_bytes: u64) -> Rows {
        let mut n = 0;
        let mut before = Vec::with_capacity(runs.len());
        for run in &runs {
            before.push(n);
            n += run.count;
        }
        Rows { runs, before, row_bytes }
    }

    /// The tensor and the place in it where some bytes begin, if they follow one another there too.
    fn contiguous(&self, range: &Range<u64>) -> Option<(usize, u64)> {
        let (row, within) = (range.start / self.row_bytes, range.start % self.row_bytes);
        let last = range.end.checked_sub(1)? / self.row_bytes;
        let at = self.before.partition_point(|&before| before <= row).checked_sub(1)?;
        let run = self.runs.get(at)?;
        let inside = last - self.before[at] < run.count && (run.step == 1 || row == last);
        let (tensor, from) = self.source(row).filter(|_| inside)?;
        Some((tensor, from * self.row_bytes + within))
    }

    /// The tensor and its row that row `i` is.
    fn source(&self, i: u64) -> Option<(usize, u64)> {
        let at = self.before.partition_point(|&before| before <= i).checked_sub(1)?;
        let (run, within) = (self.runs.get(at)?, i - self.before[at]);
        (within < run.count).then(|| (run.tensor, run.first + within * run.step))
    }
}

/// The view.
pub struct View {
    inner: Arc<dyn Checkpoint>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    makers: Vec<Maker>,
    index: HashMap<String, usize>,
    /// Tensors that others are made of.
    hidden: Vec<(TensorInfo, Maker)>,
}

impl View {
    pub(crate) fn new(inner: Arc<dyn Checkpoint>, metadata: Metadata) -> View {
        let (tensors, makers, index) = (Vec::new(), Vec::new(), HashMap::new());
        View { inner, metadata, tensors, makers, index, hidden: Vec::new() }
    }

    /// The metadata, for what is added to it.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    pub(crate) fn inner(&self) -> &Arc<dyn Checkpoint> {
        &self.inner
    }

    /// A tensor of the files or a hidden one.
    fn source_info(&self, tensor: usize) -> Result<&TensorInfo, FileError> {
        let n = self.inner.tensors().len();
        let info = match tensor.checked_sub(n) {
            None => self.inner.tensors().get(tensor),
            Some(hidden) => self.hidden.get(hidden).map(|(info, _)| info),
        };
        info.ok_or_else(|| self.refused(format!("there is no tensor {tensor}")))
    }

    /// A tensor of the files with the same bytes and perhaps another shape.
    pub(crate) fn push_same(&mut self, name: String, at: usize, shape: Vec<u64>) -> Result<(), Error> {
        let info = self.source_info(at)?;
        let (dtype, nbytes) = (info.dtype, info.nbytes);
        self.push(name, shape, dtype, nbytes, Maker::Same(at))
    }

    /// A tensor of the files as `F32`, each value changed.
    pub(crate) fn push_mapped(
        &mut self,
        name: String,
        at: usize,
        shape: Vec<u64>,
        f: fn(f32) -> f32,
    ) -> Result<(), Error> {
        let nbytes = self.source_info(at)?.len().saturating_mul(4);
        self.push(name, shape, list::F32, nbytes, Maker::Mapped(at, f))
    }

    /// Gathered rows of tensors of the same type and row length. Those of vectors are values and become `F32`.
    pub(crate) fn push_rows(&mut self, name: String, runs: Vec<Run>, shape: Vec<u64>) -> Result<(), Error> {
        let Some(first) = runs.first() else { return self.push_values(name, &[]) };
        let info = self.source_info(first.tensor)?;
        if info.shape.len() <= 1 {
            return self.push_values_of_runs(name, runs, shape);
        }
        let (dtype, row) = (info.dtype, row_bytes(info));
        let rows = Rows::new(runs, row);
        let nbytes = rows.runs.iter().map(|r| r.count.saturating_mul(row)).sum();
        self.push(name, shape, dtype, nbytes, Maker::Rows(rows))
    }

    /// Gathered values of small tensors, as `F32`.
    pub(crate) fn push_values_of_runs(
        &mut self,
        name: String,
        runs: Vec<Run>,
        shape: Vec<u64>,
    ) -> Result<(), Error> {
        let mut gathered = Vec::new();
        let mut last: Option<(usize, Vec<f32>)> = None;
        for run in runs {
            if last.as_ref().is_none_or(|(tensor, _)| *tensor != run.tensor) {
                last = Some((run.tensor, self.source_values(run.tensor)?));
            }
            let values = last.as_ref().map_or(&[][..], |(_, values)| values);
            let at = (0..run.count).map(|i| run.first + i * run.step);
            gathered.extend(at.filter_map(|at| values.get(at as usize).copied()));
        }
        let bytes: Vec<u8> = gathered.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.push(name, shape, list::F32, bytes.len() as u64, Maker::Ready(bytes))
    }

    /// The matrices of a tensor, with columns as rows.
    pub(crate) fn push_transposed(&mut self, name: String, at: usize, columns: Columns) -> Result<(), Error> {
        let info = self.source_info(at)?;
        let [outer @ .., rows, cols] = &info.shape[..] else {
            return Err(self.bad(&info.name, "is no matrix"));
        };
        let kept = cols.saturating_sub(columns.first).div_ceil(columns.step);
        let (rows, mut shape) = (*rows, outer.to_vec());
        let all = outer.iter().product::<u64>() * rows;
        shape.extend([kept, rows]);
        self.transposed(name, vec![Run::new(at, 0, 1, all)], rows, columns, shape)
    }

    /// Gathered rows, with rows and columns of every `per_matrix` of them in each other's place.
    pub(crate) fn push_gathered_transposed(
        &mut self,
        name: String,
        runs: Vec<Run>,
        per_matrix: u64,
        shape: Vec<u64>,
    ) -> Result<(), Error> {
        self.transposed(name, runs, per_matrix, Columns::ALL, shape)
    }

    fn transposed(
        &mut self,
        name: String,
        runs: Vec<Run>,
        per_matrix: u64,
        columns: Columns,
        shape: Vec<u64>,
    ) -> Result<(), Error> {
        let Some(first) = runs.first() else { return self.push_values(name, &[]) };
        let info = self.source_info(first.tensor)?;
        if info.dtype.block_len() != 1 {
            let reason =
                format!("{} can't be transposed without rounding; use the unquantized file", info.dtype);
            return Err(self.bad(&info.name, &reason));
        }
        let (dtype, row) = (info.dtype, row_bytes(info));
        let nbytes = shape.iter().product::<u64>().saturating_mul(dtype.block_bytes() as u64);
        let rows = Rows::new(runs, row);
        self.push(name, shape, dtype, nbytes, Maker::Transposed(rows, per_matrix, columns))
    }

    /// Takes the last tensor out of sight and gives the number by which runs name it.
    pub(crate) fn hide_last(&mut self) -> Result<usize, Error> {
        let (Some(info), Some(maker)) = (self.tensors.pop(), self.makers.pop()) else {
            return Err(Error::Input("there is no tensor to hide".into()));
        };
        self.index.remove(&info.name);
        self.hidden.push((info, maker));
        Ok(self.inner.tensors().len() + self.hidden.len() - 1)
    }

    /// A tensor of one dimension with these values.
    pub(crate) fn push_values(&mut self, name: String, values: &[f32]) -> Result<(), Error> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.push(name, vec![values.len() as u64], list::F32, bytes.len() as u64, Maker::Ready(bytes))
    }

    fn bad(&self, name: &str, reason: &str) -> Error {
        let file = self.inner.files().first().cloned().unwrap_or_default();
        Error::Config { file, key: name.into(), reason: reason.into() }
    }

    fn refused(&self, reason: String) -> FileError {
        FileError::Refused { file: self.inner.files().first().cloned().unwrap_or_default(), reason }
    }

    fn push(
        &mut self,
        name: String,
        shape: Vec<u64>,
        dtype: DType,
        nbytes: u64,
        maker: Maker,
    ) -> Result<(), Error> {
        if self.index.insert(name.clone(), self.tensors.len()).is_some() {
            return Err(self.bad(&name, "two tensors of the files have this meaning"));
        }
        self.tensors.push(TensorInfo { name, dtype, shape, file: 0, offset: 0, nbytes });
        self.makers.push(maker);
        Ok(())
    }

    fn maker(&self, tensor: usize) -> Result<&Maker, FileError> {
        self.makers.get(tensor).ok_or_else(|| self.refused(format!("there is no tensor {tensor}")))
    }

    /// The bytes of a tensor of the files that some bytes of the view are, as they are.
    fn source_range(&self, tensor: usize, range: Range<u64>) -> Option<(usize, Range<u64>)> {
        let (source, start) = match self.makers.get(tensor)? {
            Maker::Same(at) => (*at, range.start),
            Maker::Rows(rows) => rows.contiguous(&range)?,
            _ => return None,
        };
        let len = range.end.checked_sub(range.start)?;
        (source < self.inner.tensors().len()).then_some((source, start..start.checked_add(len)?))
    }

    /// The bytes of a tensor of the files or a hidden one.
    fn source_bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, FileError> {
        match tensor.checked_sub(self.inner.tensors().len()) {
            None => self.inner.bytes(tensor),
            Some(hidden) => match self.hidden.get(hidden) {
                Some((info, maker)) => self.made(info, maker),
                None => Err(self.refused(format!("there is no tensor {tensor}"))),
            },
        }
    }

    fn source_read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), FileError> {
        match tensor.checked_sub(self.inner.tensors().len()) {
            None => self.inner.read(tensor, offset, dst),
            Some(hidden) => match self.hidden.get(hidden) {
                Some((_, maker)) => self.read_made(maker, offset, dst),
                None => Err(self.refused(format!("there is no tensor {tensor}"))),
            },
        }
    }

    fn source_values(&self, tensor: usize) -> Result<Vec<f32>, FileError> {
        let (info, bytes) = (self.source_info(tensor)?, self.source_bytes(tensor)?);
        let mut values = vec![0.0; bytes.len() / info.dtype.block_bytes() * info.dtype.block_len()];
        info.dtype.dequantize(Isa::scalar(), &bytes, &mut values).map_err(|e| FileError::Corrupt {
            file: self.inner.files().get(info.file).cloned().unwrap_or_default(),
            tensor: Some(info.name.clone()),
            offset: Some(info.offset),
            reason: e.to_string(),
        })?;
        Ok(values)
    }

    fn mapped(&self, tensor: usize, f: fn(f32) -> f32) -> Result<Vec<u8>, FileError> {
        Ok(self.source_values(tensor)?.iter().flat_map(|&x| f(x).to_le_bytes()).collect())
    }

    fn made<'a>(&'a self, info: &TensorInfo, maker: &'a Maker) -> Result<Cow<'a, [u8]>, FileError> {
        Ok(match maker {
            Maker::Same(at) => self.source_bytes(*at)?,
            Maker::Ready(bytes) => Cow::Borrowed(bytes),
            Maker::Mapped(at, f) => Cow::Owned(self.mapped(*at, *f)?),
            Maker::Rows(_) | Maker::Transposed(..) => {
                let mut bytes = Vec::new();
                let len = usize::try_from(info.nbytes).unwrap_or(usize::MAX);
                bytes
                    .try_reserve_exact(len)
                    .map_err(|_| self.refused(format!("no memory for {len} bytes")))?;
                bytes.resize(len, 0);
                self.read_made(maker, 0, &mut bytes)?;
                Cow::Owned(bytes)
            }
        })
    }

    fn read_made(&self, maker: &Maker, offset: u64, dst: &mut [u8]) -> Result<(), FileError> {
        let past = || self.refused("read past the end of a tensor".into());
        let copy = |bytes: &[u8], dst: &mut [u8]| {
            let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..at.checked_add(dst.len())?));
            from.map(|from| dst.copy_from_slice(from)).ok_or_else(past)
        };
        match maker {
            Maker::Same(at) => self.source_read(*at, offset, dst),
            Maker::Ready(bytes) => copy(bytes, dst),
            Maker::Mapped(at, f) => copy(&self.mapped(*at, *f)?, dst),
            Maker::Rows(rows) => self.read_rows(rows, offset, dst),
            Maker::Transposed(rows, per_matrix, columns) => {
                self.read_transposed(rows, *per_matrix, *columns, offset, dst)
            }
        }
    }

    fn read_rows(&self, rows: &Rows, mut offset: u64, mut dst: &mut [u8]) -> Result<(), FileError> {
        let size = rows.row_bytes;
        while !dst.is_empty() {
            let (row, within) = (offset / size, offset % size);
            let Some((tensor, from)) = rows.source(row) else {
                return Err(self.refused("read past the end of a tensor".into()));
            };
            // Neighbouring rows are read together.
            let mut n = size - within;
            let mut next = row + 1;
            while n < dst.len() as u64 && rows.source(next) == Some((tensor, from + (next - row))) {
                (n, next) = (n + size, next + 1);
            }
            let n = usize::try_from(n).unwrap_or(usize::MAX).min(dst.len());
            let (now, later) = dst.split_at_mut(n);
            self.source_read(tensor, from * size + within, now)?;
            (offset, dst) = (offset + n as u64, later);
        }
        Ok(())
    }

    /// Row `j` of matrix `m` of the view is the `j`th chosen column of the `m`th group of `per_matrix` gathered rows.
    fn read_transposed(
        &self,
        rows: &Rows,
        per_matrix: u64,
        columns: Columns,
        offset: u64,
        dst: &mut [u8],
    ) -> Result<(), FileError> {
        let past = || self.refused("read past the end of a tensor".into());
        let Some(first) = rows.runs.first() else { return Err(past()) };
        let element = self.source_info(first.tensor)?.dtype.block_bytes() as u64;
        let lines = (rows.row_bytes / element).saturating_sub(columns.first).div_ceil(columns.step);
        let size = element as usize;
        if per_matrix == 0 || lines == 0 || !offset.is_multiple_of(element) || !dst.len().is_multiple_of(size)
        {
            return Err(past());
        }
        let (mut at, mut dst) = (offset / element, dst);
        let mut columns_of_row = Vec::new();
        while !dst.is_empty() {
            // Whole lines of one matrix together, or what there is of one.
            let (line, i) = (at / per_matrix, at % per_matrix);
            let (matrix, line) = (line / lines, line % lines);
            let wanted = (dst.len() / size) as u64;
            let (n, from_rows) = if i == 0 && wanted >= per_matrix {
                ((wanted / per_matrix).min(lines - line), 0..per_matrix)
            } else {
                (1, i..per_matrix.min(i + wanted))
            };
            let per_line = (from_rows.end - from_rows.start) as usize;
            let (now, later) = dst.split_at_mut(n as usize * per_line * size);
            columns_of_row.resize((((n - 1) * columns.step + 1) * element) as usize, 0);
            for (to, i) in from_rows.enumerate() {
                let (tensor, row) = rows.source(matrix * per_matrix + i).ok_or_else(past)?;
                let column = columns.first + line * columns.step;
                self.source_read(tensor, row * rows.row_bytes + column * element, &mut columns_of_row)?;
                let values = columns_of_row.chunks_exact(size).step_by(columns.step as usize);
                for (line, value) in now.chunks_exact_mut(per_line * size).zip(values) {
                    line[to * size..(to + 1) * size].copy_from_slice(value);
                }
            }
            (at, dst) = (at + n * per_line as u64, later);
        }
        Ok(())
    }
}

impl Checkpoint for View {
    fn container(&self) -> &'static str {
        self.inner.container()
    }
    fn files(&self) -> &[PathBuf] {
        self.inner.files()
    }
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn find(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, FileError> {
        self.made(&self.tensors[tensor], self.maker(tensor)?)
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), FileError> {
        self.read_made(self.maker(tensor)?, offset, dst)
    }
    fn locate(&self, tensor: usize, range: Range<u64>) -> Option<Location> {
        let (tensor, range) = self.source_range(tensor, range)?;
        self.inner.locate(tensor, range)
    }
    fn slice(&self, tensor: usize, range: Range<u64>) -> Result<Cow<'_, [u8]>, FileError> {
        if let Some((tensor, range)) = self.source_range(tensor, range.clone()) {
            return self.inner.slice(tensor, range);
        }
        let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| self.refused(format!("no memory for {len} bytes")))?;
        bytes.resize(len, 0);
        self.read(tensor, range.start, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
    fn verify_checksums(&self) -> Result<Checksums, FileError> {
        self.inner.verify_checksums()
    }
}

/// Bytes of one row of a tensor, or of one value of a vector.
fn row_bytes(info: &TensorInfo) -> u64 {
    let rows: u64 = match &info.shape[..] {
        [] | [_] => info.len(),
        [rows @ .., _] => rows.iter().product(),
    };
    (info.nbytes / rows.max(1)).max(1)
}
