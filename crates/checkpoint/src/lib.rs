//! Containers of model weights, behind two traits.
//!
//! A [`Checkpoint`] is an opened file or set of files: metadata, a list of tensors, and their bytes, borrowed from a
//! memory map where alignment allows. A [`Writer`] takes metadata and the tensors' plan first and then their bytes in
//! order, and puts whole files in place or none. Containers never learn what a model is: names are strings and
//! shapes are numbers here. [`list::ALL`] names the containers.
//!
//! Everything in a file is hostile until checked: lengths are compared with the bytes that are left before anything
//! is allocated, sums are checked, and every error says which file, which tensor and where.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::arithmetic_side_effects
    )
)]

pub mod cawsf;
pub mod list;
pub mod output;
pub mod sum;
pub mod value;

#[doc(hidden)]
pub mod fuzzing;

mod cursor;
mod gguf;
mod journal;
mod json;
mod map;
mod opened;
mod place;
mod pytorch;
mod qsf;
mod safetensors;
mod sequential;
mod set;
mod sharded;
mod shards;
#[cfg(test)]
mod testing;

pub use place::{Extent, Group, Location, Rows, Term};
pub use value::{Array, Metadata, Strings, Value};

use fonio_codec::DType;
use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A tensor as its container describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the container.
    pub name: String,
    /// What its bytes are.
    pub dtype: DType,
    /// Row-major, outermost dimension first; rows of quantized types run along the last one.
    pub shape: Vec<u64>,
    /// Which of [`Checkpoint::files`] has it.
    pub file: usize,
    /// Where its bytes begin in that file.
    pub offset: u64,
    /// How many bytes it has.
    pub nbytes: u64,
}

impl TensorInfo {
    /// Number of values. Checked not to overflow when the container was opened.
    pub fn len(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of a row: the last dimension, 1 for a scalar.
    pub fn row_len(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// An opened container.
pub trait Checkpoint: Send + Sync {
    /// The container's name: `gguf`, `safetensors`, `pytorch`, `qsf`, `cawsf`.
    fn container(&self) -> &'static str;
    /// The files that it consists of, the first one first.
    fn files(&self) -> &[PathBuf];
    /// Its metadata, in file order.
    fn metadata(&self) -> &Metadata;
    /// Its tensors, in file order. Names are unique.
    fn tensors(&self) -> &[TensorInfo];
    /// Index of the tensor with this name.
    fn find(&self, name: &str) -> Option<usize>;
    /// All bytes of a tensor, borrowed from the memory map where its layout in the file is plain row-major.
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, Error>;
    /// Reads `dst.len()` bytes of a tensor from byte `offset` on into `dst`, without touching the memory map: for
    /// conversions, whose resident memory must stay small.
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), Error>;
    /// Tensors that are not the model's but what it stores others as; numbered on from [`Checkpoint::tensors`], for
    /// all methods that take a tensor's number.
    fn planes(&self) -> &[TensorInfo] {
        &[]
    }
    /// What a tensor is the sum of, if it is stored as one. Its bytes, as [`Checkpoint::bytes`] and
    /// [`Checkpoint::read`] give them, are the sum's: those who do not know terms need not.
    fn terms(&self, _tensor: usize) -> &[Term] {
        &[]
    }
    /// Numbers of the matrices of a tensor of three dimensions that is stored as a stack of sums: planes like others, and
    /// each has terms of its own. Nothing for all other tensors.
    fn matrices(&self, _tensor: usize) -> Range<usize> {
        0..0
    }
    /// Whether a tensor is stored as a sum, or as a stack of sums.
    fn is_sum(&self, tensor: usize) -> bool {
        !self.terms(tensor).is_empty() || !self.matrices(tensor).is_empty()
    }
    /// A tensor or a plane.
    fn info(&self, tensor: usize) -> Option<&TensorInfo> {
        let tensors = self.tensors();
        tensors.get(tensor).or_else(|| self.planes().get(tensor.checked_sub(tensors.len())?))
    }
    /// Some bytes of a tensor, borrowed from the memory map where they are there as they are.
    fn slice(&self, tensor: usize, range: Range<u64>) -> Result<Cow<'_, [u8]>, Error> {
        let file = || self.files().first().cloned().unwrap_or_default();
        if let Some(Location::File { .. }) = self.locate(tensor, range.clone()) {
            return slice_of(self.bytes(tensor)?, range, file);
        }
        let len = range.end.checked_sub(range.start).and_then(|n| usize::try_from(n).ok());
        let nbytes = self.info(tensor).map_or(0, |info| info.nbytes);
        let mut bytes = Vec::new();
        match len.filter(|&n| range.end <= nbytes && bytes.try_reserve_exact(n).is_ok()) {
            Some(len) => bytes.resize(len, 0),
            None => return Err(not_inside(range, file())),
        }
        self.read(tensor, range.start, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
    /// Where bytes of a tensor are stored, if they are in one piece.
    fn locate(&self, _tensor: usize, _range: Range<u64>) -> Option<Location> {
        None
    }
    /// Pieces of the files that are read and checked as a whole.
    fn extents(&self) -> &[Extent] {
        &[]
    }
    /// Compares an extent's `stored` bytes with its checksum and unpacks them into `dst`, which is cleared first; an
    /// uncompressed one is only checked and `dst` stays empty.
    fn unpack(&self, extent: usize, _stored: &[u8], _dst: &mut Vec<u8>) -> Result<(), Error> {
        let file = self.files().first().cloned().unwrap_or_default();
        Err(Error::Refused { file, reason: format!("there is no extent {extent}") })
    }
    /// The XXH3-64 of an extent's stored bytes, for those who read it themselves.
    fn checksum(&self, _extent: usize) -> Option<u64> {
        None
    }
    /// Whether the container has checksums, and if so compares them.
    fn verify_checksums(&self) -> Result<Checksums, Error> {
        Ok(Checksums::None)
    }
}

/// What [`Checkpoint::verify_checksums`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// The container has none.
    None,
    /// This many checksums are right.
    Valid(usize),
}

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// What its bytes will be.
    pub dtype: DType,
    /// Row-major, outermost dimension first.
    pub shape: Vec<u64>,
    /// What it is read together with.
    pub group: Group,
    /// What it is the sum of, if it is stored as one: it has no bytes of its own then, and terms count planes by their
    /// places in the plan, where they are entries like others.
    pub terms: Vec<Term>,
}

impl TensorPlan {
    /// A tensor on its own.
    pub fn new(name: impl Into<String>, dtype: DType, shape: impl Into<Vec<u64>>) -> TensorPlan {
        TensorPlan { name: name.into(), dtype, shape: shape.into(), group: Group::Alone, terms: Vec::new() }
    }

