//! From names to typed fields, once: every tensor that the spec asks for is found, its shape checked, and tensors
//! that nothing asks for are an error, because they would change the result.

use crate::Error;
use crate::block::{Block, Linear, Norm};
use crate::spec::{LayerSpec, ModelSpec, NormPlaces, NormSpec, Residual};
use fonio_checkpoint::{Checkpoint, Error as FileError};
use fonio_simd::Isa;
use fonio_weights::{Policy, Weights};
use std::collections::HashSet;
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
    pub(crate) embedding: Linear,
    pub(crate) embedding_norm: Option<Norm>,
    pub(crate) positions: Option<Linear>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Norm,
    /// The head, if it is not just the embedding.
    pub(crate) head: Option<Linear>,
}

impl Model {
    /// Binds every tensor of a spec.
    pub fn load(spec: ModelSpec, checkpoint: Arc<dyn Checkpoint>, policy: Policy) -> Result<Model, Error> {
        let mut binder = Binder { weights: Weights::new(checkpoint, policy), seen: HashSet::new() };
        let (dim, vocab) = (spec.dim, spec.vocab_size);
        let embedding = binder.linear("token_embd", vocab, dim, false)?;
        let embedding_norm = match spec.embedding_norm {
            Some(norm) => Some(binder.norm("token_embd_norm", norm, dim)?),
            None => None,
        };
        let positions = match spec.n_positions {
            Some(n) => Some(binder.linear("position_embd", n, dim, false)?),
            None => None,
        };
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (i, layer) in spec.layers.iter().enumerate() {
            layers.push(binder.layer(&format!("blk.{i}"), layer, dim)?);
        }
        let final_norm = binder.norm("output_norm", spec.final_norm, dim)?;
        let head = match (spec.has_head, spec.head_bias) {
            (true, bias) => Some(binder.linear("output", vocab, dim, bias)?),
            (false, true) => {
                Some(Linear { bias: Some(binder.vector("output.bias", vocab)?), ..embedding.clone() })
            }
            (false, false) => None,
        };
        binder.expect_all_used()?;
        let weights = binder.weights;
        Ok(Model { spec, weights, embedding, embedding_norm, positions, layers, final_norm, head })
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
        let id = self.weights.bind(at)?;
        let dtype = self.weights.checkpoint().tensors()[at].dtype;
        let cols = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).product();
        Ok(Linear { id, dtype, first: 0, rows, cols, bias: None })
    }

    /// A projection: `NAME.weight`, and `NAME.bias` if it has one.
    pub fn linear(&mut self, name: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear, Error> {
        let mut linear = self.packed(&format!("{name}.weight"), &[rows, cols])?;
        if bias {
            linear.bias = Some(self.vector(&format!("{name}.bias"), rows)?);
        }
        Ok(linear)
    }

    /// `n` projections of the same shape in one tensor; see [`Linear::part`].
    pub fn stack(
        &mut self,
        name: &str,
        n: usize,
        (rows, cols): (usize, usize),
        bias: bool,
    ) -> Result<Linear, Error> {
        let mut linear = self.packed(&format!("{name}.weight"), &[n, rows, cols])?;
        if bias {
            linear.bias = Some(self.values(&format!("{name}.bias"), &[n, rows])?);
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
