//! Version 2: whole models, of tensors and of matrices that are sums, and one read for each part.
//!
//! `docs/formats/cawsf.md` is the specification. In short, all little-endian:
//!
//! ```text
//! header    "CAWSF\0\0\0"  u32 version = 2  u32 0
//! shards    in any order, each packed by itself; of 4,096 stored bytes and more at multiples of 4,096, others of 8
//! META      u64 n, n × key and value as in GGUF
//! INDEX     u32 n, n × { u16 length, name, u16 length, type or nothing for a sum, u8 dimensions, u64 each };
//!           u32 n, n × 64 bytes { u8 kind, u8 packing, u16 matrix, u32 scope, u64 offset, stored, size, checksum, 3 numbers }
//! ROUTING   see [`Routing`]; may be empty
//! trailer   META, INDEX, ROUTING × { u64 offset, stored, size, checksum, u32 packing, u32 0 }
//!           u64 file length  u64 checksum of what is before in the trailer  "CAWSFEND"
//!
//! L 0         f16 left[rows][rank], f16 right[rank][cols]; numbers: rank
//! R 1         u8 codes[rows][⌈cols / len⌉]; numbers: codebook
//! S 2         see `sparse.rs`; numbers: values
//! D 3         f16 diagonals[n][min(rows, cols)]; numbers: n, column of the first in row 0
//! codebook 4  f16 tables[m][k][len]; numbers: m, k, len
//! whole 5     the tensor's bytes
//! ```
//!
//! A sum of three dimensions is a stack: each matrix of it has its own L, D, S and R. It is shown as a tensor, and its
//! matrices as planes that are sums. Checksums are XXH3-64 of the stored bytes. The order of the sum is L, D, S, R,
//! whatever parts there are.
//!
//! Everything that sizes depend on is in INDEX and is compared with the tensors' shapes when the file is opened.
//! A shard's checksum is compared when it is first used; whole tensors are mapped, and compared by `verify` alone.

mod index;
mod resume;
mod routing;
mod sparse;
mod write;

pub use index::{Kind, Shard};
pub use routing::{Choice, Entry, Routing, projected};
pub use write::{Content, Writer};

use super::unpack::{self, Packing, corrupt};
use crate::cursor::{Cursor, Fault};
use crate::map::Source;
use crate::{Checkpoint, Checksums, Error, Extent, Location, Metadata, TensorInfo, Term, gguf, sum};
use fonio_codec::{DType, list};
use half::f16;
use index::{HEADER, Index, Place, Places, TRAILER, label};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Unpacked shards that are kept for the next read, in bytes; the last one always is.
const KEPT: usize = 64 << 20;
/// Bytes that are read together for a checksum.
const STEP: usize = 1 << 20;

/// An opened file of version 2.
pub struct V2 {
    source: Source,
    paths: Vec<PathBuf>,
    places: Places,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// The matrices of stacks, then what sums consist of.
    planes: Vec<TensorInfo>,
    /// For each plane, its shard and where it begins in it. Matrices of stacks have none.
    plane_at: Vec<Option<(usize, u64)>>,
    /// For each tensor, the numbers of its matrices.
    stacks: Vec<Range<usize>>,
    /// For each tensor and each matrix of a stack, its terms.
    terms: Vec<Vec<Term>>,
    /// And its shards.
    own: Vec<Vec<usize>>,
    index: HashMap<String, usize>,
    shards: Vec<Shard>,
    extents: Vec<Extent>,
    routing: Option<Routing>,
    /// Shards whose checksum was compared.
    checked: Vec<AtomicBool>,
    kept: Mutex<Vec<(usize, Arc<Vec<u8>>)>>,
}

impl V2 {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<V2, Error> {
        V2::new(Source::open(path)?)
    }

