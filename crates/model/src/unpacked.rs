//! A checkpoint whose quantized tensors are seen as floats, unpacked when they are read.

use fonio_checkpoint::{Checkpoint, Checksums, Error, Location, Metadata, TensorInfo};
use fonio_codec::{DType, list};
use fonio_simd::Isa;
use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Quantized tensors as `F32`; all others as they are.
pub(crate) struct Unpacked {
    inner: Arc<dyn Checkpoint>,
    tensors: Vec<TensorInfo>,
}

impl Unpacked {
    /// Unpacks all but tensors of the type `kept`.
    pub(crate) fn new(inner: Arc<dyn Checkpoint>, kept: Option<DType>) -> Unpacked {
        let unpacked = |info: &TensorInfo| {
            let mut info = info.clone();
            if info.dtype.is_quantized() && Some(info.dtype) != kept {
                (info.dtype, info.nbytes) = (list::F32, info.len().saturating_mul(4));
            }
            info
        };
        let tensors = inner.tensors().iter().map(unpacked).collect();
        Unpacked { inner, tensors }
    }

    fn refused(&self, reason: String) -> Error {
        Error::Refused { file: self.inner.files().first().cloned().unwrap_or_default(), reason }
    }

    /// The type in the file, if it is another one here.
    fn packed(&self, tensor: usize) -> Option<DType> {
        let (here, there) = (self.tensors.get(tensor)?, self.inner.tensors().get(tensor)?);
        (here.dtype != there.dtype).then_some(there.dtype)
    }
}

impl Checkpoint for Unpacked {
    fn container(&self) -> &'static str {
        self.inner.container()
    }
    fn files(&self) -> &[PathBuf] {
        self.inner.files()
    }
    fn metadata(&self) -> &Metadata {
        self.inner.metadata()
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn find(&self, name: &str) -> Option<usize> {
        self.inner.find(name)
    }
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, Error> {
        if self.packed(tensor).is_none() {
            return self.inner.bytes(tensor);
        }
        let len = usize::try_from(self.tensors[tensor].nbytes).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| self.refused(format!("no memory for {len} bytes")))?;
        bytes.resize(len, 0);
        self.read(tensor, 0, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), Error> {
        let Some(dtype) = self.packed(tensor) else { return self.inner.read(tensor, offset, dst) };
        let end = offset.checked_add(dst.len() as u64).filter(|&end| end <= self.tensors[tensor].nbytes);
        let end = end.ok_or_else(|| self.refused(format!("read past the end of tensor {tensor}")))?;
        // Whole blocks around the values that are asked for.
        let (len, size) = (dtype.block_len() as u64, dtype.block_bytes() as u64);
        let (first, last) = (offset / 4 / len, end.div_ceil(4).div_ceil(len));
        let mut packed = vec![0; ((last - first) * size) as usize];
        self.inner.read(tensor, first * size, &mut packed)?;
        let mut values = vec![0f32; ((last - first) * len) as usize];
        dtype.dequantize(Isa::detect(), &packed, &mut values).map_err(|e| Error::Corrupt {
            file: self.inner.files().first().cloned().unwrap_or_default(),
            tensor: Some(self.tensors[tensor].name.clone()),
            offset: Some(offset),
            reason: e.to_string(),
        })?;
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).skip((offset - first * len * 4) as usize);
        dst.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        Ok(())
    }
    fn locate(&self, tensor: usize, range: Range<u64>) -> Option<Location> {
        if self.packed(tensor).is_some() { None } else { self.inner.locate(tensor, range) }
    }
    fn verify_checksums(&self) -> Result<Checksums, Error> {
        self.inner.verify_checksums()
    }
}
