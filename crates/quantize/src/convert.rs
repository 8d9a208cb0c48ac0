//! From one checkpoint to another, a few pieces of a tensor at a time.
//!
//! A plan says for every tensor what type it becomes. Pieces of rows are read, unpacked and packed on all threads and
//! written in order by one more, so memory stays at some pieces per thread however large the model is, and the output
//! is the same bytes at any number of threads.

use crate::Error;
use crate::outliers::{Kept, Role, Sum};
use crate::recipe::{self, Recipe, Shape};
use fonio_checkpoint::{
    Checkpoint, Container, Group, Location, Metadata, Resumed, Rows, TensorPlan, WriteOptions,
};
use fonio_codec::{DType, list, qsf};
use fonio_kernel::{Lent, Pool, Spare};
use fonio_model::spec::ModelSpec;
use fonio_simd::Isa;
use regex_lite::Regex;
use std::collections::HashMap;
use std::ops::Range;
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
    /// One of QSF's types, and how many of the values of layers stand beside its blocks.
    Qsf(DType, f64),
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
    /// A kind of QSF's blocks (`4bit`, `2bit_outlier`), `fp16`, or what [`Target::named`] knows. `fraction` of the values
    /// of a kind with outliers are kept beside the blocks.
    pub fn qsf(name: &str, block: usize, fraction: f64) -> Result<Target, Error> {
        if name.eq_ignore_ascii_case("fp16") {
            return Ok(Target::Type(list::F16));
        }
        let suffix =
            name.len().checked_sub(OUTLIER.len()).and_then(|at| Some((name.get(..at)?, name.get(at..)?)));
        let (kind, fraction) = match suffix {
            Some((kind, end)) if end.eq_ignore_ascii_case(OUTLIER) => (kind, fraction),
            _ => (name, 0.0),
        };
        if !(0.0..=MAX_FRACTION).contains(&fraction) {
            return Err(Error::Request(format!(
                "a fraction of {fraction} outliers; 0 to {MAX_FRACTION} make sense"
            )));
        }
        if !qsf::BLOCKS.contains(&block) {
            return Err(Error::Request(format!("blocks of {block} values; they have {:?}", qsf::BLOCKS)));
        }
        match qsf::named(kind, block) {
            Some(dtype) => Ok(Target::Qsf(dtype, fraction)),
            None => Target::named(name),
        }
    }

    fn is_quantized(&self) -> bool {
        match self {
            Target::Recipe(recipe) => recipe.base.is_quantized(),
            Target::Type(dtype) | Target::Qsf(dtype, _) => dtype.is_quantized(),
            Target::Keep => false,
        }
    }
}

