//! Parts of layers: what mixes tokens and what works on each alone, one file each.
//!
//! A block is bound once from its spec and then run over rows of the residual stream. What it keeps of earlier tokens
//! is in a [`State`] of its own, so that a cache can be saved, restored and cut without knowing what it holds.

mod attention;
mod channel_mix;
mod dense;
mod lora;
mod mamba;
mod mamba2;
mod mla;
mod moe;
mod rwkv4;
mod rwkv6;
mod rwkv7;
pub(crate) mod terms;

use crate::bind::Binder;
use crate::cache::{CacheTypes, State};
use crate::forward::Ahead;
use crate::spec::{FfnSpec, MixerSpec, NormSpec};
use crate::{Error, Observer};
use fonio_codec::DType;
use fonio_kernel::{self as kernel, Kernels, Matrix, Product};
use fonio_weights::{Lease, WeightId};
use std::cell::RefCell;
use std::ops::Range;
use terms::Term;

/// A part of a layer, ready to run.
pub(crate) trait Block: Send + Sync {
    /// Rows of the residual stream in, normed; of the wanted ones (see [`Context::wanted`]) what is to be added to it out.
    fn run(&self, cx: &mut Context<'_>, state: &mut State, x: &[f32]) -> Result<Vec<f32>, Error>;

    /// Says which weights will be leased beside the layer's, as far as it can be told of rows that are nearly those that
    /// [`Block::run`] will see.
    fn foresee(&self, _cx: &Context<'_>, _x: &[f32]) -> Result<(), Error> {
        Ok(())
    }
}

/// What all blocks of a run share.
pub(crate) struct Context<'a> {
    pub kernels: &'a Kernels,
    /// The layer's weights.
    pub lease: &'a Lease<'a>,
    /// Position of the first row.
    pub start: usize,
    /// Rows of the run.
    pub rows: usize,
    /// So many rows at the beginning only go into states: nobody wants what comes out for them. A feed-forward part that has
    /// no state does not even get them.
    pub unwanted: usize,
    /// Positions that the cache has place for.
    pub capacity: usize,
    /// What layers hand to later ones beside the residual stream; empty before the first.
    pub carry: &'a mut Vec<f32>,
    /// To tell which weights the next layer will need.
    pub ahead: Option<Ahead<'a>>,
    /// Who sees what weights are multiplied with.
    pub observer: Option<&'a RefCell<&'a mut dyn Observer>>,
}

impl MixerSpec {
    pub(crate) fn bind(&self, binder: &mut Binder, block: &str, dim: usize) -> Result<Box<dyn Block>, Error> {
        match self {
            MixerSpec::Attention(spec) => attention::bind(binder, block, spec, dim),
            MixerSpec::Mla(spec) => mla::bind(binder, block, spec, dim),
            MixerSpec::Mamba(spec) => mamba::bind(binder, block, spec, dim),
            MixerSpec::Mamba2(spec) => mamba2::bind(binder, block, spec, dim),
            MixerSpec::Rwkv4(spec) => rwkv4::bind(binder, block, spec, dim),
            MixerSpec::Rwkv6(spec) => rwkv6::bind(binder, block, spec, dim),
            MixerSpec::Rwkv7(spec) => rwkv7::bind(binder, block, spec, dim),
        }
    }

    /// What it keeps of no tokens, in a stream of width `dim`.
    pub(crate) fn state(&self, types: CacheTypes, dim: usize) -> Result<State, Error> {
        match self {
            MixerSpec::Attention(spec) => attention::state(spec, types),
            MixerSpec::Mla(spec) => mla::state(spec, types),
            MixerSpec::Mamba(spec) => State::zeros(mamba::state_len(spec)),
            MixerSpec::Mamba2(spec) => State::zeros(mamba2::state_len(spec)),
            MixerSpec::Rwkv4(spec) => State::zeros(rwkv4::state_len(spec, dim)),
            MixerSpec::Rwkv6(spec) => State::zeros(rwkv6::state_len(spec, dim)),
            MixerSpec::Rwkv7(spec) => State::zeros(rwkv7::state_len(spec, dim)),
        }
    }
}

impl FfnSpec {
    pub(crate) fn bind(&self, binder: &mut Binder, block: &str, dim: usize) -> Result<Box<dyn Block>, Error> {
        match self {
            FfnSpec::Dense(spec) => dense::bind(binder, block, spec, dim),
            FfnSpec::Moe(spec) => moe::bind(binder, block, spec, dim),
            FfnSpec::ChannelMix(spec) => channel_mix::bind(binder, block, spec, dim),
        }
    }

    /// What it keeps of no tokens, in a stream of width `dim`.
    pub(crate) fn state(&self, dim: usize) -> Result<State, Error> {
        match self {
            FfnSpec::Dense(_) | FfnSpec::Moe(_) => Ok(State::None),
            FfnSpec::ChannelMix(_) => State::zeros(dim),
        }
    }
}

/// A projection: packed rows, possibly of a larger tensor, what is added to them, and possibly a bias.
#[derive(Clone)]
pub(crate) struct Linear {
    /// The tensor's number in its container.
    pub tensor: usize,
    /// The packed rows; not there if the weight is a sum alone.
    pub whole: Option<(WeightId, DType)>,
    /// Terms of a sum.
    pub terms: Vec<Term>,
    /// The first of the tensor's rows.
    pub first: usize,
    pub rows: usize,
    pub cols: usize,
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Some of the rows.
    pub fn part(&self, first: usize, rows: usize) -> Linear {
        let bias = self.bias.as_ref().map(|bias| bias[first..first + rows].to_vec());
        Linear { first: self.first + first, rows, bias, ..self.clone() }
    }

