//! RWKV-7, Goose (Peng et al. 2025).
//!
//! Hugging Face's names are those of flash-linear-attention (fla), which has the low-rank matrices as GGUF has them;
//! the authors have them transposed. GGUF has the six vectors of the token shift in one tensor, and in the first layer
//! a share of the first layer's values too, of which nothing comes: it is a copy of the in-context learning rate's.

use super::common::decimal;
use super::common::recurrent::size;
use super::rwkv::{self, HEAD_EPS, HEAD_EPS_KEY};
use super::{Architecture, classes, common};
use crate::Error;
use crate::hf::{Guess, Op, Rule, Shapes};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{MixerSpec, ModelSpec, Rwkv7Spec, Shift};
use serde_json::{Map, Value as Json, json};

const HEAD_SIZE: &str = "wkv.head_size";
const DECAY_RANK: &str = "attention.decay_lora_rank";
const RATE_RANK: &str = "attention.iclr_lora_rank";
const VALUE_RANK: &str = "attention.value_residual_mix_lora_rank";
const GATE_RANK: &str = "attention.gate_lora_rank";

/// Rules for the parts of a layer: fla's name, the authors' name, and GGUF's, with what happens to each.
macro_rules! rules {
    (fla { $($fla:literal $fla_op:expr => $fla_to:literal;)* } authors { $($own:literal $own_op:expr => $own_to:literal;)* }) => {
        &[
            Rule("model.embeddings.weight", "token_embd.weight", Op::Same),
            Rule("model.layers.0.pre_norm.weight", "token_embd_norm.weight", Op::Same),
            Rule("model.layers.0.pre_norm.bias", "token_embd_norm.bias", Op::Same),
            Rule("model.norm.weight", "output_norm.weight", Op::Same),
            Rule("model.norm.bias", "output_norm.bias", Op::Same),
            Rule("lm_head.weight", "output.weight", Op::Same),
            Rule("model.layers.0.attn.a_lora.lora.2.bias", "blk.0.time_mix_v0.weight", Op::Same),
            Rule("model.layers.0.attn.a_lora.lora.0.weight", "blk.0.time_mix_v1.weight", Op::Same),
            Rule("model.layers.0.attn.a_lora.lora.2.weight", "blk.0.time_mix_v2.weight", Op::Same),
            $(Rule(concat!("model.layers.{}.", $fla), concat!("blk.{}.", $fla_to), $fla_op),)*
            Rule("emb.weight", "token_embd.weight", Op::Same),
            Rule("blocks.0.ln0.weight", "token_embd_norm.weight", Op::Same),
            Rule("blocks.0.ln0.bias", "token_embd_norm.bias", Op::Same),
            Rule("ln_out.weight", "output_norm.weight", Op::Same),
            Rule("ln_out.bias", "output_norm.bias", Op::Same),
            Rule("head.weight", "output.weight", Op::Same),
            Rule("blocks.0.att.a0", "blk.0.time_mix_v0.weight", Op::Vector),
            Rule("blocks.0.att.a1", "blk.0.time_mix_v1.weight", Op::Transpose),
            Rule("blocks.0.att.a2", "blk.0.time_mix_v2.weight", Op::Transpose),
            $(Rule(concat!("blocks.{}.", $own), concat!("blk.{}.", $own_to), $own_op),)*
        ]
    };
}

