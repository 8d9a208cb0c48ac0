//! RWKV-4 (Peng et al. 2023).
//!
//! llama.cpp does not know it. Its tensors are called as those of later versions, with one difference: factors of the
//! token shift (`lerp`) count the share of the token itself, as the authors have it, not of the one before.

use super::common::decimal;
use super::rwkv::{self, rwkv_rules};
use super::{Architecture, classes};
use crate::Error;
use crate::hf::{Guess, Op, Rule, Shapes};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{MixerSpec, ModelSpec, Rwkv4Spec, Shift};
use serde_json::{Map, Value as Json, json};

const INNER: &str = "wkv.inner_size";

pub(super) const RWKV4: Architecture = Architecture {
    name: "rwkv4",
    model_types: &["rwkv"],
    models: "RWKV-4",
    spec: |keys| {
        let inner = keys.count(INNER)?;
        rwkv::spec(keys, "rwkv4", (true, Shift::Present), |_| Ok(MixerSpec::Rwkv4(Rwkv4Spec { inner })))
    },
    from_config,
    guess: Some(guess),
    to_config,
    rules: rwkv_rules!(
        att {
            "time_decay" => "decay.weight" Op::Same;
            "time_first" => "first.weight" Op::Same;
            "key.weight" => "key.weight" Op::Same;
            "value.weight" => "value.weight" Op::Same;
            "receptance.weight" => "receptance.weight" Op::Same;
            "output.weight" => "output.weight" Op::Same;
        }
        ffn {
            "key.weight" => "key.weight" Op::Same;
            "value.weight" => "value.weight" Op::Same;
            "receptance.weight" => "receptance.weight" Op::Same;
        }
        more {
            Rule("rwkv.blocks.{}.attention.time_mix_key", "blk.{}.time_mix_lerp_k.weight", Op::Vector);
            Rule("rwkv.blocks.{}.attention.time_mix_value", "blk.{}.time_mix_lerp_v.weight", Op::Vector);
            Rule("rwkv.blocks.{}.attention.time_mix_receptance", "blk.{}.time_mix_lerp_r.weight", Op::Vector);
            Rule("rwkv.blocks.{}.feed_forward.time_mix_key", "blk.{}.channel_mix_lerp_k.weight", Op::Vector);
            Rule(
                "rwkv.blocks.{}.feed_forward.time_mix_receptance",
                "blk.{}.channel_mix_lerp_r.weight",
                Op::Vector
            );
            Rule("blocks.{}.att.time_mix_k", "blk.{}.time_mix_lerp_k.weight", Op::Vector);
            Rule("blocks.{}.att.time_mix_v", "blk.{}.time_mix_lerp_v.weight", Op::Vector);
            Rule("blocks.{}.att.time_mix_r", "blk.{}.time_mix_lerp_r.weight", Op::Vector);
            Rule("blocks.{}.ffn.time_mix_k", "blk.{}.channel_mix_lerp_k.weight", Op::Vector);
            Rule("blocks.{}.ffn.time_mix_r", "blk.{}.channel_mix_lerp_r.weight", Op::Vector);
        }
    ),
    ..Architecture::BARE
};

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    let eps = config.float_opt("layer_norm_epsilon")?.unwrap_or(1e-5);
    let ffn_key = ["rwkv.blocks.0.feed_forward.key.weight", "blocks.0.ffn.key.weight"];
    rwkv::sizes_from_files(config, draft, eps, &["rwkv.embeddings.weight", "emb.weight"], &ffn_key)?;
    let key = ["rwkv.blocks.0.attention.key.weight", "blocks.0.att.key.weight"];
    draft.set(INNER, super::common::recurrent::size(draft, &key, 1)?);
    Ok(())
}

fn guess(shapes: &Shapes<'_>) -> Option<Guess> {
    let layers = shapes.count("blocks.{}.att.time_first");
    let layers = layers.max(shapes.count("rwkv.blocks.{}.attention.time_first"));
    let mut guess = Guess::new("rwkv");
    guess.set("num_hidden_layers", layers);
    guess.set("layer_norm_epsilon", 1e-5);
    guess.set("tie_word_embeddings", !shapes.has("head.weight"));
    (layers > 0).then_some(guess)
}

fn to_config(spec: &ModelSpec, keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    rwkv::to_config(spec, keys, json)?;
    classes(json, "RwkvForCausalLM", "rwkv");
    json.insert("attention_hidden_size".into(), json!(keys.count(INNER)?));
    json.insert("layer_norm_epsilon".into(), json!(decimal(spec.final_norm.eps())));
    json.insert("context_length".into(), json!(1024));
    json.insert("rescale_every".into(), json!(6));
    Ok(())
}
