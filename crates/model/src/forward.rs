//! The layer loop.

use crate::Error;
use crate::bind::{Ffn, Layer, Model};
use crate::block::{Context, Norm, project};
use crate::cache::{Cache, LayerState, State};
use fonio_kernel::{self as kernel, Kernels};
use fonio_weights::Part;
use std::cell::RefCell;

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

/// Sees what layers put out; all parts are `[tokens, dim]`. The last layer, and what comes behind it, has the tokens alone
/// whose logits are wanted.
pub trait Observer {
    /// The scaled embeddings.
    fn embedding(&mut self, _x: &[f32]) {}
    /// The residual stream after a layer.
    fn layer(&mut self, _index: usize, _x: &[f32]) {}
    /// The final norm's output.
    fn final_norm(&mut self, _x: &[f32]) {}
    /// What a weight of a layer is multiplied with: rows as long as the weight's.
    fn input(&mut self, _tensor: &str, _x: &[f32]) {}
    /// What one expert's weight, of a tensor that has all experts', is multiplied with: rows of the tokens at these
    /// positions.
    fn expert_input(
        &mut self,
        _tensor: &str,
        _expert: usize,
        _positions: &mut dyn Iterator<Item = usize>,
        _x: &[f32],
    ) {
    }
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
        let mut x = self.embed(kernels, tokens, cache.len())?;
        observer.embedding(&x);
        let first = match wanted {
            Wanted::None => tokens.len(),
            Wanted::Last => tokens.len() - 1,
            Wanted::All => 0,
        };
        self.layers(kernels, cache, &mut x, first, observer)?;
        if first < tokens.len() {
            let mut rows = x.split_off(first * self.spec.dim);
            self.final_norm.apply(kernels, &mut rows);
            observer.final_norm(&rows);
            self.logits(kernels, first, &rows, sink)?;
        }
        cache.advance(tokens.len());
        Ok(())
    }

    /// Runs all layers over the rows of `x`, of which those from `first` on are wanted.
    fn layers(
        &self,
        kernels: &Kernels,
        cache: &mut Cache,
        x: &mut [f32],
        first: usize,
        observer: &mut dyn Observer,
    ) -> Result<(), Error> {
        let (start, capacity, dim) = (cache.len(), cache.capacity(), self.spec.dim);
        let mut carry = Vec::new();
        for (i, (layer, state)) in self.layers.iter().zip(&mut cache.layers).enumerate() {
            let lease = self.weights.lease(Part::Layer(i))?;
            let ahead = Ahead { model: self, next: i + 1, x: Vec::new() };
            let seen: RefCell<&mut dyn Observer> = RefCell::new(&mut *observer);
            // Behind the last layer nothing looks at other rows, unless a feed-forward part keeps something of them.
            let last = i + 1 == self.layers.len() && matches!(state.ffn, State::None);
            let unwanted = if last { first } else { 0 };
            let mut cx = Context {
                kernels,
                lease: &lease,
                start,
                rows: x.len() / dim,
                unwanted,
                capacity,
                carry: &mut carry,
                ahead: Some(ahead),
                observer: Some(&seen),
            };
            run(&mut cx, layer, state, x)?;
            observer.layer(i, &x[unwanted * dim..]);
        }
        Ok(())
    }

    fn embed(&self, kernels: &Kernels, tokens: &[u32], start: usize) -> Result<Vec<f32>, Error> {
        let dim = self.spec.dim;
        let mut x = vec![0.0; tokens.len() * dim];
        for (row, &token) in x.chunks_exact_mut(dim).zip(tokens) {
            let token = token as usize;
            if token >= self.spec.vocab_size {
                return Err(Error::Input(format!(
                    "token {token} is not in the vocabulary of {}",
                    self.spec.vocab_size
                )));
            }
            self.embedding.row(&self.weights, kernels.isa(), token, row)?;
        }
        if self.spec.embedding_scale != 1.0 {
            kernel::scale(kernels, &mut x, self.spec.embedding_scale);
        }
        if let Some(positions) = &self.positions {
            let mut row = vec![0.0; dim];
            for (x, position) in x.chunks_exact_mut(dim).zip(start..) {
                if position >= positions.rows {
                    let n = positions.rows;
                    return Err(Error::Input(format!("the model has no more than {n} positions")));
                }
                positions.row(&self.weights, kernels.isa(), position, &mut row)?;
                kernel::add(kernels, x, &row);
            }
        }
        if let Some(norm) = &self.embedding_norm {
            norm.apply(kernels, &mut x);
        }
        Ok(x)
    }

    fn logits(
        &self,
        kernels: &Kernels,
        first: usize,
        rows: &[f32],
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        let (dim, vocab) = (self.spec.dim, self.spec.vocab_size);
        let batch = (LOGITS_BYTES / (vocab * 4)).max(1);
        for (i, rows) in rows.chunks(batch * dim).enumerate() {
            let mut whole = self.slices_of_logits(kernels, rows)?;
            let out = &mut whole[..];
            if self.spec.logit_scale != 1.0 {
                kernel::scale(kernels, out, self.spec.logit_scale);
            }
            if let Some(cap) = self.spec.logit_softcap {
                kernel::softcap(kernels, out, cap);
            }
            for (j, logits) in out.chunks_exact(vocab).enumerate() {
                sink(first + i * batch + j, logits);
            }
            kernels.recycle(whole);
        }
        Ok(())
    }

    fn slices_of_logits(&self, kernels: &Kernels, rows: &[f32]) -> Result<Vec<f32>, Error> {
        let slice = |i: usize, head| -> Result<Vec<f32>, Error> {
            let (lease, mut part) = (self.weights.lease(Part::Head(i))?, Vec::new());
            project(kernels, &[(head, &lease)], rows, std::slice::from_mut(&mut part))?;
            Ok(part)
        };
        if let [head] = &self.head[..] {
            return slice(0, head);
        }
        let (mut first, vocab) = (0, self.spec.vocab_size);
        let mut out = kernels.buffer(rows.len() / self.spec.dim * vocab);
        for (i, head) in self.head.iter().enumerate() {
            let part = slice(i, head)?;
            for (out, part) in out.chunks_exact_mut(vocab).zip(part.chunks_exact(head.rows)) {
                out[first..first + head.rows].copy_from_slice(part);
            }
            first += head.rows;
            kernels.recycle(part);
        }
        Ok(out)
    }
}

