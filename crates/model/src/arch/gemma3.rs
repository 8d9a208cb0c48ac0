//! Gemma 3 (Gemma Team 2025), the text part: norms before and after each block, queries and keys normed, most layers
//! with a window and a rotary base of their own. Norm weights are stored less 1 at Hugging Face.

use super::common::Decoder;
use super::common::rope::{rope_config, write_scaling};
use super::{Architecture, classes, common, gemma};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{MixerSpec, ModelSpec, NormPlaces, QkNorm};
use fonio_kernel::{Activation, Pairing, Rotary};
use serde_json::{Map, Value as Json, json};

/// Rotary base of layers with a window, where the file does not say.
const LOCAL_BASE: f32 = 10_000.0;
/// Every so many layers one sees everything, where the file does not say.
const PERIOD: usize = 6;

pub(super) const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_types: &["gemma3_text", "gemma3"],
    models: "Gemma 3 (text)",
    spec,
    from_config,
    to_config,
    rules: common::decoder_rules!(
        Op::Same,
        Op::Same,
        Op::AddOne,
        Rule(
            "model.layers.{}.post_attention_layernorm.weight",
            "blk.{}.post_attention_norm.weight",
            Op::AddOne
        ),
        Rule("model.layers.{}.pre_feedforward_layernorm.weight", "blk.{}.ffn_norm.weight", Op::AddOne),
        Rule("model.layers.{}.post_feedforward_layernorm.weight", "blk.{}.post_ffw_norm.weight", Op::AddOne),
        Rule("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", Op::AddOne),
        Rule("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", Op::AddOne)
    ),
    ignored: &[
        "vision_tower.*",
        "multi_modal_projector.*",
        "model.vision_tower.*",
        "model.multi_modal_projector.*",
    ],
    tied: true,
    prefixes: &[
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.language_model.", "model."),
    ],
    ..Architecture::BARE
};

fn spec(keys: &Keys<'_>) -> Result<ModelSpec, Error> {
    let mut spec = common::decoder(keys, Decoder::new("gemma3", Activation::GeluTanh))?;
    spec.embedding_scale = (spec.dim as f32).sqrt();
    spec.logit_softcap = keys.float_opt("final_logit_softcapping")?;
    if keys.float_opt("attn_logit_softcapping")?.is_some_and(|cap| cap != 0.0) {
        return Err(keys.unsupported("attn_logit_softcapping", "not in Gemma 3"));
    }
    let window = keys.count_opt("attention.sliding_window")?.filter(|&w| w > 0);
    let n = spec.layers.len();
    let local = common::windowed_layers(keys, n, PERIOD)?;
    let base = keys.positive_or("rope.freq_base_swa", LOCAL_BASE)?;
    let dim = spec.dim;
    for (layer, local) in spec.layers.iter_mut().zip(local) {
        layer.norms = NormPlaces::Both;
        let MixerSpec::Attention(attention) = &mut layer.mixer else { continue };
        attention.qk_norm = Some(QkNorm::Head(layer.norm));
        // The 27 B model alone scales by dim / heads, which GGUF files tell by their number of layers.
        if n == 62 && keys.float_opt("attention.scale")?.is_none() {
            attention.scale = 1.0 / ((dim / attention.n_heads) as f32).sqrt();
        }
        if local && let Some(window) = window {
            attention.window = Some(window);
            let inv_freq = common::frequencies(base, attention.head_dim);
            attention.rotary = Some(Rotary { pairing: Pairing::Halves, inv_freq, magnitude: 1.0 });
        }
    }
    Ok(spec)
}

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    gemma::expect_gelu(config)?;
    let heads = config.count_opt("num_attention_heads")?.unwrap_or(8);
    let head_dim = config.count_opt("head_dim")?.unwrap_or(256);
    let layers = config.count_opt("num_hidden_layers")?.unwrap_or(26);
    draft.set("context_length", config.count_opt("max_position_embeddings")?.unwrap_or(131_072));
    draft.set("embedding_length", config.count_opt("hidden_size")?.unwrap_or(2304));
    draft.set("block_count", layers);
    draft.set("feed_forward_length", config.count_opt("intermediate_size")?.unwrap_or(9216));
    draft.set("attention.head_count", heads);
    draft.set("attention.head_count_kv", config.count_opt("num_key_value_heads")?.unwrap_or(4));
    draft.set("attention.layer_norm_rms_epsilon", config.float_opt("rms_norm_eps")?.unwrap_or(1e-6));
    draft.set("attention.key_length", head_dim);
    draft.set("attention.value_length", head_dim);
    let scalar = config.float_opt("query_pre_attn_scalar")?.unwrap_or(256.0);
    if scalar != head_dim as f32 {
        draft.set("attention.scale", 1.0 / scalar.sqrt());
    }
    let global = rope_config(config, Some("full_attention"), 1_000_000.0)?;
    draft.set("rope.freq_base", global.theta);
    write_scaling(config, &global, draft)?;
    let local = match config.object("rope_parameters").and_then(|p| p.object("sliding_attention")) {
        Some(parameters) => parameters.float_opt("rope_theta")?,
        None => config.float_opt("rope_local_base_freq")?,
    };
    draft.set("rope.freq_base_swa", local.unwrap_or(LOCAL_BASE));
    if let Some(cap) = config.float_opt("final_logit_softcapping")? {
        draft.set("final_logit_softcapping", cap);
    }
    if config.float_opt("attn_logit_softcapping")?.is_some() {
        return Err(config.unsupported("attn_logit_softcapping", "not in Gemma 3"));
    }
    if config.flag_or("use_bidirectional_attention", false)? {
        return Err(config.unsupported("use_bidirectional_attention", "text is generated from left to right"));
    }
    windows_from_config(config, draft, layers as usize)
}

fn windows_from_config(config: &Config, draft: &mut Draft<'_>, layers: usize) -> Result<(), Error> {
    draft.set("attention.sliding_window", config.count_opt("sliding_window")?.unwrap_or(4096));
    let windowed = match common::layer_types(config, layers)? {
        Some(windowed) => windowed,
        None => {
            let period = config.count_opt("sliding_window_pattern")?.unwrap_or(PERIOD as u32);
            (1..=layers as u32).map(|i| period > 0 && !i.is_multiple_of(period)).collect()
        }
    };
    common::windows_to_keys(windowed, PERIOD, draft);
    Ok(())
}

fn to_config(spec: &ModelSpec, keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    common::decoder_to_config(spec, keys, json)?;
    classes(json, "Gemma3ForCausalLM", "gemma3_text");
    let first = common::first_attention(spec, keys)?;
    let window = keys.count_opt("attention.sliding_window").ok().flatten();
    let base = keys.float_opt("rope.freq_base_swa").ok().flatten().unwrap_or(LOCAL_BASE);
    let mut set = |key: &str, value: Json| json.insert(key.into(), value);
    set("hidden_activation", json!("gelu_pytorch_tanh"));
    set("layer_types", common::layer_types_of(spec));
    set("sliding_window", json!(window));
    set("rope_local_base_freq", json!(common::decimal(base)));
    set("query_pre_attn_scalar", json!(common::inverse_square(first.scale)));
    set("final_logit_softcapping", json!(spec.logit_softcap));
    Ok(())
}
