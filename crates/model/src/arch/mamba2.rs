//! Mamba-2 (Dao & Gu 2024), Codestral Mamba.
//!
//! GGUF keeps `ssm_a` = −exp(A_log) and counts heads as time steps. Files of the authors are spelled like Hugging
//! Face's but for the embedding; their configuration has names of its own.

use super::common::decimal;
use super::common::recurrent::{no_attention, recurrent, small_count};
use super::{Architecture, common};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{Mamba2Spec, MixerSpec, ModelSpec};
use serde_json::{Map, Value as Json, json};

pub(super) const MAMBA2: Architecture = Architecture {
    name: "mamba2",
    model_types: &["mamba2"],
    models: "Mamba-2, Codestral Mamba",
    spec,
    from_config,
    to_config,
    rules: &[
        Rule("backbone.embeddings.weight", "token_embd.weight", Op::Same),
        Rule("lm_head.weight", "output.weight", Op::Same),
        Rule("backbone.norm_f.weight", "output_norm.weight", Op::Same),
        Rule("backbone.layers.{}.norm.weight", "blk.{}.attn_norm.weight", Op::Same),
        Rule("backbone.layers.{}.mixer.in_proj.weight", "blk.{}.ssm_in.weight", Op::Same),
        Rule("backbone.layers.{}.mixer.in_proj.bias", "blk.{}.ssm_in.bias", Op::Same),
        Rule("backbone.layers.{}.mixer.conv1d.weight", "blk.{}.ssm_conv1d.weight", Op::Squeeze),
        Rule("backbone.layers.{}.mixer.conv1d.bias", "blk.{}.ssm_conv1d.bias", Op::Same),
        Rule("backbone.layers.{}.mixer.dt_bias", "blk.{}.ssm_dt.bias", Op::Same),
        Rule("backbone.layers.{}.mixer.A_log", "blk.{}.ssm_a", Op::NegExpColumn),
        Rule("backbone.layers.{}.mixer.D", "blk.{}.ssm_d", Op::Column),
        Rule("backbone.layers.{}.mixer.norm.weight", "blk.{}.ssm_norm.weight", Op::Groups(GROUPS)),
        Rule("backbone.layers.{}.mixer.out_proj.weight", "blk.{}.ssm_out.weight", Op::Same),
        Rule("backbone.layers.{}.mixer.out_proj.bias", "blk.{}.ssm_out.bias", Op::Same),
    ],
    ignored: &[],
    derived: &[],
    tied: false,
    prefixes: &[
        ("backbone.embedding.", "backbone.embeddings."),
        ("model.backbone.", "backbone."),
        ("model.lm_head.", "lm_head."),
    ],
};

const GROUPS: &str = "ssm.group_count";

fn spec(keys: &Keys<'_>) -> Result<ModelSpec, Error> {
    let inner = keys.count("ssm.inner_size")?;
    let heads = keys.count("ssm.time_step_rank")?;
    let groups = small_count(keys, GROUPS)?;
    let states = small_count(keys, "ssm.state_size")?;
    let taps = small_count(keys, "ssm.conv_kernel")?;
    if !inner.is_multiple_of(heads) || !heads.is_multiple_of(groups) {
        let reason = format!("{inner} channels, {heads} heads and {groups} groups don't divide each other");
        return Err(keys.wrong("ssm.time_step_rank", reason));
    }
    let eps = keys.positive_or("attention.layer_norm_rms_epsilon", 1e-5)?;
    recurrent(keys, "mamba2", |i, _| {
        let has = |name: &str| keys.has_tensor(&format!("blk.{i}.{name}"));
        let mamba = Mamba2Spec {
            heads,
            head_dim: inner / heads,
            states,
            groups,
            taps,
            conv_bias: has("ssm_conv1d.bias"),
            bias: has("ssm_in.bias"),
            norm: has("ssm_norm.weight").then_some(eps),
        };
        Ok((MixerSpec::Mamba2(mamba), None))
    })
}

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
    let dim = config.count("hidden_size")?;
    let heads = config.count_opt("num_heads")?.unwrap_or(128);
    let head_dim = config.count_opt("head_dim")?.unwrap_or(64);
    let inner = heads.checked_mul(head_dim).ok_or_else(|| config.wrong("num_heads", "is too large"))?;
    let expanded = f64::from(dim) * config.float_opt("expand")?.map_or(2.0, f64::from);
    if expanded as u32 != inner {
        return Err(config.wrong("expand", format!("{heads} heads of {head_dim} are not {expanded}")));
    }
    expect_free_steps(config)?;
    if !config.flag_or("rms_norm", true)? {
        return Err(config.unsupported("rms_norm", "without a norm behind the gate"));
    }
    no_attention(draft);
    draft.set("embedding_length", dim);
    draft.set("block_count", config.count("num_hidden_layers")?);
    draft.set("feed_forward_length", 0u32);
    draft.set("vocab_size", config.count("vocab_size")?);
    draft.set("ssm.conv_kernel", config.count_opt("conv_kernel")?.unwrap_or(4));
    draft.set("ssm.inner_size", inner);
    draft.set("ssm.state_size", config.count_opt("state_size")?.unwrap_or(128));
    draft.set("ssm.time_step_rank", heads);
    draft.set(GROUPS, config.count_opt("n_groups")?.unwrap_or(8));
    let eps = config.float_opt("layer_norm_epsilon")?.unwrap_or(1e-5);
    draft.set("attention.layer_norm_rms_epsilon", eps);
    Ok(())
}

/// An error if time steps are kept within bounds. Infinity is no number of JSON: it is null here, or an object.
fn expect_free_steps(config: &Config) -> Result<(), Error> {
    let Some(limit) = config.get("time_step_limit") else { return Ok(()) };
    match limit.as_array().map(Vec::as_slice) {
        Some([low, high]) if low.as_f64() == Some(0.0) && !high.is_number() => Ok(()),
        _ => Err(config.unsupported("time_step_limit", format!("{limit}"))),
    }
}

fn to_config(spec: &ModelSpec, keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    let Some(MixerSpec::Mamba2(mamba)) = spec.layers.first().map(|layer| &layer.mixer) else {
        return Err(keys.wrong("block_count", "no layer is a selective scan"));
    };
    let mut set = |key: &str, value: Json| json.insert(key.into(), value);
    set("architectures", json!(["Mamba2ForCausalLM"]));
    set("model_type", json!("mamba2"));
    set("hidden_act", json!("silu"));
    set("hidden_size", json!(spec.dim));
    set("expand", json!((mamba.heads * mamba.head_dim) as f64 / spec.dim as f64));
    set("num_heads", json!(mamba.heads));
    set("head_dim", json!(mamba.head_dim));
    set("n_groups", json!(mamba.groups));
    set("state_size", json!(mamba.states));
    set("conv_kernel", json!(mamba.taps));
    set("use_bias", json!(mamba.bias));
    set("use_conv_bias", json!(mamba.conv_bias));
    set("num_hidden_layers", json!(spec.layers.len()));
    set("layer_norm_epsilon", json!(decimal(spec.final_norm.eps())));
    set("vocab_size", json!(spec.vocab_size));
    set("tie_word_embeddings", json!(!spec.has_head));
    Ok(())
}
