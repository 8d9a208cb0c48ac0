//! What transformers share: keys, the usual names, rotary scaling, windows, experts.

mod guess;
mod moe;
pub(super) mod recurrent;
pub(super) mod rope;
mod rules;
mod windows;

pub(super) use guess::{
    Usual, decoder_guess, heads as heads_guess, rest as rest_guess, sizes as sizes_guess,
};
pub(super) use moe::{from_config as moe_from_config, moe, to_config as moe_to_config};
pub(super) use rope::{LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS, frequencies};
pub(super) use rules::{DERIVED, EXPERT_DOWN, EXPERT_GATE, EXPERT_UP, FFN_NORM, ROUTER, decoder_rules};
pub(super) use windows::{
    give_windows, layer_types, layer_types_of, set_windows, windowed_layers, windows_to_keys,
};

use crate::Error;
use crate::keys::{Config, Draft, Keys};
use crate::spec::{
    AttentionSpec, DenseSpec, FfnSpec, Gate, LayerSpec, MixerSpec, ModelSpec, NormPlaces, NormSpec, Residual,
};
use fonio_kernel::{Activation, Pairing};
use serde_json::{Map, Value as Json, json};

/// What a decoder's metadata leaves open.
#[derive(Clone, Copy)]
pub(super) struct Decoder {
    pub architecture: &'static str,
    /// How rotary embeddings pair values; none if positions are learned.
    pub pairing: Option<Pairing>,
    pub activation: Activation,
    /// Whether experts' weights are divided by their sum where a file does not say.
    pub normalize_experts: bool,
}

impl Decoder {
    /// Values half a head apart are turned together, and experts' weights are divided by their sum.
    pub const fn new(architecture: &'static str, activation: Activation) -> Decoder {
        Decoder { architecture, pairing: Some(Pairing::Halves), activation, normalize_experts: true }
    }
}

/// A spec of the usual decoder: norms before attention and before the feed-forward part. What tensors there are tells
/// biases, gates, fused projections and experts.
pub(super) fn decoder(keys: &Keys<'_>, kind: Decoder) -> Result<ModelSpec, Error> {
    let mut spec = skeleton(keys, kind.architecture)?;
    let (n_layers, norm) = (keys.count("block_count")?, spec.final_norm);
    let heads = keys.counts("attention.head_count", n_layers, None)?;
    let kv = match keys.count_opt("attention.head_count_kv") {
        Ok(None) => heads.clone(),
        _ => keys.counts("attention.head_count_kv", n_layers, None)?,
    };
    for i in 0..n_layers {
        spec.layers.push(LayerSpec {
            mixer: MixerSpec::Attention(attention(keys, i, spec.dim, (heads[i], kv[i]), kind.pairing)?),
            ffn: Some(feed_forward(keys, i, n_layers, kind)?),
            norm,
            norms: NormPlaces::Before,
            residual: Residual::Sequential,
            residual_scale: 1.0,
        });
    }
    Ok(spec)
}

/// Layers that there are: each has tensors of its own, so a file cannot have more layers than tensors.
pub(super) fn layer_count(keys: &Keys<'_>) -> Result<usize, Error> {
    let n_layers = keys.count("block_count")?;
    if n_layers > keys.checkpoint().tensors().len() {
        return Err(keys.wrong("block_count", format!("{n_layers} layers, but fewer tensors")));
    }
    Ok(n_layers)
}

/// Everything but the layers.
pub(super) fn skeleton(keys: &Keys<'_>, architecture: &'static str) -> Result<ModelSpec, Error> {
    let n_layers = layer_count(keys)?;
    let embedding = keys.checkpoint().find("token_embd.weight");
    let vocab_size = embedding.and_then(|t| keys.checkpoint().tensors().get(t)).and_then(|t| t.shape.first());
    let vocab_size = vocab_size
        .and_then(|&n| usize::try_from(n).ok())
        .ok_or_else(|| Error::MissingTensor { file: keys.file(), tensor: "token_embd.weight".into() })?;
    Ok(ModelSpec {
        architecture,
        vocab_size,
        dim: keys.count("embedding_length")?,
        context_len: keys.count("context_length")?,
        embedding_scale: 1.0,
        embedding_norm: None,
        n_positions: None,
        layers: Vec::with_capacity(n_layers),
        final_norm: norm(keys)?,
        has_head: keys.has_tensor("output.weight"),
        head_bias: keys.has_tensor("output.bias"),
        logit_scale: 1.0,
        logit_softcap: None,
    })
}

/// The kind of norm: which epsilon there is tells it.
fn norm(keys: &Keys<'_>) -> Result<NormSpec, Error> {
    const LAYER: &str = "attention.layer_norm_epsilon";
    match keys.float_opt(LAYER)? {
        Some(_) => {
            let eps = keys.positive_or(LAYER, 1e-5)?;
            Ok(NormSpec::Layer { eps, bias: keys.has_tensor("output_norm.bias") })
        }
        None => Ok(NormSpec::Rms(keys.positive_or("attention.layer_norm_rms_epsilon", 1e-5)?)),
    }
}

