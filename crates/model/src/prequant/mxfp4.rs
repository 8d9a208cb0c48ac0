//! MXFP4 as in openai/gpt-oss: E2M1 numbers in pairs, and their scale bytes beside them.
//!
//! | plane | type | shape |
//! |---|---|---|
//! | `x_blocks` | U8 | `[…, out, in/32, 16]` |
//! | `x_scales` | U8 | `[…, out, in/32]` |
//!
//! They are one tensor `x` of shape `[…, out, in]` and type MXFP4; numbers and scales are the file's, bit for bit
//! ([`fonio_codec::mxfp4`] has both orders). [`planes`] goes the other way and gives the same bytes. Source: gpt-oss's
//! weights and transformers' `mxfp4` integration.

use super::{Files, Maker, Module, Modules, buffer, check_keys, corrupt};
use crate::Error;
use crate::keys::Config;
use fonio_checkpoint::{Checkpoint, Checksums, Error as FileError, Metadata, TensorInfo};
use fonio_codec::{DType, list, mxfp4};
use serde_json::{Map, Value as Json, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

const KNOWN: &[&str] = &["quant_method", "modules_to_not_convert", "dequantize"];
/// Values of a block.
const LEN: u64 = 32;
/// Bytes of a block with its scale.
const BYTES: usize = mxfp4::NUMBERS + 1;

pub(super) fn find(files: &Files<'_>, config: &Config) -> Result<Modules, Error> {
    check_keys(config, &[KNOWN])?;
    let mut modules = Modules::default();
    for (at, name, info) in files.ending("_blocks") {
        files.expect_type(info, &[list::U8])?;
        let (scales_at, scales) = files.need(&format!("{name}_scales"), info)?;
        files.expect_type(scales, &[list::U8])?;
        let Some((&16, outer)) = info.shape.split_last() else {
            return Err(files.corrupt(info, format!("its shape {:?} does not end in 16", info.shape)));
        };
        if outer != scales.shape {
            let reason = format!("its shape is {:?}, that of the blocks {:?}", scales.shape, info.shape);
            return Err(files.corrupt(scales, reason));
        }
        let overflow = || files.corrupt(info, format!("its shape {:?} is no matrix of blocks", info.shape));
        let (&per_row, leading) =
            outer.split_last().filter(|(n, l)| **n > 0 && !l.is_empty()).ok_or_else(overflow)?;
        let mut shape = leading.to_vec();
        shape.push(per_row.checked_mul(LEN).ok_or_else(overflow)?);
        let per_row = usize::try_from(per_row).map_err(|_| overflow())?;
        modules.found.push(Module {
            name: name.to_owned(),
            planes: vec![at, scales_at],
            shape,
            dtype: list::MXFP4,
            maker: Box::new(Joined { blocks: at, scales: scales_at, per_row }),
        });
    }
    Ok(modules)
}

/// A weight of blocks.
struct Joined {
    blocks: usize,
    scales: usize,
    per_row: usize,
}

impl Maker for Joined {
    fn gathers(&self) -> bool {
        false
    }

    fn widen(&mut self, dtype: DType) -> bool {
        dtype == list::MXFP4
    }

    fn rows(
        &self,
        inner: &dyn Checkpoint,
        first: usize,
        count: usize,
        dst: &mut [u8],
    ) -> Result<(), FileError> {
        let (first, count) = (first * self.per_row, count * self.per_row);
        let mut pairs = buffer(inner, count * mxfp4::NUMBERS)?;
        inner.read(self.blocks, (first * mxfp4::NUMBERS) as u64, &mut pairs)?;
        let mut scales = buffer(inner, count)?;
        inner.read(self.scales, first as u64, &mut scales)?;
        mxfp4::join(&pairs, &scales, dst).map_err(|e| {
            let refused = || FileError::Refused {
                file: inner.files().first().cloned().unwrap_or_default(),
                reason: e.to_string(),
            };
            inner.tensors().get(self.blocks).map_or_else(refused, |info| corrupt(inner, info, e.to_string()))
        })
    }
}

/// A checkpoint with Hugging Face's names in which experts in MXFP4 are planes, and the configuration that says so. Without
/// such tensors it is `inner` itself and `config` stays.
pub fn export(
    inner: Arc<dyn Checkpoint>,
    config: &mut Map<String, Json>,
) -> Result<Arc<dyn Checkpoint>, Error> {
    if !inner.tensors().iter().any(is_bare) {
        return Ok(inner);
    }
    let others = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"];
    let quantization = json!({"quant_method": "mxfp4", "modules_to_not_convert": others});
    config.insert("quantization_config".into(), quantization);
    planes(inner)
}

/// Whether a tensor is in MXFP4 and no module's `weight`, for which there are no planes.
fn is_bare(info: &TensorInfo) -> bool {
    info.dtype == list::MXFP4 && !info.name.ends_with(".weight")
}

/// A checkpoint in which each MXFP4 tensor `x` of `inner` is `x_blocks` and `x_scales`, as Hugging Face has them; tensors
/// `x.weight` stay.
pub fn planes(inner: Arc<dyn Checkpoint>) -> Result<Arc<dyn Checkpoint>, Error> {
    let mut split =
        Split { tensors: Vec::new(), parts: Vec::new(), index: HashMap::new(), inner: inner.clone() };
    for (at, info) in inner.tensors().iter().enumerate() {
        if !is_bare(info) {
            split.push(info.clone(), Part::Same(at))?;
            continue;
        }
        let Some((&row, leading)) = info.shape.split_last() else {
            return Err(corrupt(inner.as_ref(), info, "it has no rows").into());
        };
        let count = info.nbytes / BYTES as u64;
        let mut shape = leading.to_vec();
        shape.push(row / LEN);
        let plane = |end: &str, shape: Vec<u64>, nbytes: u64| TensorInfo {
            name: format!("{}{end}", info.name),
            dtype: list::U8,
            shape,
            file: info.file,
            offset: info.offset,
            nbytes,
        };
        let mut blocks = shape.clone();
        blocks.push(mxfp4::NUMBERS as u64);
        let numbers = count * mxfp4::NUMBERS as u64;
        split.push(plane("_blocks", blocks, numbers), Part::Blocks(at))?;
        split.push(plane("_scales", shape, count), Part::Scales(at))?;
    }
    Ok(Arc::new(split))
}

/// Where a tensor of [`Split`] comes from.
enum Part {
    Same(usize),
    Blocks(usize),
    Scales(usize),
}

struct Split {
    inner: Arc<dyn Checkpoint>,
    tensors: Vec<TensorInfo>,
    parts: Vec<Part>,
    index: HashMap<String, usize>,
}

impl Split {
    fn push(&mut self, info: TensorInfo, part: Part) -> Result<(), Error> {
        if self.index.insert(info.name.clone(), self.tensors.len()).is_some() {
            return Err(corrupt(self.inner.as_ref(), &info, "there are two tensors of this name").into());
        }
        self.tensors.push(info);
        self.parts.push(part);
        Ok(())
    }

    fn get(&self, tensor: usize) -> Result<(&TensorInfo, &Part), FileError> {
        self.tensors.get(tensor).zip(self.parts.get(tensor)).ok_or_else(|| FileError::Refused {
            file: self.inner.files().first().cloned().unwrap_or_default(),
            reason: format!("there is no tensor {tensor}"),
        })
    }
}

impl Checkpoint for Split {
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
        self.index.get(name).copied()
    }
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, FileError> {
        let (info, part) = self.get(tensor)?;
        if let Part::Same(at) = part {
            return self.inner.bytes(*at);
        }
        let len = usize::try_from(info.nbytes).unwrap_or(usize::MAX);
        let mut bytes = buffer(self.inner.as_ref(), len)?;
        self.read(tensor, 0, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
    fn read(&self, tensor: usize, offset: u64, mut dst: &mut [u8]) -> Result<(), FileError> {
        /// Blocks that are taken apart together.
        const STEP: usize = 1 << 12;
        let (info, part) = self.get(tensor)?;
        let (at, size) = match part {
            Part::Same(at) => return self.inner.read(*at, offset, dst),
            Part::Blocks(at) => (*at, mxfp4::NUMBERS),
            Part::Scales(at) => (*at, 1),
        };
        if offset.checked_add(dst.len() as u64).is_none_or(|end| end > info.nbytes) {
            return Err(FileError::Refused {
                file: self.inner.files().first().cloned().unwrap_or_default(),
                reason: format!("read past the end of {:?}", info.name),
            });
        }
        let mut offset = offset;
        while !dst.is_empty() {
            let (block, within) = (offset / size as u64, (offset % size as u64) as usize);
            let count = (within + dst.len()).div_ceil(size).min(STEP);
            let mut joined = buffer(self.inner.as_ref(), count * BYTES)?;
            self.inner.read(at, block * BYTES as u64, &mut joined)?;
            let (mut pairs, mut scales) = (vec![0; count * mxfp4::NUMBERS], vec![0; count]);
            mxfp4::split(&joined, &mut pairs, &mut scales)
                .map_err(|e| corrupt(self.inner.as_ref(), info, e.to_string()))?;
            let bytes = if size == 1 { &scales[..] } else { &pairs[within..] };
            let n = bytes.len().min(dst.len());
            dst[..n].copy_from_slice(&bytes[..n]);
            (offset, dst) = (offset + n as u64, &mut dst[n..]);
        }
        Ok(())
    }
    fn verify_checksums(&self) -> Result<Checksums, FileError> {
        self.inner.verify_checksums()
    }
}
