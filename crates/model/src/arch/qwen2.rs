//! Qwen2 and Qwen2.5 (Yang et al. 2024): LLaMA with biases on queries, keys and values.

use super::common::{self, Decoder, Usual};
use super::{Architecture, classes};
use crate::Error;
use crate::hf::Op;
use crate::keys::{Config, Draft, Keys};
use crate::spec::ModelSpec;
use fonio_kernel::Activation;
use serde_json::{Map, Value as Json, json};

pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_types: &["qwen2"],
    models: "Qwen2, Qwen2.5",
    spec: |keys| {
        let mut spec = common::decoder(keys, Decoder::new("qwen2", Activation::Silu))?;
        windows(&mut spec, keys)?;
        Ok(spec)
    },
    guess: Some(|shapes| {
        let usual = Usual {
            model_type: "qwen2",
            head_dim: None,
            rope_theta: 1_000_000.0,
            eps: 1e-6,
            context: 32_768,
        };
        if !(shapes.has("model.layers.0.self_attn.q_proj.bias")
            && !shapes.has("model.layers.0.self_attn.o_proj.bias")
            && !shapes.has("model.layers.0.self_attn.q_norm.weight"))
        {
            return None;
        }
        common::decoder_guess(shapes, &usual)
    }),
    from_config: |config, draft| {
        common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
        common::decoder_from_config(config, draft)?;
        windows_from_config(config, draft)
    },
    to_config: |spec, keys, json| {
        classes(json, "Qwen2ForCausalLM", "qwen2");
        json.insert("hidden_act".into(), json!("silu"));
        windows_to_config(spec, keys, json)?;
        common::decoder_to_config(spec, keys, json)
    },
    rules: common::decoder_rules!(Op::Same, Op::Same, Op::Same, common::FFN_NORM),
    ignored: common::DERIVED,
    ..Architecture::BARE
};

/// Windows as the Qwen family has them: in none of the layers, or in the later ones.
pub(super) fn windows(spec: &mut ModelSpec, keys: &Keys<'_>) -> Result<(), Error> {
    let windowed = common::windowed_layers(keys, spec.layers.len(), 0)?;
    common::set_windows(spec, keys, &windowed)
}

pub(super) fn windows_from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    let layers = config.count("num_hidden_layers")?;
    let window = config.count_opt("sliding_window")?.filter(|&w| w > 0);
    let used = config.flag_or("use_sliding_window", false)?;
    let types = common::layer_types(config, layers as usize)?;
    let Some(window) = window.filter(|_| used) else { return Ok(()) };
    let windowed = match types {
        Some(windowed) => windowed,
        None => {
            let first = config.count_opt("max_window_layers")?.unwrap_or(28);
            (0..layers).map(|i| i >= first).collect()
        }
    };
    if windowed.contains(&true) {
        draft.set("attention.sliding_window", window);
        common::windows_to_keys(windowed, 0, draft);
    }
    Ok(())
}

pub(super) fn windows_to_config(
    spec: &ModelSpec,
    keys: &Keys<'_>,
    json: &mut Map<String, Json>,
) -> Result<(), Error> {
    let window = keys.count_opt("attention.sliding_window")?.filter(|&w| w > 0);
    json.insert("use_sliding_window".into(), json!(window.is_some()));
    json.insert("sliding_window".into(), json!(window));
    json.insert("layer_types".into(), common::layer_types_of(spec));
    Ok(())
}
