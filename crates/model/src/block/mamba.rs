//! Mamba (Gu & Dao 2023): projection, convolution, selective scan, gate.

use super::{Block, Context, Linear};
use crate::Error;
use crate::bind::Binder;
use crate::cache::State;
use crate::spec::MambaSpec;
use fonio_kernel::{Columns, Conv, SelectiveScan};

struct Mamba {
    spec: MambaSpec,
    /// To what is convolved.
    input: Linear,
    gate: Linear,
    conv: ConvWeights,
    /// To the low-rank time step, and to what enters and leaves the state.
    steer: [Linear; 3],
    steer_norms: Option<[Option<Vec<f32>>; 3]>,
    dt: Linear,
    dt_bias: Vec<f32>,
    a: Vec<f32>,
    d: Vec<f32>,
    output: Linear,
}

/// A convolution's weights, `[taps, channels]`, and bias.
pub(super) struct ConvWeights {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    channels: usize,
}

impl ConvWeights {
    /// Binds `ssm_conv1d`.
    pub fn bind(
        binder: &mut Binder,
        block: &str,
        channels: usize,
        taps: usize,
        bias: bool,
    ) -> Result<ConvWeights, Error> {
        let weight = binder.values(&format!("{block}.ssm_conv1d.weight"), &[channels, taps])?;
        let bias =
            if bias { Some(binder.vector(&format!("{block}.ssm_conv1d.bias"), channels)?) } else { None };
        Ok(ConvWeights { weight: transposed(&weight, taps), bias, channels })
    }

    pub fn conv(&self) -> Conv<'_> {
        Conv { weight: &self.weight, bias: self.bias.as_deref(), channels: self.channels, silu: true }
    }
}

/// Columns as rows.
fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| values.iter().skip(c).step_by(cols).copied()).collect()
}

/// The tokens before for the convolution, and the scan's state.
pub(super) fn state_len(spec: &MambaSpec) -> usize {
    spec.inner * (spec.taps - 1 + spec.states)
}

pub(super) fn bind(
    binder: &mut Binder,
    block: &str,
    spec: &MambaSpec,
    dim: usize,
) -> Result<Box<dyn Block>, Error> {
    let MambaSpec { inner, states, rank, taps, .. } = *spec;
    let name = |part: &str| format!("{block}.ssm_{part}");
    let both = binder.linear(&name("in"), 2 * inner, dim, spec.bias)?;
    let steer = binder.linear(&name("x"), rank + 2 * states, inner, false)?;
    let steer_norms = match spec.inputs {
        Some(norm) if norm.weights => {
            let mut weights =
                |part: &str, n: usize| binder.vector(&name(&format!("{part}_norm.weight")), n).map(Some);
            Some([weights("dt", rank)?, weights("b", states)?, weights("c", states)?])
        }
        Some(_) => Some([None, None, None]),
        None => None,
    };
    let a = binder.values(&name("a"), &[inner, states])?;
    Ok(Box::new(Mamba {
        spec: spec.clone(),
        input: both.part(0, inner),
        gate: both.part(inner, inner),
        conv: ConvWeights::bind(binder, block, inner, taps, spec.conv_bias)?,
        steer: [steer.part(0, rank), steer.part(rank, states), steer.part(rank + states, states)],
        steer_norms,
        dt: binder.linear(&name("dt"), inner, rank, false)?,
        dt_bias: binder.vector(&name("dt.bias"), inner)?,
        a: transposed(&a, states),
        d: binder.values(&name("d"), &[inner])?,
        output: binder.linear(&name("out"), dim, inner, spec.bias)?,
    }))
}

impl Block for Mamba {
    fn run(&self, cx: &mut Context<'_>, state: &mut State, x: &[f32]) -> Result<Vec<f32>, Error> {
        let (kernels, inner) = (cx.kernels, self.spec.inner);
        let state = state.recurrent(state_len(&self.spec))?;
        let conv = self.conv.conv();
        let (before, scan) = state.split_at(conv.state_len());
        let [input, gate] = cx.project([&self.input, &self.gate], x)?;
        let mut x = vec![0.0; input.len()];
        kernels.conv(&conv, before, Columns::all(&input, inner), &mut x);
        let mut steer = cx.project(self.steer.each_ref(), &x)?;
        if let (Some(weights), Some(norm)) = (&self.steer_norms, self.spec.inputs) {
            for ((part, weight), linear) in steer.iter_mut().zip(weights).zip(&self.steer) {
                kernels.rms_norm(part, weight.as_deref(), linear.rows, norm.eps);
            }
        }
        let [dt, b, c] = &steer;
        let [dt] = cx.project([&self.dt], dt)?;
        let states = self.spec.states;
        let job = SelectiveScan {
            x: Columns::all(&x, inner),
            dt: Columns::all(&dt, inner),
            dt_bias: &self.dt_bias,
            a: &self.a,
            b: Columns::all(b, states),
            c: Columns::all(c, states),
            d: &self.d,
            gate: Columns::all(&gate, inner),
        };
        let mut y = vec![0.0; x.len()];
        kernels.selective_scan(&job, scan, &mut y);
        let [out] = cx.project([&self.output], cx.wanted(&y))?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_become_rows() {
        assert_eq!(super::transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
    }
}
