//! Feed-forward networks, gated (Shazeer 2020) or not.

use super::{Block, Context, Linear};
use crate::Error;
use crate::bind::Binder;
use crate::cache::State;
use crate::spec::{DenseSpec, Gate};
use fonio_kernel as kernel;

pub(super) struct Dense {
    activation: kernel::Activation,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
}

pub(super) fn bind(
    binder: &mut Binder,
    block: &str,
    spec: &DenseSpec,
    dim: usize,
) -> Result<Box<dyn Block>, Error> {
    Ok(Box::new(Dense::bind(binder, block, "", spec, dim)?))
}

impl Dense {
    /// Binds `ffn_gateSUFFIX`, `ffn_upSUFFIX` and `ffn_downSUFFIX`.
    pub fn bind(
        binder: &mut Binder,
        block: &str,
        suffix: &str,
        spec: &DenseSpec,
        dim: usize,
    ) -> Result<Dense, Error> {
        let (n, bias) = (spec.ffn_dim, spec.bias);
        let name = |part: &str| format!("{block}.{part}{suffix}");
        let (gate, up) = match spec.gate {
            Gate::None => (None, binder.linear(&name("ffn_up"), n, dim, bias)?),
            Gate::Own => {
                let gate = binder.linear(&name("ffn_gate"), n, dim, bias)?;
                (Some(gate), binder.linear(&name("ffn_up"), n, dim, bias)?)
            }
            Gate::InUp => {
                let both = binder.linear(&name("ffn_up"), 2 * n, dim, bias)?;
                (Some(both.part(0, n)), both.part(n, n))
            }
        };
        let down = binder.linear(&name("ffn_down"), dim, n, bias)?;
        Ok(Dense { activation: spec.activation, gate, up, down })
    }

    pub fn apply(&self, cx: &Context<'_>, x: &[f32]) -> Result<Vec<f32>, Error> {
        let inner = match &self.gate {
            Some(gate) => {
                let [mut gate, up] = cx.project([gate, &self.up], x)?;
                kernel::gate(cx.kernels, self.activation, &mut gate, Some(&up));
                cx.kernels.recycle(up);
                gate
            }
            None => {
                let [mut up] = cx.project([&self.up], x)?;
                kernel::gate(cx.kernels, self.activation, &mut up, None);
                up
            }
        };
        let [out] = cx.project([&self.down], &inner)?;
        cx.kernels.recycle(inner);
        Ok(out)
    }
}

impl Block for Dense {
    fn run(&self, cx: &mut Context<'_>, _: &mut State, x: &[f32]) -> Result<Vec<f32>, Error> {
        self.apply(cx, x)
    }
}