/// What is known of the next layer while one computes.
pub(crate) struct Ahead<'a> {
    model: &'a Model,
    next: usize,
    /// The residual stream before the feed-forward part of the layer that computes, of a single token.
    x: Vec<f32>,
}

impl Ahead<'_> {
    /// While experts compute, those that the next layer's router is likely to choose can be read: the residual stream
    /// changes little from layer to layer (Eliseev, Mazur 2023, "Fast Inference of Mixture-of-Experts Language Models
    /// with Offloading", section 3.2).
    pub fn foresee(mut self, kernels: &Kernels) -> Result<(), Error> {
        let (weights, part) = (&self.model.weights, Part::Layer(self.next));
        let Some(Ffn { norm, parallel: false, block, .. }) =
            self.model.layers.get(self.next).and_then(|layer| layer.ffn.as_ref())
        else {
            return Ok(());
        };
        if self.x.is_empty() || !weights.streams_experts() || !weights.has(part) {
            return Ok(());
        }
        let lease = weights.lease(part)?;
        if let Some(norm) = norm {
            norm.apply(kernels, &mut self.x);
        }
        let carry = &mut Vec::new();
        let cx = Context {
            kernels,
            lease: &lease,
            start: 0,
            rows: 1,
            unwanted: 0,
            capacity: 0,
            carry,
            ahead: None,
            observer: None,
        };
        block.foresee(&cx, &self.x)
    }
}

/// One layer: adds what its parts say to the wanted rows of `x`.
fn run(cx: &mut Context<'_>, layer: &Layer, state: &mut LayerState, x: &mut [f32]) -> Result<(), Error> {
    let kernels = cx.kernels;
    let scale = layer.residual_scale;
    let mut input = kernels.copy(x);
    if let Some(norm) = &layer.mixer_norm {
        norm.apply(kernels, &mut input);
    }
    let mixed = layer.mixer.run(cx, &mut state.mixer, &input)?;
    let x = &mut x[input.len() / cx.rows * cx.unwanted..];
    residual(kernels, x, mixed, layer.post_mixer_norm.as_ref(), scale);
    let Some(ffn) = &layer.ffn else { return Ok(()) };
    if x.is_empty() {
        return Ok(());
    }
    if ffn.parallel {
        input.drain(..input.len() - x.len());
    } else {
        kernels.recycle(input);
        input = kernels.copy(x);
        if let Some(norm) = &ffn.norm {
            norm.apply(kernels, &mut input);
        }
    }
    if let Some(ahead) = cx.ahead.as_mut().filter(|ahead| x.len() == ahead.model.spec.dim) {
        ahead.x = x.to_vec();
    }
    let out = ffn.block.run(cx, &mut state.ffn, &input)?;
    kernels.recycle(input);
    residual(kernels, x, out, ffn.post_norm.as_ref(), scale);
    Ok(())
}

/// `x += scale · norm(out)`
fn residual(kernels: &Kernels, x: &mut [f32], mut out: Vec<f32>, post_norm: Option<&Norm>, scale: f32) {
    if let Some(post_norm) = post_norm {
        post_norm.apply(kernels, &mut out);
    }
    if scale != 1.0 {
        kernel::scale(kernels, &mut out, scale);
    }
    kernel::add(kernels, x, &out);
    kernels.recycle(out);
}
