//! The layer loop.

use crate::Error;
use crate::bind::{Attention, Ffn, Layer, Linear, Mixer, Model, Norm};
use crate::cache::{Cache, KvCache, LayerCache};
use crate::spec::NormSpec;
use fonio_kernel::{self as kernel, Kernels, Matrix, Product};
use fonio_weights::{Lease, Part};

/// Which logits are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None: the tokens only go into the cache.
    None,
    /// The last token's.
    Last,
    /// Every token's.
    All,
}

/// Sees what layers put out; all parts are `[tokens, dim]`.
pub trait Observer {
    /// The scaled embeddings.
    fn embedding(&mut self, _x: &[f32]) {}
    /// The residual stream after a layer.
    fn layer(&mut self, _index: usize, _x: &[f32]) {}
    /// The final norm's output.
    fn final_norm(&mut self, _x: &[f32]) {}
}

/// Nobody looks.
impl Observer for () {}

/// Logits are computed for as many tokens at once as fit into this many bytes.
const LOGITS_BYTES: usize = 64 << 20;

impl Model {
    /// Runs `tokens` behind what is in `cache`. For each wanted token, in order, `sink` gets its place in `tokens` and
    /// its `vocab_size` logits. On an error the cache is as it was.
    pub fn forward(
        &self,
        kernels: &Kernels,
        cache: &mut Cache,
        tokens: &[u32],
        wanted: Wanted,
        sink: &mut dyn FnMut(usize, &[f32]),
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        if tokens.is_empty() {
            return Ok(());
        }
        if tokens.len() > cache.capacity() - cache.len() {
            let (n, used, all) = (tokens.len(), cache.len(), cache.capacity());
            return Err(Error::Input(format!(
                "{n} more tokens than the context of {all} has place for: {used} are used"
            )));
        }
        let mut x = self.embed(kernels, tokens)?;
        observer.embedding(&x);
        let start = cache.len();
        for (i, layer) in self.layers.iter().enumerate() {
            let lease = self.weights.lease(Part::Layer(i))?;
            self.layer(kernels, &lease, layer, &mut cache.layers[i], start, &mut x)?;
            observer.layer(i, &x);
        }
        cache.advance(tokens.len());
        let dim = self.spec.dim;
        let first = match wanted {
            Wanted::None => return Ok(()),
            Wanted::Last => tokens.len() - 1,
            Wanted::All => 0,
        };
        let mut rows = x.split_off(first * dim);
        norm(kernels, &self.final_norm, &mut rows);
        observer.final_norm(&rows);
        self.logits(kernels, first, &rows, sink)
    }

    fn embed(&self, kernels: &Kernels, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        let dim = self.spec.dim;
        let lease = self.weights.lease(Part::Embedding)?;
        let matrix = matrix(&lease, &self.embedding)?;
        let mut x = vec![0.0; tokens.len() * dim];
        for (row, &token) in x.chunks_exact_mut(dim).zip(tokens) {
            let token = token as usize;
            if token >= self.spec.vocab_size {
                return Err(Error::Input(format!(
                    "token {token} is not in the vocabulary of {}",
                    self.spec.vocab_size
                )));
            }
            matrix.row(kernels.isa(), token, row);
        }
        if self.spec.embedding_scale != 1.0 {
            kernel::scale(&mut x, self.spec.embedding_scale);
        }
        Ok(x)
    }

    fn layer(
        &self,
        kernels: &Kernels,
        lease: &Lease<'_>,
        layer: &Layer,
        cache: &mut LayerCache,
        start: usize,
        x: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let mut input = x.clone();
        norm(kernels, &layer.mixer_norm, &mut input);
        let (Mixer::Attention(attention), LayerCache::Kv(kv)) = (&layer.mixer, cache);
        let mixed = attend(kernels, lease, attention, kv, start, &input)?;
        residual(kernels, x, mixed, layer.post_mixer_norm.as_ref(), layer.residual_scale);

        input.clone_from(x);
        norm(kernels, &layer.ffn_norm, &mut input);
        let out = feed_forward(kernels, lease, &layer.ffn, &input)?;
        residual(kernels, x, out, layer.post_ffn_norm.as_ref(), layer.residual_scale);
        Ok(())
    }

    fn logits(
        &self,
        kernels: &Kernels,
        first: usize,
        rows: &[f32],
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        let (dim, vocab) = (self.spec.dim, self.spec.vocab_size);
        let lease = self.weights.lease(Part::Head)?;
        let head = matrix(&lease, self.head.as_ref().unwrap_or(&self.embedding))?;
        let batch = (LOGITS_BYTES / (vocab * 4)).max(1);
        let mut out = vec![0.0; batch.min(rows.len() / dim) * vocab];
        for (i, rows) in rows.chunks(batch * dim).enumerate() {
            let out = &mut out[..rows.len() / dim * vocab];
            kernels.matmul(rows, &mut [Product { weight: head, out: &mut *out }]);
            if self.spec.logit_scale != 1.0 {
                kernel::scale(out, self.spec.logit_scale);
            }
            if let Some(cap) = self.spec.logit_softcap {
                kernel::softcap(out, cap);
            }
            for (j, logits) in out.chunks_exact(vocab).enumerate() {
                sink(first + i * batch + j, logits);
            }
        }
        Ok(())
    }
}

