//! Qwen2 and Qwen2.5 (Yang et al. 2024): LLaMA with biases on queries, keys and values.

use super::common::Decoder;
use super::{Architecture, common};
use crate::Error;
use crate::hf::Op;
use crate::keys::{Config, Draft, Keys};
use crate::spec::{MixerSpec, ModelSpec};
use fonio_kernel::Activation;
use serde_json::json;

pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_types: &["qwen2"],
    models: "Qwen2, Qwen2.5",
    spec,
    from_config,
    to_config: |spec, keys, json| {
        json.insert("architectures".into(), json!(["Qwen2ForCausalLM"]));
        json.insert("model_type".into(), json!("qwen2"));
        json.insert("hidden_act".into(), json!("silu"));
        let window = keys.count_opt("attention.sliding_window")?;
        json.insert("use_sliding_window".into(), json!(window.is_some()));
        json.insert("sliding_window".into(), json!(window));
        json.insert("layer_types".into(), common::layer_types_of(spec));
        common::decoder_to_config(spec, keys, json)
    },
    rules: common::decoder_rules!(Op::Same, Op::Same, Op::Same, common::FFN_NORM),
    ignored: common::DERIVED,
    derived: &[],
    tied: false,
    prefixes: &[],
};

fn spec(keys: &Keys<'_>) -> Result<ModelSpec, Error> {
    let mut spec = common::decoder(keys, Decoder::new("qwen2", Activation::Silu))?;
    let window = keys.count_opt("attention.sliding_window")?.filter(|&w| w > 0);
    let windowed = common::windowed_layers(keys, spec.layers.len(), 0)?;
    for (i, (layer, windowed)) in spec.layers.iter_mut().zip(windowed).enumerate() {
        let MixerSpec::Attention(attention) = &mut layer.mixer else { continue };
        attention.window = window.filter(|_| windowed);
        if !attention.qkv_bias {
            return Err(Error::MissingTensor { file: keys.file(), tensor: format!("blk.{i}.attn_q.bias") });
        }
    }
    Ok(spec)
}

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
    common::decoder_from_config(config, draft)?;
    let layers = config.count("num_hidden_layers")?;
    let Some(window) = config.count_opt("sliding_window")?.filter(|&w| w > 0) else { return Ok(()) };
    if !config.flag_or("use_sliding_window", false)? {
        return Ok(());
    }
    let windowed = match common::layer_types(config, layers as usize)? {
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