    pub(super) fn new(source: Source) -> Result<V2, Error> {
        let (path, len) = (source.path().to_path_buf(), source.len());
        let first = source.read_vec(0, len.min(HEADER))?;
        index::read_header(&first, len).map_err(|f| f.in_file(&path))?;
        let last = source.read_vec(len.saturating_sub(TRAILER), len.min(TRAILER))?;
        let places = index::read_trailer(&last, len).map_err(|f| f.in_file(&path))?;
        let [meta, listed, routed] = &places;
        let metadata = section(&source, meta, "META", metadata)?;
        let index = section(&source, listed, "INDEX", |bytes| Index::read(bytes, len, &places))?;
        let shards = index.shards.len();
        let routing = match routed.stored {
            0 => None,
            _ => Some(section(&source, routed, "ROUTING", |bytes| Routing::read(bytes, shards))?),
        };
        let mut opened = V2 {
            source,
            paths: vec![path],
            places,
            metadata,
            tensors: Vec::new(),
            planes: Vec::new(),
            plane_at: Vec::new(),
            stacks: Vec::new(),
            terms: Vec::new(),
            own: Vec::new(),
            index: index.tensors.iter().enumerate().map(|(at, t)| (t.name.clone(), at)).collect(),
            extents: Vec::new(),
            routing,
            checked: index.shards.iter().map(|_| AtomicBool::new(false)).collect(),
            shards: index.shards,
            kept: Mutex::new(Vec::new()),
        };
        opened.lay_out(index.tensors)?;
        Ok(opened)
    }

    /// Tensors, planes and extents, of what INDEX says.
    fn lay_out(&mut self, tensors: Vec<index::Tensor>) -> Result<(), Error> {
        let base = tensors.len();
        self.lay_out_stacks(&tensors);
        self.own = vec![Vec::new(); base.saturating_add(self.planes.len())];
        self.terms = vec![Vec::new(); self.own.len()];
        let mut books: HashMap<u32, (usize, u64)> = HashMap::new();
        let shards = std::mem::take(&mut self.shards);
        for (at, shard) in shards.iter().enumerate() {
            let name = label(shard);
            if shard.kind == Kind::Codebook {
                let [m, k, len] = shard.numbers;
                let plane = self.plane(base, &name, at, list::F16, &[m, k, len], 0);
                books.insert(shard.scope, (plane, len));
            }
            for owner in self.owners(shard).into_iter().flatten() {
                self.own.get_mut(owner).into_iter().for_each(|own| own.push(at));
            }
            let nbytes = self.decoded_len(shard, tensors.get(shard.scope as usize)).unwrap_or(shard.size);
            let compressed = shard.packing != Packing::Raw || shard.kind == Kind::S;
            let (offset, stored) = (shard.offset, shard.stored);
            self.extents.push(Extent { name, file: 0, offset, stored, nbytes, compressed });
        }
        self.shards = shards;
        for (at, tensor) in tensors.into_iter().enumerate() {
            let offset = self.begin(at);
            let dtype = tensor.dtype.unwrap_or(list::F32);
            let nbytes = crate::opened::checked_nbytes(dtype, &tensor.shape);
            let nbytes = nbytes.map_err(|reason| corrupt(reason).of(&tensor.name).in_file(self.path()))?;
            let stack = self.stacks.get(at).cloned().unwrap_or_default();
            let sums = if stack.is_empty() { at..at.saturating_add(1) } else { stack };
            for sum in sums.filter(|_| tensor.dtype.is_none()) {
                self.lay_out_sum(base, sum, &tensor, &books)?;
            }
            let index::Tensor { name, shape, .. } = tensor;
            self.tensors.push(TensorInfo { name, dtype, shape, file: 0, offset, nbytes });
        }
        Ok(())
    }

    /// The matrices of stacks, the first planes.
    fn lay_out_stacks(&mut self, tensors: &[index::Tensor]) {
        for tensor in tensors {
            let first = tensors.len().saturating_add(self.planes.len());
            let (rows, cols) = index::rows_cols(&tensor.shape);
            let nbytes = rows.saturating_mul(cols).saturating_mul(4);
            for matrix in 0..tensor.stacked().unwrap_or(0) {
                let (name, shape) = (matrix_name(&tensor.name, matrix), vec![rows, cols]);
                self.planes.push(TensorInfo { name, dtype: list::F32, shape, file: 0, offset: 0, nbytes });
                self.plane_at.push(None);
            }
            self.stacks.push(first..tensors.len().saturating_add(self.planes.len()));
        }
    }

