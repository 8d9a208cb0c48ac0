//! Hugging Face checkpoints that are quantized already, seen as checkpoints of plain weights.
//!
//! A quantized module keeps its weight in several tensors ("planes"): integers packed into words, scales, zero points,
//! a map of columns. [`open`] gives a checkpoint in which they are one tensor, `x.weight` of shape `[rows, columns]`
//! (outputs by inputs, as an unquantized module has it); all other tensors stay as they are.
//!
//! | `quant_method` | planes | file |
//! |---|---|---|
//! | `gptq` | `qweight`, `qzeros`, `scales`, `g_idx` | [`gptq`] |
//! | `awq` | `qweight`, `qzeros`, `scales` | [`awq`] |
//! | `compressed-tensors` | `weight_packed` or `weight`, `weight_scale`, `weight_zero_point`, … | [`compressed_tensors`] |
//! | `fp8` | `weight`, `weight_scale` or `weight_scale_inv` | [`fp8`] |
//! | `mxfp4` | `x_blocks`, `x_scales` | [`mxfp4`] |
//!
//! # Values and types
//! Nothing is quantized a second time. Where the values are exactly those of a ggml type, the tensor has that type:
//! integers around zero in groups of whole blocks whose scales are all exact in half precision become `Q4_0`, `Q5_0` or
//! `Q8_0`, the narrowest that holds them; MXFP4 stays MXFP4; 8-bit floats whose scales are powers of two become `BF16`.
//! Everything else is `F32`, each value being `scale · (q − zero)` with one rounding, which changes nothing for scales of
//! 16 bits. Which it is, is decided when the checkpoint is opened, from the scales and zero points; experts of a layer,
//! which others keep in one tensor, get the same type.
//!
//! What a configuration says of *activations* (`input_activations`, `activation_scheme`, `kv_cache_scheme`, planes such as
//! `input_scale`) does not change weights and is ignored: activations are computed as for every other model. Whatever
//! could change weights and is not known here is an error that names it.
//!
//! # Reading
//! Tensors are made when they are read, a few rows at a time, by any number of threads at once. Some layouts pack along
//! the inputs, so that a row lies in every line of the plane; their rows are made in tiles of [`TILE`] values, and the
//! last tiles are kept for readers that take single rows. Nothing is allocated beyond some tiles, and a tile is never
//! larger than a small multiple of the planes that it is made of.

mod affine;
mod awq;
mod compressed_tensors;
mod fp8;
mod gptq;
pub mod mxfp4;
mod plane;

use crate::Error;
use crate::keys::Config;
use fonio_checkpoint::{
    Checkpoint, Checksums, Error as FileError, Location, Metadata, TensorInfo, TensorPlan,
};
use fonio_codec::{DType, list};
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Values of a tile: at most 2 MiB of `f32`.
const TILE: usize = 1 << 19;

