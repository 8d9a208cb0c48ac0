//! Mamba-2 (Dao & Gu 2024, section 7): one projection for all, convolution, recurrence, gate, norm.

use super::mamba::ConvWeights;
use super::{Block, Context, Linear};
use crate::Error;
use crate::bind::Binder;
use crate::cache::State;
use crate::spec::Mamba2Spec;
use fonio_kernel::{Columns, Ssd};

struct Mamba2 {
    spec: Mamba2Spec,
    /// To the gate.
    gate: Linear,
    /// To what is convolved: the values, and what enters and leaves the state.
    input: Linear,
    /// To the time steps.
    dt: Linear,
    conv: ConvWeights,
    dt_bias: Vec<f32>,
    a: Vec<f32>,
    d: Vec<f32>,
    norm: Option<Vec<f32>>,
    output: Linear,
}

impl Mamba2Spec {
    fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels of the convolution.
    fn channels(&self) -> usize {
        self.inner() + 2 * self.groups * self.states
    }
}

/// The tokens before for the convolution, and the recurrence's state.
pub(super) fn state_len(spec: &Mamba2Spec) -> usize {
    spec.channels() * (spec.taps - 1) + spec.inner() * spec.states
}

pub(super) fn bind(
    binder: &mut Binder,
    block: &str,
    spec: &Mamba2Spec,
    dim: usize,
) -> Result<Box<dyn Block>, Error> {
    let name = |part: &str| format!("{block}.ssm_{part}");
    let (inner, channels, heads) = (spec.inner(), spec.channels(), spec.heads);
    let all = binder.linear(&name("in"), inner + channels + heads, dim, spec.bias)?;
    let norm = if spec.norm.is_some() {
        Some(binder.values(&name("norm.weight"), &[spec.groups, inner / spec.groups])?)
    } else {
        None
    };
    Ok(Box::new(Mamba2 {
        spec: spec.clone(),
        gate: all.part(0, inner),
        input: all.part(inner, channels),
        dt: all.part(inner + channels, heads),
        conv: ConvWeights::bind(binder, block, channels, spec.taps, spec.conv_bias)?,
        dt_bias: binder.vector(&name("dt.bias"), heads)?,
        a: binder.values(&name("a"), &[heads])?,
        d: binder.values(&name("d"), &[heads])?,
        norm,
        output: binder.linear(&name("out"), dim, inner, spec.bias)?,
    }))
}

impl Block for Mamba2 {
    fn run(&self, cx: &mut Context<'_>, state: &mut State, x: &[f32]) -> Result<Vec<f32>, Error> {
        let (kernels, spec) = (cx.kernels, &self.spec);
        let (inner, channels, heads) = (spec.inner(), spec.channels(), spec.heads);
        let state = state.recurrent(state_len(spec))?;
        let conv = self.conv.conv();
        let (before, recurrence) = state.split_at(conv.state_len());
        let [gate, input, dt] = cx.project([&self.gate, &self.input, &self.dt], x)?;
        let mut xbc = vec![0.0; input.len()];
        kernels.conv(&conv, before, Columns::all(&input, channels), &mut xbc);
        let shared = spec.groups * spec.states;
        let job = Ssd {
            x: Columns::new(&xbc, channels, 0..inner),
            dt: Columns::all(&dt, heads),
            dt_bias: &self.dt_bias,
            a: &self.a,
            b: Columns::new(&xbc, channels, inner..inner + shared),
            c: Columns::new(&xbc, channels, inner + shared..channels),
            d: &self.d,
            gate: Columns::all(&gate, inner),
            head_dim: spec.head_dim,
            states: spec.states,
        };
        let mut y = vec![0.0; gate.len()];
        kernels.ssd(&job, recurrence, &mut y);
        if let (Some(weight), Some(eps)) = (&self.norm, spec.norm) {
            kernels.group_rms_norm(&mut y, weight, inner / spec.groups, eps);
        }
        let [out] = cx.project([&self.output], cx.wanted(&y))?;
        Ok(out)
    }
}
