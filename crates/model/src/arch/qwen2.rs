//! Qwen2 and Qwen2.5 (Yang et al. 2024): LLaMA with biases on queries, keys and values.

use super::{Architecture, common};
use crate::Error;
use crate::hf::Op;
use crate::keys::{Config, Draft};
use fonio_kernel::{Activation, Pairing};
use serde_json::json;

pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_types: &["qwen2"],
    models: "Qwen2, Qwen2.5",
    spec: |keys| {
        let spec = common::decoder(keys, "qwen2", Pairing::Halves, Activation::Silu)?;
        for i in 0..spec.layers.len() {
            let bias = format!("blk.{i}.attn_q.bias");
            if !keys.has_tensor(&bias) {
                return Err(Error::MissingTensor { file: keys.file(), tensor: bias });
            }
        }
        Ok(spec)
    },
    from_config,
    to_config: |spec, keys, json| {
        json.insert("architectures".into(), json!(["Qwen2ForCausalLM"]));
        json.insert("model_type".into(), json!("qwen2"));
        json.insert("hidden_act".into(), json!("silu"));
        common::decoder_to_config(spec, keys, json)
    },
    rules: common::decoder_rules!(Op::Same, Op::Same, Op::Same, common::FFN_NORM),
    ignored: common::DERIVED,
    derived: &[],
    tied: false,
    prefixes: &[],
};

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
    // GGUF has no key for a window in this architecture: where one would hide positions, the result would differ.
    let layers = config.count("num_hidden_layers")?;
    let windowed = match config.texts_opt("layer_types")? {
        Some(types) => types.contains(&"sliding_attention"),
        None => config.count_opt("max_window_layers")?.unwrap_or(layers) < layers,
    };
    let window = config
        .count_opt("sliding_window")?
        .filter(|&w| w < config.count("max_position_embeddings").unwrap_or(0));
    if config.flag_or("use_sliding_window", false)? && windowed && window.is_some() {
        return Err(config.unsupported("use_sliding_window", "a window shorter than the context"));
    }
    common::decoder_from_config(config, draft)
}