    /// The terms of a sum: of a tensor, or of a matrix of one.
    fn lay_out_sum(
        &mut self,
        base: usize,
        sum: usize,
        tensor: &index::Tensor,
        books: &HashMap<u32, (usize, u64)>,
    ) -> Result<(), Error> {
        let (rows, cols) = index::rows_cols(&tensor.shape);
        let (own, offset) = (self.own.get(sum).cloned().unwrap_or_default(), self.begin(sum));
        let place = sum.checked_sub(base);
        let matrix = place.and_then(|place| self.planes.get_mut(place));
        let name = matrix.map_or_else(
            || tensor.name.clone(),
            |matrix| {
                matrix.offset = offset;
                matrix.name.clone()
            },
        );
        let terms: Vec<Term> =
            own.into_iter().filter_map(|at| self.term(base, &name, (rows, cols), at, books)).collect();
        let planes = |n: usize| {
            let plane = self.planes.get(n.checked_sub(base)?)?;
            Some((plane.dtype, &plane.shape[..]))
        };
        sum::check(&[rows, cols], &terms, planes)
            .map_err(|reason| corrupt(reason).of(&name).in_file(self.path()))?;
        self.terms.get_mut(sum).into_iter().for_each(|to| *to = terms.clone());
        Ok(())
    }

    /// Numbers of the tensor that a shard is of, and of the matrix if that is a stack.
    fn owners(&self, shard: &Shard) -> [Option<usize>; 2] {
        if shard.kind == Kind::Codebook {
            return [None; 2];
        }
        let stack = self.stacks.get(shard.scope as usize).filter(|stack| !stack.is_empty());
        let matrix = stack.and_then(|stack| stack.start.checked_add(shard.matrix.into()));
        [Some(shard.scope as usize), matrix]
    }

    /// Where the first shard of a tensor or of a matrix is.
    fn begin(&self, of: usize) -> u64 {
        let first = self.own.get(of).and_then(|own| own.first());
        first.and_then(|at| self.shards.get(*at)).map_or(0, |s| s.offset)
    }

    /// Bytes of a shard as its planes.
    fn decoded_len(&self, shard: &Shard, tensor: Option<&index::Tensor>) -> Option<u64> {
        match shard.kind {
            Kind::S => sparse::planes_len(index::rows_cols(&tensor?.shape).0, shard.numbers[0]),
            _ => Some(shard.size),
        }
    }

    /// Adds a plane that begins at byte `from` of a shard, and gives its number.
    fn plane(
        &mut self,
        base: usize,
        name: &str,
        shard: usize,
        dtype: DType,
        shape: &[u64],
        from: u64,
    ) -> usize {
        let nbytes = crate::opened::checked_nbytes(dtype, shape).unwrap_or(0);
        let offset = self.shards.get(shard).map_or(0, |s| s.offset);
        let number = base.saturating_add(self.planes.len());
        let (name, shape) = (name.to_owned(), shape.to_vec());
        self.planes.push(TensorInfo { name, dtype, shape, file: 0, offset, nbytes });
        self.plane_at.push(Some((shard, from)));
        number
    }

