//! RWKV's channel mix (Peng et al. 2023, section 3.1.2).

use super::{Block, Context, Linear};
use crate::Error;
use crate::bind::Binder;
use crate::cache::State;
use crate::spec::{ChannelMixSpec, Shift};
use fonio_kernel::{self as kernel, Activation};

struct ChannelMix {
    key_mix: Vec<f32>,
    key: Linear,
    value: Linear,
    gate: Option<(Vec<f32>, Linear)>,
}

/// Binds how much of the token before takes part in a mixture.
pub(super) fn past_share(
    binder: &mut Binder,
    name: &str,
    dim: usize,
    shift: Shift,
) -> Result<Vec<f32>, Error> {
    let mut share = binder.values(name, &[dim])?;
    if shift == Shift::Present {
        share.iter_mut().for_each(|x| *x = 1.0 - *x);
    }
    Ok(share)
}

pub(super) fn bind(
    binder: &mut Binder,
    block: &str,
    spec: &ChannelMixSpec,
    dim: usize,
) -> Result<Box<dyn Block>, Error> {
    let name = |part: &str| format!("{block}.channel_mix_{part}");
    let gate = if spec.gated {
        let mix = past_share(binder, &name("lerp_r.weight"), dim, spec.shift)?;
        Some((mix, binder.linear(&name("receptance"), dim, dim, false)?))
    } else {
        None
    };
    Ok(Box::new(ChannelMix {
        key_mix: past_share(binder, &name("lerp_k.weight"), dim, spec.shift)?,
        key: binder.linear(&name("key"), spec.ffn_dim, dim, false)?,
        value: binder.linear(&name("value"), dim, spec.ffn_dim, false)?,
        gate,
    }))
}

impl Block for ChannelMix {
    fn run(&self, cx: &mut Context<'_>, state: &mut State, x: &[f32]) -> Result<Vec<f32>, Error> {
        let kernels = cx.kernels;
        let delta = kernels.shift(state.recurrent(self.key_mix.len())?, x);
        let [mut key] = cx.project([&self.key], &kernels.lerp(x, &delta, &self.key_mix))?;
        kernel::gate(kernels, Activation::ReluSquared, &mut key, None);
        let [out] = cx.project([&self.value], &key)?;
        let Some((mix, receptance)) = &self.gate else { return Ok(out) };
        let [mut gate] = cx.project([receptance], &kernels.lerp(x, &delta, mix))?;
        kernel::gate(kernels, Activation::Sigmoid, &mut gate, Some(&out));
        Ok(gate)
    }
}
