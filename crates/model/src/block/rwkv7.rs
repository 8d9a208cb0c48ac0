//! RWKV-7's time mix (Peng et al. 2025, section 4).

use super::lora::Lora;
use super::{Block, Context, Linear, Norm};
use crate::Error;
use crate::bind::Binder;
use crate::cache::State;
use crate::spec::{NormSpec, Rwkv7Spec};
use fonio_kernel::{self as kernel, Activation, Wkv7, Wkv7Keys};

struct Rwkv7 {
    spec: Rwkv7Spec,
    dim: usize,
    /// How much of the token before is in what receptance, decay, key, value, rate and gate are made of.
    mix: [Vec<f32>; 6],
    receptance: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    decay: Lora,
    rate: Lora,
    /// The share of the first layer's values; none in the first layer.
    first_share: Option<Lora>,
    gate: Lora,
    k_k: Vec<f32>,
    k_a: Vec<f32>,
    r_k: Vec<f32>,
    norm: Norm,
}

/// The last token, and a matrix for each head.
pub(super) fn state_len(spec: &Rwkv7Spec, dim: usize) -> usize {
    dim + dim * spec.head_dim
}

pub(super) fn bind(
    binder: &mut Binder,
    block: &str,
    spec: &Rwkv7Spec,
    dim: usize,
) -> Result<Box<dyn Block>, Error> {
    let name = |part: &str| format!("{block}.time_mix_{part}");
    let mut square = |part: &str| binder.linear(&name(part), dim, dim, false);
    let (receptance, key) = (square("receptance")?, square("key")?);
    let (value, output) = (square("value")?, square("output")?);
    let mut lora = |part: &str, rank: usize, inner: Option<Activation>| {
        let [base, down, up] = ["0", "1", "2"].map(|i| name(&format!("{part}{i}")));
        let base = if part == "g" { String::new() } else { base };
        Lora::bind(binder, [&base, &down, &up], (dim, rank), inner)
    };
    let decay = lora("w", spec.decay_rank, Some(Activation::Tanh))?;
    let rate = lora("a", spec.rate_rank, None)?;
    let gate = lora("g", spec.gate_rank, Some(Activation::Sigmoid))?;
    let first_share = spec.value_rank.map(|rank| lora("v", rank, None)).transpose()?;
    if first_share.is_none() {
        // Files have these in the first layer too, where nothing comes of them.
        for part in ["v0.weight", "v1.weight", "v2.weight"] {
            binder.unused(&name(part));
        }
    }
    let all = binder.values(&name("lerp_fused.weight"), &[6, dim])?;
    let mut rows = all.chunks_exact(dim).map(<[f32]>::to_vec);
    let mut vector = |part: &str| binder.values(&name(part), &[dim]);
    let (k_k, k_a, r_k) = (vector("k_k.weight")?, vector("k_a.weight")?, vector("r_k.weight")?);
    let layer = NormSpec::Layer { eps: spec.eps, bias: true };
    Ok(Box::new(Rwkv7 {
        spec: spec.clone(),
        dim,
        mix: std::array::from_fn(|_| rows.next().unwrap_or_default()),
        receptance,
        key,
        value,
        output,
        decay,
        rate,
        first_share,
        gate,
        k_k,
        k_a,
        r_k,
        norm: binder.norm(&name("ln"), layer, dim)?,
    }))
}

impl Rwkv7 {
    /// Mixes the first layer's values into this one's.
    fn values(&self, cx: &mut Context<'_>, x: &[f32]) -> Result<Vec<f32>, Error> {
        let [value] = cx.project([&self.value], x)?;
        let Some(share) = &self.first_share else {
            cx.carry.clone_from(&value);
            return Ok(value);
        };
        if cx.carry.len() != value.len() {
            return Err(Error::Input("no layer before this one has left its values".into()));
        }
        let mut share = share.apply(cx, x)?;
        kernel::gate(cx.kernels, Activation::Sigmoid, &mut share, None);
        let delta: Vec<f32> = cx.carry.iter().zip(&value).map(|(first, v)| first - v).collect();
        Ok(cx.kernels.lerp(&value, &delta, &share))
    }
}

impl Block for Rwkv7 {
    fn run(&self, cx: &mut Context<'_>, state: &mut State, x: &[f32]) -> Result<Vec<f32>, Error> {
        let kernels = cx.kernels;
        let state = state.recurrent(state_len(&self.spec, self.dim))?;
        let (last, matrices) = state.split_at(self.dim);
        let delta = kernels.shift(last, x);
        let [r, w, k, v, a, g] = self.mix.each_ref().map(|mix| kernels.lerp(x, &delta, mix));
        let [receptance] = cx.project([&self.receptance], &r)?;
        let [mut key] = cx.project([&self.key], &k)?;
        let value = self.values(cx, &v)?;
        let mut decay = self.decay.apply(cx, &w)?;
        kernel::gate(kernels, Activation::Decay7, &mut decay, None);
        let mut rate = self.rate.apply(cx, &a)?;
        kernel::gate(kernels, Activation::Sigmoid, &mut rate, None);
        let mut mixed = self.gate.apply(cx, &g)?;

        let head_dim = self.spec.head_dim;
        let params = Wkv7Keys { k_k: &self.k_k, k_a: &self.k_a, head_dim };
        let removed = kernels.wkv7_keys(&params, &mut key, &mut rate);
        let job = Wkv7 {
            receptance: &receptance,
            decay: &decay,
            key: &key,
            value: &value,
            removed: &removed,
            replaced: &rate,
            heads: self.dim / head_dim,
            head_dim,
        };
        let mut read = vec![0.0; key.len()];
        kernels.wkv7(&job, matrices, &mut read);
        self.norm.apply_groups(kernels, &mut read, head_dim);
        kernels.wkv7_bonus(&job, &self.r_k, &mut read);
        kernel::multiply(kernels, &mut mixed, &read);
        let [out] = cx.project([&self.output], cx.wanted(&mixed))?;
        Ok(out)
    }
}