    /// A shard of a sum as a term, with its planes.
    fn term(
        &mut self,
        base: usize,
        name: &str,
        (rows, cols): (u64, u64),
        at: usize,
        books: &HashMap<u32, (usize, u64)>,
    ) -> Option<Term> {
        let shard = *self.shards.get(at)?;
        let [a, b, _] = shard.numbers;
        let mut plane = |what: &str, dtype: DType, shape: &[u64], from: u64| {
            self.plane(base, &format!("{name}.{what}"), at, dtype, shape, from)
        };
        Some(match shard.kind {
            Kind::L => {
                let left = plane("L.left", list::F16, &[rows, a], 0);
                let from = rows.checked_mul(a)?.checked_mul(2)?;
                Term::Product { left, right: plane("L.right", list::F16, &[a, cols], from) }
            }
            Kind::D => {
                let shape = [a, rows.min(cols)];
                Term::Band { plane: plane("D", list::F16, &shape, 0), first: b.cast_signed() }
            }
            Kind::S => {
                let begin = rows.checked_add(1)?.checked_mul(4)?;
                let starts = plane("S.starts", list::U32, &[rows.checked_add(1)?], 0);
                let columns = plane("S.columns", list::U32, &[a], begin);
                let from = begin.checked_add(a.checked_mul(4)?)?;
                Term::Sparse { starts, columns, values: plane("S.values", list::F16, &[a], from) }
            }
            Kind::R => {
                let (tables, len) = *books.get(&u32::try_from(a).ok()?)?;
                let shape = [rows, cols.div_ceil(len.max(1))];
                Term::Vectors { codes: plane("R.codes", list::U8, &shape, 0), tables }
            }
            Kind::Codebook | Kind::Whole => return None,
        })
    }

    /// The shards, in INDEX's order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Number and name of the matrix that a shard is of: a tensor, or one of a stack. `None` for codebooks.
    pub fn matrix_of(&self, shard: &Shard) -> Option<(usize, &str)> {
        let [tensor, matrix] = self.owners(shard);
        let number = matrix.or(tensor)?;
        Some((number, &self.info(number)?.name))
    }

    /// Numbers of the shards of a tensor, or of a matrix of a stack, without its codebook.
    pub fn shards_of(&self, tensor: usize) -> &[usize] {
        self.own.get(tensor).map(Vec::as_slice).unwrap_or_default()
    }

    /// The routing table, if there is one.
    pub fn routing(&self) -> Option<&Routing> {
        self.routing.as_ref()
    }

    fn path(&self) -> &Path {
        self.source.path()
    }

    fn refused(&self, reason: String) -> Error {
        Error::Refused { file: self.path().into(), reason }
    }

    fn get(&self, tensor: usize) -> Result<&TensorInfo, Error> {
        let (n, more) = (self.tensors.len(), self.planes.len());
        let found = self.info(tensor);
        found.ok_or_else(|| {
            self.refused(format!("there is no tensor number {tensor}; there are {n} and {more} planes"))
        })
    }

    /// The shard of a whole tensor or of a plane, and where that begins in it. `None` for sums.
    fn shard_at(&self, tensor: usize) -> Option<(usize, u64)> {
        if let Some(plane) = tensor.checked_sub(self.tensors.len()) {
            return self.plane_at.get(plane).copied().flatten();
        }
        let whole = !self.is_sum(tensor);
        Some((*self.own.get(tensor)?.first().filter(|_| whole)?, 0))
    }

    fn fault(&self, fault: Fault, shard: &Shard) -> Error {
        let fault = match fault {
            // Places in a shard that is stored as it is are places in the file.
            Fault::Corrupt { tensor, offset: None, reason } => {
                Fault::Corrupt { tensor, offset: Some(shard.offset), reason }
            }
            other if shard.packing == Packing::Raw => other.shifted(shard.offset),
            other => other,
        };
        let of = self.matrix_of(shard);
        let name = of.map_or_else(|| label(shard), |(_, name)| format!("{name} ({})", label(shard)));
        fault.of(&name).in_file(self.path())
    }

    /// Compares the checksum of stored bytes.
    fn compare(&self, shard: &Shard, found: u64) -> Result<(), Error> {
        match found == shard.checksum {
            true => Ok(()),
            false => {
                let reason = format!("the checksum is {found:016x}, INDEX says {:016x}", shard.checksum);
                Err(self.fault(corrupt(reason), shard))
            }
        }
    }