/// What the names of kinds with outliers end with.
const OUTLIER: &str = "_outlier";
/// Beyond this, outliers cost more than they bring.
const MAX_FRACTION: f64 = 0.1;

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
    /// Those that are stored as sums.
    sums: Vec<Sum>,
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
        let kind = |dtype| qsf::kind(dtype).map(|(kind, _)| kind);
        let mut plan =
            Plan { metadata: Metadata::new(), tensors: Vec::new(), sources: Vec::new(), sums: Vec::new() };
        let mut used = vec![false; overrides.len()];
        for (at, info) in checkpoint.tensors().iter().enumerate() {
            let wanted = overrides.iter().position(|o| o.pattern.is_match(&info.name));
            let product = fonio_model::is_product_weight(&info.name, &info.shape);
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
                (_, Target::Qsf(dtype, _)) if product => {
                    recipe::qsf(*dtype, &info.name, info.row_len(), &shape)
                }
                _ => plain(info.dtype),
            };
            if dtype.bytes_for(info.row_len()).is_none() {
                let (row, block) = (info.row_len(), dtype.block_len());
                let reason = format!("rows of {row} values are no whole blocks of {dtype} ({block} values)");
                return Err(Error::Tensor { tensor: info.name.clone(), reason });
            }
            let group = fonio_model::group(&info.name, &info.shape);
            let tensor = TensorPlan::new(info.name.clone(), dtype, info.shape.clone());
            let tensor = TensorPlan { group, ..tensor };
            match target {
                // Not what is alone: rows of embeddings are read by themselves.
                Target::Qsf(base, fraction)
                    if product && group != Group::Alone && kind(dtype) == kind(*base) =>
                {
                    plan.push_with_outliers(tensor, at, *fraction);
                }
                _ => plan.push(tensor, at),
            }
        }
        if let Some(i) = used.iter().position(|used| !used) {
            let pattern = overrides[i].pattern.as_str();
            return Err(Error::Request(format!("no weight's name has the pattern {pattern:?} to itself")));
        }
        if let Some(file_type) = file_type(target) {
            metadata.insert("general.file_type", file_type);
        } else if matches!(target, Target::Qsf(..)) {
            // GGUF has no number for it, and the source's is not it.
            metadata.remove("general.file_type");
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
        let mut plan = Plan { metadata, tensors: Vec::new(), sources: Vec::new(), sums: Vec::new() };
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

    fn push(&mut self, tensor: TensorPlan, source: usize) {
        self.tensors.push(tensor);
        self.sources.push(source);
    }

    fn push_with_outliers(&mut self, tensor: TensorPlan, source: usize, fraction: f64) {
        match Sum::plan(self.tensors.len(), &tensor, fraction, PIECE) {
            None => self.push(tensor, source),
            Some((sum, all)) => {
                self.sums.push(sum);
                all.into_iter().for_each(|tensor| self.push(tensor, source));
            }
        }
    }

    /// Whether each entry is a tensor, as opposed to a plane of one.
    pub fn is_tensor(&self) -> Vec<bool> {
        let mut is = vec![true; self.tensors.len()];
        let planes = self.tensors.iter().flat_map(|t| &t.terms).flat_map(|term| term.planes());
        planes.for_each(|plane| is[plane] = false);
        is
    }

    /// The sum that an entry is a plane of, and which.
    fn plane(&self, at: usize) -> Option<(&Sum, Role)> {
        self.sums.iter().find_map(|sum| Some((sum, sum.role(at)?)))
    }

    /// Types that a container does not have become `F16`: those of other containers, and sums.
    pub fn widen(&mut self, checkpoint: &dyn Checkpoint, has: impl Fn(DType) -> bool) {
        for (tensor, source) in self.tensors.iter_mut().zip(&self.sources) {
            let is_sum = checkpoint.is_sum(*source) && tensor.dtype == list::F32;
            if !has(tensor.dtype) || is_sum {
                tensor.dtype = list::F16;
            }
        }
    }

    /// Bytes of all tensors.
    pub fn nbytes(&self) -> u64 {
        self.tensors.iter().filter_map(TensorPlan::nbytes).sum()
    }

    /// Values of all tensors.
    pub fn len(&self) -> u64 {
        let tensors = self.tensors.iter().zip(self.is_tensor()).filter(|(_, is)| *is);
        tensors.map(|(t, _)| t.shape.iter().product::<u64>()).sum()
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
        Target::Keep | Target::Qsf(..) => None,
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
/// Values that are read, unpacked and packed together: few enough to stay in a core's cache.
const STEP: u64 = 1 << 15;

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// The files.
    pub files: Vec<PathBuf>,
    /// What of it was there already, from an earlier process.
    pub resumed: Resumed,
}

/// Runs a plan and names the files that were written. On an error nothing is left behind.
pub fn run(
    checkpoint: &dyn Checkpoint,
    plan: &Plan,
    container: &Container,
    out: &Path,
    settings: &Settings<'_>,
) -> Result<Vec<PathBuf>, Error> {
    run_or_resume(checkpoint, plan, container, out, settings).map(|written| written.files)
}

/// The same, going on with what an earlier process left if [`WriteOptions::resume`] says so; what is left then after an
/// error can be gone on with.
pub fn run_or_resume(
    checkpoint: &dyn Checkpoint,
    plan: &Plan,
    container: &Container,
    out: &Path,
    settings: &Settings<'_>,
) -> Result<Written, Error> {
    let create = container
        .create
        .ok_or_else(|| Error::Request(format!("{} files can be read but not written", container.name)))?;
    for source in checkpoint.files() {
        if fonio_checkpoint::output::same_file(source, out) {
            return Err(Error::Request(format!("{} is a file of the source", out.display())));
        }
    }
    let mut options = settings.write.clone();
    if let Some(resume) = &mut options.resume {
        resume.identity.extend(identity(checkpoint, plan));
    }
    let mut writer = create(out, &plan.metadata, &plan.tensors, &options)?;
    let resumed = writer.resumed();
    let pieces = pieces(plan, writer.order());
    let pool = Pool::new(settings.threads);
    let round = (pool.threads() * 2).max(2);
    let (kept, spares) = (Kept::default(), Spares::default());
    let mut work =
        Work { checkpoint, plan, pool, isa: settings.isa, kept, left: HashMap::new(), spares: &spares };
    let (first, mut skip) = work.skip(&pieces, resumed.bytes)?;
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel::<Vec<Packed<'_>>>(1);
        let writing = scope.spawn(move || -> Result<Vec<PathBuf>, Error> {
            for round in receive {
                for bytes in round {
                    writer.append(&bytes)?;
                }
            }
            Ok(writer.finish()?)
        });
        let mut done = pieces[..first].iter().map(|piece| work.values(piece)).sum();
        let mut failed = None;
        for round in pieces[first..].chunks(round) {
            if settings.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                failed = Some(Error::Cancelled);
                break;
            }
            match work.compute(round) {
                // A writer that is gone has an error of its own to tell.
                Ok(mut packed) => {
                    if let Some(bytes) = packed.first_mut() {
                        bytes.drain(..std::mem::take(&mut skip));
                    }
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
                done += work.values(piece);
                (settings.progress)(done, &plan.tensors[piece.tensor].name);
            }
        }
        // Without all bytes the writer's `finish` is an error, and it takes its temporary files away.
        drop(send);
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match failed {
            Some(error) => Err(error),
            None => written.map(|files| Written { files, resumed }),
        }
    })
}

