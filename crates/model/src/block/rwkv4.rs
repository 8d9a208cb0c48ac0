//! RWKV-4's time mix (Peng et al. 2023, section 3.1).

use super::channel_mix::past_share;
use super::{Block, Context, Linear};
use crate::Error;
use crate::bind::Binder;
use crate::cache::State;
use crate::spec::{Rwkv4Spec, Shift};
use fonio_kernel::{self as kernel, Activation, Wkv4};

struct Rwkv4 {
    dim: usize,
    mix_k: Vec<f32>,
    mix_v: Vec<f32>,
    mix_r: Vec<f32>,
    key: Linear,
    value: Linear,
    receptance: Linear,
    output: Linear,
    decay: Vec<f32>,
    first: Vec<f32>,
}

/// The last token, and three numbers for each channel.
pub(super) fn state_len(spec: &Rwkv4Spec, dim: usize) -> usize {
    dim + 3 * spec.inner
}

pub(super) fn bind(
    binder: &mut Binder,
    block: &str,
    spec: &Rwkv4Spec,
    dim: usize,
) -> Result<Box<dyn Block>, Error> {
    let name = |part: &str| format!("{block}.time_mix_{part}");
    let mut mix = |part: &str| past_share(binder, &name(part), dim, Shift::Present);
    let (mix_k, mix_v, mix_r) = (mix("lerp_k.weight")?, mix("lerp_v.weight")?, mix("lerp_r.weight")?);
    // Files have the logarithm of how fast exponents sink.
    let mut decay = binder.values(&name("decay.weight"), &[spec.inner])?;
    decay.iter_mut().for_each(|x| *x = -x.exp());
    Ok(Box::new(Rwkv4 {
        dim,
        mix_k,
        mix_v,
        mix_r,
        key: binder.linear(&name("key"), spec.inner, dim, false)?,
        value: binder.linear(&name("value"), spec.inner, dim, false)?,
        receptance: binder.linear(&name("receptance"), spec.inner, dim, false)?,
        output: binder.linear(&name("output"), dim, spec.inner, false)?,
        decay,
        first: binder.values(&name("first.weight"), &[spec.inner])?,
    }))
}

impl Block for Rwkv4 {
    fn run(&self, cx: &mut Context<'_>, state: &mut State, x: &[f32]) -> Result<Vec<f32>, Error> {
        let kernels = cx.kernels;
        let state = state.recurrent(self.dim + 3 * self.decay.len())?;
        let (last, sums) = state.split_at(self.dim);
        let delta = kernels.shift(last, x);
        let [key] = cx.project([&self.key], &kernels.lerp(x, &delta, &self.mix_k))?;
        let [value] = cx.project([&self.value], &kernels.lerp(x, &delta, &self.mix_v))?;
        let [mut mixed] = cx.project([&self.receptance], &kernels.lerp(x, &delta, &self.mix_r))?;
        let mut mean = vec![0.0; key.len()];
        let job = Wkv4 { decay: &self.decay, first: &self.first, key: &key, value: &value };
        kernels.wkv4(&job, sums, &mut mean);
        kernel::gate(kernels, Activation::Sigmoid, &mut mixed, Some(&mean));
        let [out] = cx.project([&self.output], cx.wanted(&mixed))?;
        Ok(out)
    }
}
