//! AWQ in the layout of AutoAWQ's GEMM kernels, 4 bits.
//!
//! | plane | type | shape | |
//! |---|---|---|---|
//! | `qweight` | I32 | `[in, out/8]` | packed along the outputs |
//! | `qzeros` | I32 | `[groups, out/8]` | the same |
//! | `scales` | F16, BF16, F32 | `[groups, out]` | |
//!
//! The eight outputs of a word lie in the order 0, 2, 4, 6, 1, 3, 5, 7, from its lowest nibble on.
//! `value = scale · (q − zero)`. Other layouts (`gemv`, `gemv_fast`, `llm-awq`, those of ExLlama and Marlin) have the same
//! planes with other contents and are refused by their names. Source: AutoAWQ's packer and configuration.

use super::affine::{Affine, Groups};
use super::plane::{Ints, Packed, Plane, Scales};
use super::{Files, Module, Modules, check_keys, gptq, group_size};
use crate::Error;
use crate::keys::Config;
use fonio_checkpoint::TensorInfo;
use fonio_codec::list;

const READ: &[&str] = &[
    "quant_method",
    "bits",
    "w_bit",
    "group_size",
    "q_group_size",
    "zero_point",
    "version",
    "format",
    "checkpoint_format",
    "backend",
    "sym",
    "desc_act",
    "pack_dtype",
];

/// The nibble that each of eight outputs is in.
const ORDER: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

pub(super) fn find(files: &Files<'_>, config: &Config) -> Result<Modules, Error> {
    check_keys(config, &[READ, gptq::IDLE])?;
    for key in ["bits", "w_bit"] {
        if let Some(bits) = config.count_opt(key)?.filter(|&bits| bits != 4) {
            return Err(config.unsupported(key, format!("{bits}; AWQ has 4")));
        }
    }
    for key in ["version", "format", "checkpoint_format"] {
        if let Some(layout) = config.text_opt(key)?.filter(|layout| !layout.eq_ignore_ascii_case("gemm")) {
            return Err(config.unsupported(key, format!("{layout:?}; gemm is read")));
        }
    }
    if config.text_opt("backend")? == Some("llm-awq") {
        return Err(config.unsupported("backend", "\"llm-awq\" has a layout of its own; gemm is read"));
    }
    if let Some(words) = config.text_opt("pack_dtype")?.filter(|&t| t != "int32" && t != "torch.int32") {
        return Err(config.unsupported("pack_dtype", format!("{words:?}; int32 is")));
    }
    let key = if config.get("group_size").is_none() { "q_group_size" } else { "group_size" };
    let size = group_size(config, key)?;
    let mut modules = Modules::default();
    for (at, name, info) in files.ending(".qweight") {
        modules.found.push(module(files, size, at, name, info)?);
    }
    Ok(modules)
}

fn module(
    files: &Files<'_>,
    size: Option<usize>,
    at: usize,
    name: &str,
    info: &TensorInfo,
) -> Result<Module, Error> {
    files.expect_type(info, &[list::I32])?;
    let (columns, words) = files.matrix(info)?;
    let rows = words.checked_mul(8).ok_or_else(|| files.corrupt(info, "its shape overflows"))?;
    let size = size.unwrap_or(columns);
    if columns % size != 0 {
        return Err(files.corrupt(info, format!("{columns} inputs are no whole groups of {size}")));
    }
    let groups = columns / size;
    let (zeros_at, zeros_info) = files.need(&format!("{name}.qzeros"), info)?;
    files.expect_type(zeros_info, &[list::I32])?;
    files.expect_shape(zeros_info, &[groups, words])?;
    let (scales_at, scales_info) = files.need(&format!("{name}.scales"), info)?;
    files.expect_type(scales_info, &[list::F16, list::BF16, list::F32])?;
    files.expect_shape(scales_info, &[groups, rows])?;
    let plane = |at, shape| Plane { at, shape, turned: true };
    let packed = |plane| Packed { plane, bits: 4, along_rows: true, order: Some(&ORDER), bias: 0 };
    let affine = Affine {
        named: at,
        columns,
        groups,
        map: Groups::Even(size),
        codes: Ints::Packed(packed(plane(at, (columns, words)))),
        range: (0, 15),
        zeros: Ints::Packed(packed(plane(zeros_at, (groups, words)))),
        scales: Scales::Each(plane(scales_at, (groups, rows))),
        gathers: true,
    };
    let (dtype, maker) = affine.decide(files.0)?;
    Ok(Module {
        name: format!("{name}.weight"),
        planes: vec![at, zeros_at, scales_at],
        shape: vec![rows as u64, columns as u64],
        dtype,
        maker,
    })
}
