//! From one checkpoint to another, a few pieces of a tensor at a time.
//!
//! A plan says for every tensor what type it becomes. Pieces of rows are read, unpacked and packed on all threads and
//! written in order by one more, so memory stays at some pieces per thread however large the model is, and the output
//! is the same bytes at any number of threads.

use crate::Error;
use crate::recipe::{self, Recipe, Shape};
use fonio_checkpoint::{Checkpoint, Container, Metadata, Rows, TensorPlan, WriteOptions};
use fonio_codec::{DType, list};
use fonio_kernel::Pool;
use fonio_model::spec::ModelSpec;
use fonio_simd::Isa;
use regex_lite::Regex;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};

/// What tensors become.
pub enum Target {
    /// A recipe's mix.
    Recipe(&'static Recipe),
    /// One type for every weight of a product.
    Type(DType),
    /// What they are.
    Keep,
}

impl Target {
    /// A recipe's name, or a type's.
    pub fn named(name: &str) -> Result<Target, Error> {
        if let Some(recipe) = recipe::named(name) {
            return Ok(Target::Recipe(recipe));
        }
        match DType::named(name) {
            Some(dtype) if dtype.can_quantize() => Ok(Target::Type(dtype)),
            Some(dtype) => Err(Error::Request(format!("{dtype} can be read but not made"))),
            None => {
                let names: Vec<&str> = recipe::ALL.iter().map(|r| r.name).collect();
                Err(Error::Request(format!(
                    "{name:?} is no recipe or type; recipes are {}",
                    names.join(", ")
                )))
            }
        }
    }
}

impl Target {
    fn is_quantized(&self) -> bool {
        match self {
            Target::Recipe(recipe) => recipe.base.is_quantized(),
            Target::Type(dtype) => dtype.is_quantized(),
            Target::Keep => false,
        }
    }
}

/// A type for tensors whose name a pattern finds: `PATTERN=TYPE`.
pub struct Override {
    pattern: Regex,
    dtype: DType,
}

impl Override {
    /// Whether it is for a tensor of this name.
    pub(crate) fn is_for(&self, name: &str) -> bool {
        self.pattern.is_match(name)
    }
}

impl std::str::FromStr for Override {
    type Err = Error;

    /// `PATTERN=TYPE`; the pattern is a regular expression that is searched for in the name.
    fn from_str(text: &str) -> Result<Override, Error> {
        let bad = |reason: String| Error::Request(format!("tensor type {text:?}: {reason}"));
        let (pattern, dtype) = text.rsplit_once('=').ok_or_else(|| bad("is not PATTERN=TYPE".into()))?;
        let pattern = Regex::new(pattern).map_err(|e| bad(e.to_string()))?;
        let dtype = DType::named(dtype).ok_or_else(|| bad(format!("there is no type {dtype:?}")))?;
        if !dtype.can_quantize() {
            return Err(bad(format!("{dtype} can be read but not made")));
        }
        Ok(Override { pattern, dtype })
    }
}

/// Types that a conversion between floats may change.
const FLOATS: &[DType] =
    &[list::F64, list::F32, list::F16, list::BF16, list::F8_E4M3, list::F8_E5M2, list::F8_E8M0];

/// What will be written: metadata, and every tensor with the one that it is made of.
pub struct Plan {
    /// The output's metadata.
    pub metadata: Metadata,
    /// The output's tensors.
    pub tensors: Vec<TensorPlan>,
    /// For each, the index of its source.
    pub sources: Vec<usize>,
}

impl Plan {
    /// Plans a checkpoint with GGUF's names. `metadata` is the output's; the file type is set here.
    pub fn new(
        checkpoint: &dyn Checkpoint,
        spec: &ModelSpec,
        mut metadata: Metadata,
        target: &Target,
        overrides: &[Override],
    ) -> Result<Plan, Error> {
        let shape = shape(spec);
        let mut plan = Plan { metadata: Metadata::new(), tensors: Vec::new(), sources: Vec::new() };
        let mut used = vec![false; overrides.len()];
        for (at, info) in checkpoint.tensors().iter().enumerate() {
            let wanted = overrides.iter().position(|o| o.pattern.is_match(&info.name));
            let product = recipe::is_product_weight(&info.name, &info.shape);
            let dtype = match (wanted, target) {
                (Some(i), _) if product => {
                    used[i] = true;
                    overrides[i].dtype
                }
                (_, Target::Keep) if product || !FLOATS.contains(&info.dtype) => info.dtype,
                // Weights that were trained in this type lose by any other, and gain nothing by a larger one.
                _ if info.dtype == list::MXFP4 && target.is_quantized() => info.dtype,
                (_, Target::Recipe(recipe)) => {
                    recipe.choose(&info.name, &info.shape, &shape).unwrap_or_else(|| plain(info.dtype))
                }
                (_, Target::Type(dtype)) if product => recipe::fitting(*dtype, info.row_len()),
                _ => plain(info.dtype),
            };
            if dtype.bytes_for(info.row_len()).is_none() {
                let (row, block) = (info.row_len(), dtype.block_len());
                let reason = format!("rows of {row} values are no whole blocks of {dtype} ({block} values)");
                return Err(Error::Tensor { tensor: info.name.clone(), reason });
            }
            let group = fonio_model::group(&info.name);
            let tensor = TensorPlan::new(info.name.clone(), dtype, info.shape.clone());
            plan.tensors.push(TensorPlan { group, ..tensor });
            plan.sources.push(at);
        }
        if let Some(i) = used.iter().position(|used| !used) {
            let pattern = overrides[i].pattern.as_str();
            return Err(Error::Request(format!("no weight's name has the pattern {pattern:?} to itself")));
        }
        if let Some(file_type) = file_type(target) {
            metadata.insert("general.file_type", file_type);
        }
        if plan.tensors.iter().any(|t| t.dtype.is_quantized()) {
            metadata.insert("general.quantization_version", 2u32);
        }
        plan.metadata = metadata;
        Ok(plan)
    }