    /// Compares a shard's checksum, reading it a piece at a time.
    fn check_stored(&self, at: usize) -> Result<(), Error> {
        use std::hash::Hasher;
        let Some(shard) = self.shards.get(at) else { return Ok(()) };
        let mut hash = twox_hash::XxHash3_64::new();
        let mut from = 0u64;
        let mut step = Vec::new();
        while from < shard.stored {
            let len = usize::try_from(shard.stored.saturating_sub(from)).unwrap_or(usize::MAX).min(STEP);
            step.resize(len, 0);
            self.source.read_at(shard.offset.saturating_add(from), &mut step)?;
            hash.write(&step);
            from = from.saturating_add(len as u64);
        }
        self.compare(shard, hash.finish())?;
        self.checked.get(at).inspect(|seen| seen.store(true, Ordering::Relaxed));
        Ok(())
    }

    /// The same, once; whole tensors are left to `verify`.
    fn check_once(&self, at: usize) -> Result<(), Error> {
        let whole = self.shards.get(at).is_some_and(|s| s.kind == Kind::Whole);
        match self.checked.get(at) {
            Some(seen) if !whole && !seen.load(Ordering::Relaxed) => self.check_stored(at),
            _ => Ok(()),
        }
    }

    /// What a shard's stored bytes stand for: its planes one after the other. They are checked first.
    fn decode(&self, shard: &Shard, stored: &[u8]) -> Result<Vec<u8>, Error> {
        if stored.len() as u64 != shard.stored {
            let reason = format!("{} bytes in place of its {}", stored.len(), shard.stored);
            return Err(self.fault(corrupt(reason), shard));
        }
        self.compare(shard, twox_hash::XxHash3_64::oneshot(stored))?;
        let unpacked = unpack::unpack(shard.packing, stored, shard.size).map_err(|f| self.fault(f, shard))?;
        if unpacked.len() as u64 != shard.size {
            let reason = format!("{} bytes are unpacked in place of {}", unpacked.len(), shard.size);
            return Err(self.fault(corrupt(reason), shard));
        }
        match (shard.kind, self.tensors.get(shard.scope as usize)) {
            (Kind::S, Some(tensor)) => {
                let (rows, cols) = index::rows_cols(&tensor.shape);
                sparse::decode(&unpacked, rows, cols, shard.numbers[0]).map_err(|f| self.fault(f, shard))
            }
            _ => Ok(unpacked),
        }
    }

    /// Whether a shard's planes are in the file as they are.
    fn in_place(shard: &Shard) -> bool {
        shard.packing == Packing::Raw && shard.kind != Kind::S
    }

    /// A shard that is not in the file as it is, decoded; the last ones are kept.
    fn decoded(&self, at: usize) -> Result<Arc<Vec<u8>>, Error> {
        let find =
            |kept: &Vec<(usize, Arc<Vec<u8>>)>| kept.iter().find(|(n, _)| *n == at).map(|(_, b)| b.clone());
        if let Some(found) = find(&self.kept.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(found);
        }
        let shard = self.shards.get(at).ok_or_else(|| self.refused(format!("there is no shard {at}")))?;
        let stored = self.source.read_vec(shard.offset, shard.stored)?;
        let bytes = Arc::new(self.decode(shard, &stored)?);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if find(&kept).is_none() {
            kept.push((at, bytes.clone()));
            let mut total = kept.iter().fold(0usize, |n, (_, b)| n.saturating_add(b.len()));
            while total > KEPT && kept.len() > 1 {
                total = total.saturating_sub(kept.remove(0).1.len());
            }
        }
        Ok(bytes)
    }

