//! Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024): many small experts beside one that every token takes, gated.

use super::common::{self, Decoder};
use super::{Architecture, classes, qwen2};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{FfnSpec, ModelSpec, MoeSpec};
use fonio_kernel::Activation;
use serde_json::{Map, Value as Json, json};

pub(super) const QWEN2MOE: Architecture = Architecture {
    name: "qwen2moe",
    model_types: &["qwen2_moe"],
    models: "Qwen1.5-MoE, Qwen2-MoE",
    spec: |keys| {
        let kind = Decoder { normalize_experts: false, ..Decoder::new("qwen2moe", Activation::Silu) };
        let mut spec = common::decoder(keys, kind)?;
        qwen2::windows(&mut spec, keys)?;
        Ok(spec)
    },
    from_config: |config, draft| {
        from_config(config, draft)?;
        let shared = config.count("shared_expert_intermediate_size")?;
        draft.set("expert_shared_feed_forward_length", shared);
        Ok(())
    },
    to_config: |spec, keys, json| {
        classes(json, "Qwen2MoeForCausalLM", "qwen2_moe");
        json.insert("qkv_bias".into(), json!(keys.has_tensor("blk.0.attn_q.bias")));
        to_config(spec, keys, json)?;
        let shared = keys.count("expert_shared_feed_forward_length")?;
        json.insert("shared_expert_intermediate_size".into(), json!(shared));
        Ok(())
    },
    rules: common::decoder_rules!(
        Op::Same,
        Op::Same,
        Op::Same,
        common::FFN_NORM,
        common::ROUTER,
        common::EXPERT_GATE,
        common::EXPERT_UP,
        common::EXPERT_DOWN,
        Rule("model.layers.{}.mlp.shared_expert.gate_proj.weight", "blk.{}.ffn_gate_shexp.weight", Op::Same),
        Rule("model.layers.{}.mlp.shared_expert.up_proj.weight", "blk.{}.ffn_up_shexp.weight", Op::Same),
        Rule("model.layers.{}.mlp.shared_expert.down_proj.weight", "blk.{}.ffn_down_shexp.weight", Op::Same),
        Rule(
            "model.layers.{}.mlp.shared_expert_gate.weight",
            "blk.{}.ffn_gate_inp_shexp.weight",
            Op::Squeeze
        )
    ),
    ignored: common::DERIVED,
    ..Architecture::BARE
};

/// What Qwen's mixtures have in common. Which layers have experts is told by their tensors.
pub(super) fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
    common::decoder_from_config(config, draft)?;
    qwen2::windows_from_config(config, draft)?;
    common::moe_from_config(config, draft)
}

pub(super) fn to_config(
    spec: &ModelSpec,
    keys: &Keys<'_>,
    json: &mut Map<String, Json>,
) -> Result<(), Error> {
    json.insert("hidden_act".into(), json!("silu"));
    qwen2::windows_to_config(spec, keys, json)?;
    common::decoder_to_config(spec, keys, json)?;
    let dense: Vec<usize> = spec
        .layers
        .iter()
        .enumerate()
        .filter_map(|(i, layer)| matches!(layer.ffn, Some(FfnSpec::Dense(_))).then_some(i))
        .collect();
    json.insert("mlp_only_layers".into(), json!(dense));
    json.insert("decoder_sparse_step".into(), json!(1));
    if let Some(moe) = first_moe(spec) {
        common::moe_to_config(moe, json);
    }
    Ok(())
}

fn first_moe(spec: &ModelSpec) -> Option<&MoeSpec> {
    spec.layers.iter().find_map(|layer| match &layer.ffn {
        Some(FfnSpec::Moe(moe)) => Some(moe),
        _ => None,
    })
}
