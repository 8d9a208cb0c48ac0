//! GPTQ, as AutoGPTQ and GPTQModel write it.
//!
//! Planes of a module with `in` inputs and `out` outputs, integers of b = 2, 3, 4 or 8 bits:
//!
//! | plane | type | shape | |
//! |---|---|---|---|
//! | `qweight` | I32 | `[in·b/32, out]` | packed along the inputs, the first one lowest |
//! | `qzeros` | I32 | `[groups, out·b/32]` | packed along the outputs |
//! | `scales` | F16, BF16, F32 | `[groups, out]` | |
//! | `g_idx` | I32 | `[in]` | each input's group; missing: neighbours |
//!
//! `value = scale · (q − zero)`. The first version of the format stores the zero point less one
//! (`checkpoint_format: gptq`), the second as it is (`gptq_v2`); a stored 2^b − 1 of the first is the zero point 2^b, as
//! AutoGPTQ, ExLlama and vLLM read it. There are files that name the first version and store as the second does, so
//! what `sym: true` says has precedence: if every stored zero point is the same one and that is 2^(b−1) or one less,
//! the zero point is 2^(b−1).
//!
//! 3-bit integers run on across words: 32 of them in three. With `desc_act` inputs are quantized in the order of their
//! activations and `g_idx` has no order; the weight keeps its inputs where they are.
//!
//! Sources: AutoGPTQ's and GPTQModel's packers and their configurations; vLLM's issue 38966 for the versions.

use super::affine::{Affine, Groups};
use super::plane::{Ints, Packed, Plane, Scales, unit};
use super::{Files, Module, Modules, buffer, check_keys, group_size};
use crate::Error;
use crate::keys::Config;
use fonio_checkpoint::TensorInfo;
use fonio_codec::list;

/// Keys that are read.
const READ: &[&str] = &[
    "quant_method",
    "bits",
    "group_size",
    "sym",
    "desc_act",
    "checkpoint_format",
    "format",
    "dynamic",
    "pack_dtype",
];

/// Keys that say how the weights were found, or how others should run them, but not what they are.
pub(super) const IDLE: &[&str] = &[
    "act_group_aware",
    "amp",
    "autoround_version",
    "backend",
    "batch_size",
    "beta",
    "block_name_to_quantize",
    "cache_block_outputs",
    "damp_auto_increment",
    "damp_percent",
    "data_type",
    "dataset",
    "device",
    "disable_exllama",
    "do_fuse",
    "enable_minmax_tuning",
    "enable_quanted_input",
    "exllama_config",
    "fuse_max_seq_len",
    "gradient_accumulate_steps",
    "hyb_act",
    "iters",
    "lm_head",
    "low_gpu_mem_usage",
    "lr",
    "max_input_length",
    "meta",
    "minmax_lr",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "modules_in_block_to_quantize",
    "modules_to_fuse",
    "modules_to_not_convert",
    "mse",
    "nsamples",
    "offload_to_disk",
    "offload_to_disk_path",
    "pack_impl",
    "pad_token_id",
    "provider",
    "quantizer",
    "scale_dtype",
    "seqlen",
    "static_groups",
    "tau",
    "tokenizer",
    "train_bs",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
    "v2",
    "v2_alpha",
];

/// What the configuration says.
struct Settings {
    bits: usize,
    group_size: Option<usize>,
    symmetric: bool,
    desc_act: bool,
    /// What is added to a stored zero point.
    bias: i16,
}

impl Settings {
    fn read(config: &Config) -> Result<Settings, Error> {
        check_keys(config, &[READ, IDLE])?;
        let bits = config.count("bits")? as usize;
        if ![2, 3, 4, 8].contains(&bits) {
            return Err(config.unsupported("bits", format!("{bits}; GPTQ has 2, 3, 4 and 8")));
        }
        let format = match config.text_opt("checkpoint_format")? {
            Some(format) => Some(("checkpoint_format", format)),
            None => config.text_opt("format")?.map(|format| ("format", format)),
        };
        let bias = match format {
            None | Some((_, "gptq")) => 1,
            Some((_, "gptq_v2")) => 0,
            Some((key, other)) => {
                return Err(config.unsupported(key, format!("{other:?}; known are gptq and gptq_v2")));
            }
        };
        if let Some(words) = config.text_opt("pack_dtype")?.filter(|&t| t != "int32" && t != "torch.int32") {
            return Err(config.unsupported("pack_dtype", format!("{words:?}; int32 is")));
        }
        if let Some(modules) = config.object("dynamic")
            && let Some(pattern) = modules.keys().find(|pattern| !pattern.starts_with("-:"))
        {
            return Err(
                config.unsupported("dynamic", format!("{pattern:?} sets what modules have of their own"))
            );
        }
        Ok(Settings {
            bits,
            group_size: group_size(config, "group_size")?,
            symmetric: config.flag_or("sym", false)?,
            desc_act: config.flag_or("desc_act", false)?,
            bias,
        })
    }
}