fn attention(
    keys: &Keys<'_>,
    block: usize,
    dim: usize,
    (n_heads, n_kv_heads): (usize, usize),
    pairing: Option<Pairing>,
) -> Result<AttentionSpec, Error> {
    if n_heads == 0 || n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
        let reason = format!("{n_heads} query heads can't share {n_kv_heads} key heads evenly");
        return Err(keys.wrong("attention.head_count_kv", reason));
    }
    let head_dim = match keys.count_opt("attention.key_length")? {
        Some(n) => n,
        None if dim.is_multiple_of(n_heads) => dim / n_heads,
        None => {
            return Err(keys.wrong("embedding_length", format!("{dim} is no multiple of {n_heads} heads")));
        }
    };
    let value_dim = keys.count_opt("attention.value_length")?.unwrap_or(head_dim);
    if head_dim == 0 || value_dim == 0 || head_dim > 1 << 16 || value_dim > 1 << 16 {
        return Err(keys.wrong("attention.key_length", format!("{head_dim} is no sensible head size")));
    }
    let turning = match pairing {
        Some(pairing) => {
            let n_rot = keys.count_opt("rope.dimension_count")?.unwrap_or(head_dim);
            Some(rope::turning(keys, pairing, n_rot, head_dim)?)
        }
        None => None,
    };
    let (rotary, long_rotary) = turning.map_or((None, None), |t| (Some(t.rotary), t.long));
    let has = |name: &str| keys.has_tensor(&format!("blk.{block}.{name}"));
    let fused = has("attn_qkv.weight");
    Ok(AttentionSpec {
        n_heads,
        n_kv_heads,
        head_dim,
        value_dim,
        rotary,
        long_rotary,
        scale: keys.positive_or("attention.scale", 1.0 / (head_dim as f32).sqrt())?,
        softcap: None,
        window: None,
        fused,
        qkv_bias: has(if fused { "attn_qkv.bias" } else { "attn_q.bias" }),
        output_bias: has("attn_output.bias"),
        qk_norm: None,
        sinks: has("attn_sinks.weight"),
    })
}

fn feed_forward(keys: &Keys<'_>, block: usize, n_layers: usize, kind: Decoder) -> Result<FfnSpec, Error> {
    if let Some(moe) = moe(keys, block, kind.activation, kind.normalize_experts)? {
        return Ok(FfnSpec::Moe(moe));
    }
    let ffn_dim = keys.counts("feed_forward_length", n_layers, None)?[block];
    let has = |name: &str| keys.has_tensor(&format!("blk.{block}.{name}"));
    let up = keys.checkpoint().find(&format!("blk.{block}.ffn_up.weight"));
    let up_rows = up.and_then(|t| keys.checkpoint().tensors().get(t)).and_then(|t| t.shape.first());
    let gate = match up_rows {
        _ if has("ffn_gate.weight") => Gate::Own,
        Some(&rows) if rows == 2 * ffn_dim as u64 => Gate::InUp,
        _ => Gate::None,
    };
    let bias = has("ffn_down.bias");
    Ok(FfnSpec::Dense(DenseSpec { ffn_dim, activation: kind.activation, gate, bias }))
}

/// The first of several names of a count that is there.
pub(super) fn count_of(config: &Config, names: &[&str]) -> Result<u32, Error> {
    for name in names {
        if let Some(n) = config.count_opt(name)? {
            return Ok(n);
        }
    }
    Err(config.wrong(names.first().copied().unwrap_or_default(), "is missing"))
}

/// Heads, and values of each, as Hugging Face's configuration has them.
pub(super) fn heads_of(config: &Config) -> Result<(u32, u32), Error> {
    let dim = count_of(config, &["hidden_size", "n_embd"])?;
    let heads = count_of(config, &["num_attention_heads", "n_head"])?;
    if heads == 0 || dim == 0 {
        return Err(config.wrong("num_attention_heads", "sizes must not be 0"));
    }
    Ok((heads, config.count_opt("head_dim")?.unwrap_or(dim / heads)))
}

/// Metadata of the usual decoder from Hugging Face's configuration, rotary embeddings included.
pub(super) fn decoder_from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    sizes_from_config(config, draft)?;
    let (_, head_dim) = heads_of(config)?;
    let rope = rope::rope_config(config, None, 10_000.0)?;
    let n_rot = (head_dim as f32 * rope.partial) as u32;
    rope::write(config, &rope, n_rot, draft)
}

