//! LLaMA (Touvron et al. 2023; Dubey et al. 2024) and models of its shape: TinyLlama, SmolLM, Mistral's first.
//!
//! GGUF keeps queries and keys with neighbouring pairs, Hugging Face with halves: rows are permuted on the way.

use super::common::Decoder;
use super::{Architecture, common};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::{Config, Draft};
use fonio_kernel::{Activation, Pairing};
use serde_json::json;

const KIND: Decoder =
    Decoder { pairing: Some(Pairing::Neighbours), ..Decoder::new("llama", Activation::Silu) };

pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &["llama"],
    models: "LLaMA 1, 2, 3, 3.1+, CodeLlama, TinyLlama, SmolLM",
    spec: |keys| common::decoder(keys, KIND),
    from_config,
    to_config: |spec, keys, json| {
        json.insert("architectures".into(), json!(["LlamaForCausalLM"]));
        json.insert("model_type".into(), json!("llama"));
        json.insert("hidden_act".into(), json!("silu"));
        let has = |name: &str| json!(keys.has_tensor(name));
        json.insert("attention_bias".into(), has("blk.0.attn_q.bias"));
        json.insert("mlp_bias".into(), has("blk.0.ffn_down.bias"));
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
    tied: false,
    prefixes: &[],
};

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
    if let Some(tp) = config.count_opt("pretraining_tp")?.filter(|&tp| tp > 1) {
        return Err(config.unsupported("pretraining_tp", format!("{tp}")));
    }
    common::decoder_from_config(config, draft)
}