pub(super) fn find(files: &Files<'_>, config: &Config) -> Result<Modules, Error> {
    let settings = Settings::read(config)?;
    let mut modules = Modules::default();
    for (at, name, info) in files.ending(".qweight") {
        modules.found.push(module(files, &settings, at, name, info)?);
    }
    Ok(modules)
}

fn module(
    files: &Files<'_>,
    settings: &Settings,
    at: usize,
    name: &str,
    info: &TensorInfo,
) -> Result<Module, Error> {
    let bits = settings.bits;
    files.expect_type(info, &[list::I32])?;
    let (words, rows) = files.matrix(info)?;
    let (per, words_per) = unit(bits);
    if words % words_per != 0 || rows % per != 0 {
        let reason =
            format!("its shape {:?} is no whole number of {per} integers of {bits} bits", info.shape);
        return Err(files.corrupt(info, reason));
    }
    let overflow = || files.corrupt(info, format!("shape {:?} overflows", info.shape));
    let columns = (words / words_per).checked_mul(per).ok_or_else(overflow)?;
    let size = settings.group_size.unwrap_or(columns);
    let groups = columns.div_ceil(size);
    let (zeros_at, zeros_info) = files.need(&format!("{name}.qzeros"), info)?;
    files.expect_type(zeros_info, &[list::I32])?;
    files.expect_shape(zeros_info, &[groups, rows / per * words_per])?;
    let (scales_at, scales_info) = files.need(&format!("{name}.scales"), info)?;
    files.expect_type(scales_info, &[list::F16, list::BF16, list::F32])?;
    files.expect_shape(scales_info, &[groups, rows])?;
    let mut planes = vec![at, zeros_at, scales_at];
    let map = match files.get(&format!("{name}.g_idx")) {
        None if settings.desc_act => {
            return Err(files.need(&format!("{name}.g_idx"), info).err().unwrap_or_else(overflow));
        }
        None => Groups::Even(size),
        Some((map_at, map_info)) => {
            planes.push(map_at);
            groups_of(files, map_at, map_info, columns, groups, size)?
        }
    };
    let plane = |at, shape| Plane { at, shape, turned: true };
    let zeros = Packed {
        plane: plane(zeros_at, (groups, rows / per * words_per)),
        bits,
        along_rows: true,
        order: None,
        bias: settings.bias,
    };
    let codes = Packed { plane: plane(at, (words, rows)), bits, along_rows: false, order: None, bias: 0 };
    let affine = Affine {
        named: at,
        columns,
        groups,
        map,
        codes: Ints::Packed(codes),
        range: (0, (1 << bits) - 1),
        zeros: zero_points(files, settings, zeros)?,
        scales: Scales::Each(plane(scales_at, (groups, rows))),
        gathers: true,
    };
    let (dtype, maker) = affine.decide(files.0)?;
    let shape = vec![rows as u64, columns as u64];
    Ok(Module { name: format!("{name}.weight"), planes, shape, dtype, maker })
}

/// The zero points as they are stored, unless they must be those of symmetric integers.
fn zero_points(files: &Files<'_>, settings: &Settings, zeros: Packed) -> Result<Ints, Error> {
    let zeros = Ints::Packed(zeros);
    let middle = 1 << (settings.bits - 1);
    if settings.symmetric {
        let (least, largest) = zeros.range(files.0)?;
        let stored = least - settings.bias;
        if least == largest && (stored == middle || stored == middle - 1) {
            return Ok(Ints::One(middle));
        }
    }
    Ok(zeros)
}

/// The map of inputs to groups.
fn groups_of(
    files: &Files<'_>,
    at: usize,
    info: &TensorInfo,
    columns: usize,
    groups: usize,
    size: usize,
) -> Result<Groups, Error> {
    let map = read_map(files, at, info, columns)?;
    let map: Option<Vec<u32>> = map.iter().map(|&g| u32::try_from(g).ok()).collect();
    map.and_then(|map| Groups::of_map(map, groups, size))
        .ok_or_else(|| files.corrupt(info, format!("an input's group is not one of {groups}")))
}

/// A plane with an integer for each input.
pub(super) fn read_map(
    files: &Files<'_>,
    at: usize,
    info: &TensorInfo,
    columns: usize,
) -> Result<Vec<i32>, Error> {
    files.expect_type(info, &[list::I32])?;
    files.expect_shape(info, &[columns])?;
    let mut bytes = buffer(files.0, columns.saturating_mul(4))?;
    files.0.read(at, 0, &mut bytes)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
}
