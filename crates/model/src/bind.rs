//! From names to typed fields, once: every tensor that the spec asks for is found, its shape checked, and tensors
//! that nothing asks for are an error, because they would change the result.

use crate::Error;
use crate::block::terms::{Plane, Term};
use crate::block::{Block, Linear, Norm};
use crate::spec::{LayerSpec, ModelSpec, NormPlaces, NormSpec, Residual};
use fonio_checkpoint::{self as checkpoint, Checkpoint, Error as FileError};
use fonio_codec::{DType, list};
use fonio_simd::Isa;
use fonio_weights::{Part, WeightId, Weights};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

/// One layer, ready to run.
pub(crate) struct Layer {
    pub mixer_norm: Option<Norm>,
    pub mixer: Box<dyn Block>,
    pub post_mixer_norm: Option<Norm>,
    pub ffn: Option<Ffn>,
    pub residual_scale: f32,
}

/// The second half of a layer.
pub(crate) struct Ffn {
    /// The norm before it.
    pub norm: Option<Norm>,
    /// Whether it sees what the mixer saw, not what the mixer made of it.
    pub parallel: bool,
    pub block: Box<dyn Block>,
    pub post_norm: Option<Norm>,
}

/// A model that is ready to run.
pub struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) weights: Weights,
    left_out: Vec<(String, u64)>,
    pub(crate) embedding: Table,
    pub(crate) embedding_norm: Option<Norm>,
    pub(crate) positions: Option<Table>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Norm,
    /// The head's rows in slices, each a part of its own.
    pub(crate) head: Vec<Linear>,
}

/// A matrix of which rows are taken, never all of it.
pub(crate) struct Table {
    pub id: WeightId,
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
}

impl Table {
    /// Unpacks a row.
    pub fn row(&self, weights: &Weights, isa: Isa, row: usize, out: &mut [f32]) -> Result<(), Error> {
        let mut packed = vec![0; self.cols / self.dtype.block_len() * self.dtype.block_bytes()];
        weights.read(self.id, (row * packed.len()) as u64, &mut packed)?;
        self.dtype.dequantize(isa, &packed, out).map_err(|e| Error::Input(format!("row {row}: {e}")))
    }
}

/// Slices of a head are no larger than this, so that a model with a large vocabulary needs no large place for it.
const HEAD_BYTES: u64 = 16 << 20;

/// What is done with the quantized residuals of weights that are sums, but for some.
#[derive(Clone, Debug, Default)]
pub struct Routed {
    /// Names of the tensors whose residuals are kept.
    pub kept: HashSet<String>,
    /// Whether the others are left out, not streamed.
    pub leave_out: bool,
}

impl Model {
    /// Binds every tensor of a spec. Before it can run, [`Weights::start`] says how they are kept.
    pub fn load(spec: ModelSpec, checkpoint: Arc<dyn Checkpoint>) -> Result<Model, Error> {
        Model::load_routed(spec, checkpoint, None)
    }

    /// As [`Model::load`], with some residuals streamed or left out.
    pub fn load_routed(
        spec: ModelSpec,
        checkpoint: Arc<dyn Checkpoint>,
        routed: Option<Routed>,
    ) -> Result<Model, Error> {
        let mut binder = Binder {
            weights: Weights::new(checkpoint),
            seen: HashSet::new(),
            part: Part::Shared,
            routed,
            left_out: Vec::new(),
        };
        let (dim, vocab) = (spec.dim, spec.vocab_size);
        let embedding = binder.table("token_embd.weight", vocab, dim)?;
        let embedding_norm = match spec.embedding_norm {
            Some(norm) => Some(binder.norm("token_embd_norm", norm, dim)?),
            None => None,
        };
        let positions = match spec.n_positions {
            Some(n) => Some(binder.table("position_embd.weight", n, dim)?),
            None => None,
        };
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (i, layer) in spec.layers.iter().enumerate() {
            binder.part = Part::Layer(i);
            layers.push(binder.layer(&format!("blk.{i}"), layer, dim)?);
        }
        let final_norm = binder.norm("output_norm", spec.final_norm, dim)?;
        let name = if spec.has_head { "output" } else { "token_embd" };
        let bias = if spec.head_bias { Some(binder.vector("output.bias", vocab)?) } else { None };
        let head = binder.head(&format!("{name}.weight"), vocab, dim, bias)?;
        binder.expect_all_used()?;
        let (weights, left_out) = (binder.weights, binder.left_out);
        Ok(Model { spec, weights, left_out, embedding, embedding_norm, positions, layers, final_norm, head })
    }

