//! Mixtures of experts (Shazeer et al. 2017): a router gives each token to a few of many networks.

use super::dense::Dense;
use super::{Block, Context, Linear, project};
use crate::Error;
use crate::bind::Binder;
use crate::cache::State;
use crate::spec::{DenseSpec, Gate, MoeSpec, RouterSpec, Score};
use fonio_kernel::{self as kernel, Kernels, exp};
use fonio_weights::{Lease, Part};

struct Moe {
    spec: MoeSpec,
    router: Linear,
    correction: Option<Vec<f32>>,
    /// One projection for each expert.
    gate: Vec<Linear>,
    up: Vec<Linear>,
    down: Vec<Linear>,
    shared: Option<Dense>,
    /// What the shared network's output is gated with.
    shared_gate: Option<Vec<f32>>,
}

pub(super) fn bind(
    binder: &mut Binder,
    block: &str,
    spec: &MoeSpec,
    dim: usize,
) -> Result<Box<dyn Block>, Error> {
    let (n, ffn_dim) = (spec.n_experts, spec.ffn_dim);
    let name = |part: &str| format!("{block}.{part}");
    let router = binder.linear(&name("ffn_gate_inp"), n, dim, spec.router.bias)?;
    let correction = match spec.router.correction {
        true => Some(binder.vector(&name("exp_probs_b.bias"), n)?),
        false => None,
    };
    let mut experts =
        |part: &str, rows: usize, cols: usize| binder.experts(&name(part), n, (rows, cols), spec.bias);
    let gate = experts("ffn_gate_exps", ffn_dim, dim)?;
    let up = experts("ffn_up_exps", ffn_dim, dim)?;
    let down = experts("ffn_down_exps", dim, ffn_dim)?;
    let (mut shared, mut shared_gate) = (None, None);
    if let Some(s) = spec.shared {
        let dense =
            DenseSpec { ffn_dim: s.ffn_dim, activation: spec.activation, gate: Gate::Own, bias: false };
        shared = Some(Dense::bind(binder, block, "_shexp", &dense, dim)?);
        if s.gated {
            shared_gate = Some(binder.vector(&name("ffn_gate_inp_shexp.weight"), dim)?);
        }
    }
    Ok(Box::new(Moe { spec: spec.clone(), router, correction, gate, up, down, shared, shared_gate }))
}

impl Block for Moe {
    fn run(&self, cx: &mut Context<'_>, _: &mut State, x: &[f32]) -> Result<Vec<f32>, Error> {
        let dim = self.router.cols;
        let mut out = match &self.shared {
            Some(shared) => self.gated(cx.kernels, shared.apply(cx, x)?, x, dim),
            None => vec![0.0; x.len()],
        };
        let taken = self.route(cx, x)?;
        if x.len() == dim {
            self.want(cx, &taken, true);
            if let Some(ahead) = cx.ahead.take() {
                ahead.foresee(cx.kernels)?;
            }
            self.one(cx, x, &taken, &mut out)?;
        } else {
            self.want(cx, &taken, true);
            self.many(cx, x, &taken, &mut out)?;
        }
        Ok(out)
    }

    fn foresee(&self, cx: &Context<'_>, x: &[f32]) -> Result<(), Error> {
        let taken = self.route(cx, x)?;
        self.want(cx, &taken, false);
        Ok(())
    }
}

type Taken = [Vec<(usize, f32)>];

