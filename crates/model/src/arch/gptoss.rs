//! gpt-oss (OpenAI 2025): experts in MXFP4, attention with sinks, a window in every other layer, YaRN.

use super::common::{self, Decoder};
use super::{Architecture, classes};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{FfnSpec, ModelSpec};
use fonio_kernel::Activation;
use serde_json::{Map, Value as Json, json};

/// Every so many layers one sees everything.
const PERIOD: usize = 2;
/// Where gates are cut off; the activation is defined with it.
const LIMIT: f32 = 7.0;
const EXPERTS: &str = "expert_feed_forward_length";

pub(super) const GPT_OSS: Architecture = Architecture {
    name: "gpt-oss",
    model_types: &["gpt_oss"],
    models: "gpt-oss",
    spec: |keys| {
        let mut spec = common::decoder(keys, Decoder::new("gpt-oss", Activation::SwigluOai))?;
        let windowed = common::windowed_layers(keys, spec.layers.len(), PERIOD)?;
        common::set_windows(&mut spec, keys, &windowed)?;
        Ok(spec)
    },
    from_config,
    to_config,
    rules: common::decoder_rules!(
        Op::Same,
        Op::Same,
        Op::Same,
        Rule(
            "model.layers.{}.post_attention_layernorm.weight",
            "blk.{}.post_attention_norm.weight",
            Op::Same
        ),
        Rule("model.layers.{}.self_attn.sinks", "blk.{}.attn_sinks.weight", Op::Same),
        Rule("model.layers.{}.mlp.router.weight", "blk.{}.ffn_gate_inp.weight", Op::Same),
        Rule("model.layers.{}.mlp.router.bias", "blk.{}.ffn_gate_inp.bias", Op::Same),
        Rule("model.layers.{}.mlp.experts.gate_up_proj", "blk.{}.ffn_gate_exps.weight", Op::GateUp(0)),
        Rule("model.layers.{}.mlp.experts.gate_up_proj", "blk.{}.ffn_up_exps.weight", Op::GateUp(1)),
        Rule("model.layers.{}.mlp.experts.gate_up_proj_bias", "blk.{}.ffn_gate_exps.bias", Op::GateUp(0)),
        Rule("model.layers.{}.mlp.experts.gate_up_proj_bias", "blk.{}.ffn_up_exps.bias", Op::GateUp(1)),
        Rule("model.layers.{}.mlp.experts.down_proj", "blk.{}.ffn_down_exps.weight", Op::TransposeFloats),
        Rule("model.layers.{}.mlp.experts.down_proj_bias", "blk.{}.ffn_down_exps.bias", Op::Same)
    ),
    ignored: common::DERIVED,
    ..Architecture::BARE
};

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::expect_activation(config, "hidden_act", &["silu"])?;
    if let Some(limit) = config.float_opt("swiglu_limit")?.filter(|&limit| limit != LIMIT) {
        return Err(config.unsupported("swiglu_limit", format!("{limit}; fonio computes {LIMIT}")));
    }
    common::decoder_from_config(config, draft)?;
    let (_, head_dim) = common::heads_of(config)?;
    draft.set("attention.key_length", head_dim);
    draft.set("attention.value_length", head_dim);
    common::moe_from_config(config, draft)?;
    draft.set(EXPERTS, config.count("intermediate_size")?);
    let layers = config.count("num_hidden_layers")? as usize;
    if let Some(window) = config.count_opt("sliding_window")?.filter(|&w| w > 0) {
        draft.set("attention.sliding_window", window);
    }
    if let Some(windowed) = common::layer_types(config, layers)? {
        common::windows_to_keys(windowed, PERIOD, draft);
    }
    Ok(())
}

fn to_config(spec: &ModelSpec, keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    common::decoder_to_config(spec, keys, json)?;
    classes(json, "GptOssForCausalLM", "gpt_oss");
    json.insert("hidden_act".into(), json!("silu"));
    json.insert("swiglu_limit".into(), json!(LIMIT));
    json.insert("attention_bias".into(), json!(keys.has_tensor("blk.0.attn_q.bias")));
    json.insert("layer_types".into(), common::layer_types_of(spec));
    json.insert("sliding_window".into(), json!(keys.count_opt("attention.sliding_window")?));
    if let Some(FfnSpec::Moe(moe)) = spec.layers.first().and_then(|layer| layer.ffn.as_ref()) {
        json.insert("num_local_experts".into(), json!(moe.n_experts));
        json.insert("num_experts_per_tok".into(), json!(moe.n_used));
        json.insert("intermediate_size".into(), json!(moe.ffn_dim));
    }
    Ok(())
}