/// A way to quantize checkpoints.
struct Method {
    /// `quant_method` in the configuration.
    name: &'static str,
    /// Finds the quantized modules.
    find: fn(&Files<'_>, &Config) -> Result<Modules, Error>,
}

/// Every method that is read, one line each.
const ALL: &[Method] = &[
    Method { name: "gptq", find: gptq::find },
    Method { name: "awq", find: awq::find },
    Method { name: "compressed-tensors", find: compressed_tensors::find },
    Method { name: "fp8", find: fp8::find },
    Method { name: "mxfp4", find: mxfp4::find },
];

/// What a method found.
#[derive(Default)]
struct Modules {
    found: Vec<Module>,
    /// Tensors that are no part of any weight and change none: scales of activations.
    dropped: Vec<usize>,
}

/// A quantized module.
struct Module {
    /// The name that its weight gets.
    name: String,
    /// What is read instead of it; the first one says where it is in the list of tensors.
    planes: Vec<usize>,
    shape: Vec<u64>,
    dtype: DType,
    maker: Box<dyn Maker>,
}

/// Makes rows of a weight.
trait Maker: Send + Sync {
    /// Whether a row is gathered from all over its planes, so that it costs much less with its neighbours.
    fn gathers(&self) -> bool;
    /// Makes rows of this type from now on, if their values are exactly the same in it.
    fn widen(&mut self, dtype: DType) -> bool;
    /// Makes `count` rows from `first` on. `dst` has their size, and the rows are there.
    fn rows(
        &self,
        inner: &dyn Checkpoint,
        first: usize,
        count: usize,
        dst: &mut [u8],
    ) -> Result<(), FileError>;
}

/// A checkpoint in which each quantized module of `inner` has one weight. `config` is its `quantization_config`.
pub fn open(inner: Arc<dyn Checkpoint>, config: &Config) -> Result<Arc<dyn Checkpoint>, Error> {
    let name = config.text_opt("quant_method")?.ok_or_else(|| config.wrong("quant_method", "is missing"))?;
    let method = ALL.iter().find(|m| m.name == name).ok_or_else(|| {
        let known: Vec<&str> = ALL.iter().map(|m| m.name).collect();
        config.unsupported("quant_method", format!("{name:?}; known are {}", known.join(", ")))
    })?;
    let mut modules = (method.find)(&Files(inner.as_ref()), config)?;
    unify(&mut modules.found);
    Ok(Arc::new(Merged::new(inner, modules)?))
}

/// Keys of a config.json, or of the `text_config` in it, that say how its weights are quantized.
pub const KEYS: &[&str] = &["quantization_config", "compression_config"];

/// What a model's config.json says of quantized weights.
fn part(config: &Config) -> Result<Option<Config>, Error> {
    let text = config.text();
    for config in [config, &text] {
        if let Some(key) = KEYS.iter().find(|key| config.get(key).is_some()) {
            return config.object(key).map(Some).ok_or_else(|| config.wrong(key, "is no object"));
        }
    }
    Ok(None)
}

/// `inner` itself, or what [`open`] makes of it if the model's config.json says that it is quantized.
pub fn wrap(inner: Arc<dyn Checkpoint>, config: &Config) -> Result<Arc<dyn Checkpoint>, Error> {
    match part(config)? {
        Some(part) => open(inner, &part),
        None => Ok(inner),
    }
}

/// For folders that become folders of plain numbers: what [`open`] makes of `inner`, whose configuration then has to lose
/// [`KEYS`]. `None` if nothing is quantized, or by a method whose modules have no plain weight of the same layout (MXFP4):
/// then all planes stay.
pub fn unpacked(inner: Arc<dyn Checkpoint>, config: &Config) -> Result<Option<Arc<dyn Checkpoint>>, Error> {
    match part(config)? {
        Some(part) if part.text_opt("quant_method")? != Some("mxfp4") => open(inner, &part).map(Some),
        _ => Ok(None),
    }
}

/// Gives modules that will be one tensor, experts of a layer, the same type: the widest that one of them needs.
fn unify(modules: &mut [Module]) {
    let mut experts: HashMap<String, Vec<usize>> = HashMap::new();
    for (i, module) in modules.iter().enumerate() {
        let mut parts: Vec<&str> = module.name.split('.').collect();
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let numbers: Vec<usize> = (0..parts.len()).filter(|&at| is_number(parts[at])).collect();
        if let [_, .., last] = numbers[..] {
            parts[last] = "";
            experts.entry(parts.join(".")).or_default().push(i);
        }
    }
    for members in experts.into_values() {
        let types = members.iter().map(|&i| modules[i].dtype);
        let widest = types.max_by(|a, b| a.bits_per_weight().total_cmp(&b.bits_per_weight()));
        let Some(widest) = widest.filter(|&t| members.iter().any(|&i| modules[i].dtype != t)) else {
            continue;
        };
        let all = members.iter().all(|&i| modules[i].maker.widen(widest));
        for i in members {
            if all || modules[i].maker.widen(list::F32) {
                modules[i].dtype = if all { widest } else { list::F32 };
            }
        }
    }
}

/// Refuses keys of a configuration that are neither in `known` nor switched off: they could change weights.
fn check_keys(config: &Config, known: &[&[&str]]) -> Result<(), Error> {
    for key in config.keys() {
        let off = config.get(key).is_none_or(|value| {
            value.as_bool() == Some(false)
                || value.as_object().is_some_and(|o| o.is_empty())
                || value.as_array().is_some_and(|a| a.is_empty())
                || value.as_str() == Some("")
        });
        if !off && !known.iter().any(|list| list.contains(&key)) {
            return Err(config.unsupported(key, "an unknown key, which could change weights"));
        }
    }
    Ok(())
}

/// The group size of a configuration: `None` for −1, a group for each row.
fn group_size(config: &Config, key: &str) -> Result<Option<usize>, Error> {
    let value = config.get(key).ok_or_else(|| config.wrong(key, "is missing"))?;
    match value.as_i64() {
        Some(-1) => Ok(None),
        Some(n @ 1..=0x7fff_ffff) => Ok(Some(n as usize)),
        _ => Err(config.wrong(key, format!("{value} is no group size"))),
    }
}

/// The tensors of the files, with errors that name them.
struct Files<'a>(&'a dyn Checkpoint);