impl Moe {
    fn gated(&self, kernels: &Kernels, mut out: Vec<f32>, x: &[f32], dim: usize) -> Vec<f32> {
        if let Some(gate) = &self.shared_gate {
            for (out, x) in out.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
                let logit: f32 = x.iter().zip(gate).map(|(x, w)| x * w).sum();
                kernel::scale(kernels, out, 1.0 / (1.0 + exp(-logit)));
            }
        }
        out
    }

    fn part(&self, cx: &Context<'_>, expert: usize) -> Part {
        let Part::Layer(layer) = cx.lease.part() else { return cx.lease.part() };
        Part::Expert { layer, expert }
    }

    /// Says which experts are needed, now or soon.
    fn want(&self, cx: &Context<'_>, taken: &Taken, now: bool) {
        let used = taken.iter().enumerate().filter(|(_, tokens)| !tokens.is_empty());
        let parts: Vec<Part> = used.map(|(e, _)| self.part(cx, e)).collect();
        cx.lease.weights().want(&parts, now);
    }

    /// A single token: all its experts see the same row, so those that are in memory share the products; the others
    /// follow as they arrive. What they say is added up in their order, whichever came first.
    fn one(&self, cx: &Context<'_>, x: &[f32], taken: &Taken, out: &mut [f32]) -> Result<(), Error> {
        let used: Vec<(usize, f32)> =
            taken.iter().enumerate().filter_map(|(e, t)| t.first().map(|&(_, weight)| (e, weight))).collect();
        let weights = cx.lease.weights();
        let mut waiting: Vec<usize> = (0..used.len()).collect();
        let mut said = vec![Vec::new(); used.len()];
        while !waiting.is_empty() {
            let (mut now, mut leases, mut later) = (Vec::new(), Vec::new(), Vec::new());
            for i in waiting {
                match weights.lease_if_ready(self.part(cx, used[i].0))? {
                    Some(lease) => {
                        now.push(i);
                        leases.push(lease);
                    }
                    None => later.push(i),
                }
            }
            if now.is_empty() {
                now.push(later.remove(0));
                leases.push(weights.lease(self.part(cx, used[now[0]].0))?);
            }
            let linears: Vec<(&Linear, &Lease<'_>)> = now
                .iter()
                .zip(&leases)
                .flat_map(|(&i, lease)| [(&self.gate[used[i].0], lease), (&self.up[used[i].0], lease)])
                .collect();
            let mut inner = vec![Vec::new(); linears.len()];
            project(cx.kernels, &linears, x, &mut inner)?;
            for ((&i, lease), both) in now.iter().zip(&leases).zip(inner.chunks_exact_mut(2)) {
                let [gate, up] = both else { continue };
                let (expert, down) = (used[i].0, &self.down[used[i].0]);
                cx.observe_expert(&[&self.gate[expert], &self.up[expert]], expert, std::iter::once(0), x);
                kernel::gate(cx.kernels, self.spec.activation, gate, Some(up));
                cx.observe_expert(&[down], expert, std::iter::once(0), gate);
                project(cx.kernels, &[(down, lease)], gate, std::slice::from_mut(&mut said[i]))?;
            }
            waiting = later;
        }
        for (&(_, weight), said) in used.iter().zip(&said) {
            out.iter_mut().zip(said).for_each(|(o, d)| *o += weight * d);
        }
        Ok(())
    }

    /// Several tokens: each expert sees its own rows.
    fn many(&self, cx: &Context<'_>, x: &[f32], taken: &Taken, out: &mut [f32]) -> Result<(), Error> {
        let dim = self.router.cols;
        let mut rows = Vec::new();
        let used: Vec<usize> = (0..taken.len()).filter(|&e| !taken[e].is_empty()).collect();
        let weights = cx.lease.weights();
        for e in used {
            let lease = weights.lease(self.part(cx, e))?;
            let tokens = &taken[e];
            rows.clear();
            tokens.iter().for_each(|&(t, _)| rows.extend_from_slice(&x[t * dim..(t + 1) * dim]));
            let mut inner = [Vec::new(), Vec::new()];
            project(cx.kernels, &[(&self.gate[e], &lease), (&self.up[e], &lease)], &rows, &mut inner)?;
            let numbers = tokens.iter().map(|(token, _)| *token);
            cx.observe_expert(&[&self.gate[e], &self.up[e]], e, numbers.clone(), &rows);
            let [mut gate, up] = inner;
            kernel::gate(cx.kernels, self.spec.activation, &mut gate, Some(&up));
            cx.observe_expert(&[&self.down[e]], e, numbers, &gate);
            let mut down = Vec::new();
            project(cx.kernels, &[(&self.down[e], &lease)], &gate, std::slice::from_mut(&mut down))?;
            for (&(t, weight), down) in tokens.iter().zip(down.chunks_exact(dim)) {
                out[t * dim..(t + 1) * dim].iter_mut().zip(down).for_each(|(o, d)| *o += weight * d);
            }
        }
        Ok(())
    }

    /// The experts that each token takes: for each expert its tokens and their weights.
    fn route(&self, cx: &Context<'_>, x: &[f32]) -> Result<Vec<Vec<(usize, f32)>>, Error> {
        let [mut logits] = cx.project([&self.router], x)?;
        let mut taken = vec![Vec::new(); self.spec.n_experts];
        for (token, logits) in logits.chunks_exact_mut(self.spec.n_experts).enumerate() {
            let chosen = choose(&self.spec.router, self.spec.n_used, logits, self.correction.as_deref());
            for (expert, weight) in chosen {
                taken[expert].push((token, weight));
            }
        }
        Ok(taken)
    }
}