    /// Tensors whose residuals are left out, and how many bytes those are.
    pub fn left_out(&self) -> &[(String, u64)] {
        &self.left_out
    }

    /// The longest row or column of a layer's matrices.
    pub fn widest(&self) -> usize {
        let tensors = self.weights.checkpoint().tensors().iter().filter(|t| t.name.starts_with("blk."));
        let sides = tensors.flat_map(|t| t.shape.iter().rev().take(2).copied());
        usize::try_from(sides.max().unwrap_or(0)).unwrap_or(usize::MAX).max(self.spec.dim)
    }

    /// Its tensors, to say how they are kept.
    pub fn weights_mut(&mut self) -> &mut Weights {
        &mut self.weights
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Its tensors.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }
}

pub(crate) struct Binder {
    weights: Weights,
    seen: HashSet<usize>,
    /// What is being bound.
    part: Part,
    routed: Option<Routed>,
    left_out: Vec<(String, u64)>,
}

impl Binder {
    fn file(&self) -> std::path::PathBuf {
        self.weights.checkpoint().files().first().cloned().unwrap_or_default()
    }

    fn tensor(&mut self, name: &str, want: &[usize]) -> Result<usize, Error> {
        let checkpoint = self.weights.checkpoint();
        let missing = || Error::MissingTensor { file: self.file(), tensor: name.into() };
        let at = checkpoint.find(name).ok_or_else(missing)?;
        let got = &checkpoint.tensors().get(at).ok_or_else(missing)?.shape;
        let want: Vec<u64> = want.iter().map(|&n| n as u64).collect();
        if !same_shape(got, &want) {
            return Err(Error::Shape { file: self.file(), tensor: name.into(), got: got.clone(), want });
        }
        self.seen.insert(at);
        Ok(at)
    }

