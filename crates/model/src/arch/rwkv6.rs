//! RWKV-6, Finch (Peng et al. 2024).
//!
//! GGUF has the five vectors of the token shift in one tensor, and the low-rank matrices transposed.

use super::common::decimal;
use super::common::recurrent::size;
use super::rwkv::{self, HEAD_EPS, HEAD_EPS_KEY, rwkv_rules};
use super::{Architecture, classes};
use crate::Error;
use crate::hf::{Guess, Op, Rule, Shapes};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{MixerSpec, ModelSpec, Rwkv6Spec, Shift};
use serde_json::{Map, Value as Json, json};

const MIX_RANK: &str = "time_mix_extra_dim";
const DECAY_RANK: &str = "time_decay_extra_dim";

pub(super) const RWKV6: Architecture = Architecture {
    name: "rwkv6",
    model_types: &["rwkv6"],
    models: "RWKV-6",
    spec: |keys| {
        let mixer = Rwkv6Spec {
            head_dim: rwkv::head_dim(keys)?,
            eps: keys.positive_or(HEAD_EPS_KEY, HEAD_EPS)?,
            mix_rank: keys.count(MIX_RANK)?,
            decay_rank: keys.count(DECAY_RANK)?,
        };
        rwkv::spec(keys, "rwkv6", (true, Shift::Past), |_| Ok(MixerSpec::Rwkv6(mixer.clone())))
    },
    from_config,
    guess: Some(guess),
    to_config,
    rules: rwkv_rules!(
        att {
            "time_maa_x" => "lerp_x.weight" Op::Vector;
            "time_maa_w" => "lerp_fused.weight" Op::Row(0, 5);
            "time_maa_k" => "lerp_fused.weight" Op::Row(1, 5);
            "time_maa_v" => "lerp_fused.weight" Op::Row(2, 5);
            "time_maa_r" => "lerp_fused.weight" Op::Row(3, 5);
            "time_maa_g" => "lerp_fused.weight" Op::Row(4, 5);
            "time_maa_w1" => "w1.weight" Op::Transpose;
            "time_maa_w2" => "w2.weight" Op::Transpose;
            "time_decay" => "decay.weight" Op::Vector;
            "time_decay_w1" => "decay_w1.weight" Op::Transpose;
            "time_decay_w2" => "decay_w2.weight" Op::Transpose;
            "time_faaaa" => "first.weight" Op::Widen;
            "key.weight" => "key.weight" Op::Same;
            "value.weight" => "value.weight" Op::Same;
            "receptance.weight" => "receptance.weight" Op::Same;
            "gate.weight" => "gate.weight" Op::Same;
            "output.weight" => "output.weight" Op::Same;
            "ln_x.weight" => "ln.weight" Op::Same;
            "ln_x.bias" => "ln.bias" Op::Same;
        }
        ffn {
            "time_maa_k" => "lerp_k.weight" Op::Vector;
            "time_maa_r" => "lerp_r.weight" Op::Vector;
            "key.weight" => "key.weight" Op::Same;
            "value.weight" => "value.weight" Op::Same;
            "receptance.weight" => "receptance.weight" Op::Same;
        }
        more {}
    ),
    // Until late 2024 each of these factors was a tensor of its own.
    older: &[
        Rule("blk.{}.time_mix_lerp_w.weight", "blk.{}.time_mix_lerp_fused.weight", Op::Row(0, 5)),
        Rule("blk.{}.time_mix_lerp_k.weight", "blk.{}.time_mix_lerp_fused.weight", Op::Row(1, 5)),
        Rule("blk.{}.time_mix_lerp_v.weight", "blk.{}.time_mix_lerp_fused.weight", Op::Row(2, 5)),
        Rule("blk.{}.time_mix_lerp_r.weight", "blk.{}.time_mix_lerp_fused.weight", Op::Row(3, 5)),
        Rule("blk.{}.time_mix_lerp_g.weight", "blk.{}.time_mix_lerp_fused.weight", Op::Row(4, 5)),
    ],
    ..Architecture::BARE
};

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    let eps = config.float_opt("layer_norm_epsilon")?.unwrap_or(1e-5);
    let ffn_key = ["rwkv.blocks.0.feed_forward.key.weight", "blocks.0.ffn.key.weight"];
    rwkv::sizes_from_files(config, draft, eps, &["rwkv.embeddings.weight", "emb.weight"], &ffn_key)?;
    let of_layer = |name: &str, draft: &Draft<'_>| {
        let names = [format!("rwkv.blocks.0.attention.{name}"), format!("blocks.0.att.{name}")];
        size(draft, &[&names[0], &names[1]], 0)
    };
    let mix_ranks = of_layer("time_maa_w1", draft)?;
    draft.set("wkv.head_size", of_layer("time_faaaa", draft)?);
    draft.set(MIX_RANK, mix_ranks / 5);
    draft.set(DECAY_RANK, of_layer("time_decay_w1", draft)?);
    // The norm of each head has the authors' 1e-5 whatever that of the others is.
    let divisor = config.float_opt("head_size_divisor")?.unwrap_or(8.0);
    rwkv::set_head_eps(draft, 1e-5 * divisor * divisor);
    rwkv::set_unscaled(draft);
    Ok(())
}

fn guess(shapes: &Shapes<'_>) -> Option<Guess> {
    let layers = shapes.count("blocks.{}.att.time_maa_x");
    let layers = layers.max(shapes.count("rwkv.blocks.{}.attention.time_maa_x"));
    let mut guess = Guess::new("rwkv6");
    guess.set("num_hidden_layers", layers);
    guess.set("layer_norm_epsilon", 1e-5);
    guess.set("tie_word_embeddings", !shapes.has("head.weight"));
    (layers > 0).then_some(guess)
}

fn to_config(spec: &ModelSpec, keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    let Some(MixerSpec::Rwkv6(mixer)) = spec.layers.first().map(|layer| &layer.mixer) else {
        return Err(keys.wrong("block_count", "no layer is a time mix"));
    };
    rwkv::to_config(spec, keys, json)?;
    classes(json, "Rwkv6ForCausalLM", "rwkv6");
    let mut set = |key: &str, value: Json| json.insert(key.into(), value);
    set("attention_hidden_size", json!(spec.dim));
    set("head_size", json!(mixer.head_dim));
    set("num_attention_heads", json!(spec.dim / mixer.head_dim));
    set("head_size_divisor", json!((f64::from(mixer.eps) / 1e-5).sqrt().round()));
    set("layer_norm_epsilon", json!(decimal(spec.final_norm.eps())));
    set("rescale_every", json!(6));
    Ok(())
}
