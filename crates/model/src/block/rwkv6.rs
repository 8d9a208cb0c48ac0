//! RWKV-6's time mix (Peng et al. 2024, section 4.2).

use super::lora::Lora;
use super::{Block, Context, Linear, Norm};
use crate::Error;
use crate::bind::Binder;
use crate::cache::State;
use crate::spec::{NormSpec, Rwkv6Spec};
use fonio_kernel::{self as kernel, Activation, Wkv6};

struct Rwkv6 {
    spec: Rwkv6Spec,
    dim: usize,
    /// How much of the token before is in what the other mixtures are made of.
    mix: Vec<f32>,
    /// For each mixture (of decay, key, value, receptance, gate), from that to few values.
    down: [Linear; 5],
    /// From few values to how much of the token before is in it.
    up: [Linear; 5],
    /// What is added to that.
    base: [Vec<f32>; 5],
    decay: Lora,
    key: Linear,
    value: Linear,
    receptance: Linear,
    gate: Linear,
    output: Linear,
    first: Vec<f32>,
    norm: Norm,
}

/// The last token, and a matrix for each head.
pub(super) fn state_len(spec: &Rwkv6Spec, dim: usize) -> usize {
    dim + dim * spec.head_dim
}

pub(super) fn bind(
    binder: &mut Binder,
    block: &str,
    spec: &Rwkv6Spec,
    dim: usize,
) -> Result<Box<dyn Block>, Error> {
    let name = |part: &str| format!("{block}.time_mix_{part}");
    let rank = spec.mix_rank;
    let down = binder.linear(&name("w1"), 5 * rank, dim, false)?;
    let up = binder.stack(&name("w2"), 5, (dim, rank))?;
    let mut square = |part: &str| binder.linear(&name(part), dim, dim, false);
    let (key, value) = (square("key")?, square("value")?);
    let (receptance, gate, output) = (square("receptance")?, square("gate")?, square("output")?);
    let decay_names = [&*name("decay"), &*name("decay_w1"), &*name("decay_w2")];
    let decay = Lora::bind(binder, decay_names, (dim, spec.decay_rank), Some(Activation::Tanh))?;
    let base = binder.values(&name("lerp_fused.weight"), &[5, dim])?;
    let layer = NormSpec::Layer { eps: spec.eps, bias: true };
    Ok(Box::new(Rwkv6 {
        spec: spec.clone(),
        dim,
        mix: binder.values(&name("lerp_x.weight"), &[dim])?,
        down: std::array::from_fn(|i| down.part(i * rank, rank)),
        up: std::array::from_fn(|i| up[i].clone()),
        base: std::array::from_fn(|i| base[i * dim..(i + 1) * dim].to_vec()),
        decay,
        key,
        value,
        receptance,
        gate,
        output,
        first: binder.values(&name("first.weight"), &[dim / spec.head_dim, spec.head_dim])?,
        norm: binder.norm(&name("ln"), layer, dim)?,
    }))
}

impl Block for Rwkv6 {
    fn run(&self, cx: &mut Context<'_>, state: &mut State, x: &[f32]) -> Result<Vec<f32>, Error> {
        let kernels = cx.kernels;
        let state = state.recurrent(state_len(&self.spec, self.dim))?;
        let (last, matrices) = state.split_at(self.dim);
        let delta = kernels.shift(last, x);
        let mut low = cx.project(self.down.each_ref(), &kernels.lerp(x, &delta, &self.mix))?;
        let mut mixed: [Vec<f32>; 5] = Default::default();
        for (i, mixed) in mixed.iter_mut().enumerate() {
            kernel::gate(kernels, Activation::Tanh, &mut low[i], None);
            let [mut share] = cx.project([&self.up[i]], &low[i])?;
            kernel::add_to_rows(kernels, &mut share, &self.base[i]);
            *mixed = kernels.lerp(x, &delta, &share);
        }
        let [w, k, v, r, g] = &mixed;
        let mut decay = self.decay.apply(cx, w)?;
        kernel::gate(kernels, Activation::Decay6, &mut decay, None);
        let [key] = cx.project([&self.key], k)?;
        let [value] = cx.project([&self.value], v)?;
        let [receptance] = cx.project([&self.receptance], r)?;
        let [mut gate] = cx.project([&self.gate], g)?;
        let mut read = vec![0.0; key.len()];
        let job = Wkv6 {
            receptance: &receptance,
            decay: &decay,
            key: &key,
            value: &value,
            first: &self.first,
            head_dim: self.spec.head_dim,
        };
        kernels.wkv6(&job, matrices, &mut read);
        self.norm.apply_groups(kernels, &mut read, self.spec.head_dim);
        kernel::gate(kernels, Activation::Silu, &mut gate, Some(&read));
        let [out] = cx.project([&self.output], cx.wanted(&gate))?;
        Ok(out)
    }
}
