//! 8-bit floats with a scale for the tensor, for each output, or for each block of outputs and inputs.
//!
//! | plane | type | shape |
//! |---|---|---|
//! | `weight` | F8_E4M3, F8_E5M2 | `[out, in]` |
//! | `weight_scale` or `weight_scale_inv` | F32, BF16, F16, F8_E8M0 | `[]`, `[1]`, `[out]`, `[out, 1]`, or with `weight_block_size: [r, c]` `[⌈out/r⌉, ⌈in/c⌉]` |
//!
//! `value = scale · q` in `f32`, whatever the scale's name (`inv` is the inverse of what the weight was multiplied with).
//! Blocks at the edges have what is left of them. Where all scales are powers of two the values are exact in BF16 and
//! the tensor has that type. Sources: transformers' `FineGrainedFP8Config` and its integration; DeepSeek-V3's weights;
//! vLLM's `fp8` method.

use super::plane::{Plane, Scales, floats};
use super::{Files, Maker, Module, Modules, buffer, check_keys, corrupt};
use crate::Error;
use crate::keys::Config;
use fonio_checkpoint::{Checkpoint, Error as FileError, TensorInfo};
use fonio_codec::{DType, list};
use fonio_simd::Isa;

const KNOWN: &[&str] = &[
    "quant_method",
    "weight_block_size",
    "activation_scheme",
    "dequantize",
    "expert_dtype",
    "fmt",
    "ignored_layers",
    "is_checkpoint_fp8_serialized",
    "kv_cache_quant_method",
    "kv_cache_scheme",
    "modules_to_convert",
    "modules_to_not_convert",
    "scale_fmt",
    "use_deep_gemm",
];

/// Types of weights.
pub(super) const TYPES: &[DType] = &[list::F8_E4M3, list::F8_E5M2];
/// Types of scales.
pub(super) const SCALES: &[DType] = &[list::F32, list::BF16, list::F16, list::F8_E8M0];

pub(super) fn find(files: &Files<'_>, config: &Config) -> Result<Modules, Error> {
    check_keys(config, &[KNOWN])?;
    if let Some(experts) = config.text_opt("expert_dtype")?.filter(|&t| t != "fp8") {
        return Err(config.unsupported("expert_dtype", format!("{experts:?}; fp8 is")));
    }
    let block = match config.get("weight_block_size") {
        None => None,
        Some(value) => Some(block_size(value).ok_or_else(|| {
            config.wrong("weight_block_size", format!("{value} is no pair of sizes above 0"))
        })?),
    };
    let mut modules = Modules { found: Vec::new(), dropped: files.activation_scales() };
    for (at, name, info) in files.ending(".weight").filter(|(_, _, info)| TYPES.contains(&info.dtype)) {
        let one = format!("{name}.weight_scale");
        let inverse = format!("{name}.weight_scale_inv");
        let (scale_at, scale) = match (files.get(&one), files.get(&inverse)) {
            (Some(_), Some((_, scale))) => {
                return Err(files.corrupt(scale, format!("{one:?} is there as well")));
            }
            (Some(scale), None) => scale,
            (None, _) => files.need(&inverse, info)?,
        };
        let (rows, columns) = files.matrix(info)?;
        files.expect_type(scale, SCALES)?;
        let block = match block {
            Some(block) => {
                files.expect_shape(scale, &[rows.div_ceil(block.0), columns.div_ceil(block.1)])?;
                block
            }
            None => whole_rows(files, scale, rows, columns)?,
        };
        modules.found.push(module(files, (at, name, info), (scale_at, scale), block)?);
    }
    Ok(modules)
}

/// `[r, c]`, both above 0.
pub(super) fn block_size(value: &serde_json::Value) -> Option<(usize, usize)> {
    let sizes: Option<Vec<usize>> =
        value.as_array()?.iter().map(|n| usize::try_from(n.as_u64()?).ok().filter(|&n| n > 0)).collect();
    match sizes?[..] {
        [rows, columns] => Some((rows, columns)),
        _ => None,
    }
}

/// The block of a scale for the tensor or for each output.
pub(super) fn whole_rows(
    files: &Files<'_>,
    scale: &TensorInfo,
    rows: usize,
    columns: usize,
) -> Result<(usize, usize), Error> {
    match scale.shape[..] {
        [] | [1] | [1, 1] => Ok((rows, columns)),
        [n] | [n, 1] if n == rows as u64 => Ok((1, columns)),
        _ => Err(files.corrupt(scale, format!("{:?} is no scale for {rows} outputs", scale.shape))),
    }
}

/// A module with a scale for each block of outputs and inputs; their number has been checked.
pub(super) fn module(
    files: &Files<'_>,
    (at, name, info): (usize, &str, &TensorInfo),
    (scale_at, _): (usize, &TensorInfo),
    block: (usize, usize),
) -> Result<Module, Error> {
    let (rows, columns) = files.matrix(info)?;
    let shape = (rows.div_ceil(block.0), columns.div_ceil(block.1));
    let plane = Plane { at: scale_at, shape, turned: false };
    let exact = Scales::Each(plane).all(files.0, |scales| scales.iter().all(|&s| is_small_power(s)))?;
    let dtype = if exact { list::BF16 } else { list::F32 };
    let maker = Blocks { at, columns, block, scales: plane, dtype };
    Ok(Module {
        name: format!("{name}.weight"),
        planes: vec![at, scale_at],
        shape: info.shape.clone(),
        dtype,
        maker: Box::new(maker),
    })
}

/// A power of two with which every 8-bit float is a normal number in BF16, or 0.
fn is_small_power(scale: f32) -> bool {
    let bits = scale.to_bits() & 0x7fff_ffff;
    bits == 0 || (bits & 0x007f_ffff == 0 && (27..=227).contains(&(bits >> 23)))
}

/// A weight of 8-bit floats.
struct Blocks {
    at: usize,
    columns: usize,
    block: (usize, usize),
    scales: Plane,
    dtype: DType,
}

impl Maker for Blocks {
    fn gathers(&self) -> bool {
        false
    }

    fn widen(&mut self, dtype: DType) -> bool {
        let exact = dtype == list::F32 || dtype == self.dtype;
        if exact {
            self.dtype = dtype;
        }
        exact
    }

    fn rows(
        &self,
        inner: &dyn Checkpoint,
        first: usize,
        count: usize,
        dst: &mut [u8],
    ) -> Result<(), FileError> {
        let info = inner.tensors().get(self.at).ok_or_else(|| FileError::Refused {
            file: inner.files().first().cloned().unwrap_or_default(),
            reason: format!("there is no tensor {}", self.at),
        })?;
        let mut bytes = buffer(inner, count * self.columns)?;
        inner.read(self.at, (first * self.columns) as u64, &mut bytes)?;
        let mut values = floats(inner, info, &bytes)?;
        let blocks = first / self.block.0..(first + count).div_ceil(self.block.0);
        let per_row = self.scales.shape.1;
        let scales = Scales::Each(self.scales).rows(inner, blocks.clone(), per_row)?;
        for (i, row) in values.chunks_exact_mut(self.columns).enumerate() {
            let line = (first + i) / self.block.0 - blocks.start;
            let scales = scales.get(line * per_row..).unwrap_or_default();
            for (values, &scale) in row.chunks_mut(self.block.1).zip(scales) {
                values.iter_mut().for_each(|value| *value *= scale);
            }
        }
        let done = self.dtype.quantize(Isa::scalar(), &values, None, dst);
        done.map_err(|e| corrupt(inner, info, e.to_string()))
    }
}