impl Files<'_> {
    /// The tensor with this name and its index.
    fn get(&self, name: &str) -> Option<(usize, &TensorInfo)> {
        let at = self.0.find(name)?;
        Some((at, self.0.tensors().get(at)?))
    }

    /// The same for one that has to be there because `of` is.
    fn need(&self, name: &str, of: &TensorInfo) -> Result<(usize, &TensorInfo), Error> {
        self.get(name)
            .ok_or_else(|| Error::MissingTensor { file: file_of(self.0, of), tensor: name.to_owned() })
    }

    /// All tensors whose name ends so: index, beginning of the name, tensor.
    fn ending<'s>(&'s self, end: &'s str) -> impl Iterator<Item = (usize, &'s str, &'s TensorInfo)> {
        let all = self.0.tensors().iter().enumerate();
        all.filter_map(move |(at, info)| Some((at, info.name.strip_suffix(end)?, info)))
    }

    /// An error about a tensor that contradicts its type, its neighbours or the configuration.
    fn corrupt(&self, info: &TensorInfo, reason: impl Into<String>) -> Error {
        corrupt(self.0, info, reason).into()
    }

    /// Refuses a tensor of another shape.
    fn expect_shape(&self, info: &TensorInfo, want: &[usize]) -> Result<(), Error> {
        if info.shape.iter().map(|&n| usize::try_from(n).ok()).eq(want.iter().map(|&n| Some(n))) {
            return Ok(());
        }
        Err(self.corrupt(info, format!("its shape is {:?} where {want:?} fits the module", info.shape)))
    }

    /// Refuses a tensor of a type that is not in the list.
    fn expect_type(&self, info: &TensorInfo, want: &[DType]) -> Result<(), Error> {
        if want.contains(&info.dtype) {
            return Ok(());
        }
        let names: Vec<&str> = want.iter().map(|t| t.name()).collect();
        Err(self.corrupt(info, format!("its type is {} where {} are read", info.dtype, names.join(", "))))
    }

    /// The dimensions of a matrix with values.
    fn matrix(&self, info: &TensorInfo) -> Result<(usize, usize), Error> {
        match info.shape[..] {
            [rows, cols] if rows > 0 && cols > 0 => match (usize::try_from(rows), usize::try_from(cols)) {
                (Ok(rows), Ok(cols)) => Ok((rows, cols)),
                _ => Err(self.corrupt(info, format!("its shape {:?} is too large", info.shape))),
            },
            _ => Err(self.corrupt(info, format!("its shape {:?} is no matrix with values", info.shape))),
        }
    }

    /// Scales of activations, by the last part of their names.
    fn activation_scales(&self) -> Vec<usize> {
        const NAMES: &[&str] = &[
            "input_scale",
            "input_zero_point",
            "activation_scale",
            "output_scale",
            "output_zero_point",
            "k_scale",
            "v_scale",
            "q_scale",
            "kv_scale",
            "k_zero_point",
            "v_zero_point",
        ];
        let last =
            |info: &TensorInfo| info.name.rsplit_once('.').is_some_and(|(_, end)| NAMES.contains(&end));
        self.0.tensors().iter().enumerate().filter(|(_, info)| last(info)).map(|(at, _)| at).collect()
    }
}

fn file_of(inner: &dyn Checkpoint, info: &TensorInfo) -> PathBuf {
    inner.files().get(info.file).or(inner.files().first()).cloned().unwrap_or_default()
}

fn corrupt(inner: &dyn Checkpoint, info: &TensorInfo, reason: impl Into<String>) -> FileError {
    FileError::Corrupt {
        file: file_of(inner, info),
        tensor: Some(info.name.clone()),
        offset: Some(info.offset),
        reason: reason.into(),
    }
}