    /// The packed rows, borrowed from their lease.
    pub fn matrix<'a>(&self, lease: &'a Lease<'_>) -> Result<Option<Matrix<'a>>, Error> {
        let Some((id, dtype)) = self.whole else { return Ok(None) };
        matrix(lease, id, dtype, self.first..self.first + self.rows, self.cols).map(Some)
    }
}

/// Rows of a bound tensor.
pub(crate) fn matrix<'a>(
    lease: &'a Lease<'_>,
    id: WeightId,
    dtype: DType,
    rows: Range<usize>,
    cols: usize,
) -> Result<Matrix<'a>, Error> {
    let row = cols / dtype.block_len() * dtype.block_bytes();
    let bytes = lease.bytes(id)?.get(rows.start * row..rows.end * row);
    bytes
        .and_then(|bytes| Matrix::new(dtype, rows.len(), cols, bytes))
        .ok_or_else(|| Error::Input(format!("a weight of {} × {cols} lost bytes", rows.len())))
}

impl Context<'_> {
    /// Of something of all rows that of the rows whose output is wanted.
    pub fn wanted<'b>(&self, x: &'b [f32]) -> &'b [f32] {
        &x[x.len() / self.rows * self.unwanted..]
    }

    /// Position of the first of these.
    pub fn first_wanted(&self) -> usize {
        self.start + self.unwanted
    }

    /// Several projections of the same rows.
    pub fn project<const N: usize>(&self, linears: [&Linear; N], x: &[f32]) -> Result<[Vec<f32>; N], Error> {
        let mut outs = linears.map(|_| Vec::new());
        self.project_all(&linears, x, &mut outs)?;
        Ok(outs)
    }

    /// As [`Context::project`], for a number of projections that is not known before.
    pub fn project_all(&self, linears: &[&Linear], x: &[f32], outs: &mut [Vec<f32>]) -> Result<(), Error> {
        if let Some(observer) = self.observer {
            for linear in linears {
                let info = self.lease.weights().checkpoint().info(linear.tensor);
                info.into_iter().for_each(|info| observer.borrow_mut().input(&info.name, x));
            }
        }
        let pairs: Vec<(&Linear, &Lease<'_>)> = linears.iter().map(|&linear| (linear, self.lease)).collect();
        project(self.kernels, &pairs, x, outs)
    }

    /// Shows who looks what an expert's projections are multiplied with: rows of these tokens of the run.
    pub fn observe_expert(
        &self,
        linears: &[&Linear],
        expert: usize,
        tokens: impl Iterator<Item = usize> + Clone,
        x: &[f32],
    ) {
        let Some(observer) = self.observer else { return };
        for linear in linears {
            if let Some(info) = self.lease.weights().checkpoint().info(linear.tensor) {
                let mut positions = tokens.clone().map(|token| self.start + token);
                observer.borrow_mut().expert_input(&info.name, expert, &mut positions, x);
            }
        }
    }
}

/// Several projections of the same rows, each from its lease.
pub(crate) fn project(
    kernels: &Kernels,
    linears: &[(&Linear, &Lease<'_>)],
    x: &[f32],
    outs: &mut [Vec<f32>],
) -> Result<(), Error> {
    let mut products = Vec::with_capacity(linears.len());
    for ((linear, lease), out) in linears.iter().zip(outs.iter_mut()) {
        *out = kernels.buffer(x.len() / linear.cols * linear.rows);
        match linear.matrix(lease)? {
            Some(weight) => products.push(Product { weight, out }),
            None => out.fill(0.0),
        }
    }
    kernels.matmul(x, &mut products);
    for ((linear, lease), out) in linears.iter().zip(outs) {
        for term in &linear.terms {
            term.add(kernels, lease, linear, x, out)?;
        }
        if let Some(bias) = &linear.bias {
            kernel::add_to_rows(kernels, out, bias);
        }
    }
    Ok(())
}

/// A norm's parameters.
pub(crate) struct Norm {
    pub spec: NormSpec,
    pub weight: Vec<f32>,
    pub bias: Option<Vec<f32>>,
}

impl Norm {
    /// Norms rows as long as the weights.
    pub fn apply(&self, kernels: &Kernels, x: &mut [f32]) {
        match self.spec {
            NormSpec::Rms(eps) => kernels.rms_norm(x, Some(&self.weight), self.weight.len(), eps),
            NormSpec::Layer { eps, .. } => kernels.layer_norm(x, &self.weight, self.bias.as_deref(), eps),
        }
    }

    /// Norms each `group` values of rows as long as the weights.
    pub fn apply_groups(&self, kernels: &Kernels, x: &mut [f32], group: usize) {
        match (self.spec, &self.bias) {
            (NormSpec::Layer { eps, .. }, Some(bias)) => {
                kernels.group_norm(x, &self.weight, bias, group, eps);
            }
            (NormSpec::Layer { eps, .. }, None) => {
                kernels.group_norm(x, &self.weight, &vec![0.0; self.weight.len()], group, eps);
            }
            (NormSpec::Rms(eps), _) => kernels.group_rms_norm(x, &self.weight, group, eps),
        }
    }
}
