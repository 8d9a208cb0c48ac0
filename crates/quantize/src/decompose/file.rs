//! From a checkpoint to a CAWSF file: which tensors become sums, group by group, and everything else as it is planned.
//!
//! Matrices with the same role in all layers (every `ffn_up`) share a codebook. A group is read twice: once for L, D
//! and S, which are kept, and for samples of what they leave; once more to write each matrix with its codes. So there
//! is one dense matrix in memory at a time.

use super::calibrate::{Activations, column_energies};
use super::keys::Ridge;
use super::parts::{Matrix, Parts, Settings, factors, parts, rest};
use super::product::Machine;
use super::vectors::{Codebook, Samples};
use crate::Error;
use crate::convert::{Override, Plan};
use fonio_checkpoint::cawsf::Packing;
use fonio_checkpoint::cawsf::v2::{Content, Writer};
use fonio_checkpoint::{Checkpoint, Rows, TensorPlan};
use fonio_codec::{DType, list};
use fonio_kernel::Pool;
use fonio_simd::Isa;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Values that a thread reads or packs together.
const PIECE: u64 = 1 << 20;

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
}

/// Numbers of the planned tensors that become sums: weights of layers' products, which no override is for. Of a
/// checkpoint that is no model (`known` is false) these are all matrices of plain numbers.
pub fn scopes(
    plan: &Plan,
    known: bool,
    overrides: &[Override],
    max_layers: u64,
    max_elems: u64,
) -> Vec<usize> {
    let fits = |t: &TensorPlan| {
        let n: u64 = t.shape.iter().product();
        let layer = layer(&t.name);
        let wanted = match known {
            true => t.name.starts_with("blk.") && fonio_model::is_product_weight(&t.name, &t.shape),
            false => FLOATS.contains(&t.dtype),
        };
        wanted
            && t.shape.len() == 2
            && n > 0
            && (max_elems == 0 || n <= max_elems)
            && (max_layers == 0 || layer.is_none_or(|layer| layer < max_layers))
            && !overrides.iter().any(|o| o.is_for(&t.name))
    };
    (0..plan.tensors.len()).filter(|at| fits(&plan.tensors[*at])).collect()
}

const FLOATS: [DType; 4] = [list::F32, list::F16, list::BF16, list::F64];

