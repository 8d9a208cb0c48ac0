//! StableLM 1 to 2 (Bellagente et al. 2024): layer norms with biases, a part of each head turned; the 12 B model runs
//! both parts of a layer side by side and norms each head's queries and keys with weights of its own.

use super::common::{self, Decoder};
use super::{Architecture, classes};
use crate::hf::{Op, Rule};
use crate::spec::{MixerSpec, NormSpec, QkNorm, Residual};
use fonio_kernel::Activation;
use serde_json::json;

const PARALLEL: &str = "use_parallel_residual";

pub(super) const STABLELM: Architecture = Architecture {
    name: "stablelm",
    model_types: &["stablelm", "stablelm_epoch"],
    models: "StableLM, StableLM 2",
    spec: |keys| {
        let mut spec = common::decoder(keys, Decoder::new("stablelm", Activation::Silu))?;
        for (i, layer) in spec.layers.iter_mut().enumerate() {
            if !keys.has_tensor(&format!("blk.{i}.ffn_norm.weight")) {
                layer.residual = Residual::Parallel;
            }
            let MixerSpec::Attention(attention) = &mut layer.mixer else { continue };
            if keys.has_tensor(&format!("blk.{i}.attn_q_norm.weight")) {
                let norm = NormSpec::Layer { eps: layer.norm.eps(), bias: false };
                attention.qk_norm = Some(QkNorm::OwnHead(norm));
            }
        }
        Ok(spec)
    },
    from_config: |config, draft| {
        common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
        draft.set(PARALLEL, config.flag_or(PARALLEL, false)?);
        config.flag_or("qk_layernorm", false)?;
        common::decoder_from_config(config, draft)
    },
    to_config: |spec, keys, json| {
        let attention = common::first_attention(spec, keys)?;
        let parallel = spec.layers.iter().any(|layer| layer.residual == Residual::Parallel);
        classes(json, "StableLmForCausalLM", "stablelm");
        json.insert("hidden_act".into(), json!("silu"));
        json.insert("use_qkv_bias".into(), json!(attention.qkv_bias));
        json.insert("qk_layernorm".into(), json!(attention.qk_norm.is_some()));
        json.insert(PARALLEL.into(), json!(parallel));
        common::decoder_to_config(spec, keys, json)
    },
    rules: common::decoder_rules!(
        Op::Same,
        Op::Same,
        Op::Same,
        common::FFN_NORM,
        Rule("model.norm.bias", "output_norm.bias", Op::Same),
        Rule("model.layers.{}.input_layernorm.bias", "blk.{}.attn_norm.bias", Op::Same),
        Rule("model.layers.{}.post_attention_layernorm.bias", "blk.{}.ffn_norm.bias", Op::Same),
        Rule("model.layers.{}.self_attn.q_layernorm.norms.{}.weight", "blk.{}.attn_q_norm.weight", Op::Stack),
        Rule("model.layers.{}.self_attn.k_layernorm.norms.{}.weight", "blk.{}.attn_k_norm.weight", Op::Stack)
    ),
    ignored: common::DERIVED,
    ..Architecture::BARE
};
