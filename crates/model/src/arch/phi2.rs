//! Phi-1, Phi-1.5 and Phi-2 (Gunasekar et al. 2023; Li et al. 2023): both parts of a layer side by side, biases
//! everywhere, a part of each head turned.

use super::common::{self, Decoder, Usual};
use super::{Architecture, classes};
use crate::hf::{Op, Rule};
use crate::spec::Residual;
use fonio_kernel::Activation;
use serde_json::json;

pub(super) const PHI2: Architecture = Architecture {
    name: "phi2",
    model_types: &["phi"],
    models: "Phi-1, Phi-1.5, Phi-2",
    spec: |keys| {
        let mut spec = common::decoder(keys, Decoder::new("phi2", Activation::GeluTanh))?;
        spec.layers.iter_mut().for_each(|layer| layer.residual = Residual::Parallel);
        Ok(spec)
    },
    guess: Some(|shapes| {
        let usual =
            Usual { model_type: "phi", head_dim: Some(64), rope_theta: 10_000.0, eps: 1e-5, context: 2048 };
        let ffn_dim = shapes.rows("model.layers.0.mlp.fc1.weight")?;
        let dim = shapes.cols("model.embed_tokens.weight")?;
        let (head_dim, partial) = if dim == 2560 { (80, 0.4) } else { (64, 0.5) };
        let mut guess = common::decoder_guess(shapes, &Usual { head_dim: Some(head_dim), ..usual })?;
        guess.config.remove("rms_norm_eps");
        guess.set("layer_norm_eps", 1e-5);
        guess.set("intermediate_size", ffn_dim);
        guess.assume("partial_rotary_factor", partial, format!("{partial} of each head turned"));
        Some(guess)
    }),
    from_config: |config, draft| {
        common::expect_activation(config, "hidden_act", &["gelu_new", "gelu_pytorch_tanh"])?;
        if config.flag_or("qk_layernorm", false)? {
            return Err(config.unsupported("qk_layernorm", "no published Phi has it"));
        }
        common::decoder_from_config(config, draft)
    },
    to_config: |spec, keys, json| {
        classes(json, "PhiForCausalLM", "phi");
        json.insert("hidden_act".into(), json!("gelu_new"));
        json.insert("qk_layernorm".into(), json!(false));
        common::decoder_to_config(spec, keys, json)
    },
    rules: common::decoder_rules!(
        Op::Same,
        Op::Same,
        Op::Same,
        Rule("lm_head.bias", "output.bias", Op::Same),
        Rule("model.final_layernorm.weight", "output_norm.weight", Op::Same),
        Rule("model.final_layernorm.bias", "output_norm.bias", Op::Same),
        Rule("model.layers.{}.input_layernorm.bias", "blk.{}.attn_norm.bias", Op::Same),
        Rule("model.layers.{}.self_attn.dense.weight", "blk.{}.attn_output.weight", Op::Same),
        Rule("model.layers.{}.self_attn.dense.bias", "blk.{}.attn_output.bias", Op::Same),
        Rule("model.layers.{}.mlp.fc1.weight", "blk.{}.ffn_up.weight", Op::Same),
        Rule("model.layers.{}.mlp.fc1.bias", "blk.{}.ffn_up.bias", Op::Same),
        Rule("model.layers.{}.mlp.fc2.weight", "blk.{}.ffn_down.weight", Op::Same),
        Rule("model.layers.{}.mlp.fc2.bias", "blk.{}.ffn_down.bias", Op::Same)
    ),
    ignored: common::DERIVED,
    ..Architecture::BARE
};