/// Metadata of the usual decoder from Hugging Face's configuration, but for how it turns queries and keys.
pub(super) fn sizes_from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    let dim = count_of(config, &["hidden_size", "n_embd"])?;
    let (heads, head_dim) = heads_of(config)?;
    draft.set("context_length", count_of(config, &["max_position_embeddings", "n_positions"])?);
    draft.set("embedding_length", dim);
    draft.set("block_count", count_of(config, &["num_hidden_layers", "n_layer"])?);
    let inner = match config.count_opt("intermediate_size")? {
        Some(n) => Some(n),
        None => config.count_opt("n_inner")?,
    };
    draft.set("feed_forward_length", inner.unwrap_or(dim.saturating_mul(4)));
    draft.set("attention.head_count", heads);
    draft.set("attention.head_count_kv", config.count_opt("num_key_value_heads")?.unwrap_or(heads));
    if let Some(eps) = config.float_opt("rms_norm_eps")? {
        draft.set("attention.layer_norm_rms_epsilon", eps);
    } else {
        let mut eps = None;
        for key in ["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"] {
            eps = eps.or(config.float_opt(key)?);
        }
        let eps = eps.ok_or_else(|| config.wrong("rms_norm_eps", "is missing"))?;
        draft.set("attention.layer_norm_epsilon", eps);
    }
    if let Some(vocab_size) = config.count_opt("vocab_size")? {
        draft.set("vocab_size", vocab_size);
    }
    if head_dim.checked_mul(heads) != Some(dim) {
        draft.set("attention.key_length", head_dim);
        draft.set("attention.value_length", head_dim);
    }
    Ok(())
}

/// An error unless the activation is one of these.
pub(super) fn expect_activation(config: &Config, key: &str, known: &[&str]) -> Result<(), Error> {
    match config.text_opt(key)? {
        Some(name) if !known.contains(&name) => Err(config.unsupported(key, format!("activation {name:?}"))),
        _ => Ok(()),
    }
}

/// The first layer's attention, which there has to be.
pub(super) fn first_attention<'a>(spec: &'a ModelSpec, keys: &Keys<'_>) -> Result<&'a AttentionSpec, Error> {
    spec.first_attention().ok_or_else(|| keys.wrong("attention.head_count", "no layer has attention"))
}

/// Hugging Face's configuration of the usual decoder.
pub(super) fn decoder_to_config(
    spec: &ModelSpec,
    keys: &Keys<'_>,
    json: &mut Map<String, Json>,
) -> Result<(), Error> {
    let attention = first_attention(spec, keys)?;
    let ffn_dim = match keys.counts("feed_forward_length", spec.layers.len(), None) {
        Ok(all) => all.into_iter().find(|&n| n > 0),
        Err(_) => None,
    };
    let eps = json!(decimal(spec.final_norm.eps()));
    let mut set = |key: &str, value: Json| json.insert(key.into(), value);
    set("hidden_size", json!(spec.dim));
    if let Some(ffn_dim) = ffn_dim {
        set("intermediate_size", json!(ffn_dim));
    }
    set("num_hidden_layers", json!(spec.layers.len()));
    set("num_attention_heads", json!(attention.n_heads));
    set("num_key_value_heads", json!(attention.n_kv_heads));
    set("head_dim", json!(attention.head_dim));
    set("max_position_embeddings", json!(spec.context_len));
    set("vocab_size", json!(spec.vocab_size));
    match spec.final_norm {
        NormSpec::Rms(_) => set("rms_norm_eps", eps),
        NormSpec::Layer { .. } => set("layer_norm_eps", eps),
    };
    set("tie_word_embeddings", json!(!spec.has_head));
    if attention.rotary.is_some() {
        let n_rot = keys.count_opt("rope.dimension_count")?.unwrap_or(attention.head_dim);
        rope::to_config(keys, n_rot, attention.head_dim, json)?;
    }
    Ok(())
}

/// Hugging Face's configuration in the words of GPT-2's time.
pub(super) fn gpt_to_config(
    spec: &ModelSpec,
    keys: &Keys<'_>,
    json: &mut Map<String, Json>,
) -> Result<(), Error> {
    let n_heads = first_attention(spec, keys)?.n_heads;
    let n_inner = keys.count("feed_forward_length")?;
    let mut set = |key: &str, value: Json| json.insert(key.into(), value);
    set("activation_function", json!("gelu_new"));
    set("n_embd", json!(spec.dim));
    set("n_layer", json!(spec.layers.len()));
    set("n_head", json!(n_heads));
    set("n_positions", json!(spec.context_len));
    set("n_inner", json!(n_inner));
    set("vocab_size", json!(spec.vocab_size));
    set("layer_norm_epsilon", json!(decimal(spec.final_norm.eps())));
    set("tie_word_embeddings", json!(!spec.has_head));
    Ok(())
}

/// The shortest decimal that is this `f32`, not the long one that its `f64` has.
pub(super) fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// What `1 / √x` was made of: a whole number where it is near one.
pub(super) fn inverse_square(scale: f32) -> f64 {
    let x = 1.0 / (f64::from(scale) * f64::from(scale));
    if (x - x.round()).abs() < 1e-4 * x { x.round() } else { x }
}
