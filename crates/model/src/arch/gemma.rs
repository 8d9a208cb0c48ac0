//! Gemma (Gemma Team 2024): scaled embeddings, a gate with GELU, wide heads. Norm weights are stored less 1 at Hugging
//! Face.

use super::common::{self, Decoder, Usual};
use super::{Architecture, classes};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::Config;
use fonio_kernel::Activation;
use serde_json::json;

/// Tokens of the first two generations, which no other model of LLaMA's shape has without a head.
pub(super) const VOCAB: u64 = 256_000;

pub(super) const GEMMA: Architecture = Architecture {
    name: "gemma",
    model_types: &["gemma"],
    models: "Gemma, CodeGemma",
    spec: |keys| {
        let mut spec = common::decoder(keys, Decoder::new("gemma", Activation::GeluTanh))?;
        spec.embedding_scale = (spec.dim as f32).sqrt();
        Ok(spec)
    },
    guess: Some(|shapes| {
        let usual = Usual {
            model_type: "gemma",
            head_dim: Some(256),
            rope_theta: 10_000.0,
            eps: 1e-6,
            context: 8192,
        };
        let plain = !shapes.has("model.layers.0.pre_feedforward_layernorm.weight");
        if shapes.rows("model.embed_tokens.weight")? != VOCAB || !plain {
            return None;
        }
        common::decoder_guess(shapes, &usual)
    }),
    from_config: |config, draft| {
        expect_gelu(config)?;
        common::decoder_from_config(config, draft)
    },
    to_config: |spec, keys, json| {
        classes(json, "GemmaForCausalLM", "gemma");
        json.insert("hidden_activation".into(), json!("gelu_pytorch_tanh"));
        common::decoder_to_config(spec, keys, json)
    },
    rules: common::decoder_rules!(
        Op::Same,
        Op::Same,
        Op::AddOne,
        Rule("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", Op::AddOne)
    ),
    ignored: common::DERIVED,
    tied: true,
    ..Architecture::BARE
};

/// The first configurations name plain GELU, but the models were trained with its approximation.
pub(super) fn expect_gelu(config: &Config) -> Result<(), Error> {
    const KNOWN: &[&str] = &["gelu", "gelu_pytorch_tanh"];
    common::expect_activation(config, "hidden_activation", KNOWN)?;
    common::expect_activation(config, "hidden_act", KNOWN)
}
