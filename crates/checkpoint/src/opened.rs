//! The part of [`Checkpoint`] that all containers share: files, metadata, tensors by name, and their bytes.

use crate::map::Source;
use crate::{Checkpoint, Error, Location, Metadata, TensorInfo};
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;

/// A set of open files with what their headers say.
pub(crate) struct Opened {
    container: &'static str,
    sources: Vec<Source>,
    paths: Vec<PathBuf>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

impl Opened {
    /// Checks once more what everything after relies on: names are unique and every tensor lies in its file.
    pub(crate) fn new(
        container: &'static str,
        sources: Vec<Source>,
        metadata: Metadata,
        tensors: Vec<TensorInfo>,
    ) -> Result<Opened, Error> {
        let paths: Vec<PathBuf> = sources.iter().map(|s| s.path().to_path_buf()).collect();
        let mut index = HashMap::with_capacity(tensors.len());
        for (at, tensor) in tensors.iter().enumerate() {
            let len = sources.get(tensor.file).map_or(0, Source::len);
            let corrupt = |reason: String| Error::Corrupt {
                file: paths.get(tensor.file).cloned().unwrap_or_default(),
                tensor: Some(tensor.name.clone()),
                offset: Some(tensor.offset),
                reason,
            };
            if tensor.offset.checked_add(tensor.nbytes).is_none_or(|end| end > len) {
                let nbytes = tensor.nbytes;
                return Err(corrupt(format!("its {nbytes} bytes go past the end of the file, {len}")));
            }
            if index.insert(tensor.name.clone(), at).is_some() {
                return Err(corrupt("there are two tensors of this name".into()));
            }
        }
        Ok(Opened { container, sources, paths, metadata, tensors, index })
    }

    /// The tensor and its file. An index that is out of range is the caller's mistake, told as an error.
    pub(crate) fn get(&self, tensor: usize) -> Result<(&TensorInfo, &Source), Error> {
        let found = self.tensors.get(tensor).and_then(|info| Some((info, self.sources.get(info.file)?)));
        found.ok_or_else(|| Error::Refused {
            file: self.paths.first().cloned().unwrap_or_default(),
            reason: format!("there is no tensor number {tensor}; there are {}", self.tensors.len()),
        })
    }

    /// One of the files.
    pub(crate) fn source(&self, file: usize) -> Result<&Source, Error> {
        self.sources.get(file).ok_or_else(|| Error::Refused {
            file: self.paths.first().cloned().unwrap_or_default(),
            reason: format!("there is no file number {file}; there are {}", self.sources.len()),
        })
    }

    /// Refuses a range that is not inside the tensor.
    pub(crate) fn check_range(&self, info: &TensorInfo, offset: u64, len: usize) -> Result<(), Error> {
        if offset.checked_add(len as u64).is_some_and(|end| end <= info.nbytes) {
            return Ok(());
        }
        let (name, nbytes) = (&info.name, info.nbytes);
        Err(Error::Refused {
            file: self.paths.get(info.file).cloned().unwrap_or_default(),
            reason: format!("{name:?} has {nbytes} bytes; {len} from byte {offset} on were asked for"),
        })
    }
}

/// Names the tensor in an error about reading its bytes.
pub(crate) fn name_tensor(mut error: Error, name: &str) -> Error {
    if let Error::Corrupt { tensor, .. } | Error::Limit { tensor, .. } = &mut error {
        tensor.get_or_insert_with(|| name.to_owned());
    }
    error
}

impl Checkpoint for Opened {
    fn container(&self) -> &'static str {
        self.container
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
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, Error> {
        let (info, source) = self.get(tensor)?;
        let bytes = source.slice(info.offset, info.nbytes).map_err(|e| name_tensor(e, &info.name))?;
        Ok(Cow::Borrowed(bytes))
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        let (info, source) = self.get(tensor)?;
        self.check_range(info, offset, dst.len())?;
        source.read_at(info.offset.saturating_add(offset), dst).map_err(|e| name_tensor(e, &info.name))
    }
    fn locate(&self, tensor: usize, range: Range<u64>) -> Option<Location> {
        let info = self.tensors.get(tensor).filter(|info| range.end <= info.nbytes)?;
        Some(Location::File { file: info.file, offset: info.offset.checked_add(range.start)? })
    }
}

/// Bytes of a tensor of this type and shape: its rows must be whole blocks and no number may overflow, with zero
/// dimensions counted as one, so that every product of dimensions in any order fits into 63 bits.
pub(crate) fn checked_nbytes(dtype: fonio_codec::DType, shape: &[u64]) -> Result<u64, String> {
    let fits = |n: &u64| i64::try_from(*n).is_ok();
    let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)).filter(fits));
    let overflow = || format!("shape {shape:?} overflows");
    let elements = elements.ok_or_else(overflow)?;
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(dtype.block_len() as u64) {
        let block = dtype.block_len();
        return Err(format!("a row of {row} values is no whole number of {dtype}'s blocks of {block}"));
    }
    // Zero dimensions as one here too: otherwise an overflow could hide behind a zero.
    let row_bytes =
        dtype.bytes_for(if row == 0 { dtype.block_len() as u64 } else { row }).ok_or_else(overflow)?;
    let rows = elements.checked_div(row.max(1)).unwrap_or(0);
    let nbytes = row_bytes.checked_mul(rows).filter(fits).ok_or_else(overflow)?;
    Ok(if shape.contains(&0) { 0 } else { nbytes })
}