/// A buffer of `len` zeros, or an error if there is no memory for it.
fn buffer<T: Clone + Default>(inner: &dyn Checkpoint, len: usize) -> Result<Vec<T>, FileError> {
    let mut buffer = Vec::new();
    if buffer.try_reserve_exact(len).is_err() {
        let file = inner.files().first().cloned().unwrap_or_default();
        let reason = format!("no memory for {len} values");
        return Err(FileError::Limit { file, tensor: None, reason });
    }
    buffer.resize(len, T::default());
    Ok(buffer)
}

/// Where a tensor of the view comes from.
enum Origin {
    Same(usize),
    Made { maker: Box<dyn Maker>, row_bytes: usize, rows: usize, tile: usize },
}

/// The view.
struct Merged {
    inner: Arc<dyn Checkpoint>,
    tensors: Vec<TensorInfo>,
    origins: Vec<Origin>,
    index: HashMap<String, usize>,
    cache: Tiles,
}

impl Merged {
    fn new(inner: Arc<dyn Checkpoint>, modules: Modules) -> Result<Merged, Error> {
        let mut gone: Vec<bool> = vec![false; inner.tensors().len()];
        let mut made: HashMap<usize, Module> = HashMap::new();
        for at in
            modules.dropped.into_iter().chain(modules.found.iter().flat_map(|m| m.planes.iter().copied()))
        {
            if let Some(gone) = gone.get_mut(at) {
                *gone = true;
            }
        }
        for module in modules.found {
            made.insert(module.planes.first().copied().unwrap_or(usize::MAX), module);
        }
        let cache = Tiles::default();
        let mut merged = Merged {
            inner: inner.clone(),
            tensors: Vec::new(),
            origins: Vec::new(),
            index: HashMap::new(),
            cache,
        };
        for (at, info) in inner.tensors().iter().enumerate() {
            match made.remove(&at) {
                Some(module) => merged.push_module(info, module)?,
                None if gone.get(at) == Some(&true) => {}
                None => merged.push(info, info.clone(), Origin::Same(at))?,
            }
        }
        Ok(merged)
    }

    fn push_module(&mut self, plane: &TensorInfo, module: Module) -> Result<(), Error> {
        let Module { name, shape, dtype, maker, .. } = module;
        let plan = TensorPlan::new(name, dtype, shape);
        let sizes = || {
            let row = *plan.shape.last()?;
            let nbytes = plan.nbytes().filter(|&n| i64::try_from(n).is_ok())?;
            let row_bytes = usize::try_from(dtype.bytes_for(row)?).ok()?;
            let rows = usize::try_from(nbytes.checked_div(row_bytes as u64)?).ok()?;
            let tile = (TILE / usize::try_from(row).ok()?.max(1)).max(1);
            Some((nbytes, row_bytes, rows, tile))
        };
        let (nbytes, row_bytes, rows, tile) = sizes().ok_or_else(|| {
            corrupt(self.inner.as_ref(), plane, format!("shape {:?} overflows", plan.shape))
        })?;
        let TensorPlan { name, dtype, shape, .. } = plan;
        let info = TensorInfo { name, dtype, shape, file: plane.file, offset: plane.offset, nbytes };
        self.push(plane, info, Origin::Made { maker, row_bytes, rows, tile })
    }

    fn push(&mut self, source: &TensorInfo, info: TensorInfo, origin: Origin) -> Result<(), Error> {
        if self.index.insert(info.name.clone(), self.tensors.len()).is_some() {
            let reason = format!("there are two tensors that are {:?}", info.name);
            return Err(corrupt(self.inner.as_ref(), source, reason).into());
        }
        self.tensors.push(info);
        self.origins.push(origin);
        Ok(())
    }

    fn get(&self, tensor: usize) -> Result<(&TensorInfo, &Origin), FileError> {
        let found = self.tensors.get(tensor).zip(self.origins.get(tensor));
        found.ok_or_else(|| self.refused(format!("there is no tensor {tensor}")))
    }

    fn refused(&self, reason: String) -> FileError {
        FileError::Refused { file: self.inner.files().first().cloned().unwrap_or_default(), reason }
    }

    /// A tile of a made tensor, from the cache or made now.
    fn tile(&self, tensor: usize, number: usize) -> Result<Arc<[u8]>, FileError> {
        if let Some(tile) = self.cache.get(tensor, number) {
            return Ok(tile);
        }
        let (info, Origin::Made { maker, row_bytes, rows, tile }) = self.get(tensor)? else {
            return Err(self.refused(format!("tensor {tensor} has no tiles")));
        };
        let first = number.saturating_mul(*tile);
        let count = rows.saturating_sub(first).min(*tile);
        if count == 0 {
            return Err(self.refused(format!("{:?} has no row {first}", info.name)));
        }
        let mut bytes = buffer(self.inner.as_ref(), count * row_bytes)?;
        maker.rows(self.inner.as_ref(), first, count, &mut bytes)?;
        let made: Arc<[u8]> = bytes.into();
        self.cache.put(tensor, number, made.clone());
        Ok(made)
    }

