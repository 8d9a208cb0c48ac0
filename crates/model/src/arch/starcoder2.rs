//! StarCoder 2 (Lozhkov et al. 2024): layer norms and biases everywhere, no gate, a window in the smaller models.

use super::common::{self, Decoder};
use super::{Architecture, classes};
use crate::hf::{Op, Rule};
use fonio_kernel::Activation;
use serde_json::json;

pub(super) const STARCODER2: Architecture = Architecture {
    name: "starcoder2",
    model_types: &["starcoder2"],
    models: "StarCoder 2",
    spec: |keys| {
        let mut spec = common::decoder(keys, Decoder::new("starcoder2", Activation::GeluTanh))?;
        // llama.cpp does not write the window of the smaller models.
        let all = vec![true; spec.layers.len()];
        common::set_windows(&mut spec, keys, &all)?;
        Ok(spec)
    },
    from_config: |config, draft| {
        common::expect_activation(config, "hidden_act", &["gelu_pytorch_tanh"])?;
        common::decoder_from_config(config, draft)?;
        if let Some(window) = config.count_opt("sliding_window")?.filter(|&w| w > 0) {
            draft.set("attention.sliding_window", window);
        }
        Ok(())
    },
    to_config: |spec, keys, json| {
        common::decoder_to_config(spec, keys, json)?;
        classes(json, "Starcoder2ForCausalLM", "starcoder2");
        let attention = common::first_attention(spec, keys)?;
        json.insert("hidden_act".into(), json!("gelu_pytorch_tanh"));
        json.insert("norm_epsilon".into(), json!(common::decimal(spec.final_norm.eps())));
        json.insert("use_bias".into(), json!(attention.qkv_bias));
        json.insert("sliding_window".into(), json!(attention.window));
        Ok(())
    },
    rules: common::decoder_rules!(
        Op::Same,
        Op::Same,
        Op::Same,
        common::FFN_NORM,
        Rule("model.norm.bias", "output_norm.bias", Op::Same),
        Rule("model.layers.{}.input_layernorm.bias", "blk.{}.attn_norm.bias", Op::Same),
        Rule("model.layers.{}.post_attention_layernorm.bias", "blk.{}.ffn_norm.bias", Op::Same),
        Rule("model.layers.{}.mlp.c_fc.weight", "blk.{}.ffn_up.weight", Op::Same),
        Rule("model.layers.{}.mlp.c_fc.bias", "blk.{}.ffn_up.bias", Op::Same),
        Rule("model.layers.{}.mlp.c_proj.weight", "blk.{}.ffn_down.weight", Op::Same),
        Rule("model.layers.{}.mlp.c_proj.bias", "blk.{}.ffn_down.bias", Op::Same)
    ),
    ignored: common::DERIVED,
    tied: true,
    ..Architecture::BARE
};