    /// Bytes that the tensor takes, or `None` on overflow or if its rows are no whole blocks. A sum takes none.
    pub fn nbytes(&self) -> Option<u64> {
        if !self.terms.is_empty() {
            return Some(0);
        }
        let row = self.shape.last().copied().unwrap_or(1);
        let rows = self.shape.iter().rev().skip(1).try_fold(1u64, |n, &d| n.checked_mul(d))?;
        self.dtype.bytes_for(row)?.checked_mul(rows)
    }
}

/// How to write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Replace an existing file.
    pub force: bool,
    /// Split so that no file is larger than this, where tensors allow.
    pub max_file_bytes: Option<u64>,
    /// Split so that no file has more tensors than this.
    pub max_file_tensors: Option<usize>,
    /// Compress extents, where that makes less of them; containers without extents refuse it.
    pub compress: Option<Compression>,
    /// Small files, with what is in them, that get their names together with the output, after it.
    pub beside: Vec<(PathBuf, Vec<u8>)>,
    /// Keep a journal, so that a process that is killed can be gone on with.
    pub resume: Option<Resume>,
}

impl WriteOptions {
    /// Refuses compression, for containers that have none.
    fn refuse_compression(&self, path: &Path, container: &str) -> Result<(), Error> {
        match self.compress {
            None => Ok(()),
            Some(_) => {
                let reason = format!("{container} files are not compressed; QSF files can be");
                Err(Error::Refused { file: path.into(), reason })
            }
        }
    }
}

/// How extents are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// LZ4 frames.
    Lz4,
    /// Zstandard frames.
    Zstd,
}

/// How an output is written so that it can be gone on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Everything besides the plan that settles the bytes: the sources and how they are converted. What was made of
    /// another identity is not gone on with.
    pub identity: Vec<u8>,
    /// Go on with what a process left that was killed, and leave it if this one fails. Otherwise begin anew.
    pub take_up: bool,
    /// Bytes between records in the journal: each brings what was written to the disk.
    pub step: u64,
}