    /// Whether there is a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.weights.checkpoint().find(name).is_some()
    }

    /// All values of a small tensor, whatever dimensions of 1 it has.
    pub fn values(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let at = self.tensor(name, shape)?;
        Ok(values(self.weights.checkpoint().as_ref(), at)?)
    }

    /// All values of a small tensor of one dimension.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        self.values(name, &[len])
    }

    /// A tensor that has no part in the result.
    pub fn unused(&mut self, name: &str) {
        self.seen.extend(self.weights.checkpoint().find(name));
    }

    fn packed(&mut self, name: &str, shape: &[usize]) -> Result<Linear, Error> {
        let at = self.tensor(name, shape)?;
        let cols = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).product();
        self.rows_of(self.part, at, 0..rows, rows, cols)
    }

    /// Some rows of the `all` rows of a tensor as a weight that is leased with `part`. Of a sum it is one of the equal
    /// slices of the first dimension; of a stack of sums, one of those.
    fn rows_of(
        &mut self,
        part: Part,
        tensor: usize,
        rows: Range<usize>,
        all: usize,
        cols: usize,
    ) -> Result<Linear, Error> {
        let slice = (rows.start / rows.len().max(1), all / rows.len().max(1));
        let (sum, slice) = self.sum_of(tensor, slice, [rows.len(), cols])?;
        let terms = self.weights.checkpoint().terms(sum).to_vec();
        let mut linear =
            Linear { tensor, whole: None, terms: Vec::new(), rows: rows.len(), first: 0, cols, bias: None };
        if terms.is_empty() {
            linear.whole = Some(self.whole(part, tensor, rows, cols));
            return Ok(linear);
        }
        for term in terms {
            if let Some(part) = self.part_of(part, sum, term) {
                linear.terms.push(Term::bind(self, part, term, slice)?);
            }
        }
        // The first packed rows need no addition.
        if let Some(Term::Whole(plane)) = linear.terms.first() {
            linear.whole = Some((plane.id, plane.dtype));
            linear.terms.remove(0);
        }
        Ok(linear)
    }

    /// What a slice of a tensor is the sum of: a matrix of its own if the tensor is a stack of sums, else a slice of what
    /// the tensor is the sum of.
    fn sum_of(
        &self,
        tensor: usize,
        (slice, count): (usize, usize),
        want: [usize; 2],
    ) -> Result<(usize, (usize, usize)), Error> {
        let checkpoint = self.weights.checkpoint();
        let matrices = checkpoint.matrices(tensor);
        if matrices.is_empty() {
            return Ok((tensor, (slice, count)));
        }
        let want = want.map(|n| n as u64).to_vec();
        let same = checkpoint.info(matrices.start).is_some_and(|matrix| matrix.shape == want);
        if count != matrices.len() || !same {
            let info = checkpoint.info(tensor);
            let (tensor, got) = info.map(|info| (info.name.clone(), info.shape.clone())).unwrap_or_default();
            return Err(Error::Shape { file: self.file(), tensor, got, want });
        }
        Ok((matrices.start + slice, (0, 1)))
    }

    /// What a term is leased with, or nothing if it is left out.
    fn part_of(&mut self, part: Part, tensor: usize, term: checkpoint::Term) -> Option<Part> {
        let (checkpoint::Term::Vectors { codes, .. }, Some(routed)) = (term, &self.routed) else {
            return Some(part);
        };
        let info = self.weights.checkpoint().info(tensor)?;
        if routed.kept.contains(&info.name) {
            return Some(part);
        }
        if routed.leave_out {
            let nbytes = self.weights.checkpoint().info(codes).map_or(0, |info| info.nbytes);
            self.left_out.push((info.name.clone(), nbytes));
            return None;
        }
        Some(if let Part::Layer(layer) = part { Part::Rest(layer) } else { part })
    }

    /// One of `count` equal slices of a plane, and the plane's shape.
    pub(crate) fn plane(
        &mut self,
        part: Part,
        number: usize,
        slice: usize,
        count: usize,
    ) -> Result<(Plane, Vec<u64>), Error> {
        let lost = |reason: &str| Error::Input(format!("plane {number} {reason}"));
        let info = self.weights.checkpoint().info(number).ok_or_else(|| lost("is not there"))?;
        let (dtype, shape, count) = (info.dtype, info.shape.clone(), count as u64);
        let (cols, nbytes) = (info.row_len(), info.nbytes);
        let values = info.len();
        if count == 0 || !nbytes.is_multiple_of(count) || !values.is_multiple_of(count * cols.max(1)) {
            return Err(lost("has no equal slices"));
        }
        let (each, slice) = (nbytes / count, slice as u64);
        let id = self.weights.bind(part, number, slice * each..(slice + 1) * each);
        let rows = values.checked_div(count * cols).unwrap_or(0) as usize;
        Ok((Plane { id, dtype, rows, cols: cols as usize }, shape))
    }

    fn whole(&mut self, part: Part, tensor: usize, rows: Range<usize>, cols: usize) -> (WeightId, DType) {
        let dtype = self.weights.checkpoint().info(tensor).map_or(list::F32, |info| info.dtype);
        let row = (cols / dtype.block_len() * dtype.block_bytes()) as u64;
        (self.weights.bind(part, tensor, rows.start as u64 * row..rows.end as u64 * row), dtype)
    }

    /// A matrix of which only rows are taken.
    fn table(&mut self, name: &str, rows: usize, cols: usize) -> Result<Table, Error> {
        let at = self.tensor(name, &[rows, cols])?;
        let dtype = self.weights.checkpoint().tensors()[at].dtype;
        Ok(Table { id: self.weights.bind_rows(at), dtype, rows, cols })
    }

    /// The matrix that makes logits, in slices.
    fn head(
        &mut self,
        name: &str,
        vocab: usize,
        dim: usize,
        bias: Option<Vec<f32>>,
    ) -> Result<Vec<Linear>, Error> {
        let at = self.tensor(name, &[vocab, dim])?;
        let nbytes = self.weights.checkpoint().tensors()[at].nbytes;
        let sum = self.weights.checkpoint().is_sum(at);
        let slices = usize::try_from(nbytes.div_ceil(HEAD_BYTES)).unwrap_or(1).clamp(1, vocab.max(1));
        let slices = if sum { 1 } else { slices };
        let step = vocab.div_ceil(slices).max(1);
        let mut head = Vec::with_capacity(slices);
        for first in (0..vocab).step_by(step) {
            let rows = first..vocab.min(first + step);
            let mut linear = self.rows_of(Part::Head(head.len()), at, rows.clone(), vocab, dim)?;
            linear.bias = bias.as_ref().map(|bias| bias[rows].to_vec());
            head.push(linear);
        }
        Ok(head)
    }

    /// Projections of a layer's experts, which are one tensor: each is leased by itself.
    pub fn experts(
        &mut self,
        name: &str,
        n: usize,
        (rows, cols): (usize, usize),
        bias: bool,
    ) -> Result<Vec<Linear>, Error> {
        let at = self.tensor(&format!("{name}.weight"), &[n, rows, cols])?;
        let bias = if bias { Some(self.values(&format!("{name}.bias"), &[n, rows])?) } else { None };
        let Part::Layer(layer) = self.part else {
            return Err(Error::Input(format!("{name}: experts outside of a layer")));
        };
        let mut linears = self.slices(at, n, (rows, cols), |expert| Part::Expert { layer, expert })?;
        if let Some(bias) = bias {
            for (i, linear) in linears.iter_mut().enumerate() {
                linear.bias = Some(bias[i * rows..(i + 1) * rows].to_vec());
            }
        }
        Ok(linears)
    }

    /// `n` projections of the same shape in one tensor.
    pub fn stack(&mut self, name: &str, n: usize, shape: (usize, usize)) -> Result<Vec<Linear>, Error> {
        let ((rows, cols), part) = (shape, self.part);
        let at = self.tensor(&format!("{name}.weight"), &[n, rows, cols])?;
        if !self.weights.checkpoint().matrices(at).is_empty() {
            return self.slices(at, n, shape, |_| part);
        }
        let all = self.rows_of(part, at, 0..n * rows, n * rows, cols)?;
        Ok((0..n).map(|i| all.part(i * rows, rows)).collect())
    }

    /// The slices of a tensor's first dimension, each leased with a part of its own.
    fn slices(
        &mut self,
        at: usize,
        n: usize,
        (rows, cols): (usize, usize),
        part: impl Fn(usize) -> Part,
    ) -> Result<Vec<Linear>, Error> {
        (0..n).map(|i| self.rows_of(part(i), at, i * rows..(i + 1) * rows, n * rows, cols)).collect()
    }

    /// A projection: `NAME.weight`, and `NAME.bias` if it has one.
    pub fn linear(&mut self, name: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear, Error> {
        let mut linear = self.packed(&format!("{name}.weight"), &[rows, cols])?;
        if bias {
            linear.bias = Some(self.vector(&format!("{name}.bias"), rows)?);
        }
        Ok(linear)
    }

    /// A norm: `NAME.weight`, and `NAME.bias` if it has one.
    pub fn norm(&mut self, name: &str, spec: NormSpec, dim: usize) -> Result<Norm, Error> {
        self.shaped_norm(name, spec, &[dim])
    }

    /// A norm whose weights are a tensor of more than one dimension.
    pub fn shaped_norm(&mut self, name: &str, spec: NormSpec, shape: &[usize]) -> Result<Norm, Error> {
        let weight = self.values(&format!("{name}.weight"), shape)?;
        let bias = match spec {
            NormSpec::Layer { bias: true, .. } => Some(self.values(&format!("{name}.bias"), shape)?),
            _ => None,
        };
        Ok(Norm { spec, weight, bias })
    }

    fn layer(&mut self, block: &str, spec: &LayerSpec, dim: usize) -> Result<Layer, Error> {
        let before = spec.norms != NormPlaces::After;
        let behind = spec.norms != NormPlaces::Before;
        let parallel = spec.residual == Residual::Parallel;
        let mut norm = |name: &str, wanted: bool| -> Result<Option<Norm>, Error> {
            if wanted { self.norm(&format!("{block}.{name}"), spec.norm, dim).map(Some) } else { Ok(None) }
        };
        let mixer_norm = norm("attn_norm", before)?;
        let post_mixer_norm = norm("post_attention_norm", behind)?;
        let post_ffn_norm = norm("post_ffw_norm", behind && spec.ffn.is_some())?;
        let mixer = spec.mixer.bind(self, block, dim)?;
        let ffn = match &spec.ffn {
            None => None,
            Some(ffn) => {
                let norm = if before && !parallel { Some(self.ffn_norm(block, spec, dim)?) } else { None };
                let block = ffn.bind(self, block, dim)?;
                Some(Ffn { norm, parallel, block, post_norm: post_ffn_norm })
            }
        };
        Ok(Layer { mixer_norm, mixer, post_mixer_norm, ffn, residual_scale: spec.residual_scale })
    }

    /// The second norm has three names.
    fn ffn_norm(&mut self, block: &str, spec: &LayerSpec, dim: usize) -> Result<Norm, Error> {
        let others = ["attn_norm_2", "post_attention_norm"];
        let others = others.into_iter().filter(|_| spec.norms == NormPlaces::Before);
        let name = others.into_iter().find(|name| self.has(&format!("{block}.{name}.weight")));
        let name = if self.has(&format!("{block}.ffn_norm.weight")) { None } else { name };
        self.norm(&format!("{block}.{}", name.unwrap_or("ffn_norm")), spec.norm, dim)
    }

    fn expect_all_used(&self) -> Result<(), Error> {
        // Frequencies are part of the spec already; the rest are buffers that older converters kept.
        let derived = |name: &str| {
            ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"].contains(&name)
                || name.ends_with(".attn_rot_embd.weight")
        };
        let tensors = self.weights.checkpoint().tensors().iter().enumerate();
        match tensors.into_iter().find(|(at, t)| !self.seen.contains(at) && !derived(&t.name)) {
            None => Ok(()),
            Some((_, tensor)) => Err(Error::Unsupported {
                file: self.file(),
                key: tensor.name.clone(),
                reason: "the architecture has no such tensor".into(),
            }),
        }
    }
}