/// The experts of one token and their weights, best first. Equal scores go to the lower number.
fn choose(
    router: &RouterSpec,
    n_used: usize,
    logits: &mut [f32],
    correction: Option<&[f32]>,
) -> Vec<(usize, f32)> {
    match router.score {
        Score::Softmax => {
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            logits.iter_mut().for_each(|x| *x = exp(*x - most));
            let sum: f32 = logits.iter().sum();
            logits.iter_mut().for_each(|x| *x /= sum);
        }
        Score::Sigmoid => logits.iter_mut().for_each(|x| *x = 1.0 / (1.0 + exp(-*x))),
    }
    let scores = &*logits;
    let mut ranked: Vec<(usize, f32)> = scores.iter().copied().enumerate().collect();
    if let Some(correction) = correction {
        ranked.iter_mut().zip(correction).for_each(|((_, rank), c)| *rank += c);
    }
    if let Some(groups) = router.groups {
        let size = ranked.len() / groups.n;
        let mut best: Vec<(usize, f32)> = ranked
            .chunks_exact(size)
            .map(|group| {
                let mut group = group.to_vec();
                sort(&mut group);
                group.iter().take(groups.best_of).map(|(_, rank)| rank).sum()
            })
            .enumerate()
            .collect();
        sort(&mut best);
        best.truncate(groups.n_used);
        ranked.retain(|(e, _)| best.iter().any(|(g, _)| e / size == *g));
    }
    sort(&mut ranked);
    ranked.truncate(n_used);
    let sum: f32 =
        if router.normalize { ranked.iter().map(|&(e, _)| scores[e]).sum::<f32>() + 1e-20 } else { 1.0 };
    ranked.iter().map(|&(e, _)| (e, scores[e] / sum * router.scale)).collect()
}

/// Highest first. The sort is stable, so equal ones stay in order.
fn sort(ranked: &mut [(usize, f32)]) {
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Groups;

    const PLAIN: RouterSpec = RouterSpec {
        score: Score::Softmax,
        bias: false,
        correction: false,
        normalize: false,
        scale: 1.0,
        groups: None,
    };

    #[test]
    fn weights_are_scores_and_the_correction_only_chooses() {
        let logits = [0.0f32, 1.0, 2.0, 3.0];
        let sum: f32 = logits.iter().map(|x| x.exp()).sum();
        let got = choose(&PLAIN, 2, &mut logits.clone(), None);
        assert_eq!((got[0].0, got[1].0), (3, 2));
        assert!((got[0].1 - 3f32.exp() / sum).abs() < 1e-6);
        let router = RouterSpec { normalize: true, scale: 2.5, ..PLAIN };
        let got = choose(&router, 2, &mut logits.clone(), None);
        assert!((got.iter().map(|(_, w)| w).sum::<f32>() - 2.5).abs() < 1e-5);
        let router = RouterSpec { score: Score::Sigmoid, ..PLAIN };
        let got = choose(&router, 1, &mut logits.clone(), Some(&[5.0, 0.0, 0.0, 0.0]));
        assert_eq!(got[0].0, 0);
        assert!((got[0].1 - 0.5).abs() < 1e-6);
    }

    #[test]
    fn only_the_best_groups_take_part() {
        let router = RouterSpec {
            score: Score::Sigmoid,
            groups: Some(Groups { n: 2, n_used: 1, best_of: 2 }),
            ..PLAIN
        };
        // The first group has the best expert, the second the best two together.
        let got = choose(&router, 2, &mut [3.0, -9.0, 1.5, 1.5], None);
        assert_eq!((got[0].0, got[1].0), (2, 3));
    }
}
