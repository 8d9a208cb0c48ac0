//! Qwen3 (Yang et al. 2025): queries and keys are normed head by head, and nothing has a bias.

use super::common::{self, Decoder, Usual};
use super::{Architecture, classes, qwen2};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::Keys;
use crate::spec::{MixerSpec, ModelSpec, QkNorm};
use fonio_kernel::Activation;
use serde_json::json;

pub(super) const QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_types: &["qwen3"],
    models: "Qwen3",
    spec: |keys| spec(keys, "qwen3"),
    guess: Some(|shapes| {
        let usual = Usual {
            model_type: "qwen3",
            head_dim: None,
            rope_theta: 1_000_000.0,
            eps: 1e-6,
            context: 40_960,
        };
        if !(shapes.has("model.layers.0.self_attn.q_norm.weight")
            && shapes.has("model.layers.0.input_layernorm.weight")
            && !shapes.has("model.layers.0.pre_feedforward_layernorm.weight"))
        {
            return None;
        }
        common::decoder_guess(shapes, &usual)
    }),
    from_config: |config, draft| {
        common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
        common::decoder_from_config(config, draft)?;
        qwen2::windows_from_config(config, draft)
    },
    to_config: |spec, keys, json| {
        classes(json, "Qwen3ForCausalLM", "qwen3");
        json.insert("hidden_act".into(), json!("silu"));
        json.insert("attention_bias".into(), json!(keys.has_tensor("blk.0.attn_q.bias")));
        qwen2::windows_to_config(spec, keys, json)?;
        common::decoder_to_config(spec, keys, json)
    },
    rules: common::decoder_rules!(Op::Same, Op::Same, Op::Same, common::FFN_NORM, Q_NORM, K_NORM),
    ignored: common::DERIVED,
    ..Architecture::BARE
};

pub(super) const Q_NORM: Rule =
    Rule("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", Op::Same);
pub(super) const K_NORM: Rule =
    Rule("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", Op::Same);

/// Qwen3's layers, also with experts.
pub(super) fn spec(keys: &Keys<'_>, name: &'static str) -> Result<ModelSpec, Error> {
    let mut spec = common::decoder(keys, Decoder::new(name, Activation::Silu))?;
    for layer in &mut spec.layers {
        let MixerSpec::Attention(attention) = &mut layer.mixer else { continue };
        attention.qk_norm = Some(QkNorm::Head(layer.norm));
    }
    qwen2::windows(&mut spec, keys)?;
    Ok(spec)
}
