//! Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1).
//!
//! Each token keeps a latent vector `c` and a rotated key part that all heads share. Head `h` has keys `Kₕ·c` and
//! values `Vₕ·c`. Where both matrices are tensors of their own, `q·(Kₕ·c)` is computed as `(Kₕᵀ·q)·c` and the values
//! are made from the weighted sum of latent vectors, so that the cache holds nothing but those (section 2.1.2).

use super::{Block, Context, Linear, Norm};
use crate::Error;
use crate::bind::Binder;
use crate::cache::{CacheTypes, KvCache, State};
use crate::spec::{MlaSpec, NormSpec};
use fonio_kernel as kernel;

struct Mla {
    spec: MlaSpec,
    queries: Queries,
    latent: Linear,
    latent_norm: Norm,
    rope_key: Linear,
    up: Up,
    output: Linear,
}

enum Queries {
    Direct(Linear),
    /// Down, norm, up.
    Latent(Linear, Norm, Linear),
}

/// From the latent vector to keys and values.
enum Up {
    /// Rows of each head's key and then of its value.
    Joint(Linear),
    /// For each head, `kv_rank × nope_dim` and `value_dim × kv_rank`.
    Absorbed(Vec<(Linear, Linear)>),
}

pub(super) fn bind(
    binder: &mut Binder,
    block: &str,
    spec: &MlaSpec,
    dim: usize,
) -> Result<Box<dyn Block>, Error> {
    let name = |part: &str| format!("{block}.{part}");
    let (heads, rank, norm) = (spec.n_heads, spec.kv_rank, NormSpec::Rms(spec.eps));
    let nq = heads * (spec.nope_dim + spec.rope_dim);
    let queries = match spec.q_rank {
        None => Queries::Direct(binder.linear(&name("attn_q"), nq, dim, false)?),
        Some(rank) => Queries::Latent(
            binder.linear(&name("attn_q_a"), rank, dim, spec.bias)?,
            binder.norm(&name("attn_q_a_norm"), norm, rank)?,
            binder.linear(&name("attn_q_b"), nq, rank, false)?,
        ),
    };
    let all = binder.linear(&name("attn_kv_a_mqa"), rank + spec.rope_dim, dim, spec.bias)?;
    let up = if spec.absorbed {
        let keys = binder.stack(&name("attn_k_b"), heads, (rank, spec.nope_dim))?;
        let values = binder.stack(&name("attn_v_b"), heads, (spec.value_dim, rank))?;
        Up::Absorbed(keys.into_iter().zip(values).collect())
    } else {
        let rows = heads * (spec.nope_dim + spec.value_dim);
        Up::Joint(binder.linear(&name("attn_kv_b"), rows, rank, false)?)
    };
    Ok(Box::new(Mla {
        spec: spec.clone(),
        queries,
        latent: all.part(0, rank),
        latent_norm: binder.norm(&name("attn_kv_a_norm"), norm, rank)?,
        rope_key: all.part(rank, spec.rope_dim),
        up,
        output: binder.linear(&name("attn_output"), dim, heads * spec.value_dim, spec.bias)?,
    }))
}

pub(super) fn state(spec: &MlaSpec, types: CacheTypes) -> Result<State, Error> {
    let cache = if spec.absorbed {
        KvCache::latent(types, spec.kv_rank + spec.rope_dim, spec.kv_rank)
    } else {
        KvCache::new(types, spec.n_heads, spec.nope_dim + spec.rope_dim, spec.value_dim)
    };
    cache.map(State::Kv)
}

impl Block for Mla {
    fn run(&self, cx: &mut Context<'_>, state: &mut State, x: &[f32]) -> Result<Vec<f32>, Error> {
        let spec = &self.spec;
        let mut q = match &self.queries {
            Queries::Direct(q) => cx.project([q], cx.wanted(x))?,
            Queries::Latent(down, norm, up) => {
                let [mut latent] = cx.project([down], cx.wanted(x))?;
                norm.apply(cx.kernels, &mut latent);
                cx.project([up], &latent)?
            }
        };
        let [mut latent, mut rope_key] = cx.project([&self.latent, &self.rope_key], x)?;
        self.latent_norm.apply(cx.kernels, &mut latent);
        cx.kernels.rotate(&spec.rotary, &mut rope_key, spec.rope_dim, spec.rope_dim, cx.start);
        self.rotate_queries(cx, &mut q[0]);
        let mixed = match &self.up {
            Up::Joint(up) => self.expanded(cx, state, up, &q[0], &latent, &rope_key)?,
            Up::Absorbed(heads) => self.absorbed(cx, state, heads, &q[0], &latent, &rope_key)?,
        };
        let [out] = cx.project([&self.output], &mixed)?;
        Ok(out)
    }
}

