//! Guesses at configurations of decoders with the usual names.

use crate::hf::{Guess, Shapes};
use serde_json::json;

/// What models of a kind have that no tensor tells.
pub(in crate::arch) struct Usual {
    pub model_type: &'static str,
    /// Values of a head; by the width of the model if `None`.
    pub head_dim: Option<u64>,
    pub rope_theta: f64,
    pub eps: f64,
    pub context: u64,
}

const LAYERS: &str = "model.layers.{}.self_attn.q_proj.weight";

/// A decoder with separate projections, as [`super::decoder_rules`] names them.
pub(in crate::arch) fn decoder_guess(shapes: &Shapes<'_>, usual: &Usual) -> Option<Guess> {
    let at = |name: &str| format!("model.layers.0.{name}");
    let q = shapes.rows(&at("self_attn.q_proj.weight"))?;
    let k = shapes.rows(&at("self_attn.k_proj.weight"))?;
    let mut guess = sizes(shapes, usual, shapes.count(LAYERS))?;
    if let Some(ffn_dim) = shapes.rows(&at("mlp.gate_proj.weight")) {
        guess.set("intermediate_size", ffn_dim);
    }
    heads(shapes, usual, &mut guess, (q, k))?;
    rest(usual, &mut guess);
    Some(guess)
}

/// Vocabulary, width, depth and whether the head is the embedding.
pub(in crate::arch) fn sizes(shapes: &Shapes<'_>, usual: &Usual, layers: u64) -> Option<Guess> {
    let [vocab, dim] = *shapes.shape("model.embed_tokens.weight")? else { return None };
    let mut guess = Guess::new(usual.model_type);
    guess.set("vocab_size", vocab);
    guess.set("hidden_size", dim);
    guess.set("num_hidden_layers", layers);
    guess.set("tie_word_embeddings", !shapes.has("lm_head.weight"));
    Some(guess)
}

/// Heads of queries and keys with `q` and `k` values in all.
pub(in crate::arch) fn heads(
    shapes: &Shapes<'_>,
    usual: &Usual,
    guess: &mut Guess,
    (q, k): (u64, u64),
) -> Option<()> {
    let at = |name: &str| format!("model.layers.0.self_attn.{name}");
    let dim = shapes.cols("model.embed_tokens.weight")?;
    let exact = shapes
        .rows(&at("q_norm.weight"))
        .filter(|&n| n < q)
        .or(shapes.rows(&at("rotary_emb.inv_freq")).map(|n| 2 * n))
        .or(shapes.rows(&at("sinks")).filter(|&n| n > 0).map(|n| q / n));
    let head_dim = match exact {
        Some(n) => n,
        None => {
            let usual = usual.head_dim.unwrap_or(if dim >= 3072 { 128 } else { 64 });
            let fits = |n: &u64| k >= *n && q.is_multiple_of(*n) && k.is_multiple_of(*n);
            let n = [usual, 128, 64, 32, 16, 8].into_iter().find(fits)?;
            guess.assumed.push(format!("heads of {n} values"));
            n
        }
    };
    let whole = head_dim > 0 && q.is_multiple_of(head_dim) && k.is_multiple_of(head_dim) && k >= head_dim;
    whole.then(|| {
        guess.set("head_dim", head_dim);
        guess.set("num_attention_heads", q / head_dim);
        guess.set("num_key_value_heads", k / head_dim);
    })
}

/// What no shape tells.
pub(in crate::arch) fn rest(usual: &Usual, guess: &mut Guess) {
    let (theta, eps, context) = (usual.rope_theta, usual.eps, usual.context);
    guess.assume("rope_theta", json!(theta), format!("rotary base {theta}"));
    guess.assume("rms_norm_eps", json!(eps), format!("epsilon {eps:e}"));
    guess.assume("max_position_embeddings", json!(context), format!("a context of {context}"));
}
