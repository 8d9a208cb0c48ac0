//! Phi-3, Phi-3.5 and Phi-4 (Abdin et al. 2024): LLaMA with fused projections, and LongRoPE for the long versions.

use super::common::{self, Decoder, Usual};
use super::{Architecture, classes};
use crate::hf::{Op, Rule};
use fonio_kernel::Activation;
use serde_json::json;

pub(super) const PHI3: Architecture = Architecture {
    name: "phi3",
    model_types: &["phi3"],
    models: "Phi-3, Phi-3.5, Phi-4",
    spec: |keys| {
        let mut spec = common::decoder(keys, Decoder::new("phi3", Activation::Silu))?;
        let all = vec![true; spec.layers.len()];
        common::set_windows(&mut spec, keys, &all)?;
        Ok(spec)
    },
    guess: Some(|shapes| {
        let usual =
            Usual { model_type: "phi3", head_dim: None, rope_theta: 10_000.0, eps: 1e-5, context: 4096 };
        let qkv = shapes.rows("model.layers.0.self_attn.qkv_proj.weight")?;
        let dim = shapes.cols("model.embed_tokens.weight")?;
        let layers = shapes.count("model.layers.{}.self_attn.qkv_proj.weight");
        let mut guess = common::sizes_guess(shapes, &usual, layers)?;
        guess.set("intermediate_size", shapes.cols("model.layers.0.mlp.down_proj.weight")?);
        // Queries are as wide as the model; keys and values share what is left.
        let usual = Usual { head_dim: Some(if dim == 3072 { 96 } else { 128 }), ..usual };
        common::heads_guess(shapes, &usual, &mut guess, (dim, qkv.checked_sub(dim)? / 2))?;
        common::rest_guess(&usual, &mut guess);
        Some(guess)
    }),
    from_config: |config, draft| {
        common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
        if let Some(window) = config.count_opt("sliding_window")?.filter(|&w| w > 0) {
            draft.set("attention.sliding_window", window);
        }
        common::decoder_from_config(config, draft)
    },
    to_config: |spec, keys, json| {
        classes(json, "Phi3ForCausalLM", "phi3");
        json.insert("hidden_act".into(), json!("silu"));
        let window = keys.count_opt("attention.sliding_window")?.filter(|&w| w > 0);
        json.insert("sliding_window".into(), json!(window));
        let original = keys.count_opt("rope.scaling.original_context_length")?;
        json.insert("original_max_position_embeddings".into(), json!(original.unwrap_or(spec.context_len)));
        common::decoder_to_config(spec, keys, json)
    },
    rules: common::decoder_rules!(
        Op::Same,
        Op::Same,
        Op::Same,
        common::FFN_NORM,
        Rule("model.layers.{}.self_attn.qkv_proj.weight", "blk.{}.attn_qkv.weight", Op::Same),
        Rule("model.layers.{}.mlp.gate_up_proj.weight", "blk.{}.ffn_up.weight", Op::Same)
    ),
    ignored: common::DERIVED,
    derived: &[common::SHORT_FACTORS, common::LONG_FACTORS],
    ..Architecture::BARE
};
