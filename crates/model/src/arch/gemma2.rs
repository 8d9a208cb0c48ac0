//! Gemma 2 (Gemma Team 2024): capped scores and logits, norms before and after each part, a window in every other
//! layer.

use super::common::{self, Decoder, Usual};
use super::{Architecture, classes, gemma};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{MixerSpec, ModelSpec, NormPlaces};
use fonio_kernel::Activation;
use serde_json::json;

/// Every so many layers one sees everything, where the file does not say.
const PERIOD: usize = 2;
/// The window of all published models, where the file does not say.
const WINDOW: u32 = 4096;
const SCORE_CAP: &str = "attn_logit_softcapping";
const LOGIT_CAP: &str = "final_logit_softcapping";

pub(super) const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    model_types: &["gemma2"],
    models: "Gemma 2",
    spec,
    guess: Some(|shapes| {
        let usual = Usual {
            model_type: "gemma2",
            head_dim: Some(256),
            rope_theta: 10_000.0,
            eps: 1e-6,
            context: 8192,
        };
        if !shapes.has("model.layers.0.pre_feedforward_layernorm.weight")
            || shapes.has("model.layers.0.self_attn.q_norm.weight")
        {
            return None;
        }
        let mut guess = common::decoder_guess(shapes, &usual)?;
        guess.assume("sliding_window", 4096, "windows of 4096");
        guess.assume(SCORE_CAP, 50.0, "scores capped at 50");
        guess.assume(LOGIT_CAP, 30.0, "logits capped at 30");
        Some(guess)
    }),
    from_config,
    to_config: |spec, keys, json| {
        common::decoder_to_config(spec, keys, json)?;
        let attention = common::first_attention(spec, keys)?;
        classes(json, "Gemma2ForCausalLM", "gemma2");
        json.insert("hidden_activation".into(), json!("gelu_pytorch_tanh"));
        json.insert("layer_types".into(), common::layer_types_of(spec));
        json.insert("sliding_window".into(), json!(keys.count_opt("attention.sliding_window")?));
        json.insert("query_pre_attn_scalar".into(), json!(common::inverse_square(attention.scale)));
        json.insert(SCORE_CAP.into(), json!(attention.softcap.map(common::decimal)));
        json.insert(LOGIT_CAP.into(), json!(spec.logit_softcap.map(common::decimal)));
        Ok(())
    },
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
        Rule("model.layers.{}.post_feedforward_layernorm.weight", "blk.{}.post_ffw_norm.weight", Op::AddOne)
    ),
    ignored: common::DERIVED,
    tied: true,
    ..Architecture::BARE
};

fn spec(keys: &Keys<'_>) -> Result<ModelSpec, Error> {
    let mut spec = common::decoder(keys, Decoder::new("gemma2", Activation::GeluTanh))?;
    spec.embedding_scale = (spec.dim as f32).sqrt();
    // Files of before these keys are of models that have the first values. So it is with the window.
    let cap = |key: &str, default: f32| Ok::<_, Error>(keys.float_opt(key)?.unwrap_or(default));
    let score_cap = Some(cap(SCORE_CAP, 50.0)?).filter(|&c| c > 0.0);
    spec.logit_softcap = Some(cap(LOGIT_CAP, 30.0)?).filter(|&c| c > 0.0);
    let (dim, n) = (spec.dim, spec.layers.len());
    for layer in &mut spec.layers {
        layer.norms = NormPlaces::Both;
        let MixerSpec::Attention(attention) = &mut layer.mixer else { continue };
        attention.softcap = score_cap;
        // The 27 B model alone scales by dim / heads, which files tell by their number of layers.
        if n == 46 && keys.float_opt("attention.scale")?.is_none() {
            attention.scale = 1.0 / ((dim / attention.n_heads) as f32).sqrt();
        }
    }
    let window = keys.count_opt("attention.sliding_window")?.unwrap_or(WINDOW as usize);
    common::give_windows(&mut spec, window, &common::windowed_layers(keys, n, PERIOD)?);
    Ok(spec)
}

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    gemma::expect_gelu(config)?;
    common::decoder_from_config(config, draft)?;
    let (_, head_dim) = common::heads_of(config)?;
    let scalar = config.float_opt("query_pre_attn_scalar")?.unwrap_or(256.0);
    draft.set("attention.scale", 1.0 / scalar.sqrt());
    draft.set("attention.key_length", head_dim);
    draft.set("attention.value_length", head_dim);
    for key in [SCORE_CAP, LOGIT_CAP] {
        draft.set(key, config.float_opt(key)?.unwrap_or(0.0));
    }
    if config.flag_or("use_bidirectional_attention", false)? {
        return Err(config.unsupported("use_bidirectional_attention", "text is generated from left to right"));
    }
    let layers = config.count("num_hidden_layers")? as usize;
    draft.set("attention.sliding_window", config.count_opt("sliding_window")?.unwrap_or(WINDOW));
    if let Some(windowed) = common::layer_types(config, layers)? {
        common::windows_to_keys(windowed, PERIOD, draft);
    }
    Ok(())
}
