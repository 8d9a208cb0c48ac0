//! From a checkpoint to a CAWSF file: which tensors become sums, group by group, and everything else as it is planned.
//!
//! Matrices with the same role in all layers (every `ffn_up`) share a codebook, and so do all matrices of stacks of
//! experts with the same role. A group is read twice: once for L, D and S, which are kept as far as they are not too
//! large, and for samples of what they leave; once more to write each matrix with its codes. So there is one dense
//! matrix in memory at a time, of a stack one expert's.
//!
//! The journal's lines have what the file's end needs to know of the matrices that are written. A process
//! that goes on does not look at those again, and reads their codebook back; the others of the group that was being
//! written are taken apart again, which gives the same.

use super::calibrate::{Activations, column_energies};
use super::keys::Ridge;
use super::outcome::Outcome;
use super::parts::{Matrix, Parts, Settings, factors, parts, rest};
use super::product::Machine;
use super::scope::{Scope, count, role, values};
use super::vectors::{Codebook, Samples};
use crate::Error;
use crate::convert::{Plan, identity};
use fonio_checkpoint::cawsf::Packing;
use fonio_checkpoint::cawsf::v2::{Content, Kind, Routing, Writer};
use fonio_checkpoint::{Checkpoint, Resume, Resumed, Rows};
use fonio_codec::{DType, list};
use fonio_kernel::Pool;
use fonio_simd::Isa;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Values that a thread reads or packs together.
const PIECE: u64 = 1 << 20;
/// Work that may be lost when a process is killed, besides that on the tensor at hand.
const STEP: Duration = Duration::from_secs(1);

/// Bytes of L, D and S of matrices that are kept until they are written; beyond that they are found again.
const KEPT: usize = 1 << 30;

/// How a file is made.
pub struct Conversion<'a> {
    /// What is taken out of matrices.
    pub settings: Settings,
    /// How shards are packed where that helps.
    pub packing: Packing,
    /// Layers whose matrices become sums, from the first on; 0 for all.
    pub max_layers: u64,
    /// Matrices with more values stay whole; 0 for no limit.
    pub max_elems: u64,
    /// Replace an existing file.
    pub force: bool,
    /// How it can be gone on with; its identity is added to.
    pub resume: Option<Resume>,
    /// Threads that compute.
    pub threads: usize,
    /// Their instruction set.
    pub isa: Isa,
    /// Is told how many values of the plan are done, and of which tensor the last ones are.
    pub progress: &'a (dyn Fn(u64, &str) + Sync),
    /// Ends the conversion with [`Error::Cancelled`] soon after it is set.
    pub cancel: Option<&'a AtomicBool>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// Its bytes.
    pub nbytes: u64,
    /// Matrices that are sums, and their values.
    pub sums: usize,
    /// Values of those.
    pub values: u64,
    /// Bytes that L, D, S, R and codebooks take.
    pub parts: [u64; 5],
    /// `‖W − Ŵ‖² / ‖W‖²` over all of them.
    pub error: f64,
    /// What of it was there already, from an earlier process.
    pub resumed: Resumed,
}

/// L, D and S of matrices that are not written yet, as many as there is place for.
#[derive(Default)]
struct Found {
    parts: HashMap<Scope, Parts>,
    nbytes: usize,
}

impl Found {
    fn put(&mut self, scope: Scope, parts: Parts) {
        let nbytes = self.nbytes + parts.nbytes();
        if nbytes <= KEPT {
            self.nbytes = nbytes;
            self.parts.insert(scope, parts);
        }
    }

    fn take(&mut self, scope: Scope) -> Option<Parts> {
        let parts = self.parts.remove(&scope)?;
        self.nbytes -= parts.nbytes();
        Some(parts)
    }
}

struct Job<'a> {
    checkpoint: &'a dyn Checkpoint,
    plan: &'a Plan,
    activations: Option<&'a Activations>,
    conversion: &'a Conversion<'a>,
    pool: Pool,
    writer: Writer,
    done: u64,
    /// Tensors and codebooks so far; how many tensors an earlier process had written, and how many matrices of a stack
    /// behind them.
    tensors: usize,
    codebooks: u32,
    written: (usize, u64),
    /// Matrices that are written as sums, and how many of them the journal knows.
    outcomes: Vec<Outcome>,
    noted: usize,
    marked: Instant,
}

