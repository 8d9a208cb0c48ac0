//! GPT-2 (Radford et al. 2019): learned positions, layer norms, and matrices stored with inputs as rows.

use super::common::{self, Decoder};
use super::{Architecture, classes};
use crate::hf::{Guess, Op, Rule};
use fonio_kernel::Activation;

pub(super) const GPT2: Architecture = Architecture {
    name: "gpt2",
    model_types: &["gpt2"],
    models: "GPT-2",
    spec: |keys| {
        let kind = Decoder { pairing: None, ..Decoder::new("gpt2", Activation::GeluTanh) };
        let mut spec = common::decoder(keys, kind)?;
        spec.n_positions = Some(spec.context_len);
        Ok(spec)
    },
    guess: Some(|shapes| {
        let [vocab, dim] = *shapes.shape("wte.weight")? else { return None };
        let mut guess = Guess::new("gpt2");
        guess.set("vocab_size", vocab);
        guess.set("n_embd", dim);
        guess.set("n_layer", shapes.count("h.{}.attn.c_attn.weight"));
        guess.set("n_positions", shapes.rows("wpe.weight")?);
        guess.set("n_inner", shapes.cols("h.0.mlp.c_fc.weight")?);
        guess.assume("n_head", dim / 64, "heads of 64 values");
        guess.assume("layer_norm_epsilon", 1e-5, "epsilon 1e-5");
        Some(guess)
    }),
    from_config: |config, draft| {
        common::expect_activation(config, "activation_function", &["gelu_new", "gelu_pytorch_tanh"])?;
        common::sizes_from_config(config, draft)
    },
    to_config: |spec, keys, json| {
        classes(json, "GPT2LMHeadModel", "gpt2");
        common::gpt_to_config(spec, keys, json)
    },
    rules: &[
        Rule("wte.weight", "token_embd.weight", Op::Same),
        Rule("wpe.weight", "position_embd.weight", Op::Same),
        Rule("lm_head.weight", "output.weight", Op::Same),
        Rule("ln_f.weight", "output_norm.weight", Op::Same),
        Rule("ln_f.bias", "output_norm.bias", Op::Same),
        Rule("h.{}.ln_1.weight", "blk.{}.attn_norm.weight", Op::Same),
        Rule("h.{}.ln_1.bias", "blk.{}.attn_norm.bias", Op::Same),
        Rule("h.{}.attn.c_attn.weight", "blk.{}.attn_qkv.weight", Op::Transpose),
        Rule("h.{}.attn.c_attn.bias", "blk.{}.attn_qkv.bias", Op::Same),
        Rule("h.{}.attn.c_proj.weight", "blk.{}.attn_output.weight", Op::Transpose),
        Rule("h.{}.attn.c_proj.bias", "blk.{}.attn_output.bias", Op::Same),
        Rule("h.{}.ln_2.weight", "blk.{}.ffn_norm.weight", Op::Same),
        Rule("h.{}.ln_2.bias", "blk.{}.ffn_norm.bias", Op::Same),
        Rule("h.{}.mlp.c_fc.weight", "blk.{}.ffn_up.weight", Op::Transpose),
        Rule("h.{}.mlp.c_fc.bias", "blk.{}.ffn_up.bias", Op::Same),
        Rule("h.{}.mlp.c_proj.weight", "blk.{}.ffn_down.weight", Op::Transpose),
        Rule("h.{}.mlp.c_proj.bias", "blk.{}.ffn_down.bias", Op::Same),
    ],
    // Masks.
    ignored: &["h.{}.attn.bias", "h.{}.attn.masked_bias"],
    tied: true,
    prefixes: &[("transformer.", "")],
    ..Architecture::BARE
};
