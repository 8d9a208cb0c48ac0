//! Softmax attention (Vaswani et al. 2017) with heads that share keys (Ainslie et al. 2023).

use super::{Block, Context, Linear, Norm};
use crate::Error;
use crate::bind::Binder;
use crate::cache::{CacheTypes, KvCache, State};
use crate::spec::{AttentionSpec, NormSpec, QkNorm};
use fonio_kernel as kernel;

struct Attention {
    spec: AttentionSpec,
    q: Linear,
    k: Linear,
    v: Linear,
    output: Linear,
    q_norm: Option<HeadNorm>,
    k_norm: Option<HeadNorm>,
    sinks: Option<Vec<f32>>,
}

/// A norm of queries or keys.
struct HeadNorm {
    norm: Norm,
    /// Weights of each head, behind a norm of heads without weights.
    own: Option<Vec<f32>>,
}

impl HeadNorm {
    fn bind(
        binder: &mut Binder,
        name: &str,
        kind: QkNorm,
        heads: usize,
        dim: usize,
    ) -> Result<HeadNorm, Error> {
        Ok(match kind {
            QkNorm::Head(spec) => HeadNorm { norm: binder.norm(name, spec, dim)?, own: None },
            QkNorm::Row(spec) => HeadNorm { norm: binder.norm(name, spec, heads * dim)?, own: None },
            QkNorm::OwnHead(spec) => {
                let plain = NormSpec::Layer { eps: spec.eps(), bias: false };
                let spec = if matches!(spec, NormSpec::Rms(_)) { spec } else { plain };
                let own = binder.values(&format!("{name}.weight"), &[heads, dim])?;
                HeadNorm { norm: Norm { spec, weight: vec![1.0; dim], bias: None }, own: Some(own) }
            }
        })
    }

    fn apply(&self, kernels: &kernel::Kernels, x: &mut [f32]) {
        self.norm.apply(kernels, x);
        if let Some(own) = &self.own {
            for row in x.chunks_exact_mut(own.len()) {
                row.iter_mut().zip(own).for_each(|(x, w)| *x *= w);
            }
        }
    }
}

pub(super) fn bind(
    binder: &mut Binder,
    block: &str,
    spec: &AttentionSpec,
    dim: usize,
) -> Result<Box<dyn Block>, Error> {
    let name = |part: &str| format!("{block}.{part}");
    let bias = spec.qkv_bias;
    let (nq, nk) = (spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim);
    let nv = spec.n_kv_heads * spec.value_dim;
    let (q, k, v) = if spec.fused {
        let all = binder.linear(&name("attn_qkv"), nq + nk + nv, dim, bias)?;
        (all.part(0, nq), all.part(nq, nk), all.part(nq + nk, nv))
    } else {
        let q = binder.linear(&name("attn_q"), nq, dim, bias)?;
        let k = binder.linear(&name("attn_k"), nk, dim, bias)?;
        (q, k, binder.linear(&name("attn_v"), nv, dim, bias)?)
    };
    let output = binder.linear(&name("attn_output"), dim, spec.n_heads * spec.value_dim, spec.output_bias)?;
    let (mut q_norm, mut k_norm) = (None, None);
    if let Some(kind) = spec.qk_norm {
        q_norm = Some(HeadNorm::bind(binder, &name("attn_q_norm"), kind, spec.n_heads, spec.head_dim)?);
        k_norm = Some(HeadNorm::bind(binder, &name("attn_k_norm"), kind, spec.n_kv_heads, spec.head_dim)?);
    }
    let sinks =
        if spec.sinks { Some(binder.vector(&name("attn_sinks.weight"), spec.n_heads)?) } else { None };
    Ok(Box::new(Attention { spec: spec.clone(), q, k, v, output, q_norm, k_norm, sinks }))
}

pub(super) fn state(spec: &AttentionSpec, types: CacheTypes) -> Result<State, Error> {
    KvCache::new(types, spec.n_kv_heads, spec.head_dim, spec.value_dim).map(State::Kv)
}

impl Attention {
    /// Queries of the wanted rows, keys and values of all.
    fn queries_keys_values(&self, cx: &Context<'_>, x: &[f32]) -> Result<[Vec<f32>; 3], Error> {
        if cx.unwanted == 0 {
            return cx.project([&self.q, &self.k, &self.v], x);
        }
        let [q] = cx.project([&self.q], cx.wanted(x))?;
        let [k, v] = cx.project([&self.k, &self.v], x)?;
        Ok([q, k, v])
    }
}

impl Block for Attention {
    fn run(&self, cx: &mut Context<'_>, state: &mut State, x: &[f32]) -> Result<Vec<f32>, Error> {
        let (spec, kernels, first) = (&self.spec, cx.kernels, cx.first_wanted());
        let [mut q, mut k, v] = self.queries_keys_values(cx, x)?;
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            q_norm.apply(kernels, &mut q);
            k_norm.apply(kernels, &mut k);
        }
        let long = spec.long_rotary.as_ref().filter(|(original, _)| cx.capacity > *original);
        if let Some(rotary) = long.map(|(_, rotary)| rotary).or(spec.rotary.as_ref()) {
            kernels.rotate(rotary, &mut q, spec.n_heads * spec.head_dim, spec.head_dim, first);
            kernels.rotate(rotary, &mut k, spec.n_kv_heads * spec.head_dim, spec.head_dim, cx.start);
        }
        let cache = state.kv()?;
        cache.put(kernels, cx.start, &k, &v)?;
        let (keys, values) = cache.views();
        let tokens = q.len() / (spec.n_heads * spec.head_dim);
        let mut mixed = kernels.buffer(tokens * spec.n_heads * spec.value_dim);
        let job = kernel::Attention {
            heads: spec.n_heads,
            keys,
            values,
            start: first,
            scale: spec.scale,
            softcap: spec.softcap,
            window: spec.window,
            sinks: self.sinks.as_deref(),
        };
        kernels.attend(&job, &q, &mut mixed);
        let [out] = cx.project([&self.output], &mixed)?;
        [q, k, v, mixed].into_iter().for_each(|buffer| kernels.recycle(buffer));
        Ok(out)
    }
}