/// Makes a file. `sums` are numbers of the plan's tensors, as [`scopes`] gives them. On an error nothing is left behind,
/// unless it can be gone on with.
pub fn run(
    checkpoint: &dyn Checkpoint,
    plan: &Plan,
    sums: &[usize],
    activations: Option<&Activations>,
    out: &Path,
    conversion: &Conversion<'_>,
) -> Result<Report, Error> {
    conversion.settings.check()?;
    for source in checkpoint.files() {
        if fonio_checkpoint::output::same_file(source, out) {
            return Err(Error::Request(format!("{} is a file of the source", out.display())));
        }
    }
    let (force, packing) = (conversion.force, conversion.packing);
    let writer = match &conversion.resume {
        None => Writer::create(out, force, packing)?,
        Some(resume) => {
            let mut resume = resume.clone();
            resume.identity.extend(identity(checkpoint, plan));
            resume.identity.extend(settled_by(plan, sums, activations, conversion).into_bytes());
            Writer::resumable(out, force, packing, &resume)?
        }
    };
    let outcomes: Option<Vec<Vec<Outcome>>> = writer.notes().iter().map(|note| Outcome::all(note)).collect();
    let outcomes = outcomes.map(|all| all.concat()).ok_or_else(|| {
        Error::Request(format!(
            "the journal of {} is not one of fonio's; go on without --resume",
            out.display()
        ))
    })?;
    let mut job = Job {
        checkpoint,
        plan,
        activations,
        conversion,
        pool: Pool::new(conversion.threads),
        done: 0,
        tensors: 0,
        codebooks: 0,
        written: writer.complete(),
        noted: outcomes.len(),
        marked: Instant::now(),
        outcomes,
        writer,
    };
    for at in (0..plan.tensors.len()).filter(|at| !sums.contains(at)) {
        if job.written_of_next() > 0 {
            job.tell(plan.tensors[at].shape.iter().product(), at);
        } else {
            job.whole(at)?;
            job.mark_if_due()?;
        }
    }
    let mut roles: Vec<(String, Vec<usize>)> = Vec::new();
    for &at in sums {
        let own = role(&plan.tensors[at].name);
        match roles.iter_mut().find(|(role, _)| *role == own) {
            Some((_, group)) => group.push(at),
            None => roles.push((own, vec![at])),
        }
    }
    for (number, (_, group)) in roles.iter().enumerate() {
        job.group(group, number as u64)?;
    }
    job.finish()
}

/// What settles a file's bytes besides the source and the names of its tensors.
fn settled_by(
    plan: &Plan,
    sums: &[usize],
    activations: Option<&Activations>,
    conversion: &Conversion<'_>,
) -> String {
    let seen = activations.map(Activations::fingerprint);
    let mut text = format!("{:?}\n{sums:?}\n{seen:?}\n", conversion.settings);
    for tensor in &plan.tensors {
        text.push_str(&format!("{} {:?}\n", tensor.dtype, tensor.shape));
    }
    plan.metadata.iter().for_each(|(key, value)| text.push_str(&format!("{key} {value:?}\n")));
    text
}