/// How much of an output was there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// [`Writer::append`] goes on after so many bytes.
    pub bytes: u64,
    /// Why what was there is not used, if something was.
    pub note: Option<&'static str>,
}

/// An output that is being written: call [`Writer::append`] until every planned tensor's bytes were given, in the order
/// of [`Writer::order`], then [`Writer::finish`]. Dropped before that, it leaves nothing behind.
pub trait Writer: Send {
    /// The order in which rows are wanted, if it is not the plan's.
    fn order(&self) -> Option<Vec<Rows>> {
        None
    }
    /// What an earlier process had written of this output: those bytes must not be given again.
    fn resumed(&self) -> Resumed {
        Resumed::default()
    }
    /// The next bytes; may end anywhere in a tensor and may span tensors.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Error>;
    /// Puts the files in place under their names, durably, and names them. An error if bytes are missing.
    fn finish(self: Box<Self>) -> Result<Vec<PathBuf>, Error>;
}

/// A kind of container: one line in [`list::ALL`].
pub struct Container {
    /// Its name, as `--to` takes it.
    pub name: &'static str,
    /// File extensions that mean it, without the dot.
    pub extensions: &'static [&'static str],
    /// Whether these first bytes of a file (up to 4,096) are this container's.
    pub sniff: fn(&[u8]) -> bool,
    /// Opens a file (any file of a split set) or, if it has this container's files in it, a folder.
    pub open: fn(&Path) -> Result<Box<dyn Checkpoint>, Error>,
    /// File names that, found in a folder, make the folder this container's, the most telling first.
    pub folder_files: &'static [&'static str],
    /// Begins an output, if the container can be written.
    pub create: Option<CreateFn>,
}

/// Begins an output: path, metadata, tensors, options.
pub type CreateFn = fn(&Path, &Metadata, &[TensorPlan], &WriteOptions) -> Result<Box<dyn Writer>, Error>;

/// Why a container could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file breaks its format's rules.
    #[error("{}: {}corrupt: {reason}{}", file.display(), At(tensor), Offset(*offset))]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// The tensor or key, if it is about one.
        tensor: Option<String>,
        /// Byte in the file, if known.
        offset: Option<u64>,
        /// What is wrong.
        reason: String,
    },
    /// The file may be fine, but fonio does not read such.
    #[error("{}: {}not supported: {reason}", file.display(), At(tensor))]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The tensor or key, if it is about one.
        tensor: Option<String>,
        /// What is not supported.
        reason: String,
    },
    /// A limit that protects memory or time was passed.
    #[error("{}: {}over the limit: {reason}", file.display(), At(tensor))]
    Limit {
        /// The file.
        file: PathBuf,
        /// The tensor or key, if it is about one.
        tensor: Option<String>,
        /// Which limit.
        reason: String,
    },
    /// The operating system said no.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The request makes no sense: an existing output, a source that is the output, a plan that does not fit.
    #[error("{}: {reason}", file.display())]
    Refused {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
}

struct At<'a>(&'a Option<String>);
impl std::fmt::Display for At<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_ref().map_or(Ok(()), |name| write!(f, "{name:?}: "))
    }
}
struct Offset(Option<u64>);
impl std::fmt::Display for Offset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |at| write!(f, " (at byte {at})"))
    }
}

/// Opens a file or folder, whatever container it is: by its first bytes, or by what is in the folder.
pub fn open(path: &Path) -> Result<Box<dyn Checkpoint>, Error> {
    list::open(path)
}

/// A part of a tensor's bytes.
fn slice_of(
    bytes: Cow<'_, [u8]>,
    range: Range<u64>,
    file: impl FnOnce() -> PathBuf,
) -> Result<Cow<'_, [u8]>, Error> {
    let (start, end) = (usize::try_from(range.start), usize::try_from(range.end));
    let part = match (bytes, start, end) {
        (Cow::Borrowed(bytes), Ok(start), Ok(end)) => bytes.get(start..end).map(Cow::Borrowed),
        (Cow::Owned(bytes), Ok(start), Ok(end)) => {
            bytes.get(start..end).map(|part| Cow::Owned(part.to_vec()))
        }
        _ => None,
    };
    part.ok_or_else(|| not_inside(range, file()))
}

fn not_inside(range: Range<u64>, file: PathBuf) -> Error {
    let reason = format!("bytes {} to {} are not in the tensor", range.start, range.end);
    Error::Refused { file, reason }
}
