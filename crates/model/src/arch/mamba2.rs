//! Mamba-2 (Dao & Gu 2024), Codestral Mamba.
//!
//! GGUF keeps `ssm_a` = −exp(A_log) and calls the number of heads the rank of time steps. The authors' files are
//! spelled like Hugging Face's but for the embedding; their configuration has names of its own.

use super::common::recurrent::{no_attention, recurrent, size, small_count};
use super::common::{self, decimal};
use super::mamba::{authors_layer, expect_plain_authors, ratio};
use super::{Architecture, classes};
use crate::Error;
use crate::hf::{Guess, Op, Rule, Shapes};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{Mamba2Spec, MixerSpec, ModelSpec};
use serde_json::{Map, Value as Json, json};

const GROUPS: &str = "ssm.group_count";

pub(super) const MAMBA2: Architecture = Architecture {
    name: "mamba2",
    model_types: &["mamba2"],
    models: "Mamba-2, Codestral Mamba",
    spec,
    from_config,
    is_config: |config| authors_layer(config) == Some("Mamba2"),
    guess: Some(guess),
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
    prefixes: &[
        ("backbone.embedding.", "backbone.embeddings."),
        ("model.backbone.embedding.", "backbone.embeddings."),
        ("model.backbone.", "backbone."),
        ("model.lm_head.", "lm_head."),
    ],
    ..Architecture::BARE
};

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
    recurrent(keys, "mamba2", |i| {
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
    expect_plain_authors(config)?;
    expect_plain_layers(config)?;
    let embedding = [
        "backbone.embeddings",
        "backbone.embedding",
        "model.backbone.embeddings",
        "model.backbone.embedding",
    ];
    let embedding = embedding.map(|name| format!("{name}.weight"));
    let embedding = embedding.each_ref().map(String::as_str);
    let of_layer = |name: &str, from_last: usize, draft: &Draft<'_>| {
        let name = format!("backbone.layers.0.mixer.{name}");
        size(draft, &[&name, &format!("model.{name}")], from_last)
    };
    let (inner, heads) = (of_layer("norm.weight", 0, draft)?, of_layer("A_log", 0, draft)?);
    let channels = of_layer("conv1d.weight", 2, draft)?;
    let groups = match config.object("ssm_cfg") {
        Some(own) => {
            expect_plain_layers(&own)?;
            own.count_opt("ngroups")?.unwrap_or(1)
        }
        None => config.count_opt("n_groups")?.unwrap_or(8),
    };
    let shared = channels.checked_sub(inner).filter(|n| groups > 0 && n.is_multiple_of(2 * groups));
    let Some(shared) = shared else {
        let reason =
            format!("{groups}: {channels} channels of which {inner} are values are not so many groups");
        return Err(config.wrong("n_groups", reason));
    };
    no_attention(draft);
    draft.set("vocab_size", size(draft, &embedding, 1)?);
    draft.set("embedding_length", size(draft, &embedding, 0)?);
    draft.set("block_count", common::count_of(config, &["num_hidden_layers", "n_layer"])?);
    draft.set("feed_forward_length", 0u32);
    draft.set("ssm.conv_kernel", of_layer("conv1d.weight", 0, draft)?);
    draft.set("ssm.inner_size", inner);
    draft.set("ssm.state_size", shared / (2 * groups));
    draft.set("ssm.time_step_rank", heads);
    draft.set(GROUPS, groups);
    let eps = config.float_opt("layer_norm_epsilon")?.unwrap_or(1e-5);
    draft.set("attention.layer_norm_rms_epsilon", eps);
    Ok(())
}

/// Errors about what a configuration can say of layers and fonio does not compute.
fn expect_plain_layers(config: &Config) -> Result<(), Error> {
    for (key, plain) in
        [("rms_norm", true), ("rmsnorm", true), ("norm_before_gate", false), ("D_has_hdim", false)]
    {
        if config.flag_or(key, plain)? != plain {
            return Err(config.unsupported(key, format!("{}", !plain)));
        }
    }
    // Infinity is no number of JSON: it is null here, or an object.
    for key in ["time_step_limit", "dt_limit"] {
        let Some(limit) = config.get(key) else { continue };
        let free = matches!(limit.as_array().map(Vec::as_slice),
            Some([low, high]) if low.as_f64() == Some(0.0) && !high.is_number());
        if !free {
            return Err(config.unsupported(key, format!("{limit}")));
        }
    }
    Ok(())
}

fn guess(shapes: &Shapes<'_>) -> Option<Guess> {
    let [heads] = *shapes.shape("backbone.layers.0.mixer.A_log")? else { return None };
    let groups = if heads == 128 { 8 } else { 1 };
    let mut guess = Guess::new("mamba2");
    guess.set("num_hidden_layers", shapes.count("backbone.layers.{}.mixer.A_log"));
    guess.set("tie_word_embeddings", !shapes.has("lm_head.weight"));
    guess.assume("n_groups", groups, format!("{groups} groups of heads"));
    guess.assume("layer_norm_epsilon", 1e-5, "epsilon 1e-5");
    Some(guess)
}

fn to_config(spec: &ModelSpec, keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    let Some(MixerSpec::Mamba2(mamba)) = spec.layers.first().map(|layer| &layer.mixer) else {
        return Err(keys.wrong("block_count", "no layer is a selective scan"));
    };
    classes(json, "Mamba2ForCausalLM", "mamba2");
    let mut set = |key: &str, value: Json| json.insert(key.into(), value);
    set("hidden_act", json!("silu"));
    set("hidden_size", json!(spec.dim));
    set("expand", ratio(mamba.heads * mamba.head_dim, spec.dim));
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