/// Whether shapes are the same but for dimensions of 1, which don't change where a value is: some converters keep
/// them, others don't.
fn same_shape(a: &[u64], b: &[u64]) -> bool {
    let long = |&&n: &&u64| n != 1;
    a.iter().filter(long).eq(b.iter().filter(long))
}

/// All values of a tensor; for the small ones.
pub(crate) fn values(checkpoint: &dyn Checkpoint, at: usize) -> Result<Vec<f32>, FileError> {
    let info = &checkpoint.tensors()[at];
    let bytes = checkpoint.bytes(at)?;
    let mut values = vec![0.0; bytes.len() / info.dtype.block_bytes() * info.dtype.block_len()];
    info.dtype.dequantize(Isa::scalar(), &bytes, &mut values).map_err(|e| FileError::Corrupt {
        file: checkpoint.files().get(info.file).cloned().unwrap_or_default(),
        tensor: Some(info.name.clone()),
        offset: Some(info.offset),
        reason: e.to_string(),
    })?;
    Ok(values)
}

/// A tensor of one dimension with `len` values.
pub(crate) fn vector(checkpoint: &dyn Checkpoint, at: usize, len: usize) -> Result<Vec<f32>, Error> {
    let info = &checkpoint.tensors()[at];
    if !same_shape(&info.shape, &[len as u64]) {
        return Err(Error::Shape {
            file: checkpoint.files().get(info.file).cloned().unwrap_or_default(),
            tensor: info.name.clone(),
            got: info.shape.clone(),
            want: vec![len as u64],
        });
    }
    Ok(values(checkpoint, at)?)
}