pub(super) const RWKV7: Architecture = Architecture {
    name: "rwkv7",
    model_types: &["rwkv7"],
    models: "RWKV-7",
    spec,
    from_config,
    guess: Some(guess),
    to_config,
    rules: rules!(
        fla {
            "attn_norm.weight" Op::Same => "attn_norm.weight";
            "attn_norm.bias" Op::Same => "attn_norm.bias";
            "ffn_norm.weight" Op::Same => "attn_norm_2.weight";
            "ffn_norm.bias" Op::Same => "attn_norm_2.bias";
            "attn.x_r" Op::Row(0, 6) => "time_mix_lerp_fused.weight";
            "attn.x_w" Op::Row(1, 6) => "time_mix_lerp_fused.weight";
            "attn.x_k" Op::Row(2, 6) => "time_mix_lerp_fused.weight";
            "attn.x_v" Op::Row(3, 6) => "time_mix_lerp_fused.weight";
            "attn.x_a" Op::Row(4, 6) => "time_mix_lerp_fused.weight";
            "attn.x_g" Op::Row(5, 6) => "time_mix_lerp_fused.weight";
            "attn.w_lora.lora.2.bias" Op::Same => "time_mix_w0.weight";
            "attn.w_lora.lora.0.weight" Op::Same => "time_mix_w1.weight";
            "attn.w_lora.lora.2.weight" Op::Same => "time_mix_w2.weight";
            "attn.a_lora.lora.2.bias" Op::Same => "time_mix_a0.weight";
            "attn.a_lora.lora.0.weight" Op::Same => "time_mix_a1.weight";
            "attn.a_lora.lora.2.weight" Op::Same => "time_mix_a2.weight";
            "attn.v_lora.lora.2.bias" Op::Same => "time_mix_v0.weight";
            "attn.v_lora.lora.0.weight" Op::Same => "time_mix_v1.weight";
            "attn.v_lora.lora.2.weight" Op::Same => "time_mix_v2.weight";
            "attn.g_lora.lora.0.weight" Op::Same => "time_mix_g1.weight";
            "attn.g_lora.lora.2.weight" Op::Same => "time_mix_g2.weight";
            "attn.k_k" Op::Same => "time_mix_k_k.weight";
            "attn.k_a" Op::Same => "time_mix_k_a.weight";
            "attn.r_k" Op::Flat(HEAD_SIZE) => "time_mix_r_k.weight";
            "attn.r_proj.weight" Op::Same => "time_mix_receptance.weight";
            "attn.k_proj.weight" Op::Same => "time_mix_key.weight";
            "attn.v_proj.weight" Op::Same => "time_mix_value.weight";
            "attn.o_proj.weight" Op::Same => "time_mix_output.weight";
            "attn.g_norm.weight" Op::Same => "time_mix_ln.weight";
            "attn.g_norm.bias" Op::Same => "time_mix_ln.bias";
            "ffn.x_k" Op::Same => "channel_mix_lerp_k.weight";
            "ffn.key.weight" Op::Same => "channel_mix_key.weight";
            "ffn.value.weight" Op::Same => "channel_mix_value.weight";
        }
        authors {
            "ln1.weight" Op::Same => "attn_norm.weight";
            "ln1.bias" Op::Same => "attn_norm.bias";
            "ln2.weight" Op::Same => "attn_norm_2.weight";
            "ln2.bias" Op::Same => "attn_norm_2.bias";
            "att.x_r" Op::Row(0, 6) => "time_mix_lerp_fused.weight";
            "att.x_w" Op::Row(1, 6) => "time_mix_lerp_fused.weight";
            "att.x_k" Op::Row(2, 6) => "time_mix_lerp_fused.weight";
            "att.x_v" Op::Row(3, 6) => "time_mix_lerp_fused.weight";
            "att.x_a" Op::Row(4, 6) => "time_mix_lerp_fused.weight";
            "att.x_g" Op::Row(5, 6) => "time_mix_lerp_fused.weight";
            "att.w0" Op::Vector => "time_mix_w0.weight";
            "att.w1" Op::Transpose => "time_mix_w1.weight";
            "att.w2" Op::Transpose => "time_mix_w2.weight";
            "att.a0" Op::Vector => "time_mix_a0.weight";
            "att.a1" Op::Transpose => "time_mix_a1.weight";
            "att.a2" Op::Transpose => "time_mix_a2.weight";
            "att.v0" Op::Vector => "time_mix_v0.weight";
            "att.v1" Op::Transpose => "time_mix_v1.weight";
            "att.v2" Op::Transpose => "time_mix_v2.weight";
            "att.g1" Op::Transpose => "time_mix_g1.weight";
            "att.g2" Op::Transpose => "time_mix_g2.weight";
            "att.k_k" Op::Vector => "time_mix_k_k.weight";
            "att.k_a" Op::Vector => "time_mix_k_a.weight";
            "att.r_k" Op::Flat(HEAD_SIZE) => "time_mix_r_k.weight";
            "att.receptance.weight" Op::Same => "time_mix_receptance.weight";
            "att.key.weight" Op::Same => "time_mix_key.weight";
            "att.value.weight" Op::Same => "time_mix_value.weight";
            "att.output.weight" Op::Same => "time_mix_output.weight";
            "att.ln_x.weight" Op::Same => "time_mix_ln.weight";
            "att.ln_x.bias" Op::Same => "time_mix_ln.bias";
            "ffn.x_k" Op::Vector => "channel_mix_lerp_k.weight";
            "ffn.key.weight" Op::Same => "channel_mix_key.weight";
            "ffn.value.weight" Op::Same => "channel_mix_value.weight";
        }
    ),
    ignored: &["blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2", "model.layers.0.attn.v_lora.*"],
    derived: &["blk.0.time_mix_v0.weight", "blk.0.time_mix_v1.weight", "blk.0.time_mix_v2.weight"],
    ..Architecture::BARE
};

