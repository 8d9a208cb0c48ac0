//! Qwen3-MoE (Yang et al. 2025): Qwen3 with many small experts.

use super::{Architecture, classes, common, qwen2moe, qwen3};
use crate::hf::Op;
use serde_json::json;

pub(super) const QWEN3MOE: Architecture = Architecture {
    name: "qwen3moe",
    model_types: &["qwen3_moe"],
    models: "Qwen3-MoE",
    spec: |keys| qwen3::spec(keys, "qwen3moe"),
    from_config: qwen2moe::from_config,
    to_config: |spec, keys, json| {
        classes(json, "Qwen3MoeForCausalLM", "qwen3_moe");
        json.insert("attention_bias".into(), json!(keys.has_tensor("blk.0.attn_q.bias")));
        qwen2moe::to_config(spec, keys, json)
    },
    rules: common::decoder_rules!(
        Op::Same,
        Op::Same,
        Op::Same,
        common::FFN_NORM,
        qwen3::Q_NORM,
        qwen3::K_NORM,
        common::ROUTER,
        common::EXPERT_GATE,
        common::EXPERT_UP,
        common::EXPERT_DOWN
    ),
    ignored: common::DERIVED,
    ..Architecture::BARE
};
