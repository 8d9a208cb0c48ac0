//! Granite 3 (IBM 2024): LLaMA with factors on embeddings, scores, residuals and logits (Yang et al. 2022, "Tensor
//! Programs V").

use super::common::{self, Decoder};
use super::{Architecture, classes};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::{Config, Draft, Keys};
use crate::spec::ModelSpec;
use fonio_kernel::{Activation, Pairing};
use serde_json::json;

pub(super) const GRANITE: Architecture = Architecture {
    name: "granite",
    model_types: &["granite"],
    models: "Granite 3",
    spec,
    from_config,
    to_config: |spec, keys, json| {
        let attention = common::first_attention(spec, keys)?;
        classes(json, "GraniteForCausalLM", "granite");
        json.insert("hidden_act".into(), json!("silu"));
        json.insert("attention_bias".into(), json!(attention.qkv_bias));
        json.insert("mlp_bias".into(), json!(keys.has_tensor("blk.0.ffn_down.bias")));
        json.insert("attention_multiplier".into(), json!(common::decimal(attention.scale)));
        json.insert("embedding_multiplier".into(), json!(common::decimal(spec.embedding_scale)));
        let residual = keys.positive_or("residual_scale", 1.0)?;
        json.insert("residual_multiplier".into(), json!(common::decimal(residual)));
        let logits = keys.positive_or("logit_scale", 1.0)?;
        json.insert("logits_scaling".into(), json!(common::decimal(logits)));
        common::decoder_to_config(spec, keys, json)
    },
    rules: common::decoder_rules!(
        Op::PairRows(Rule::QUERIES),
        Op::PairRows(Rule::KEYS),
        Op::Same,
        common::FFN_NORM
    ),
    ignored: common::DERIVED,
    derived: &[common::ROPE_FACTORS],
    ..Architecture::BARE
};

fn spec(keys: &Keys<'_>) -> Result<ModelSpec, Error> {
    let kind = Decoder { pairing: Some(Pairing::Neighbours), ..Decoder::new("granite", Activation::Silu) };
    let mut spec = common::decoder(keys, kind)?;
    spec.embedding_scale = keys.positive_or("embedding_scale", 1.0)?;
    spec.logit_scale = 1.0 / keys.positive_or("logit_scale", 1.0)?;
    let residual = keys.positive_or("residual_scale", 1.0)?;
    spec.layers.iter_mut().for_each(|layer| layer.residual_scale = residual);
    Ok(spec)
}

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
    common::decoder_from_config(config, draft)?;
    for (from, to) in [
        ("attention_multiplier", "attention.scale"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("logits_scaling", "logit_scale"),
    ] {
        draft.set(to, config.float_opt(from)?.unwrap_or(1.0));
    }
    Ok(())
}