fn spec(keys: &Keys<'_>) -> Result<ModelSpec, Error> {
    let head_dim = rwkv::head_dim(keys)?;
    let eps = keys.positive_or(HEAD_EPS_KEY, HEAD_EPS)?;
    let (decay_rank, rate_rank) = (keys.count(DECAY_RANK)?, keys.count(RATE_RANK)?);
    let (value_rank, gate_rank) = (keys.count(VALUE_RANK)?, keys.count(GATE_RANK)?);
    rwkv::spec(keys, "rwkv7", (false, Shift::Past), |i| {
        let value_rank = (i > 0).then_some(value_rank);
        Ok(MixerSpec::Rwkv7(Rwkv7Spec { head_dim, eps, decay_rank, rate_rank, value_rank, gate_rank }))
    })
}

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::expect_activation(config, "hidden_act", &["sqrelu"])?;
    for key in ["norm_first", "norm_bias"] {
        if !config.flag_or(key, true)? {
            return Err(config.unsupported(key, "false"));
        }
    }
    if config.get("attn").is_some() {
        return Err(config.unsupported("attn", "layers with attention"));
    }
    let of_layer = |fla: &str, own: &str, from_last: usize, draft: &Draft<'_>| {
        let fla = size(draft, &[&format!("model.layers.{fla}")], from_last);
        // The authors' low-rank matrices are transposed.
        fla.or_else(|_| size(draft, &[&format!("blocks.{own}")], 0))
    };
    let head_dim = of_layer("0.attn.r_k", "0.att.r_k", 0, draft)?;
    let eps = config.float_opt("norm_eps")?;
    let ffn_key = ["model.layers.0.ffn.key.weight", "blocks.0.ffn.key.weight"];
    let embedding = ["model.embeddings.weight", "emb.weight"];
    rwkv::sizes_from_files(config, draft, eps.unwrap_or(1e-5), &embedding, &ffn_key)?;
    let rate_rank = of_layer("0.attn.a_lora.lora.0.weight", "0.att.a1", 1, draft)?;
    let value_rank = of_layer("1.attn.v_lora.lora.0.weight", "1.att.v1", 1, draft);
    draft.set(HEAD_SIZE, head_dim);
    draft.set(DECAY_RANK, of_layer("0.attn.w_lora.lora.0.weight", "0.att.w1", 1, draft)?);
    draft.set(RATE_RANK, rate_rank);
    // A model of one layer has none.
    draft.set(VALUE_RANK, value_rank.unwrap_or(rate_rank));
    draft.set(GATE_RANK, of_layer("0.attn.g_lora.lora.0.weight", "0.att.g1", 1, draft)?);
    // fla makes this of the other; the authors wrote it down.
    rwkv::set_head_eps(draft, eps.map_or(HEAD_EPS, |eps| eps * head_dim as f32));
    Ok(())
}

fn guess(shapes: &Shapes<'_>) -> Option<Guess> {
    let (own, fla) = (shapes.count("blocks.{}.att.r_k"), shapes.count("model.layers.{}.attn.r_k"));
    let mut guess = Guess::new("rwkv7");
    guess.set("num_hidden_layers", own.max(fla));
    guess.set("tie_word_embeddings", !shapes.has("head.weight") && !shapes.has("lm_head.weight"));
    (own.max(fla) > 0).then_some(guess)
}

fn to_config(spec: &ModelSpec, keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    let Some(MixerSpec::Rwkv7(mixer)) = spec.layers.first().map(|layer| &layer.mixer) else {
        return Err(keys.wrong("block_count", "no layer is a time mix"));
    };
    let eps = spec.final_norm.eps();
    if (eps * mixer.head_dim as f32 / mixer.eps - 1.0).abs() > 1e-5 {
        let reason = format!("epsilons {eps:e} of norms and {:e} of heads of {}", mixer.eps, mixer.head_dim);
        return Err(keys.unsupported(HEAD_EPS_KEY, reason));
    }
    rwkv::to_config(spec, keys, json)?;
    classes(json, "RWKV7ForCausalLM", "rwkv7");
    let mut set = |key: &str, value: Json| json.insert(key.into(), value);
    set("hidden_act", json!("sqrelu"));
    set("head_dim", json!(mixer.head_dim));
    set("num_heads", json!(spec.dim / mixer.head_dim));
    set("value_dim", json!(vec![spec.dim; spec.layers.len()]));
    set("decay_low_rank_dim", json!(mixer.decay_rank));
    set("a_low_rank_dim", json!(mixer.rate_rank));
    set("v_low_rank_dim", json!(keys.count(VALUE_RANK)?));
    set("gate_low_rank_dim", json!(mixer.gate_rank));
    set("norm_eps", json!(decimal(eps)));
    set("norm_first", json!(true));
    set("norm_bias", json!(true));
    Ok(())
}