    /// W · x, from the shards one after the other and in `f64`; the matrix is never put together.
    pub fn apply(&self, tensor: usize, x: &[f32]) -> Result<Vec<f32>, Error> {
        let info = self.info(tensor).filter(|_| tensor < self.terms.len());
        let info = info.ok_or_else(|| self.refused(format!("there is no scope {tensor}")))?;
        if let n @ 1.. = self.matrices(tensor).len() {
            return Err(self.refused(format!("{:?} is a stack of {n} matrices: take one", info.name)));
        }
        let (rows, cols) = sum::rows_cols(&info.shape);
        if x.len() as u64 != cols {
            let name = &info.name;
            return Err(self.refused(format!("{name:?} has {cols} columns; x has {} values", x.len())));
        }
        let size = |n: u64| usize::try_from(n).map_err(|_| self.refused(format!("{n} values are too many")));
        let mut sums = vec![0f64; size(rows)?];
        let terms = self.terms.get(tensor).map(Vec::as_slice).unwrap_or_default();
        if terms.is_empty() {
            self.whole_product(tensor, info, x, &mut sums)?;
        }
        for term in terms {
            match *term {
                Term::Product { left, right } => {
                    let inner: Vec<f64> = {
                        let right = self.bytes(right)?;
                        halves(&right).chunks(x.len().max(1)).map(|row| dot(row, x)).collect()
                    };
                    let left = self.bytes(left)?;
                    for (sum, row) in sums.iter_mut().zip(halves(&left).chunks(inner.len().max(1))) {
                        *sum += row.iter().zip(&inner).map(|(w, t)| value(*w) * t).sum::<f64>();
                    }
                }
                Term::Band { plane, first } => {
                    let len = size(rows.min(cols))?.max(1);
                    let bytes = self.bytes(plane)?;
                    for (d, diagonal) in (0i64..).zip(halves(&bytes).chunks(len)) {
                        let shift = first.saturating_add(d);
                        for (i, (sum, w)) in sums.iter_mut().zip(diagonal).enumerate() {
                            let column = (i as u64)
                                .checked_add_signed(shift)
                                .and_then(|c| x.get(usize::try_from(c).ok()?));
                            *sum += column.map_or(0.0, |x| value(*w) * f64::from(*x));
                        }
                    }
                }
                Term::Sparse { starts, columns, values } => {
                    let (starts, columns, values) =
                        (self.bytes(starts)?, self.bytes(columns)?, self.bytes(values)?);
                    let mut entries = words(&columns).iter().zip(halves(&values));
                    for (sum, ends) in sums.iter_mut().zip(words(&starts).windows(2)) {
                        let &[from, to] = ends else { continue };
                        let n = u32::from_le_bytes(to).saturating_sub(u32::from_le_bytes(from));
                        for (column, w) in entries.by_ref().take(n as usize) {
                            let x = x.get(u32::from_le_bytes(*column) as usize).copied().unwrap_or(0.0);
                            *sum += value(*w) * f64::from(x);
                        }
                    }
                }
                Term::Vectors { codes, tables } => self.vectors_product(codes, tables, x, &mut sums)?,
                Term::Whole { .. } => {}
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is what is meant")]
        Ok(sums.into_iter().map(|sum| sum as f32).collect())
    }

    /// Products of every table's rows with the pieces of x, once each; rows of the matrix then only add.
    fn vectors_product(&self, codes: usize, tables: usize, x: &[f32], sums: &mut [f64]) -> Result<(), Error> {
        let shape = &self.get(tables)?.shape;
        let dim = |i: usize| shape.get(i).and_then(|d| usize::try_from(*d).ok()).unwrap_or(1).max(1);
        let (m, k, len) = (dim(0), dim(1), dim(2));
        let tables = self.bytes(tables)?;
        let mut products = Vec::new();
        for (piece, x) in x.chunks(len).enumerate() {
            let begin = piece.checked_rem(m).unwrap_or(0).saturating_mul(k.saturating_mul(len));
            let table = halves(&tables).get(begin..).unwrap_or_default();
            products.extend(table.chunks(len).take(k).map(|row| dot(row, x)));
        }
        let info = self.get(codes)?.clone();
        let bytes = self.bytes(codes)?;
        for (sum, row) in sums.iter_mut().zip(bytes.chunks(x.len().div_ceil(len).max(1))) {
            for (code, products) in row.iter().zip(products.chunks(k)) {
                *sum += products.get(usize::from(*code)).ok_or_else(|| {
                    let reason = format!("code {code} of tables with {k} rows");
                    corrupt(reason).of(&info.name).in_file(self.path())
                })?;
            }
        }
        Ok(())
    }

    fn whole_product(
        &self,
        tensor: usize,
        info: &TensorInfo,
        x: &[f32],
        sums: &mut [f64],
    ) -> Result<(), Error> {
        let isa = fonio_simd::Isa::detect();
        let row = info.dtype.bytes_for(info.row_len()).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let (mut bytes, mut values) = (vec![0; row], vec![0f32; x.len()]);
        let mut from = 0u64;
        for sum in sums {
            self.read(tensor, from, &mut bytes)?;
            let unpacked = info.dtype.dequantize(isa, &bytes, &mut values);
            unpacked.map_err(|e| corrupt(e.to_string()).of(&info.name).in_file(self.path()))?;
            *sum = values.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            from = from.saturating_add(row as u64);
        }
        Ok(())
    }
}

fn halves(bytes: &[u8]) -> &[[u8; 2]] {
    bytes.as_chunks::<2>().0
}

fn words(bytes: &[u8]) -> &[[u8; 4]] {
    bytes.as_chunks::<4>().0
}

fn value(half: [u8; 2]) -> f64 {
    f16::from_le_bytes(half).to_f64()
}

fn dot(row: &[[u8; 2]], x: &[f32]) -> f64 {
    row.iter().zip(x).map(|(w, x)| value(*w) * f64::from(*x)).sum()
}

fn metadata(bytes: &[u8]) -> Result<Metadata, Fault> {
    let mut c = Cursor::new(bytes, bytes.len() as u64);
    let n = c.u64()?;
    let metadata = gguf::metadata(&mut c, n)?;
    if c.left() > 0 { Err(c.corrupt("bytes follow the metadata")) } else { Ok(metadata) }
}

/// Reads a section: its checksum, what it unpacks to, and what that says.
fn section<T>(
    source: &Source,
    place: &Place,
    name: &str,
    read: impl FnOnce(&[u8]) -> Result<T, Fault>,
) -> Result<T, Error> {
    let stored = source.read_vec(place.offset, place.stored)?;
    let found = twox_hash::XxHash3_64::oneshot(&stored);
    let content = || {
        if found != place.checksum {
            let reason = format!("the checksum is {found:016x}, the trailer says {:016x}", place.checksum);
            return Err(Fault::Corrupt { tensor: None, offset: Some(place.offset), reason });
        }
        let packing = index::packing(place.packing).unwrap_or(Packing::Raw);
        let bytes = unpack::unpack(packing, &stored, place.size)?;
        if bytes.len() as u64 != place.size {
            return Err(corrupt(format!("{} bytes in place of {}", bytes.len(), place.size)));
        }
        let base = if packing == Packing::Raw { place.offset } else { 0 };
        read(&bytes).map_err(|f| f.shifted(base))
    };
    content().map_err(|f| f.of(name).in_file(source.path()))
}

impl Checkpoint for V2 {
    fn container(&self) -> &'static str {
        super::CAWSF.name
    }
    fn files(&self) -> &[PathBuf] {
        &self.paths
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
    fn planes(&self) -> &[TensorInfo] {
        &self.planes
    }
    fn terms(&self, tensor: usize) -> &[Term] {
        self.terms.get(tensor).map(Vec::as_slice).unwrap_or_default()
    }
    fn matrices(&self, tensor: usize) -> Range<usize> {
        self.stacks.get(tensor).cloned().unwrap_or_default()
    }
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, Error> {
        let info = self.get(tensor)?;
        let Some((at, from)) = self.shard_at(tensor) else {
            return sum::bytes(self, tensor).map(Cow::Owned);
        };
        let Some(shard) = self.shards.get(at).filter(|s| V2::in_place(s)) else {
            let mut bytes = self.decoded(at)?.to_vec();
            let part = byte_range(from, info.nbytes).filter(|r| r.end <= bytes.len());
            let part = part.ok_or_else(|| self.refused(format!("{:?} is not in its shard", info.name)))?;
            bytes.truncate(part.end);
            bytes.drain(..part.start);
            return Ok(Cow::Owned(bytes));
        };
        self.check_once(at)?;
        let offset = shard.offset.saturating_add(from);
        self.source.slice(offset, info.nbytes).map(Cow::Borrowed)
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        let info = self.get(tensor)?;
        if offset.checked_add(dst.len() as u64).is_none_or(|end| end > info.nbytes) {
            let (name, nbytes, len) = (&info.name, info.nbytes, dst.len());
            return Err(self.refused(format!(
                "{name:?} has {nbytes} bytes; {len} from byte {offset} on were asked for"
            )));
        }
        let Some((at, from)) = self.shard_at(tensor) else {
            return sum::read(self, tensor, offset, dst);
        };
        let from = from.saturating_add(offset);
        if let Some(shard) = self.shards.get(at).filter(|s| V2::in_place(s)) {
            self.check_once(at)?;
            return self.source.read_at(shard.offset.saturating_add(from), dst);
        }
        let bytes = self.decoded(at)?;
        let part = byte_range(from, dst.len() as u64).and_then(|range| bytes.get(range));
        let part = part.ok_or_else(|| self.refused(format!("{:?} is not in its shard", info.name)))?;
        dst.copy_from_slice(part);
        Ok(())
    }
    fn slice(&self, tensor: usize, range: Range<u64>) -> Result<Cow<'_, [u8]>, Error> {
        let in_place =
            self.shard_at(tensor).is_some_and(|(at, _)| self.shards.get(at).is_some_and(V2::in_place));
        if in_place {
            return crate::slice_of(self.bytes(tensor)?, range, || self.path().into());
        }
        let len = range
            .end
            .checked_sub(range.start)
            .filter(|_| range.end <= self.info(tensor).map_or(0, |i| i.nbytes));
        let len = len.and_then(|len| usize::try_from(len).ok());
        let outside =
            || self.refused(format!("bytes {} to {} are not in the tensor", range.start, range.end));
        let mut bytes = vec![0; len.ok_or_else(outside)?];
        self.read(tensor, range.start, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
    fn locate(&self, tensor: usize, range: Range<u64>) -> Option<Location> {
        let info = self.info(tensor).filter(|info| range.start <= range.end && range.end <= info.nbytes)?;
        let (extent, from) = self.shard_at(tensor)?;
        let shard = self.shards.get(extent)?;
        let offset = from.checked_add(range.start)?;
        match shard.kind == Kind::Whole && V2::in_place(shard) {
            true => Some(Location::File { file: info.file, offset: shard.offset.checked_add(offset)? }),
            false => Some(Location::Extent { extent, offset }),
        }
    }
    fn extents(&self) -> &[Extent] {
        &self.extents
    }
    fn unpack(&self, extent: usize, stored: &[u8], dst: &mut Vec<u8>) -> Result<(), Error> {
        dst.clear();
        let shard =
            self.shards.get(extent).ok_or_else(|| self.refused(format!("there is no extent {extent}")))?;
        if V2::in_place(shard) {
            return self.compare(shard, twox_hash::XxHash3_64::oneshot(stored));
        }
        *dst = self.decode(shard, stored)?;
        Ok(())
    }
    fn checksum(&self, extent: usize) -> Option<u64> {
        self.shards.get(extent).map(|shard| shard.checksum)
    }
    fn verify_checksums(&self) -> Result<Checksums, Error> {
        for (at, shard) in self.shards.iter().enumerate() {
            self.check_stored(at)?;
            if !V2::in_place(shard) {
                self.decoded(at)?;
            }
        }
        // The trailer's and those of META, INDEX and ROUTING were compared when the file was opened.
        let sections = self.places.iter().filter(|p| p.stored > 0).count();
        Ok(Checksums::Valid(self.shards.len().saturating_add(sections).saturating_add(1)))
    }
}

/// What a matrix of a stack is called.
fn matrix_name(stack: &str, matrix: u64) -> String {
    format!("{stack}#{matrix}")
}

fn byte_range(from: u64, len: u64) -> Option<Range<usize>> {
    let end = usize::try_from(from.checked_add(len)?).ok()?;
    Some(usize::try_from(from).ok()?..end)
}
