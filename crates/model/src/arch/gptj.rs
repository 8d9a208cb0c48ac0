//! GPT-J (Wang & Komatsuzaki 2021): both parts of a layer side by side, neighbouring values turned, a head with bias.

use super::common::{self, Decoder, rope};
use super::{Architecture, classes};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::{Config, Draft};
use crate::spec::Residual;
use fonio_kernel::{Activation, Pairing};
use serde_json::json;

pub(super) const GPTJ: Architecture = Architecture {
    name: "gptj",
    model_types: &["gptj"],
    models: "GPT-J",
    llama_cpp: false,
    spec: |keys| {
        let pairing = Some(Pairing::Neighbours);
        let mut spec =
            common::decoder(keys, Decoder { pairing, ..Decoder::new("gptj", Activation::GeluTanh) })?;
        spec.layers.iter_mut().for_each(|layer| layer.residual = Residual::Parallel);
        Ok(spec)
    },
    from_config,
    to_config: |spec, keys, json| {
        classes(json, "GPTJForCausalLM", "gptj");
        json.insert("rotary_dim".into(), json!(keys.count("rope.dimension_count")?));
        common::gpt_to_config(spec, keys, json)
    },
    rules: &[
        Rule("transformer.wte.weight", "token_embd.weight", Op::Same),
        Rule("lm_head.weight", "output.weight", Op::Same),
        Rule("lm_head.bias", "output.bias", Op::Same),
        Rule("transformer.ln_f.weight", "output_norm.weight", Op::Same),
        Rule("transformer.ln_f.bias", "output_norm.bias", Op::Same),
        Rule("transformer.h.{}.ln_1.weight", "blk.{}.attn_norm.weight", Op::Same),
        Rule("transformer.h.{}.ln_1.bias", "blk.{}.attn_norm.bias", Op::Same),
        Rule("transformer.h.{}.attn.q_proj.weight", "blk.{}.attn_q.weight", Op::Same),
        Rule("transformer.h.{}.attn.k_proj.weight", "blk.{}.attn_k.weight", Op::Same),
        Rule("transformer.h.{}.attn.v_proj.weight", "blk.{}.attn_v.weight", Op::Same),
        Rule("transformer.h.{}.attn.out_proj.weight", "blk.{}.attn_output.weight", Op::Same),
        Rule("transformer.h.{}.mlp.fc_in.weight", "blk.{}.ffn_up.weight", Op::Same),
        Rule("transformer.h.{}.mlp.fc_in.bias", "blk.{}.ffn_up.bias", Op::Same),
        Rule("transformer.h.{}.mlp.fc_out.weight", "blk.{}.ffn_down.weight", Op::Same),
        Rule("transformer.h.{}.mlp.fc_out.bias", "blk.{}.ffn_down.bias", Op::Same),
    ],
    ignored: &[
        "transformer.h.{}.attn.bias",
        "transformer.h.{}.attn.masked_bias",
        "transformer.h.{}.attn.embed_positions",
    ],
    ..Architecture::BARE
};

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::expect_activation(config, "activation_function", &["gelu_new", "gelu_pytorch_tanh"])?;
    common::sizes_from_config(config, draft)?;
    let (_, head_dim) = common::heads_of(config)?;
    let n_rot = config.count_opt("rotary_dim")?.unwrap_or(head_dim);
    rope::write(config, &rope::rope_config(config, None, 10_000.0)?, n_rot, draft)
}