impl Mla {
    /// Turns the last `rope_dim` values of each head.
    fn rotate_queries(&self, cx: &Context<'_>, q: &mut [f32]) {
        let (nope, rope) = (self.spec.nope_dim, self.spec.rope_dim);
        let mut turned: Vec<f32> =
            q.chunks_exact(nope + rope).flat_map(|head| &head[nope..]).copied().collect();
        cx.kernels.rotate(&self.spec.rotary, &mut turned, self.spec.n_heads * rope, rope, cx.first_wanted());
        for (head, turned) in q.chunks_exact_mut(nope + rope).zip(turned.chunks_exact(rope)) {
            head[nope..].copy_from_slice(turned);
        }
    }

    fn attend(&self, cx: &Context<'_>, cache: &KvCache, q: &[f32], value_dim: usize) -> Vec<f32> {
        let (keys, values) = cache.views();
        let tokens = q.len() / (self.spec.n_heads * keys.head_dim);
        let mut mixed = vec![0.0; tokens * self.spec.n_heads * value_dim];
        let job = kernel::Attention {
            heads: self.spec.n_heads,
            keys,
            values,
            start: cx.first_wanted(),
            scale: self.spec.scale,
            softcap: None,
            window: None,
            sinks: None,
        };
        cx.kernels.attend(&job, q, &mut mixed);
        mixed
    }

    fn expanded(
        &self,
        cx: &Context<'_>,
        state: &mut State,
        up: &Linear,
        q: &[f32],
        latent: &[f32],
        rope_key: &[f32],
    ) -> Result<Vec<f32>, Error> {
        let spec = &self.spec;
        let [both] = cx.project([up], latent)?;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let of_token = spec.n_heads * (spec.nope_dim + spec.value_dim);
        for (heads, rope_key) in both.chunks_exact(of_token).zip(rope_key.chunks_exact(spec.rope_dim)) {
            for head in heads.chunks_exact(spec.nope_dim + spec.value_dim) {
                keys.extend_from_slice(&head[..spec.nope_dim]);
                keys.extend_from_slice(rope_key);
                values.extend_from_slice(&head[spec.nope_dim..]);
            }
        }
        let cache = state.kv()?;
        cache.put(cx.kernels, cx.start, &keys, &values)?;
        Ok(self.attend(cx, cache, q, spec.value_dim))
    }

    fn absorbed(
        &self,
        cx: &Context<'_>,
        state: &mut State,
        heads: &[(Linear, Linear)],
        q: &[f32],
        latent: &[f32],
        rope_key: &[f32],
    ) -> Result<Vec<f32>, Error> {
        let spec = &self.spec;
        let (rank, nope, rope) = (spec.kv_rank, spec.nope_dim, spec.rope_dim);
        let mut keys = Vec::with_capacity(latent.len() + rope_key.len());
        for (latent, rope_key) in latent.chunks_exact(rank).zip(rope_key.chunks_exact(rope)) {
            keys.extend_from_slice(latent);
            keys.extend_from_slice(rope_key);
        }
        let cache = state.kv()?;
        cache.put(cx.kernels, cx.start, &keys, &[])?;
        let tokens = q.len() / (heads.len() * (nope + rope));
        let mut queries = vec![0.0; tokens * heads.len() * (rank + rope)];
        for (h, (key, _)) in heads.iter().enumerate() {
            let of_head = q.chunks_exact(nope + rope).skip(h).step_by(heads.len());
            let plain: Vec<f32> = of_head.clone().flat_map(|q| &q[..nope]).copied().collect();
            let [absorbed] = cx.project([key], &plain)?;
            let to = queries.chunks_exact_mut(rank + rope).skip(h).step_by(heads.len());
            for ((to, absorbed), q) in to.zip(absorbed.chunks_exact(rank)).zip(of_head) {
                to[..rank].copy_from_slice(absorbed);
                to[rank..].copy_from_slice(&q[nope..]);
            }
        }
        let mixed = self.attend(cx, cache, &queries, rank);
        let mut out = vec![0.0; tokens * heads.len() * spec.value_dim];
        for (h, (_, value)) in heads.iter().enumerate() {
            let of_head = mixed.chunks_exact(rank).skip(h).step_by(heads.len());
            let of_head: Vec<f32> = of_head.flatten().copied().collect();
            let [values] = cx.project([value], &of_head)?;
            let to = out.chunks_exact_mut(spec.value_dim).skip(h).step_by(heads.len());
            to.zip(values.chunks_exact(spec.value_dim)).for_each(|(to, from)| to.copy_from_slice(from));
        }
        Ok(out)
    }
}