impl Job<'_> {
    fn machine(&self) -> Machine<'_> {
        Machine { pool: &self.pool, isa: self.conversion.isa }
    }

    fn goes_on(&self) -> Result<(), Error> {
        match self.conversion.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    fn tell(&mut self, values: u64, at: usize) {
        self.done += values;
        (self.conversion.progress)(self.done, &self.plan.tensors[at].name);
    }

    /// Calls `f` for pieces of a tensor's rows on all threads, and gives what it gives in order.
    fn each<T: Send + Default>(
        &self,
        at: usize,
        rows: std::ops::Range<u64>,
        f: impl Fn(Rows) -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        let step = (PIECE / self.plan.tensors[at].shape.last().copied().unwrap_or(1).max(1)).max(1);
        let starts: Vec<u64> = rows.clone().step_by(step as usize).collect();
        let slots: Vec<Mutex<Result<T, Error>>> =
            starts.iter().map(|_| Mutex::new(Ok(T::default()))).collect();
        self.pool.each(
            starts.len(),
            1,
            || (),
            |(), range| {
                for i in range {
                    let rows = starts[i]..rows.end.min(starts[i] + step);
                    *slots[i].lock().unwrap_or_else(PoisonError::into_inner) = f(Rows { tensor: at, rows });
                }
            },
        );
        slots.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    /// Writes a tensor in its planned type.
    fn whole(&mut self, at: usize) -> Result<(), Error> {
        let plan = self.plan;
        let tensor = &plan.tensors[at];
        self.writer.whole(&tensor.name, tensor.dtype, &tensor.shape)?;
        let n: u64 = tensor.shape.iter().product();
        let row = tensor.shape.last().copied().unwrap_or(1).max(1);
        let rows = n / row;
        let step = (PIECE / row).max(1) * self.pool.threads() as u64 * 2;
        for first in (0..rows).step_by(step as usize) {
            self.goes_on()?;
            let end = rows.min(first + step);
            let isa = self.conversion.isa;
            let packed = self.each(at, first..end, |rows| pack(self.checkpoint, plan, &rows, isa))?;
            packed.iter().try_for_each(|bytes| self.writer.append(bytes))?;
            self.tell((end - first) * row, at);
        }
        Ok(())
    }

    /// All values of a matrix.
    fn load(&self, scope: Scope) -> Result<Vec<f32>, Error> {
        let source = self.plan.sources[scope.tensor];
        let info = &self.checkpoint.tensors()[source];
        let bad = |reason: String| Error::Tensor { tensor: info.name.clone(), reason };
        let (cols, isa) = (info.row_len(), self.conversion.isa);
        let row = info.dtype.bytes_for(cols).ok_or_else(|| bad("rows are no whole blocks".into()))?;
        let rows = self.values(scope) / cols.max(1);
        let first = u64::from(scope.matrix) * rows;
        let parts = self.each(scope.tensor, first..first + rows, |piece| {
            let n = piece.rows.end - piece.rows.start;
            let mut bytes = vec![0; (n * row) as usize];
            self.checkpoint.read(source, piece.rows.start * row, &mut bytes)?;
            let mut values = vec![0f32; (n * cols) as usize];
            info.dtype.dequantize(isa, &bytes, &mut values).map_err(|e| bad(e.to_string()))?;
            match values.iter().position(|v| !v.is_finite()) {
                Some(place) => Err(bad(format!("a value is {}", values[place]))),
                None => Ok(values),
            }
        })?;
        Ok(parts.concat())
    }

    fn cols(&self, scope: Scope) -> usize {
        self.plan.tensors[scope.tensor].shape.last().copied().unwrap_or(1) as usize
    }

    /// How many values a matrix has.
    fn values(&self, scope: Scope) -> u64 {
        values(&self.plan.tensors[scope.tensor])
    }

    fn importance(&self, scope: Scope) -> Option<Vec<f32>> {
        self.activations?.importance(&self.plan.tensors[scope.tensor].name, scope.matrix.into())
    }

    /// The settings of one matrix: with a seed of its own.
    fn settings(&self, scope: Scope) -> Settings {
        let settings = self.conversion.settings;
        Settings { seed: scope.seed(settings.seed), ..settings }
    }

    /// Rows of a group's tables: so many that the codebook takes no more than an eighth of the group's 16-bit size.
    fn rows_of_tables(&self, group: &[usize]) -> usize {
        let settings = self.conversion.settings;
        let n: u64 = group.iter().map(|at| self.plan.tensors[*at].shape.iter().product::<u64>()).sum();
        let mut k = settings.pq_k;
        while k > 1 && (k * settings.pq_d) as u64 * 8 > n {
            k /= 2;
        }
        if settings.pq_m == 0 || k < 2 { 0 } else { k }
    }

    /// How many matrices of the file's next tensor an earlier process has written. All tensors are asked for once, in the
    /// order of the file.
    fn written_of_next(&mut self) -> u64 {
        let there = match self.tensors.cmp(&self.written.0) {
            std::cmp::Ordering::Less => u64::MAX,
            std::cmp::Ordering::Equal => self.written.1,
            std::cmp::Ordering::Greater => 0,
        };
        self.tensors += 1;
        there
    }

    /// The matrices of tensors that no earlier process has written.
    fn unwritten(&mut self, all: &[usize]) -> Vec<Scope> {
        let plan = self.plan;
        let mut left = Vec::new();
        for &at in all {
            let there = self.written_of_next();
            for scope in Scope::all(plan, at) {
                match u64::from(scope.matrix) < there {
                    true => self.tell(self.values(scope), at),
                    false => left.push(scope),
                }
            }
        }
        left
    }

    /// Makes this a point to go on from, if much was written or computed since the last: few bytes of a sum can be a
    /// minute's work, and a disk that is busy can take seconds to be told of them.
    fn mark_if_due(&mut self) -> Result<(), Error> {
        match self.writer.is_due() || self.marked.elapsed() >= STEP {
            true => self.mark(),
            false => Ok(()),
        }
    }

    fn mark(&mut self) -> Result<(), Error> {
        let mut note = Vec::new();
        self.outcomes[self.noted..].iter().for_each(|outcome| outcome.put(&mut note));
        (self.noted, self.marked) = (self.outcomes.len(), Instant::now());
        Ok(self.writer.mark(&note)?)
    }

    fn group(&mut self, group: &[usize], number: u64) -> Result<(), Error> {
        let k = self.rows_of_tables(group);
        let book = self.codebooks;
        self.codebooks += u32::from(k > 0);
        let left = self.unwritten(group);
        if left.is_empty() {
            return Ok(());
        }
        let (mut found, mut told) = (Found::default(), false);
        let book = match k {
            0 => None,
            _ if book < self.writer.codebooks() => Some((self.written_codebook(book)?, book)),
            k => {
                told = true;
                Some(self.codebook(group, k, number, &mut found)?)
            }
        };
        for tensor in left.chunk_by(|a, b| a.tensor == b.tensor) {
            let first = tensor[0];
            if book.is_none() && first.matrix == 0 && self.lacks_parts(tensor, &mut found)? {
                self.whole(first.tensor)?;
                self.mark_if_due()?;
                continue;
            }
            for &scope in tensor {
                self.goes_on()?;
                let parts = match found.take(scope) {
                    Some(parts) => parts,
                    None => self.take_apart(scope, None)?,
                };
                self.matrix(scope, parts, book.as_ref())?;
                let n = self.values(scope);
                self.tell(if told { n - n / 2 } else { n }, scope.tensor);
                self.mark_if_due()?;
            }
        }
        Ok(())
    }

    /// Whether one of a tensor's matrices has no L, D or S, and so nothing to be the sum of where there is no R.
    fn lacks_parts(&self, tensor: &[Scope], found: &mut Found) -> Result<bool, Error> {
        for &scope in tensor {
            self.goes_on()?;
            let parts = self.take_apart(scope, None)?;
            if parts == Parts::default() {
                return Ok(true);
            }
            found.put(scope, parts);
        }
        Ok(false)
    }

    /// L, D and S of a matrix. What they leave is added to samples, with a share of all that are wanted.
    fn take_apart(&self, scope: Scope, samples: Option<(&mut Samples, f64)>) -> Result<Parts, Error> {
        let (values, importance, cols) = (self.load(scope)?, self.importance(scope), self.cols(scope));
        let matrix = Matrix { values: &values, cols, importance: importance.as_deref() };
        let settings = self.settings(scope);
        let found =
            parts(self.machine(), matrix, &settings).map_err(|e| named(e, self.plan, scope.tensor))?;
        if let Some((samples, share)) = samples {
            let left = rest(self.machine(), matrix, &found);
            samples.add(Matrix { values: &left, ..matrix }, share, settings.seed);
        }
        Ok(found)
    }

    /// Finds and writes the codebook of a group. L, D and S of its matrices are `found` on the way.
    fn codebook(
        &mut self,
        group: &[usize],
        k: usize,
        number: u64,
        found: &mut Found,
    ) -> Result<(Codebook, u32), Error> {
        let (settings, plan) = (self.conversion.settings, self.plan);
        let mut samples = Samples::new(&settings, k);
        let share = 1.0 / count(plan, group) as f64;
        for scope in group.iter().flat_map(|at| Scope::all(plan, *at)) {
            self.goes_on()?;
            let parts = self.take_apart(scope, Some((&mut samples, share)))?;
            found.put(scope, parts);
            self.tell(self.values(scope) / 2, scope.tensor);
        }
        let book = samples.codebook(self.machine(), k, settings.seed ^ number)?;
        let [m, k, len] = [book.m, book.k, book.len].map(|n| n as u64);
        let number = self.writer.codebook(m, k, len, &book.halves)?;
        self.mark_if_due()?;
        Ok((book, number))
    }

    /// The codebook of a group that an earlier process has begun to write.
    fn written_codebook(&self, number: u32) -> Result<Codebook, Error> {
        let ([m, k, len], halves) = self.writer.written_codebook(number)?;
        Ok(Codebook::new(m as usize, k as usize, len as usize, halves))
    }

    /// Writes a matrix as a sum.
    fn matrix(&mut self, of: Scope, mut found: Parts, book: Option<&(Codebook, u32)>) -> Result<(), Error> {
        let (values, importance, cols) = (self.load(of)?, self.importance(of), self.cols(of));
        let matrix = Matrix { values: &values, cols, importance: importance.as_deref() };
        let mut left = rest(self.machine(), matrix, &found);
        let mut codes = None;
        let mut decoded = Vec::new();
        if let Some((book, _)) = book {
            let mut own = book.encode(self.machine(), Matrix { values: &left, ..matrix });
            decoded = book.decode(self.machine(), &own, cols);
            for _ in 0..self.conversion.settings.refine {
                // What L has to be now: the matrix without all other parts.
                found.l = None;
                let mut target = rest(self.machine(), matrix, &found);
                target.iter_mut().zip(&decoded).for_each(|(t, r)| *t -= r);
                let target = Matrix { values: &target, ..matrix };
                found.l = factors(self.machine(), target, &self.settings(of))
                    .map_err(|e| named(e, self.plan, of.tensor))?;
                left = rest(self.machine(), matrix, &found);
                own = book.encode(self.machine(), Matrix { values: &left, ..matrix });
                decoded = book.decode(self.machine(), &own, cols);
            }
            left.iter_mut().zip(&decoded).for_each(|(l, r)| *l -= r);
            codes = Some(own);
        }
        let energy = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let energies = [energy(&left), energy(&values)];
        let codes = codes.zip(book.map(|(_, number)| *number));
        let shard = self.put(of, (values.len() / cols) as u64, &found, codes)?;
        let routed = shard.and_then(|shard| Some((shard, self.worths(of, &values, &decoded)?)));
        self.outcomes.push(Outcome { values: values.len() as u64, energies, routed });
        Ok(())
    }

    /// Writes the parts of a matrix, and gives the number of its R shard.
    fn put(
        &mut self,
        of: Scope,
        rows: u64,
        found: &Parts,
        codes: Option<(Vec<u8>, u32)>,
    ) -> Result<Option<u32>, Error> {
        let (tensor, cols) = (&self.plan.tensors[of.tensor], self.cols(of) as u64);
        let scope = match tensor.shape[..] {
            // The others follow the first.
            _ if of.matrix > 0 => self.writer.last_tensor()?,
            [n, _, _] => self.writer.stack(&tensor.name, n, rows, cols)?,
            _ => self.writer.sum(&tensor.name, rows, cols)?,
        };
        let mut put = |content: Content<'_>| self.writer.shard_of(scope, of.matrix, content);
        if let Some(l) = &found.l {
            let (left, right) = (&l.left[..], &l.right[..]);
            put(Content::LowRank { rank: l.rank as u64, left, right })?;
        }
        if let Some(d) = &found.d {
            put(Content::Band { n: d.n as u64, first: d.first, values: &d.values })?;
        }
        if let Some(s) = &found.s {
            put(Content::Sparse { starts: &s.starts, columns: &s.columns, values: &s.values })?;
        }
        let shard =
            codes.map(|(codes, codebook)| put(Content::Vectors { codebook, codes: &codes })).transpose()?;
        Ok(shard.map(|(number, _)| number))
    }

    /// What a matrix's R is worth in each window of the calibration text.
    fn worths(&self, of: Scope, values: &[f32], decoded: &[f32]) -> Option<Vec<f64>> {
        let activations = self.activations?;
        let cols = self.cols(of);
        let part = column_energies(self.machine(), decoded, cols);
        let all = column_energies(self.machine(), values, cols);
        activations.shares(&self.plan.tensors[of.tensor].name, of.matrix.into(), &part, &all)
    }

    /// What of the file goes without saying now that all matrices are written.
    fn report(&self) -> Report {
        let mut report =
            Report { sums: self.outcomes.len(), resumed: self.writer.resumed(), ..Report::default() };
        let mut energies = [0.0; 2];
        for outcome in &self.outcomes {
            report.values += outcome.values;
            energies.iter_mut().zip(outcome.energies).for_each(|(sum, more)| *sum += more);
        }
        report.error = energies[0] / energies[1].max(1e-300);
        for (bytes, kind) in report.parts.iter_mut().zip([Kind::L, Kind::D, Kind::S, Kind::R, Kind::Codebook])
        {
            let own = self.writer.shards().iter().filter(|s| s.kind == kind);
            *bytes = own.map(|s| s.stored).sum();
        }
        report
    }

    /// The routing table, if there is anything to route.
    fn routing(&self) -> Option<Routing> {
        let routed: Vec<&(u32, Vec<f64>)> = self.outcomes.iter().filter_map(|o| o.routed.as_ref()).collect();
        let activations = self.activations.filter(|_| !routed.is_empty())?;
        let stored = |shard: u32| self.writer.shards().get(shard as usize).map_or(0, |s| s.stored);
        let cost = |shard: u32| stored(shard) as f32 / (1 << 20) as f32;
        let costs: Vec<(u32, f32)> = routed.iter().map(|(shard, _)| (*shard, cost(*shard))).collect();
        let worths: Vec<Vec<f64>> = routed.iter().map(|(_, worths)| worths.clone()).collect();
        let (mut routing, features) = activations.routing();
        routing.entries = Ridge::new(features).entries(&costs, &worths);
        Some(routing)
    }

    fn finish(mut self) -> Result<Report, Error> {
        let mut metadata = self.plan.metadata.clone();
        let s = self.conversion.settings;
        let band = s.band.map_or("auto".into(), |n| n.to_string());
        let said = format!(
            "rank {}, band {band}, outlier-q {}, pq {} × {} of {}, refine {}, seed {}",
            s.rank, s.outlier_q, s.pq_m, s.pq_k, s.pq_d, s.refine, s.seed
        );
        metadata.insert("cawsf.settings", said);
        self.mark()?;
        let (mut report, routing) = (self.report(), self.routing());
        report.path = self.writer.finish(&metadata, routing.as_ref())?;
        report.nbytes = std::fs::metadata(&report.path).map_or(0, |m| m.len());
        Ok(report)
    }
}

/// Reads some rows of a tensor and packs them into its planned type.
fn pack(checkpoint: &dyn Checkpoint, plan: &Plan, piece: &Rows, isa: Isa) -> Result<Vec<u8>, Error> {
    let to = &plan.tensors[piece.tensor];
    let source = plan.sources[piece.tensor];
    let from = &checkpoint.tensors()[source];
    let bad = |reason: String| Error::Tensor { tensor: to.name.clone(), reason };
    let (row, rows) = (from.row_len(), piece.rows.end - piece.rows.start);
    let sized = |dtype: DType| {
        let bytes = dtype.bytes_for(row).and_then(|n| n.checked_mul(rows));
        bytes.and_then(|n| usize::try_from(n).ok()).ok_or_else(|| bad("is too large".into()))
    };
    let mut bytes = vec![0; sized(from.dtype)?];
    let offset = from.dtype.bytes_for(row).unwrap_or(0) * piece.rows.start;
    checkpoint.read(source, offset, &mut bytes)?;
    if from.dtype == to.dtype {
        return Ok(bytes);
    }
    let mut values = vec![0f32; (rows * row) as usize];
    from.dtype.dequantize(isa, &bytes, &mut values).map_err(|e| bad(e.to_string()))?;
    let mut packed = vec![0; sized(to.dtype)?];
    to.dtype.quantize(isa, &values, None, &mut packed).map_err(|e| bad(e.to_string()))?;
    if to.dtype == list::F16 && values.iter().any(|v| v.is_finite() && v.abs() >= 65_520.0) {
        return Err(bad("has a value beyond F16; use BF16 or F32 for it".into()));
    }
    Ok(packed)
}

fn named(error: Error, plan: &Plan, at: usize) -> Error {
    match error {
        Error::Request(reason) => Error::Tensor { tensor: plan.tensors[at].name.clone(), reason },
        other => other,
    }
}
