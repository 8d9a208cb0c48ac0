//! compressed-tensors, which llm-compressor writes and vLLM reads.
//!
//! | format | plane | type | shape |
//! |---|---|---|---|
//! | `pack-quantized` | `weight_packed` | I32 | `[out, ⌈in·b/32⌉]`: integers plus 2^(b−1), packed along the inputs |
//! | | `weight_shape` | I64, I32 | `[2]`: out, in |
//! | | `weight_zero_point` | I32 | `[⌈out·b/32⌉, groups]`: plus 2^(b−1) as well, packed along the outputs |
//! | | | or I8 | `[out, groups]`: as they are |
//! | | `weight_g_idx` | I32 | `[in]`: each input's group, −1 for neighbours |
//! | `int-quantized`, `naive-quantized` | `weight` | I8 | `[out, in]` |
//! | | `weight_zero_point` | I8 | as the scale |
//! | `float-quantized`, `naive-quantized` | `weight` | F8_E4M3 | `[out, in]` |
//! | all | `weight_scale` | F32, BF16, F16 | `[1]` (tensor), `[out, 1]` (channel), `[out, groups]`, or blocks |
//!
//! `value = scale · (q − zero)`; a symmetric module has no zero point or one of zeros. The planes say which modules are
//! quantized, so `targets` and `ignore` need not be matched; but each module must be what one of the `config_groups` says,
//! and that says how its scales are meant. Only b = 2, 4 and 8 are read packed: the others have been packed in two ways.
//!
//! Values are not rounded to the scale's type, which compressed-tensors does when it decompresses to 16 bits.
//! `input_activations`, `output_activations` and `kv_cache_scheme` change no weights and are ignored, `transform_config` and
//! `sparsity_config` do and are not supported. Source: the package compressed-tensors 0.20, and the configurations of
//! published models.

use super::affine::{Affine, Groups};
use super::fp8::{self, block_size};
use super::gptq::read_map;
use super::plane::{Ints, Packed, Plane, Scales, floats};
use super::{Files, Module, Modules, buffer, check_keys, group_size};
use crate::Error;
use crate::keys::Config;
use fonio_checkpoint::TensorInfo;
use fonio_codec::list;

const KNOWN: &[&str] = &[
    "quant_method",
    "format",
    "config_groups",
    "dequantize",
    "global_compression_ratio",
    "ignore",
    "kv_cache_scheme",
    "provider",
    "quantization_status",
    "run_compressed",
    "use_optimized_inference",
    "version",
];
const GROUP_KEYS: &[&str] = &["targets", "weights", "input_activations", "output_activations", "format"];
const WEIGHT_KEYS: &[&str] = &[
    "num_bits",
    "type",
    "symmetric",
    "strategy",
    "group_size",
    "block_structure",
    "actorder",
    "observer",
    "observer_kwargs",
    "scale_dtype",
    "zp_dtype",
];

/// How scales are shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Strategy {
    Tensor,
    Channel,
    Group(usize),
    Block(usize, usize),
}

/// What the integers or floats of a module are stored as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stored {
    Packed,
    Bytes,
    Floats,
}

/// What one of the configuration's groups says of weights.
#[derive(Clone, Copy, Debug)]
struct Scheme {
    stored: Stored,
    bits: usize,
    symmetric: bool,
    strategy: Strategy,
    act_order: bool,
}

impl Scheme {
    /// `None` if the group is not about weights.
    fn read(group: &Config, format: Option<&str>) -> Result<Option<Scheme>, Error> {
        check_keys(group, &[GROUP_KEYS])?;
        let format = group.text_opt("format")?.or(format);
        if group.get("weights").is_none() {
            return Ok(None);
        }
        let weights = group.object("weights").ok_or_else(|| group.wrong("weights", "is no object"))?;
        check_keys(&weights, &[WEIGHT_KEYS])?;
        let bits = weights.count_opt("num_bits")?.unwrap_or(8) as usize;
        let integers = match weights.text_opt("type")?.unwrap_or("int") {
            "int" => true,
            "float" => false,
            other => return Err(weights.unsupported("type", format!("{other:?}; int and float are"))),
        };
        let stored = match (format, integers) {
            (Some("pack-quantized"), true) => Stored::Packed,
            (Some("int-quantized" | "naive-quantized"), true) => Stored::Bytes,
            (Some("float-quantized" | "naive-quantized"), false) => Stored::Floats,
            (other, _) => {
                let kind = if integers { "integers" } else { "floats" };
                let reason = format!("{:?} for {kind}", other.unwrap_or_default());
                return Err(group.unsupported("format", reason));
            }
        };
        let readable = if stored == Stored::Packed { &[2, 4, 8][..] } else { &[8] };
        if !readable.contains(&bits) {
            return Err(weights.unsupported("num_bits", format!("{bits}; {readable:?} are in this format")));
        }
        Ok(Some(Scheme {
            stored,
            bits,
            symmetric: weights.flag_or("symmetric", true)?,
            strategy: Strategy::read(&weights)?,
            act_order: matches!(weights.get("actorder").and_then(|v| v.as_str()), Some("group" | "dynamic")),
        }))
    }
}

