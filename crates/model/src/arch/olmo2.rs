//! OLMo 2 (Team OLMo 2024): norms behind each part instead of before it, queries and keys normed as whole rows.

use super::common::{self, Decoder, Usual};
use super::{Architecture, classes, qwen3};
use crate::hf::{Op, Rule};
use crate::spec::{MixerSpec, NormPlaces, QkNorm};
use fonio_kernel::Activation;
use serde_json::json;

pub(super) const OLMO2: Architecture = Architecture {
    name: "olmo2",
    model_types: &["olmo2"],
    models: "OLMo 2",
    spec: |keys| {
        let mut spec = common::decoder(keys, Decoder::new("olmo2", Activation::Silu))?;
        for layer in &mut spec.layers {
            layer.norms = NormPlaces::After;
            let MixerSpec::Attention(attention) = &mut layer.mixer else { continue };
            attention.qk_norm = Some(QkNorm::Row(layer.norm));
        }
        Ok(spec)
    },
    guess: Some(|shapes| {
        let usual = Usual {
            model_type: "olmo2",
            head_dim: Some(128),
            rope_theta: 500_000.0,
            eps: 1e-6,
            context: 4096,
        };
        if !shapes.has("model.layers.0.post_feedforward_layernorm.weight")
            || shapes.has("model.layers.0.input_layernorm.weight")
        {
            return None;
        }
        common::decoder_guess(shapes, &usual)
    }),
    from_config: |config, draft| {
        common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
        common::decoder_from_config(config, draft)
    },
    to_config: |spec, keys, json| {
        classes(json, "Olmo2ForCausalLM", "olmo2");
        json.insert("hidden_act".into(), json!("silu"));
        json.insert("attention_bias".into(), json!(keys.has_tensor("blk.0.attn_q.bias")));
        common::decoder_to_config(spec, keys, json)
    },
    rules: common::decoder_rules!(
        Op::Same,
        Op::Same,
        Op::Same,
        Rule(
            "model.layers.{}.post_attention_layernorm.weight",
            "blk.{}.post_attention_norm.weight",
            Op::Same
        ),
        Rule("model.layers.{}.post_feedforward_layernorm.weight", "blk.{}.post_ffw_norm.weight", Op::Same),
        qwen3::Q_NORM,
        qwen3::K_NORM
    ),
    ignored: common::DERIVED,
    ..Architecture::BARE
};
