//! A checkpoint seen under other names and layouts.
//!
//! Every tensor keeps its bytes where that is possible; rows that the other side orders differently are gathered when
//! they are read, and small tensors whose values change are made when they are asked for.

use crate::Error;
use fonio_checkpoint::{Checkpoint, Checksums, Error as FileError, Metadata, TensorInfo};
use fonio_codec::{DType, list};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Where row `i` of the view comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// Heads of this many rows, from halves (Hugging Face) to neighbouring pairs (GGUF).
    Interleaved(usize),
    /// Heads of this many rows, from neighbouring pairs to halves.
    Split(usize),
}

impl RowOrder {
    pub(crate) fn source(self, i: usize) -> usize {
        match self {
            RowOrder::Interleaved(rows) => {
                let (head, within) = (i / rows, i % rows);
                head * rows + within % 2 * (rows / 2) + within / 2
            }
            RowOrder::Split(rows) => {
                let (head, within) = (i / rows, i % rows);
                head * rows + within % (rows / 2) * 2 + within / (rows / 2)
            }
        }
    }
}

/// How a tensor of the view is made.
pub(crate) enum Maker {
    /// A tensor of the files, as it is.
    Same(usize),
    /// A tensor of the files, its rows gathered.
    Rows(usize, RowOrder),
    /// Ready little-endian `f32`.
    Ready(Vec<u8>),
    /// A tensor of the files as `F32`, with this added.
    Widen(usize, f32),
}

/// The view.
pub struct View {
    inner: Arc<dyn Checkpoint>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    makers: Vec<Maker>,
    index: HashMap<String, usize>,
}

impl View {
    pub(crate) fn new(inner: Arc<dyn Checkpoint>, metadata: Metadata) -> View {
        View { inner, metadata, tensors: Vec::new(), makers: Vec::new(), index: HashMap::new() }
    }

    /// The metadata, for what is added to it.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    pub(crate) fn inner(&self) -> &Arc<dyn Checkpoint> {
        &self.inner
    }

    /// A tensor of the files, as it is.
    pub(crate) fn push_same(&mut self, name: String, at: usize) -> Result<(), Error> {
        let info = &self.inner.tensors()[at];
        let (shape, dtype, nbytes) = (info.shape.clone(), info.dtype, info.nbytes);
        self.push(name, shape, dtype, nbytes, Maker::Same(at))
    }

    /// A tensor of the files as `F32`, with something added.
    pub(crate) fn push_widened(&mut self, name: String, at: usize, added: f32) -> Result<(), Error> {
        let info = &self.inner.tensors()[at];
        let (shape, nbytes) = (info.shape.clone(), info.len().saturating_mul(4));
        self.push(name, shape, list::F32, nbytes, Maker::Widen(at, added))
    }

    /// A tensor of the files with its rows in another order; small ones become `F32`.
    pub(crate) fn push_rows(&mut self, name: String, at: usize, order: RowOrder) -> Result<(), Error> {
        let info = &self.inner.tensors()[at];
        if info.shape.len() > 1 {
            let (shape, dtype, nbytes) = (info.shape.clone(), info.dtype, info.nbytes);
            return self.push(name, shape, dtype, nbytes, Maker::Rows(at, order));
        }
        let values = crate::bind::values(self.inner.as_ref(), at)?;
        let gathered: Vec<f32> =
            (0..values.len()).filter_map(|i| values.get(order.source(i)).copied()).collect();
        self.push_values(name, &gathered)
    }

    /// A tensor of one dimension with these values.
    pub(crate) fn push_values(&mut self, name: String, values: &[f32]) -> Result<(), Error> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.push(name, vec![values.len() as u64], list::F32, bytes.len() as u64, Maker::Ready(bytes))
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
            return Err(Error::Config {
                file: self.inner.files().first().cloned().unwrap_or_default(),
                key: name,
                reason: "two tensors of the files have this meaning".into(),
            });
        }
        self.tensors.push(TensorInfo { name, dtype, shape, file: 0, offset: 0, nbytes });
        self.makers.push(maker);
        Ok(())
    }

    fn maker(&self, tensor: usize) -> Result<&Maker, FileError> {
        self.makers.get(tensor).ok_or_else(|| FileError::Refused {
            file: self.inner.files().first().cloned().unwrap_or_default(),
            reason: format!("there is no tensor {tensor}"),
        })
    }

    fn widened(&self, tensor: usize, added: f32) -> Result<Vec<u8>, FileError> {
        let values = crate::bind::values(self.inner.as_ref(), tensor)?;
        Ok(values.iter().flat_map(|x| (x + added).to_le_bytes()).collect())
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
        Ok(match self.maker(tensor)? {
            Maker::Same(at) => self.inner.bytes(*at)?,
            Maker::Ready(bytes) => Cow::Borrowed(bytes),
            Maker::Widen(at, added) => Cow::Owned(self.widened(*at, *added)?),
            Maker::Rows(at, order) => {
                let bytes = self.inner.bytes(*at)?;
                let row_bytes = row_bytes(&self.tensors[tensor]);
                let n = bytes.len() / row_bytes;
                let mut gathered = Vec::with_capacity(bytes.len());
                for i in 0..n {
                    let from = order.source(i) * row_bytes;
                    gathered.extend_from_slice(&bytes[from..from + row_bytes]);
                }
                Cow::Owned(gathered)
            }
        })
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), FileError> {
        let copy = |bytes: &[u8], dst: &mut [u8]| {
            let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..at.checked_add(dst.len())?));
            from.map(|from| dst.copy_from_slice(from)).ok_or_else(|| FileError::Refused {
                file: self.inner.files().first().cloned().unwrap_or_default(),
                reason: format!("read past the end of tensor {tensor}"),
            })
        };
        match self.maker(tensor)? {
            Maker::Same(at) => self.inner.read(*at, offset, dst),
            Maker::Ready(bytes) => copy(bytes, dst),
            Maker::Widen(at, added) => copy(&self.widened(*at, *added)?, dst),
            Maker::Rows(at, order) => {
                let row_bytes = row_bytes(&self.tensors[tensor]) as u64;
                let (mut offset, mut dst) = (offset, dst);
                while !dst.is_empty() {
                    let (row, within) = (offset / row_bytes, offset % row_bytes);
                    let n = usize::try_from(row_bytes - within).unwrap_or(usize::MAX).min(dst.len());
                    let (now, later) = dst.split_at_mut(n);
                    self.inner.read(*at, order.source(row as usize) as u64 * row_bytes + within, now)?;
                    (offset, dst) = (offset + n as u64, later);
                }
                Ok(())
            }
        }
    }
    fn verify_checksums(&self) -> Result<Checksums, FileError> {
        self.inner.verify_checksums()
    }
}

/// Bytes of one row of a tensor with at least one.
fn row_bytes(info: &TensorInfo) -> usize {
    let rows: u64 = info.shape.iter().rev().skip(1).product();
    (info.nbytes / rows.max(1)).max(1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_orders_undo_each_other() {
        let order: Vec<usize> = (0..8).map(|i| RowOrder::Interleaved(4).source(i)).collect();
        assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
        for rows in [2, 4, 6, 64] {
            for i in 0..3 * rows {
                assert_eq!(RowOrder::Interleaved(rows).source(RowOrder::Split(rows).source(i)), i);
            }
        }
    }
}
