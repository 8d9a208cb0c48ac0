//! Writing version 2: shards as they come, then META, INDEX, ROUTING and the trailer, which says where those are.

use super::super::unpack::Packing;
use super::index::{self, Index, Kind, PAGE, Place, SMALL, Shard, TRAILER, Tensor};
use super::{Routing, sparse};
use crate::journal::{Journal, Part};
use crate::output::AtomicFile;
use crate::{Error, Metadata, gguf};
use fonio_codec::DType;
use std::hash::Hasher;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_64;

/// A shard's content. Values are `F16`, little-endian and row-major.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// Two factors, `[rows, rank]` and `[rank, cols]`.
    LowRank {
        /// Columns of the left one.
        rank: u64,
        /// `[rows, rank]`
        left: &'a [u8],
        /// `[rank, cols]`
        right: &'a [u8],
    },
    /// Diagonals, `[n, min(rows, cols)]`: see [`crate::Term::Band`].
    Band {
        /// How many there are.
        n: u64,
        /// What column the first has in row 0.
        first: i64,
        /// `[n, min(rows, cols)]`
        values: &'a [u8],
    },
    /// Outliers: see [`crate::Term::Sparse`].
    Sparse {
        /// `[rows + 1]`
        starts: &'a [u32],
        /// `[n]`, rising within a row.
        columns: &'a [u32],
        /// `[n]`
        values: &'a [u8],
    },
    /// Codes: see [`crate::Term::Vectors`].
    Vectors {
        /// The codebook's number.
        codebook: u32,
        /// `[rows, pieces]`
        codes: &'a [u8],
    },
}

impl Content<'_> {
    fn parts(&self) -> Option<(Kind, [u64; 3], Vec<u8>)> {
        Some(match *self {
            Content::LowRank { rank, left, right } => (Kind::L, [rank, 0, 0], [left, right].concat()),
            Content::Band { n, first, values } => (Kind::D, [n, first.cast_unsigned(), 0], values.to_vec()),
            Content::Sparse { starts, columns, values } => {
                (Kind::S, [columns.len() as u64, 0, 0], sparse::encode(starts, columns, values)?)
            }
            Content::Vectors { codebook, codes } => (Kind::R, [codebook.into(), 0, 0], codes.to_vec()),
        })
    }
}

/// A file that is being written; it appears whole, with [`Writer::finish`], or not at all. Made by
/// [`Writer::resumable`], what there is of it can be gone on with.
pub struct Writer {
    pub(super) path: PathBuf,
    pub(super) force: bool,
    /// What is written; none if that is all and only the name is missing.
    pub(super) part: Option<Part>,
    packing: Packing,
    pub(super) index: Index,
    pub(super) codebooks: u32,
    /// The whole tensor that bytes are still missing of, and the checksum of those that came.
    open: Option<(u64, XxHash3_64)>,
    pub(super) journal: Option<Journal>,
    /// How many tensors and shards the journal knows.
    pub(super) marked: (usize, usize),
    /// Bytes that were there already, and what the journal's lines noted.
    pub(super) resumed: u64,
    pub(super) notes: Vec<Vec<u8>>,
}

impl Writer {
    /// Begins a file. Shards are packed as `packing` says where that makes them smaller.
    pub fn create(path: &Path, force: bool, packing: Packing) -> Result<Writer, Error> {
        let mut writer = Writer::empty(path, force, packing);
        writer.begin()?;
        Ok(writer)
    }