    /// Fills `dst` from byte `offset` of a made tensor on; the range is in the tensor.
    fn make(&self, tensor: usize, offset: u64, mut dst: &mut [u8]) -> Result<(), FileError> {
        let (_, Origin::Made { maker, row_bytes, tile, .. }) = self.get(tensor)? else {
            return Err(self.refused(format!("tensor {tensor} is not made")));
        };
        let too_large = || self.refused("an offset beyond the address space".into());
        let mut offset = usize::try_from(offset).map_err(|_| too_large())?;
        while !dst.is_empty() {
            let (row, within) = (offset / row_bytes, offset % row_bytes);
            let whole = if within == 0 { dst.len() / row_bytes } else { 0 };
            // Few rows that are gathered from everywhere come from tiles, so that the next ones are there already.
            let direct = whole > 0 && (!maker.gathers() || whole * 4 >= *tile);
            let n = if direct {
                let count = whole.div_ceil(whole.div_ceil(*tile));
                let (now, _) = dst.split_at_mut(count * row_bytes);
                maker.rows(self.inner.as_ref(), row, count, now)?;
                now.len()
            } else {
                let bytes = self.tile(tensor, row / tile)?;
                let from = row % tile * row_bytes + within;
                let bytes = bytes.get(from..).unwrap_or_default();
                let n = bytes.len().min(dst.len());
                if n == 0 {
                    return Err(self.refused(format!("tensor {tensor} ends before byte {offset}")));
                }
                dst[..n].copy_from_slice(&bytes[..n]);
                n
            };
            (offset, dst) = (offset + n, &mut dst[n..]);
        }
        Ok(())
    }
}

impl Checkpoint for Merged {
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
        let (info, origin) = self.get(tensor)?;
        if let Origin::Same(at) = origin {
            return self.inner.bytes(*at);
        }
        let len = usize::try_from(info.nbytes)
            .map_err(|_| self.refused(format!("{:?} is larger than the address space", info.name)))?;
        let mut bytes = buffer(self.inner.as_ref(), len)?;
        self.make(tensor, 0, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), FileError> {
        let (info, origin) = self.get(tensor)?;
        if let Origin::Same(at) = origin {
            return self.inner.read(*at, offset, dst);
        }
        if offset.checked_add(dst.len() as u64).is_none_or(|end| end > info.nbytes) {
            let (name, nbytes, len) = (&info.name, info.nbytes, dst.len());
            return Err(self.refused(format!(
                "{name:?} has {nbytes} bytes; {len} from byte {offset} on were asked for"
            )));
        }
        self.make(tensor, offset, dst)
    }
    fn locate(&self, tensor: usize, range: Range<u64>) -> Option<Location> {
        match self.get(tensor).ok()?.1 {
            Origin::Same(at) => self.inner.locate(*at, range),
            _ => None,
        }
    }
    fn verify_checksums(&self) -> Result<Checksums, FileError> {
        self.inner.verify_checksums()
    }
}

/// The tiles that were made last: two for each thread that may read, for rows that alternate between two tiles.
struct Tiles {
    most: usize,
    last: Mutex<VecDeque<Tile>>,
}

/// A tile: which tensor's, which one of it, its bytes.
type Tile = (usize, usize, Arc<[u8]>);

impl Default for Tiles {
    fn default() -> Tiles {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Tiles { most: 2 * threads.min(64) + 2, last: Mutex::default() }
    }
}

impl Tiles {
    fn get(&self, tensor: usize, number: usize) -> Option<Arc<[u8]>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let at = last.iter().position(|(t, n, _)| (*t, *n) == (tensor, number))?;
        let found = last.remove(at)?;
        let tile = found.2.clone();
        last.push_back(found);
        Some(tile)
    }

    fn put(&self, tensor: usize, number: usize, tile: Arc<[u8]>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.push_back((tensor, number, tile));
        while last.len() > self.most {
            last.pop_front();
        }
    }
}