impl Strategy {
    fn read(weights: &Config) -> Result<Strategy, Error> {
        let size = match weights.get("group_size") {
            None => None,
            Some(_) => Some(group_size(weights, "group_size")?),
        };
        let name = weights.text_opt("strategy")?.map(str::to_ascii_lowercase);
        match (name.as_deref(), size) {
            (Some("tensor"), _) | (None, None) => Ok(Strategy::Tensor),
            (Some("channel"), _) | (None, Some(None)) => Ok(Strategy::Channel),
            (Some("group") | None, Some(Some(size))) => Ok(Strategy::Group(size)),
            (Some("block"), _) => {
                let block = weights.get("block_structure").and_then(block_size);
                let (rows, columns) =
                    block.ok_or_else(|| weights.wrong("block_structure", "is no pair of sizes above 0"))?;
                Ok(Strategy::Block(rows, columns))
            }
            (Some("group"), _) => Err(weights.wrong("group_size", "is no size of a group")),
            (Some(name), _) => Err(weights.unsupported("strategy", format!("{name:?} for weights"))),
        }
    }

    /// Whether a plane of scales has this shape for a weight of `rows` and `columns`.
    fn fits(self, shape: &[u64], rows: usize, columns: usize) -> bool {
        let is =
            |want: &[usize]| shape.iter().map(|&n| usize::try_from(n).ok()).eq(want.iter().map(|&n| Some(n)));
        match self {
            Strategy::Tensor => is(&[]) || is(&[1]) || is(&[1, 1]),
            Strategy::Channel => is(&[rows, 1]) || is(&[rows]),
            Strategy::Group(size) => columns.is_multiple_of(size) && is(&[rows, columns / size]),
            Strategy::Block(r, c) => is(&[rows.div_ceil(r), columns.div_ceil(c)]),
        }
    }
}

pub(super) fn find(files: &Files<'_>, config: &Config) -> Result<Modules, Error> {
    check_dense(config)?;
    let groups = config.object("config_groups");
    let groups = groups.ok_or_else(|| config.wrong("config_groups", "is missing or no object"))?;
    let format = config.text_opt("format")?;
    let mut schemes = Vec::new();
    for name in groups.keys() {
        let group = groups.object(name).ok_or_else(|| {
            config.unsupported("config_groups", format!("{name:?} refers to a scheme instead of having one"))
        })?;
        schemes.extend(Scheme::read(&group, format.filter(|&f| f != "mixed-precision"))?);
    }
    let mut modules = Modules { found: Vec::new(), dropped: files.activation_scales() };
    for (at, name, info) in files.ending(".weight_packed") {
        modules.found.push(packed(files, &schemes, at, name, info)?);
    }
    for (at, name, info) in files.ending(".weight") {
        if info.dtype == list::I8 || fp8::TYPES.contains(&info.dtype) {
            modules.found.push(plain(files, &schemes, at, name, info)?);
        }
    }
    Ok(modules)
}

/// The keys, less those that say that nothing is sparse.
fn check_dense(config: &Config) -> Result<(), Error> {
    let dense = config.object("sparsity_config");
    let dense = match &dense {
        Some(sparsity) => sparsity.text_opt("format")? == Some("dense"),
        None => false,
    };
    check_keys(config, if dense { &[KNOWN, &["sparsity_config"]] } else { &[KNOWN] })
}

/// A module and the scheme that it has.
struct Parts<'a> {
    info: &'a TensorInfo,
    rows: usize,
    columns: usize,
    scheme: Scheme,
    scale_at: usize,
    scale: &'a TensorInfo,
}

