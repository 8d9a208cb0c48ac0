//! From names to typed fields, once: every tensor that the spec asks for is found, its shape checked, and tensors
//! that nothing asks for are an error, because they would change the result.

use crate::Error;
use crate::spec::{AttentionSpec, FfnSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec};
use fonio_checkpoint::{Checkpoint, Error as FileError};
use fonio_codec::DType;
use fonio_simd::Isa;
use fonio_weights::{Policy, WeightId, Weights};
use std::collections::HashSet;
use std::sync::Arc;

/// A projection: packed rows and possibly a bias.
pub(crate) struct Linear {
    pub id: WeightId,
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
    pub bias: Option<Vec<f32>>,
}

/// A norm's parameters.
pub(crate) struct Norm {
    pub spec: NormSpec,
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

pub(crate) struct Attention {
    pub spec: AttentionSpec,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub output: Linear,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
}

pub(crate) enum Mixer {
    Attention(Attention),
}

pub(crate) enum Ffn {
    Dense { activation: fonio_kernel::Activation, gate: Option<Linear>, up: Linear, down: Linear },
}

pub(crate) struct Layer {
    pub mixer_norm: Norm,
    pub mixer: Mixer,
    pub post_mixer_norm: Option<Norm>,
    pub ffn_norm: Norm,
    pub ffn: Ffn,
    pub post_ffn_norm: Option<Norm>,
    pub residual_scale: f32,
}

/// A model that is ready to run.
pub struct Model {
    pub(crate) spec: ModelSpec,
    pub(crate) weights: Weights,
    pub(crate) embedding: Linear,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Norm,
    /// The head, if it is not the embedding.
    pub(crate) head: Option<Linear>,
}

impl Model {
    /// Binds every tensor of a spec.
    pub fn load(spec: ModelSpec, checkpoint: Arc<dyn Checkpoint>, policy: Policy) -> Result<Model, Error> {
        let mut binder = Binder { weights: Weights::new(checkpoint, policy), seen: HashSet::new() };
        let embedding = binder.linear("token_embd", spec.vocab_size, spec.dim, false)?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (i, layer) in spec.layers.iter().enumerate() {
            layers.push(binder.layer(&format!("blk.{i}"), layer, spec.dim)?);
        }
        let final_norm = binder.norm("output_norm", spec.final_norm, spec.dim)?;
        let head = if spec.has_head {
            Some(binder.linear("output", spec.vocab_size, spec.dim, false)?)
        } else {
            None
        };
        binder.expect_all_used()?;
        Ok(Model { spec, weights: binder.weights, embedding, layers, final_norm, head })
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

struct Binder {
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
        if *got != want {
            return Err(Error::Shape { file: self.file(), tensor: name.into(), got: got.clone(), want });
        }
        self.seen.insert(at);
        Ok(at)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let at = self.tensor(name, &[len])?;
        vector(self.weights.checkpoint().as_ref(), at, len)
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear, Error> {
        let at = self.tensor(&format!("{name}.weight"), &[rows, cols])?;
        let id = self.weights.bind(at)?;
        let dtype = self.weights.checkpoint().tensors()[at].dtype;
        let bias = if bias { Some(self.vector(&format!("{name}.bias"), rows)?) } else { None };
        Ok(Linear { id, dtype, rows, cols, bias })
    }

    fn norm(&mut self, name: &str, spec: NormSpec, dim: usize) -> Result<Norm, Error> {
        let weight = self.vector(&format!("{name}.weight"), dim)?;
        let bias = match spec {
            NormSpec::Rms(_) => None,
            NormSpec::Layer(_) => Some(self.vector(&format!("{name}.bias"), dim)?),
        };
        Ok(Norm { spec, weight, bias })
    }

    fn layer(&mut self, block: &str, spec: &LayerSpec, dim: usize) -> Result<Layer, Error> {
        let MixerSpec::Attention(attention) = &spec.mixer;
        let FfnSpec::Dense { ffn_dim, activation, gated, bias } = spec.ffn;
        let ffn = Ffn::Dense {
            activation,
            gate: if gated {
                Some(self.linear(&format!("{block}.ffn_gate"), ffn_dim, dim, bias)?)
            } else {
                None
            },
            up: self.linear(&format!("{block}.ffn_up"), ffn_dim, dim, bias)?,
            down: self.linear(&format!("{block}.ffn_down"), dim, ffn_dim, bias)?,
        };
        let mut post = |name: &str| -> Result<Option<Norm>, Error> {
            if spec.post_norms {
                self.norm(&format!("{block}.{name}"), spec.norm, dim).map(Some)
            } else {
                Ok(None)
            }
        };
        let (post_mixer_norm, post_ffn_norm) = (post("post_attention_norm")?, post("post_ffw_norm")?);
        Ok(Layer {
            mixer_norm: self.norm(&format!("{block}.attn_norm"), spec.norm, dim)?,
            mixer: Mixer::Attention(self.attention(block, attention, dim)?),
            post_mixer_norm,
            ffn_norm: self.norm(&format!("{block}.ffn_norm"), spec.norm, dim)?,
            ffn,
            post_ffn_norm,
            residual_scale: spec.residual_scale,
        })
    }

    fn attention(&mut self, block: &str, spec: &AttentionSpec, dim: usize) -> Result<Attention, Error> {
        let mut part = |name: &str, rows: usize, cols: usize, bias: bool| {
            self.linear(&format!("{block}.{name}"), rows, cols, bias)
        };
        let bias = spec.qkv_bias;
        let q = part("attn_q", spec.n_heads * spec.head_dim, dim, bias)?;
        let k = part("attn_k", spec.n_kv_heads * spec.head_dim, dim, bias)?;
        let v = part("attn_v", spec.n_kv_heads * spec.value_dim, dim, bias)?;
        let output = part("attn_output", dim, spec.n_heads * spec.value_dim, spec.output_bias)?;
        let (mut q_norm, mut k_norm) = (None, None);
        if spec.qk_norm.is_some() {
            q_norm = Some(self.vector(&format!("{block}.attn_q_norm.weight"), spec.head_dim)?);
            k_norm = Some(self.vector(&format!("{block}.attn_k_norm.weight"), spec.head_dim)?);
        }
        Ok(Attention { spec: spec.clone(), q, k, v, output, q_norm, k_norm })
    }

    fn expect_all_used(&self) -> Result<(), Error> {
        // Frequencies are part of the spec already; the rest are buffers that older converters kept.
        let derived = |name: &str| name == "rope_freqs.weight" || name.ends_with(".attn_rot_embd.weight");
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
    if info.shape != [len as u64] {
        return Err(Error::Shape {
            file: checkpoint.files().get(info.file).cloned().unwrap_or_default(),
            tensor: info.name.clone(),
            got: info.shape.clone(),
            want: vec![len as u64],
        });
    }
    Ok(values(checkpoint, at)?)
}