    pub(super) fn empty(path: &Path, force: bool, packing: Packing) -> Writer {
        Writer {
            path: path.to_path_buf(),
            force,
            part: None,
            packing,
            index: Index::default(),
            codebooks: 0,
            open: None,
            journal: None,
            marked: (0, 0),
            resumed: 0,
            notes: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self) -> Result<(), Error> {
        self.part = Some(Part::create(&self.path, self.force, self.journal.is_some(), 0)?);
        self.write(&index::header())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match &mut self.part {
            Some(part) => part.write(bytes),
            None => Err(self.refused("the file is complete and only needs its name")),
        }
    }

    pub(super) fn refused(&self, reason: impl Into<String>) -> Error {
        Error::Refused { file: self.path.clone(), reason: reason.into() }
    }

    fn add(&mut self, name: &str, dtype: Option<DType>, shape: &[u64]) -> Result<u32, Error> {
        self.whole_is_complete()?;
        let scope = u32::try_from(self.index.tensors.len()).map_err(|_| self.refused("too many tensors"))?;
        if name.len() > usize::from(u16::MAX) || shape.len() > usize::from(u8::MAX) {
            return Err(self.refused(format!("{name:?}: its name or its shape is too long")));
        }
        let tensor = Tensor { name: name.into(), dtype, shape: shape.into() };
        if let Some(reason) = tensor.refused() {
            return Err(self.refused(format!("{name:?} is {reason}; it has to stay whole")));
        }
        self.index.tensors.push(tensor);
        Ok(scope)
    }

    /// Begins a tensor that is no sum; its bytes follow with [`Writer::append`].
    pub fn whole(&mut self, name: &str, dtype: DType, shape: &[u64]) -> Result<(), Error> {
        let scope = self.add(name, Some(dtype), shape)?;
        let size = crate::opened::checked_nbytes(dtype, shape);
        let size = size.map_err(|reason| self.refused(format!("{name:?}: {reason}")))?;
        self.pad(size)?;
        let shard = Shard {
            kind: Kind::Whole,
            packing: Packing::Raw,
            matrix: 0,
            scope,
            offset: self.len(),
            stored: size,
            size,
            checksum: 0,
            numbers: [0; 3],
        };
        self.index.shards.push(shard);
        self.open = Some((size, XxHash3_64::new()));
        Ok(())
    }

    /// The next bytes of the tensor that was begun last.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let left = self.open.as_ref().map_or(0, |(left, _)| *left);
        let Some(rest) = left.checked_sub(bytes.len() as u64) else {
            return Err(self.refused(format!("{} bytes of a tensor that needs {left}", bytes.len())));
        };
        if let Some((left, hash)) = &mut self.open {
            *left = rest;
            hash.write(bytes);
        }
        self.write(bytes)
    }

    pub(super) fn whole_is_complete(&mut self) -> Result<(), Error> {
        let Some((left, hash)) = self.open.take() else { return Ok(()) };
        if left > 0 {
            return Err(self.refused(format!("a tensor lacks its last {left} bytes")));
        }
        if let Some(shard) = self.index.shards.last_mut() {
            shard.checksum = hash.finish();
        }
        Ok(())
    }

    /// Begins a matrix that is a sum, and gives its number; its shards follow with [`Writer::shard`], in the order of
    /// [`Kind::TERMS`].
    pub fn sum(&mut self, name: &str, rows: u64, cols: u64) -> Result<u32, Error> {
        self.add(name, None, &[rows, cols])
    }

    /// As [`Writer::sum`], `n` matrices that are sums, each by itself; their shards follow with [`Writer::shard_of`], one
    /// matrix after the other.
    pub fn stack(&mut self, name: &str, n: u64, rows: u64, cols: u64) -> Result<u32, Error> {
        self.add(name, None, &[n, rows, cols])
    }

    /// The number of the tensor that was begun last.
    pub fn last_tensor(&self) -> Result<u32, Error> {
        let last = self.index.tensors.len().checked_sub(1).and_then(|last| u32::try_from(last).ok());
        last.ok_or_else(|| self.refused("there is no tensor yet"))
    }

    /// Adds tables, `F16 [m, k, len]`, and gives their number.
    pub fn codebook(&mut self, m: u64, k: u64, len: u64, values: &[u8]) -> Result<u32, Error> {
        self.whole_is_complete()?;
        let number = self.codebooks;
        self.put(Kind::Codebook, (number, 0), [m, k, len], values)?;
        self.codebooks = self.codebooks.saturating_add(1);
        Ok(number)
    }

    /// The shards so far, in the order in which they were added.
    pub fn shards(&self) -> &[Shard] {
        &self.index.shards
    }

    /// Adds a shard of a sum and says how many bytes it takes.
    pub fn shard(&mut self, scope: u32, content: Content<'_>) -> Result<(u32, u64), Error> {
        self.shard_of(scope, 0, content)
    }

    /// As [`Writer::shard`], of one matrix of a stack.
    pub fn shard_of(&mut self, scope: u32, matrix: u16, content: Content<'_>) -> Result<(u32, u64), Error> {
        self.whole_is_complete()?;
        let parts = content.parts().ok_or_else(|| self.refused("outliers that are no sparse matrix"))?;
        let number = u32::try_from(self.index.shards.len()).map_err(|_| self.refused("too many shards"))?;
        let stored = self.put(parts.0, (scope, matrix), parts.1, &parts.2)?;
        Ok((number, stored))
    }