/// The first scheme that a module with these planes can have.
fn parts<'a>(
    files: &'a Files<'_>,
    schemes: &[Scheme],
    (name, info): (&str, &'a TensorInfo),
    (rows, columns): (usize, usize),
    stored: impl Fn(&Scheme) -> bool,
) -> Result<Parts<'a>, Error> {
    let (scale_at, scale) = files.need(&format!("{name}.weight_scale"), info)?;
    files.expect_type(scale, fp8::SCALES)?;
    let zeros = files.get(&format!("{name}.weight_zero_point")).is_some();
    let fits =
        |s: &&Scheme| stored(s) && s.strategy.fits(&scale.shape, rows, columns) && (zeros || s.symmetric);
    let scheme = *schemes.iter().find(fits).ok_or_else(|| {
        let shape = &scale.shape;
        let zeros = if zeros { "with" } else { "without" };
        let what = format!("{rows} × {columns}, scales {shape:?}, {zeros} zero points");
        files.corrupt(info, format!("no group of the configuration describes it ({what})"))
    })?;
    Ok(Parts { info, rows, columns, scheme, scale_at, scale })
}

fn packed(
    files: &Files<'_>,
    schemes: &[Scheme],
    at: usize,
    name: &str,
    info: &TensorInfo,
) -> Result<Module, Error> {
    files.expect_type(info, &[list::I32])?;
    let (rows, words) = files.matrix(info)?;
    let (shape_at, shape) = files.need(&format!("{name}.weight_shape"), info)?;
    let want = weight_shape(files, shape_at, shape)?;
    let columns = usize::try_from(want[1]).ok().filter(|&n| n > 0 && want[0] == rows as i64);
    let columns = columns.ok_or_else(|| {
        files.corrupt(shape, format!("it says {want:?} where the weight has {:?} words", info.shape))
    })?;
    let fits = |bits: usize| columns.checked_mul(bits).is_some_and(|n| n.div_ceil(32) == words);
    let stored = |s: &Scheme| s.stored == Stored::Packed && fits(s.bits);
    let parts = parts(files, schemes, (name, info), (rows, columns), stored)?;
    let bits = parts.scheme.bits;
    let plane = Plane { at, shape: (rows, words), turned: false };
    let codes = Packed { plane, bits, along_rows: false, order: None, bias: -(1 << (bits - 1)) };
    integers(files, &parts, (at, name), Ints::Packed(codes), vec![at, shape_at])
}