/// The first number in a name that stands for itself between dots: the layer.
fn layer(name: &str) -> Option<u64> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// What a tensor is in its layer: its name without the layer's number.
fn role(name: &str) -> String {
    let mut numbered = false;
    let part = |part: &str| {
        let first = !numbered && part.parse::<u64>().is_ok();
        numbered |= first;
        if first { "#".to_owned() } else { part.to_owned() }
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

struct Job<'a> {
    checkpoint: &'a dyn Checkpoint,
    plan: &'a Plan,
    activations: Option<&'a Activations>,
    conversion: &'a Conversion<'a>,
    pool: Pool,
    writer: Writer,
    report: Report,
    done: u64,
    /// ‖W − Ŵ‖² and ‖W‖².
    energies: [f64; 2],
    /// R shards with their costs, and their worths in each window.
    routed: Vec<(u32, f32)>,
    worths: Vec<Vec<f64>>,
}

/// Makes a file. `sums` are numbers of the plan's tensors, as [`scopes`] gives them. On an error nothing is left behind.
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
    let writer = Writer::create(out, conversion.force, conversion.packing)?;
    let pool = Pool::new(conversion.threads);
    let mut job = Job {
        checkpoint,
        plan,
        activations,
        conversion,
        pool,
        writer,
        report: Report::default(),
        done: 0,
        energies: [0.0; 2],
        routed: Vec::new(),
        worths: Vec::new(),
    };
    for at in (0..plan.tensors.len()).filter(|at| !sums.contains(at)) {
        job.whole(at)?;
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

    /// All values of a tensor.
    fn load(&self, at: usize) -> Result<Vec<f32>, Error> {
        let source = self.plan.sources[at];
        let info = &self.checkpoint.tensors()[source];
        let bad = |reason: String| Error::Tensor { tensor: info.name.clone(), reason };
        let (cols, isa) = (info.row_len(), self.conversion.isa);
        let row = info.dtype.bytes_for(cols).ok_or_else(|| bad("rows are no whole blocks".into()))?;
        let parts = self.each(at, 0..info.len() / cols.max(1), |piece| {
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

    fn cols(&self, at: usize) -> usize {
        self.plan.tensors[at].shape.last().copied().unwrap_or(1) as usize
    }

    fn importance(&self, at: usize) -> Option<Vec<f32>> {
        self.activations?.importance(&self.plan.tensors[at].name)
    }

    /// The settings of one matrix: with a seed of its own.
    fn settings(&self, at: usize) -> Settings {
        let settings = self.conversion.settings;
        Settings { seed: settings.seed ^ (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15), ..settings }
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

    fn group(&mut self, group: &[usize], number: u64) -> Result<(), Error> {
        let k = self.rows_of_tables(group);
        let mut samples = Samples::new(&self.conversion.settings, k);
        let mut all = Vec::new();
        for &at in group {
            self.goes_on()?;
            let (values, importance, cols) = (self.load(at)?, self.importance(at), self.cols(at));
            let matrix = Matrix { values: &values, cols, importance: importance.as_deref() };
            let settings = self.settings(at);
            let found = parts(self.machine(), matrix, &settings).map_err(|e| named(e, self.plan, at))?;
            if k > 0 {
                let left = rest(self.machine(), matrix, &found);
                samples.add(Matrix { values: &left, ..matrix }, 1.0 / group.len() as f64, settings.seed);
            }
            all.push((at, found));
            self.tell(values.len() as u64 / 2, at);
        }
        let book = match k {
            0 => None,
            k => Some(samples.codebook(self.machine(), k, self.conversion.settings.seed ^ number)?),
        };
        let book = match book {
            None => None,
            Some(book) => {
                let [m, k, len] = [book.m, book.k, book.len].map(|n| n as u64);
                let number = self.writer.codebook(m, k, len, &book.halves)?;
                self.report.parts[4] += book.halves.len() as u64;
                Some((book, number))
            }
        };
        for (at, found) in all {
            self.goes_on()?;
            if found == Parts::default() && book.is_none() {
                self.whole(at)?;
                continue;
            }
            let n = self.matrix(at, found, book.as_ref())?;
            self.tell(n - n / 2, at);
        }
        Ok(())
    }

    /// Writes a matrix as a sum, and says how many values it has.
    fn matrix(&mut self, at: usize, mut found: Parts, book: Option<&(Codebook, u32)>) -> Result<u64, Error> {
        let (values, importance, cols) = (self.load(at)?, self.importance(at), self.cols(at));
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
                found.l = factors(self.machine(), target, &self.settings(at))
                    .map_err(|e| named(e, self.plan, at))?;
                left = rest(self.machine(), matrix, &found);
                own = book.encode(self.machine(), Matrix { values: &left, ..matrix });
                decoded = book.decode(self.machine(), &own, cols);
            }
            left.iter_mut().zip(&decoded).for_each(|(l, r)| *l -= r);
            codes = Some(own);
        }
        let energy = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        self.energies[0] += energy(&left);
        self.energies[1] += energy(&values);
        self.report.sums += 1;
        self.report.values += values.len() as u64;
        let tensor = &self.plan.tensors[at];
        let scope = self.writer.sum(&tensor.name, (values.len() / cols) as u64, cols as u64)?;
        if let Some(l) = &found.l {
            let (left, right) = (&l.left[..], &l.right[..]);
            let content = Content::LowRank { rank: l.rank as u64, left, right };
            self.report.parts[0] += self.writer.shard(scope, content)?.1;
        }
        if let Some(d) = &found.d {
            let content = Content::Band { n: d.n as u64, first: d.first, values: &d.values };
            self.report.parts[1] += self.writer.shard(scope, content)?.1;
        }
        if let Some(s) = &found.s {
            let content = Content::Sparse { starts: &s.starts, columns: &s.columns, values: &s.values };
            self.report.parts[2] += self.writer.shard(scope, content)?.1;
        }
        if let (Some(codes), Some((_, codebook))) = (codes, book) {
            let content = Content::Vectors { codebook: *codebook, codes: &codes };
            let (shard, stored) = self.writer.shard(scope, content)?;
            self.report.parts[3] += stored;
            self.route(at, shard, stored, &values, &decoded);
        }
        Ok(values.len() as u64)
    }

    /// Notes what an R shard is worth in each window of the calibration text.
    fn route(&mut self, at: usize, shard: u32, stored: u64, values: &[f32], decoded: &[f32]) {
        let Some(activations) = self.activations else { return };
        let cols = self.cols(at);
        let part = column_energies(self.machine(), decoded, cols);
        let all = column_energies(self.machine(), values, cols);
        if let Some(worths) = activations.shares(&self.plan.tensors[at].name, &part, &all) {
            self.routed.push((shard, stored as f32 / (1 << 20) as f32));
            self.worths.push(worths);
        }
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
        let routing = self.activations.filter(|_| !self.routed.is_empty()).map(|activations| {
            let (mut routing, features) = activations.routing();
            routing.entries = Ridge::new(features).entries(&self.routed, &self.worths);
            routing
        });
        let path = self.writer.finish(&metadata, routing.as_ref())?;
        self.report.nbytes = std::fs::metadata(&path).map_or(0, |m| m.len());
        self.report.error = self.energies[0] / self.energies[1].max(1e-300);
        self.report.path = path;
        Ok(self.report)
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