/// The weight of a projection, borrowed from its lease.
fn matrix<'a>(lease: &'a Lease<'_>, linear: &Linear) -> Result<Matrix<'a>, Error> {
    let bytes = lease.bytes(linear.id)?;
    Matrix::new(linear.dtype, linear.rows, linear.cols, bytes)
        .ok_or_else(|| Error::Input(format!("a weight of {} × {} lost bytes", linear.rows, linear.cols)))
}

/// Several projections of the same rows.
fn project<const N: usize>(
    kernels: &Kernels,
    lease: &Lease<'_>,
    linears: [&Linear; N],
    x: &[f32],
) -> Result<[Vec<f32>; N], Error> {
    let tokens = x.len() / linears[0].cols;
    let mut outs = linears.map(|l| vec![0.0; tokens * l.rows]);
    let mut products = Vec::with_capacity(N);
    for (linear, out) in linears.iter().zip(&mut outs) {
        products.push(Product { weight: matrix(lease, linear)?, out });
    }
    kernels.matmul(x, &mut products);
    for (linear, out) in linears.iter().zip(&mut outs) {
        if let Some(bias) = &linear.bias {
            kernel::add(out, bias);
        }
    }
    Ok(outs)
}

fn norm(kernels: &Kernels, norm: &Norm, x: &mut [f32]) {
    match norm.spec {
        NormSpec::Rms(eps) => kernels.rms_norm(x, Some(&norm.weight), norm.weight.len(), eps),
        NormSpec::Layer(eps) => kernels.layer_norm(x, &norm.weight, norm.bias.as_deref(), eps),
    }
}

/// `x += scale · norm(out)`
fn residual(kernels: &Kernels, x: &mut [f32], mut out: Vec<f32>, post_norm: Option<&Norm>, scale: f32) {
    if let Some(post_norm) = post_norm {
        norm(kernels, post_norm, &mut out);
    }
    if scale != 1.0 {
        kernel::scale(&mut out, scale);
    }
    kernel::add(x, &out);
}

fn attend(
    kernels: &Kernels,
    lease: &Lease<'_>,
    attention: &Attention,
    cache: &mut KvCache,
    start: usize,
    x: &[f32],
) -> Result<Vec<f32>, Error> {
    let spec = &attention.spec;
    let [mut q, mut k, v] = project(kernels, lease, [&attention.q, &attention.k, &attention.v], x)?;
    if let Some(eps) = spec.qk_norm {
        kernels.rms_norm(&mut q, attention.q_norm.as_deref(), spec.head_dim, eps);
        kernels.rms_norm(&mut k, attention.k_norm.as_deref(), spec.head_dim, eps);
    }
    if let Some(rotary) = &spec.rotary {
        kernels.rotate(rotary, &mut q, spec.n_heads * spec.head_dim, spec.head_dim, start);
        kernels.rotate(rotary, &mut k, spec.n_kv_heads * spec.head_dim, spec.head_dim, start);
    }
    cache.put(kernels, start, &k, &v)?;
    let (keys, values) = cache.views();
    let tokens = q.len() / (spec.n_heads * spec.head_dim);
    let mut mixed = vec![0.0; tokens * spec.n_heads * spec.value_dim];
    let job = kernel::Attention {
        heads: spec.n_heads,
        keys,
        values,
        start,
        scale: spec.scale,
        softcap: spec.softcap,
        window: spec.window,
        sinks: None,
    };
    kernels.attend(&job, &q, &mut mixed);
    let [out] = project(kernels, lease, [&attention.output], &mixed)?;
    Ok(out)
}

fn feed_forward(kernels: &Kernels, lease: &Lease<'_>, ffn: &Ffn, x: &[f32]) -> Result<Vec<f32>, Error> {
    let Ffn::Dense { activation, gate, up, down } = ffn;
    let inner = match gate {
        Some(gate) => {
            let [mut gate, up] = project(kernels, lease, [gate, up], x)?;
            kernel::gate(kernels, *activation, &mut gate, Some(&up));
            gate
        }
        None => {
            let [mut up] = project(kernels, lease, [up], x)?;
            kernel::gate(kernels, *activation, &mut up, None);
            up
        }
    };
    let [out] = project(kernels, lease, [down], &inner)?;
    Ok(out)
}