    /// Plans tensors under any names for a container of plain numbers: floats become `dtype`, or stay as they are, or
    /// `F16` if they are quantized; integers stay.
    pub fn floats(checkpoint: &dyn Checkpoint, metadata: Metadata, dtype: Option<DType>) -> Plan {
        let mut plan = Plan { metadata, tensors: Vec::new(), sources: Vec::new() };
        for (at, info) in checkpoint.tensors().iter().enumerate() {
            let dtype = match dtype {
                Some(dtype) if info.dtype.is_quantized() || FLOATS.contains(&info.dtype) => dtype,
                _ if info.dtype.is_quantized() => list::F16,
                _ => info.dtype,
            };
            plan.tensors.push(TensorPlan::new(info.name.clone(), dtype, info.shape.clone()));
            plan.sources.push(at);
        }
        plan
    }

    /// Bytes of all tensors.
    pub fn nbytes(&self) -> u64 {
        self.tensors.iter().filter_map(TensorPlan::nbytes).sum()
    }

    /// Values of all tensors.
    pub fn len(&self) -> u64 {
        self.tensors.iter().map(|t| t.shape.iter().product::<u64>()).sum()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a tensor that is no weight of a product becomes. Norms, biases, convolutions and routers are few values, and
/// ggml computes most of them in `F32` alone, of however many dimensions they are.
fn plain(dtype: DType) -> DType {
    if dtype.is_quantized() || FLOATS.contains(&dtype) { list::F32 } else { dtype }
}

fn file_type(target: &Target) -> Option<u32> {
    match target {
        Target::Recipe(recipe) => Some(recipe.file_type),
        Target::Type(dtype) => recipe::ALL.iter().find(|r| r.base == *dtype).map(|r| r.file_type),
        Target::Keep => None,
    }
}

fn shape(spec: &ModelSpec) -> Shape {
    let heads_per_key = spec.first_attention().map_or(1, |a| a.n_heads / a.n_kv_heads);
    Shape { n_layers: spec.layers.len(), heads_per_key, has_head: spec.has_head }
}

/// How a conversion runs.
pub struct Settings<'a> {
    /// Threads that compute.
    pub threads: usize,
    /// Their instruction set.
    pub isa: Isa,
    /// How the output is written.
    pub write: WriteOptions,
    /// Is told after each tensor's pieces how many values of the plan are done, and which tensor it was.
    pub progress: &'a (dyn Fn(u64, &str) + Sync),
    /// Ends the conversion with [`Error::Cancelled`] soon after it is set.
    pub cancel: Option<&'a AtomicBool>,
}

/// Values of a piece: some megabytes of `f32`.
const PIECE: u64 = 1 << 20;

/// Runs a plan and names the files that were written. On an error nothing is left behind.
pub fn run(
    checkpoint: &dyn Checkpoint,
    plan: &Plan,
    container: &Container,
    out: &Path,
    settings: &Settings<'_>,
) -> Result<Vec<PathBuf>, Error> {
    let create = container
        .create
        .ok_or_else(|| Error::Request(format!("{} files can be read but not written", container.name)))?;
    for source in checkpoint.files() {
        if fonio_checkpoint::output::same_file(source, out) {
            return Err(Error::Request(format!("{} is a file of the source", out.display())));
        }
    }
    let mut writer = create(out, &plan.metadata, &plan.tensors, &settings.write)?;
    let pieces = pieces(plan, writer.order());
    let pool = Pool::new(settings.threads);
    let round = (pool.threads() * 2).max(2);
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel::<Vec<Vec<u8>>>(1);
        let writing = scope.spawn(move || -> Result<Vec<PathBuf>, Error> {
            for round in receive {
                for bytes in round {
                    writer.append(&bytes)?;
                }
            }
            Ok(writer.finish()?)
        });
        let mut done = 0;
        let mut failed = None;
        for round in pieces.chunks(round) {
            if settings.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                failed = Some(Error::Cancelled);
                break;
            }
            match compute(checkpoint, plan, round, &pool, settings.isa) {
                // A writer that is gone has an error of its own to tell.
                Ok(packed) => {
                    if send.send(packed).is_err() {
                        break;
                    }
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
            for piece in round {
                let tensor = &plan.tensors[piece.tensor];
                done += (piece.rows.end - piece.rows.start) * tensor.shape.last().copied().unwrap_or(1);
                (settings.progress)(done, &tensor.name);
            }
        }
        drop(send);
        // Without all bytes the writer's `finish` is an error, and it takes its temporary files away.
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match failed {
            Some(error) => Err(error),
            None => written,
        }
    })
}

/// Cuts the rows that a writer wants, in its order or the plan's, into pieces.
fn pieces(plan: &Plan, order: Option<Vec<Rows>>) -> Vec<Rows> {
    // A sum has no rows of its own.
    let all = |t: &TensorPlan| 0..if t.terms.is_empty() { t.shape.iter().rev().skip(1).product() } else { 0 };
    let order = order.unwrap_or_else(|| {
        plan.tensors.iter().enumerate().map(|(tensor, t)| Rows { tensor, rows: all(t) }).collect()
    });
    let mut pieces = Vec::new();
    for Rows { tensor, rows } in order {
        let row = plan.tensors[tensor].shape.last().copied().unwrap_or(1);
        if row == 0 {
            continue;
        }
        let step = (PIECE / row).max(1);
        let mut first = rows.start;
        while first < rows.end {
            let end = rows.end.min(first + step);
            pieces.push(Rows { tensor, rows: first..end });
            first = end;
        }
    }
    pieces
}

/// Packs a round of pieces, each on whichever thread is free.
fn compute(
    checkpoint: &dyn Checkpoint,
    plan: &Plan,
    round: &[Rows],
    pool: &Pool,
    isa: Isa,
) -> Result<Vec<Vec<u8>>, Error> {
    let slots: Vec<Mutex<Result<Vec<u8>, Error>>> =
        round.iter().map(|_| Mutex::new(Ok(Vec::new()))).collect();
    pool.each(
        round.len(),
        1,
        || (),
        |(), range| {
            for i in range {
                let packed = pack(checkpoint, plan, &round[i], isa);
                *slots[i].lock().unwrap_or_else(PoisonError::into_inner) = packed;
            }
        },
    );
    slots.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// Reads a piece and packs it into its planned type.
pub(crate) fn pack(checkpoint: &dyn Checkpoint, plan: &Plan, piece: &Rows, isa: Isa) -> Result<Vec<u8>, Error> {
    let (to, source) = (&plan.tensors[piece.tensor], plan.sources[piece.tensor]);
    let from = &checkpoint.tensors()[source];
    let bad = |reason: String| Error::Tensor { tensor: to.name.clone(), reason };
    let (row, rows) = (from.row_len(), piece.rows.end - piece.rows.start);
    let sized = |dtype: DType, rows: u64| {
        let bytes = dtype.bytes_for(row).and_then(|n| n.checked_mul(rows));
        bytes.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| bad("is too large".into()))
    };
    let mut bytes = vec![0; sized(from.dtype, rows)?];
    let offset = from.dtype.bytes_for(row).unwrap_or(0).saturating_mul(piece.rows.start);
    checkpoint.read(source, offset, &mut bytes)?;
    if from.dtype == to.dtype {
        return Ok(bytes);
    }
    let mut values = vec![0f32; usize::try_from(rows * row).map_err(|e| bad(e.to_string()))?];
    from.dtype.dequantize(isa, &bytes, &mut values).map_err(|e| bad(e.to_string()))?;
    bytes.clear();
    bytes.resize(sized(to.dtype, rows)?, 0);
    if to.dtype == list::F16
        && let Some(at) = values.iter().position(|x| x.is_finite() && x.abs() >= 65_520.0)
    {
        let at = piece.rows.start * row + at as u64;
        return Err(bad(format!(
            "value {at} is {}, beyond F16; use BF16 or F32 for it",
            values[(at - piece.rows.start * row) as usize]
        )));
    }
    to.dtype.quantize(isa, &values, None, &mut bytes).map_err(|e| bad(e.to_string()))?;
    Ok(bytes)
}