/// What an output is made of, besides its own plan: the sources' paths, sizes and times, and which tensor becomes which.
pub(crate) fn identity(checkpoint: &dyn Checkpoint, plan: &Plan) -> Vec<u8> {
    let mut text = String::new();
    for file in checkpoint.files() {
        let full = std::fs::canonicalize(file).unwrap_or_else(|_| file.clone());
        let meta = std::fs::metadata(file).ok();
        let time = meta.as_ref().and_then(|m| m.modified().ok());
        let since = time.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok()).map(|t| t.as_nanos());
        text.push_str(&format!("{full:?} {:?} {since:?}\n", meta.map(|m| m.len())));
    }
    for (tensor, source) in plan.tensors.iter().zip(&plan.sources) {
        text.push_str(&format!("{} {source}\n", tensor.name));
    }
    plan.sums.iter().for_each(|sum| text.push_str(&format!("{sum:?}\n")));
    text.into_bytes()
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

/// A conversion that runs.
struct Work<'a> {
    checkpoint: &'a dyn Checkpoint,
    plan: &'a Plan,
    pool: Pool,
    isa: Isa,
    /// Outliers that are chosen and not written.
    kept: Kept,
    /// Pieces of planes of outliers that are not written, by their tensor's blocks.
    left: HashMap<usize, usize>,
    spares: &'a Spares,
}