    fn put(
        &mut self,
        kind: Kind,
        (scope, matrix): (u32, u16),
        numbers: [u64; 3],
        bytes: &[u8],
    ) -> Result<u64, Error> {
        let packed = packed(self.packing, bytes);
        let (packing, stored) = match &packed {
            Some(packed) => (self.packing, &packed[..]),
            None => (Packing::Raw, bytes),
        };
        let len = stored.len() as u64;
        self.pad(len)?;
        let shard = Shard {
            kind,
            packing,
            matrix,
            scope,
            offset: self.len(),
            stored: len,
            size: bytes.len() as u64,
            checksum: XxHash3_64::oneshot(stored),
            numbers,
        };
        self.index.shards.push(shard);
        self.write(stored)?;
        Ok(len)
    }

    /// Zeros up to where something of so many bytes may begin.
    fn pad(&mut self, len: u64) -> Result<(), Error> {
        let next = self.len().next_multiple_of(if len < PAGE { SMALL } else { PAGE });
        let zeros = vec![0; usize::try_from(next.saturating_sub(self.len())).unwrap_or(0)];
        self.write(&zeros)
    }

    fn section(&mut self, bytes: &[u8]) -> Result<Place, Error> {
        if bytes.is_empty() {
            return Ok(Place {
                offset: self.len(),
                checksum: XxHash3_64::oneshot(bytes),
                ..Place::default()
            });
        }
        self.pad(SMALL)?;
        // Less than a page is not worth it.
        let packed = packed(self.packing, bytes).filter(|_| bytes.len() >= 4096);
        let stored = packed.as_deref().unwrap_or(bytes);
        let how = if packed.is_some() { self.packing } else { Packing::Raw };
        let place = Place {
            offset: self.len(),
            stored: stored.len() as u64,
            size: bytes.len() as u64,
            checksum: XxHash3_64::oneshot(stored),
            packing: index::packing_number(how).into(),
        };
        self.write(stored)?;
        Ok(place)
    }

    /// Bytes written so far.
    pub fn len(&self) -> u64 {
        self.part.as_ref().map_or(self.resumed, |part| part.len)
    }

    /// Whether nothing was written, which is never so: there is a header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes what describes the file and gives it its name, durably. What a reader would not accept is refused.
    pub fn finish(mut self, metadata: &Metadata, routing: Option<&Routing>) -> Result<PathBuf, Error> {
        if self.part.is_some() {
            self.describe(metadata, routing)?;
        }
        let part = self.part.take().map(|part| part.file);
        match self.journal.take() {
            Some(journal) => {
                let files = match part {
                    Some(file) => vec![file],
                    None => journal.complete(self.force)?,
                };
                journal.commit(files)?;
            }
            None => part.map(AtomicFile::commit).transpose().map(drop)?,
        }
        Ok(std::mem::take(&mut self.path))
    }

    /// Writes what comes after the shards. What a reader would not accept is refused.
    fn describe(&mut self, metadata: &Metadata, routing: Option<&Routing>) -> Result<(), Error> {
        self.whole_is_complete()?;
        let mut meta = (metadata.len() as u64).to_le_bytes().to_vec();
        gguf::put_metadata(&mut meta, metadata);
        let meta = self.section(&meta)?;
        let index = self.index.bytes();
        let listed = self.section(&index)?;
        let routed = self.section(&routing.map(Routing::bytes).unwrap_or_default())?;
        self.pad(SMALL)?;
        let places = [meta, listed, routed];
        let len = self.len().saturating_add(TRAILER);
        Index::read(&index, len, &places).map_err(|fault| self.refused(format!("{fault:?}")))?;
        self.write(&index::trailer(&places, len))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.journal.as_ref().is_some_and(Journal::keeps) {
            self.part.iter_mut().for_each(|part| part.file.keep());
        }
    }
}

/// Packed bytes, if they are fewer by a thirty-second at least: less is not worth the time that unpacking takes.
fn packed(packing: Packing, bytes: &[u8]) -> Option<Vec<u8>> {
    let out = match packing {
        Packing::Raw => return None,
        Packing::Zstd => {
            ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
        }
        Packing::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(bytes).ok()?;
            encoder.finish().ok()?
        }
    };
    (out.len() < bytes.len().saturating_sub(bytes.len() / 32)).then_some(out)
}