/// The numbers of `weight_shape`.
fn weight_shape(files: &Files<'_>, at: usize, info: &TensorInfo) -> Result<[i64; 2], Error> {
    files.expect_type(info, &[list::I64, list::I32])?;
    files.expect_shape(info, &[2])?;
    let mut bytes = buffer(files.0, 2 * info.dtype.block_bytes())?;
    files.0.read(at, 0, &mut bytes)?;
    let number = |bytes: &[u8]| match *bytes {
        [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
        _ => bytes.first_chunk::<8>().map_or(-1, |b| i64::from_le_bytes(*b)),
    };
    let (first, second) = bytes.split_at(bytes.len() / 2);
    Ok([number(first), number(second)])
}

fn plain(
    files: &Files<'_>,
    schemes: &[Scheme],
    at: usize,
    name: &str,
    info: &TensorInfo,
) -> Result<Module, Error> {
    let (rows, columns) = files.matrix(info)?;
    let want = if info.dtype == list::I8 { Stored::Bytes } else { Stored::Floats };
    let parts = parts(files, schemes, (name, info), (rows, columns), |s| s.stored == want)?;
    if want == Stored::Bytes {
        let plane = Plane { at, shape: (rows, columns), turned: false };
        return integers(files, &parts, (at, name), Ints::Bytes(plane), vec![at]);
    }
    let block = match parts.scheme.strategy {
        Strategy::Tensor => (rows, columns),
        Strategy::Channel => (1, columns),
        Strategy::Group(size) => (1, size),
        Strategy::Block(rows, columns) => (rows, columns),
    };
    let mut module = fp8::module(files, (at, name, info), (parts.scale_at, parts.scale), block)?;
    if let Some((zeros_at, zeros)) = files.get(&format!("{name}.weight_zero_point")) {
        let mut bytes = buffer(files.0, usize::try_from(zeros.nbytes).unwrap_or(usize::MAX))?;
        files.0.read(zeros_at, 0, &mut bytes)?;
        if !parts.scheme.symmetric || floats(files.0, zeros, &bytes)?.iter().any(|&zero| zero != 0.0) {
            return Err(files.corrupt(zeros, "floats with zero points that are not 0"));
        }
        module.planes.push(zeros_at);
    }
    Ok(module)
}

/// A module of integers, whose planes so far are given.
fn integers(
    files: &Files<'_>,
    parts: &Parts<'_>,
    (at, name): (usize, &str),
    codes: Ints,
    mut planes: Vec<usize>,
) -> Result<Module, Error> {
    let (rows, columns, scheme) = (parts.rows, parts.columns, parts.scheme);
    let (groups, size) = match scheme.strategy {
        Strategy::Tensor | Strategy::Channel => (1, columns),
        Strategy::Group(size) => (columns / size, size),
        Strategy::Block(..) => return Err(files.corrupt(parts.info, "integers with scales for blocks")),
    };
    planes.push(parts.scale_at);
    let scales = match scheme.strategy {
        Strategy::Tensor => {
            let mut bytes = buffer(files.0, parts.scale.dtype.block_bytes())?;
            files.0.read(parts.scale_at, 0, &mut bytes)?;
            Scales::One(floats(files.0, parts.scale, &bytes)?.first().copied().unwrap_or(f32::NAN))
        }
        _ => Scales::Each(Plane { at: parts.scale_at, shape: (rows, groups), turned: false }),
    };
    let zeros = match files.get(&format!("{name}.weight_zero_point")) {
        None => Ints::One(0),
        Some((zeros_at, info)) => {
            planes.push(zeros_at);
            zero_points(files, parts, (zeros_at, info), groups)?
        }
    };
    let map_name = format!("{name}.weight_g_idx");
    let map = match files.get(&map_name) {
        None if scheme.act_order => {
            files.need(&map_name, parts.info)?;
            Groups::Even(size)
        }
        None => Groups::Even(size),
        Some((map_at, info)) => {
            planes.push(map_at);
            groups_of(files, (map_at, info), columns, groups, size)?
        }
    };
    let half = 1 << (scheme.bits - 1);
    let affine = Affine {
        named: at,
        columns,
        groups,
        map,
        codes,
        range: (-half, half - 1),
        zeros,
        scales,
        gathers: false,
    };
    let (dtype, maker) = affine.decide(files.0)?;
    let shape = vec![rows as u64, columns as u64];
    Ok(Module { name: format!("{name}.weight"), planes, shape, dtype, maker })
}

fn zero_points(
    files: &Files<'_>,
    parts: &Parts<'_>,
    (at, info): (usize, &TensorInfo),
    groups: usize,
) -> Result<Ints, Error> {
    let (rows, bits) = (parts.rows, parts.scheme.bits);
    files.expect_type(
        info,
        if parts.scheme.stored == Stored::Packed { &[list::I32, list::I8] } else { &[list::I8] },
    )?;
    if info.dtype == list::I32 {
        let lines = rows.checked_mul(bits).map_or(0, |n| n.div_ceil(32));
        files.expect_shape(info, &[lines, groups])?;
        let plane = Plane { at, shape: (lines, groups), turned: false };
        return Ok(Ints::Packed(Packed {
            plane,
            bits,
            along_rows: true,
            order: None,
            bias: -(1 << (bits - 1)),
        }));
    }
    if info.shape != parts.scale.shape {
        let reason = format!("its shape is {:?}, that of the scales {:?}", info.shape, parts.scale.shape);
        return Err(files.corrupt(info, reason));
    }
    if parts.scheme.strategy == Strategy::Tensor {
        let mut byte = [0];
        files.0.read(at, 0, &mut byte)?;
        return Ok(Ints::One(i16::from(byte[0] as i8)));
    }
    Ok(Ints::Bytes(Plane { at, shape: (rows, groups), turned: false }))
}

/// The map of inputs to groups; −1 everywhere stands for neighbours.
fn groups_of(
    files: &Files<'_>,
    (at, info): (usize, &TensorInfo),
    columns: usize,
    groups: usize,
    size: usize,
) -> Result<Groups, Error> {
    let map = read_map(files, at, info, columns)?;
    if map.iter().all(|&g| g == -1) {
        return Ok(Groups::Even(size));
    }
    let map: Option<Vec<u32>> = map.iter().map(|&g| u32::try_from(g).ok()).collect();
    map.and_then(|map| Groups::of_map(map, groups, size))
        .ok_or_else(|| files.corrupt(info, format!("an input's group is not one of {groups}")))
}