/// Memory of pieces that are done: the system clears each fresh page, which takes longer than to fill it.
#[derive(Default)]
struct Spares {
    packed: Spare<Vec<u8>>,
    raw: Spare<Vec<u8>>,
    values: Spare<Vec<f32>>,
}

/// The bytes of a piece.
type Packed<'a> = Lent<'a, Vec<u8>>;

impl<'a> Work<'a> {
    /// Passes over the pieces whose bytes are written. Gives the first other one, and how many of its bytes are.
    fn skip(&mut self, pieces: &[Rows], written: u64) -> Result<(usize, usize), Error> {
        let (mut first, mut left) = (0, written);
        for piece in pieces {
            let bytes = self.bytes(piece)? as u64;
            if bytes > left {
                break;
            }
            left -= bytes;
            first += 1;
        }
        for piece in &pieces[first..] {
            if let Some((sum, role)) = self.plan.plane(piece.tensor)
                && role != Role::Blocks
            {
                *self.left.entry(sum.planes[0]).or_default() += 1;
            }
        }
        Ok((first, usize::try_from(left).unwrap_or(usize::MAX)))
    }

    /// Bytes that a piece becomes.
    fn bytes(&self, piece: &Rows) -> Result<usize, Error> {
        let tensor = &self.plan.tensors[piece.tensor];
        let row = tensor.shape.last().copied().unwrap_or(1);
        let bytes =
            tensor.dtype.bytes_for(row).and_then(|n| n.checked_mul(piece.rows.end - piece.rows.start));
        bytes
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| Error::Tensor { tensor: tensor.name.clone(), reason: "is too large".into() })
    }

    /// Values of the model that a piece has.
    fn values(&self, piece: &Rows) -> u64 {
        match self.plan.plane(piece.tensor) {
            Some((_, role)) if role != Role::Blocks => 0,
            _ => {
                let row = self.plan.tensors[piece.tensor].shape.last().copied().unwrap_or(1);
                (piece.rows.end - piece.rows.start) * row
            }
        }
    }

    /// Packs a round of pieces: values on all threads first, and then what is known of outliers.
    fn compute(&mut self, round: &[Rows]) -> Result<Vec<Packed<'a>>, Error> {
        let small = |piece: &Rows| self.plan.plane(piece.tensor).filter(|(_, role)| *role != Role::Blocks);
        let large: Vec<Rows> = round.iter().filter(|piece| small(piece).is_none()).cloned().collect();
        let mut packed = self.each(&large)?.into_iter();
        // Blocks that an earlier process has written, but not their outliers.
        let mut again: Vec<Rows> = Vec::new();
        for (piece, (sum, role)) in round.iter().filter_map(|piece| Some((piece, small(piece)?))) {
            let blocks = sum.planes[0];
            for rows in sum.needed(role, piece) {
                let missing = Rows { tensor: blocks, rows };
                if self.kept.get(blocks, missing.rows.start).is_none() && !again.contains(&missing) {
                    again.push(missing);
                }
            }
        }
        for again in again.chunks(self.pool.threads() * 2) {
            self.each(again)?;
        }
        let mut all = Vec::with_capacity(round.len());
        for piece in round {
            let Some((sum, role)) = self.plan.plane(piece.tensor).filter(|(_, role)| *role != Role::Blocks)
            else {
                all.extend(packed.next());
                continue;
            };
            let mut plane = self.spares.packed.lend();
            *plane = sum.plane(role, piece, &self.kept)?;
            all.push(plane);
            let blocks = sum.planes[0];
            let left = self.left.entry(blocks).or_default();
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.kept.drop_all(blocks);
            }
        }
        Ok(all)
    }

    /// Packs pieces, each on whichever thread is free.
    fn each(&self, pieces: &[Rows]) -> Result<Vec<Packed<'a>>, Error> {
        let slots: Vec<Mutex<Option<Result<Packed<'a>, Error>>>> =
            pieces.iter().map(|_| Mutex::new(None)).collect();
        self.pool.each(
            pieces.len(),
            1,
            || (),
            |(), range| {
                for i in range {
                    let packed = self.pack(&pieces[i]);
                    *slots[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(packed);
                }
            },
        );
        slots
            .into_iter()
            .map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner))
            .map(|packed| packed.expect("every piece is packed by some thread"))
            .collect()
    }

    /// Reads, unpacks and packs a piece.
    fn pack(&self, piece: &Rows) -> Result<Packed<'a>, Error> {
        let (to, source) = (&self.plan.tensors[piece.tensor], self.plan.sources[piece.tensor]);
        let bad = |reason: String| Error::Tensor { tensor: to.name.clone(), reason };
        let from = self.checkpoint.info(source).ok_or_else(|| bad(format!("there is no source {source}")))?;
        let bytes = |dtype: DType, len: u64| {
            let bytes = dtype.bytes_for(len).and_then(|n| usize::try_from(n).ok());
            bytes.ok_or_else(|| bad("is too large".into()))
        };
        let row = from.row_len();
        let (first, end) = (piece.rows.start * row, piece.rows.end * row);
        let start = bytes(from.dtype, first)? as u64;
        let mut packed = self.spares.packed.lend();
        packed.resize(self.bytes(piece)?, 0);
        let sum = self.plan.plane(piece.tensor);
        if from.dtype == to.dtype && sum.is_none() {
            self.checkpoint.read(source, start, &mut packed)?;
            return Ok(packed);
        }
        let range = start..start + bytes(from.dtype, end - first)? as u64;
        // Other sources may make more than they are asked for, and a sum is made of all values.
        let is_plain = matches!(self.checkpoint.locate(source, range), Some(Location::File { .. }));
        let is_whole = |dtype: DType| STEP.is_multiple_of(dtype.block_len() as u64);
        let steps = is_plain && sum.is_none() && is_whole(from.dtype) && is_whole(to.dtype);
        let step = if steps { STEP } else { end - first };
        let (mut raw, mut values) = (self.spares.raw.lend(), self.spares.values.lend());
        raw.resize(bytes(from.dtype, step)?, 0);
        values.resize(usize::try_from(step).map_err(|e| bad(e.to_string()))?, 0.0);
        let mut at = first;
        while at < end {
            let len = step.min(end - at);
            let (raw, values) = (&mut raw[..bytes(from.dtype, len)?], &mut values[..len as usize]);
            self.checkpoint.read(source, bytes(from.dtype, at)? as u64, raw)?;
            from.dtype.dequantize(self.isa, raw, values).map_err(|e| bad(e.to_string()))?;
            let out = bytes(to.dtype, at - first)?..bytes(to.dtype, at - first + len)?;
            let (out, rows) = (&mut packed[out], &piece.rows);
            self.pack_values(piece.tensor, rows, at, values, out).map_err(bad)?;
            at += len;
        }
        Ok(packed)
    }

    /// Packs values, the first of which is this one of the tensor; for a plane of a sum, all of these rows.
    fn pack_values(
        &self,
        tensor: usize,
        rows: &Range<u64>,
        first: u64,
        values: &[f32],
        out: &mut [u8],
    ) -> Result<(), String> {
        let dtype = self.plan.tensors[tensor].dtype;
        if dtype == list::F16
            && let Some(at) = values.iter().position(|x| x.is_finite() && x.abs() >= 65_520.0)
        {
            let place = first + at as u64;
            return Err(format!("value {place} is {}, beyond F16; use BF16 or F32 for it", values[at]));
        }
        match self.plan.plane(tensor) {
            Some((sum, _)) => {
                let found = sum.split(self.isa, dtype, rows, values, out).map_err(|e| e.to_string())?;
                self.kept.put(tensor, rows.start, found);
                Ok(())
            }
            None => dtype.quantize(self.isa, values, None, out).map_err(|e| e.to_string()),
        }
    }
}
