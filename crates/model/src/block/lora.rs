//! Projections through few dimensions: `up(f(down(x))) + base`.

use super::{Context, Linear};
use crate::Error;
use crate::bind::Binder;
use fonio_kernel::{self as kernel, Activation};

pub(super) struct Lora {
    down: Linear,
    activation: Option<Activation>,
    up: Linear,
    base: Option<Vec<f32>>,
}

impl Lora {
    /// Binds `DOWN.weight` of `rank` rows, `UP.weight` of `dim`, and `BASE.weight` if there is to be one.
    pub fn bind(
        binder: &mut Binder,
        [base, down, up]: [&str; 3],
        (dim, rank): (usize, usize),
        activation: Option<Activation>,
    ) -> Result<Lora, Error> {
        let down = binder.linear(down, rank, dim, false)?;
        let up = binder.linear(up, dim, rank, false)?;
        let base =
            if base.is_empty() { None } else { Some(binder.values(&format!("{base}.weight"), &[dim])?) };
        Ok(Lora { down, activation, up, base })
    }

    pub fn apply(&self, cx: &Context<'_>, x: &[f32]) -> Result<Vec<f32>, Error> {
        let [mut low] = cx.project([&self.down], x)?;
        if let Some(activation) = self.activation {
            kernel::gate(cx.kernels, activation, &mut low, None);
        }
        let [mut out] = cx.project([&self.up], &low)?;
        if let Some(base) = &self.base {
            kernel::add_to_rows(cx.kernels, &mut out, base);
        }
        Ok(out)
    }
}
