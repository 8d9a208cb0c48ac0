//! LLaMA (Touvron et al. 2023; Dubey et al. 2024) and models of its shape: TinyLlama, SmolLM, Mistral (Jiang et al.
//! 2023), Mixtral (Jiang et al. 2024).
//!
//! GGUF keeps queries and keys with neighbouring pairs, Hugging Face with halves: rows are permuted on the way.

use super::common::{self, Decoder, Usual};
use super::{Architecture, classes, gemma};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{FfnSpec, MixerSpec, ModelSpec};
use fonio_kernel::{Activation, Pairing};
use serde_json::{Map, Value as Json, json};

pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &["llama", "mistral", "mixtral"],
    models: "LLaMA 1, 2, 3, 3.1+, CodeLlama, TinyLlama, SmolLM, Mistral, Mistral Nemo, Mixtral",
    spec,
    guess: Some(|shapes| {
        let mixtral = shapes.has("model.layers.0.block_sparse_moe.gate.weight");
        let vocab = shapes.rows("model.embed_tokens.weight")?;
        // Gemma's tensors have the same names.
        if vocab == gemma::VOCAB && !shapes.has("lm_head.weight") {
            return None;
        }
        // Llama 3 and CodeLlama alone have vocabularies of these sizes.
        let (rope_theta, context) = match vocab {
            128_256 => (500_000.0, 8192),
            32_016 => (1_000_000.0, 16_384),
            _ if mixtral => (1_000_000.0, 32_768),
            _ => (10_000.0, 4096),
        };
        let model_type = if mixtral { "mixtral" } else { "llama" };
        let usual = Usual { model_type, head_dim: None, rope_theta, eps: 1e-5, context };
        let mut guess = common::decoder_guess(shapes, &usual)?;
        if mixtral {
            let expert = "model.layers.0.block_sparse_moe.experts.0.w1.weight";
            guess.set("intermediate_size", shapes.rows(expert)?);
            guess.set("num_local_experts", shapes.rows("model.layers.0.block_sparse_moe.gate.weight")?);
            guess.assume("num_experts_per_tok", 2, "two experts for each token");
        } else {
            guess.assumed.push(
                "LLaMA itself, not one of those that name their tensors alike (Mistral, Granite, Gemma)"
                    .into(),
            );
        }
        Some(guess)
    }),
    from_config,
    to_config,
    rules: common::decoder_rules!(
        Op::PairRows(Rule::QUERIES),
        Op::PairRows(Rule::KEYS),
        Op::Same,
        common::FFN_NORM,
        Rule("model.layers.{}.block_sparse_moe.gate.weight", "blk.{}.ffn_gate_inp.weight", Op::Same),
        Rule(
            "model.layers.{}.block_sparse_moe.experts.{}.w1.weight",
            "blk.{}.ffn_gate_exps.weight",
            Op::Stack
        ),
        Rule("model.layers.{}.block_sparse_moe.experts.{}.w3.weight", "blk.{}.ffn_up_exps.weight", Op::Stack),
        Rule(
            "model.layers.{}.block_sparse_moe.experts.{}.w2.weight",
            "blk.{}.ffn_down_exps.weight",
            Op::Stack
        )
    ),
    // Until early 2024 each expert's matrices were tensors of their own.
    older: &[
        Rule("blk.{}.ffn_gate.{}.weight", "blk.{}.ffn_gate_exps.weight", Op::Stack),
        Rule("blk.{}.ffn_up.{}.weight", "blk.{}.ffn_up_exps.weight", Op::Stack),
        Rule("blk.{}.ffn_down.{}.weight", "blk.{}.ffn_down_exps.weight", Op::Stack),
    ],
    ignored: common::DERIVED,
    derived: &[common::ROPE_FACTORS],
    ..Architecture::BARE
};

fn spec(keys: &Keys<'_>) -> Result<ModelSpec, Error> {
    let kind = Decoder { pairing: Some(Pairing::Neighbours), ..Decoder::new("llama", Activation::Silu) };
    let mut spec = common::decoder(keys, kind)?;
    // llama.cpp does not write the window of Mistral's first model.
    let window = keys.count_opt("attention.sliding_window")?.filter(|&w| w > 0);
    for layer in &mut spec.layers {
        let MixerSpec::Attention(attention) = &mut layer.mixer else { continue };
        attention.window = window;
    }
    Ok(spec)
}

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
    if let Some(tp) = config.count_opt("pretraining_tp")?.filter(|&tp| tp > 1) {
        return Err(config.unsupported("pretraining_tp", format!("{tp}")));
    }
    common::decoder_from_config(config, draft)?;
    let model_type = config.text_opt("model_type")?.unwrap_or("llama");
    if model_type == "mixtral" {
        common::moe_from_config(config, draft)?;
    }
    let window = if model_type == "llama" { None } else { config.count_opt("sliding_window")? };
    if let Some(window) = window.filter(|&w| w > 0) {
        draft.set("attention.sliding_window", window);
    }
    Ok(())
}

fn to_config(spec: &ModelSpec, keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    common::decoder_to_config(spec, keys, json)?;
    let window = keys.count_opt("attention.sliding_window")?.filter(|&w| w > 0);
    json.insert("hidden_act".into(), json!("silu"));
    match spec.layers.first().and_then(|layer| layer.ffn.as_ref()) {
        Some(FfnSpec::Moe(moe)) => {
            classes(json, "MixtralForCausalLM", "mixtral");
            json.insert("num_local_experts".into(), json!(moe.n_experts));
            json.insert("num_experts_per_tok".into(), json!(moe.n_used));
            json.insert("intermediate_size".into(), json!(moe.ffn_dim));
            json.insert("sliding_window".into(), json!(window));
        }
        _ if window.is_some() => {
            classes(json, "MistralForCausalLM", "mistral");
            json.insert("sliding_window".into(), json!(window));
        }
        _ => {
            classes(json, "LlamaForCausalLM", "llama");
            let has = |name: &str| json!(keys.has_tensor(name));
            json.insert("attention_bias".into(), has("blk.0.attn_q.bias"));
            json.insert("mlp_bias".into(), has("blk.0.ffn_down.bias"));
        }
    }
    Ok(())
}
