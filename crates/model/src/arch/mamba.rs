//! Mamba (Gu & Dao 2023) and Falcon Mamba (Zuo et al. 2024), which norms what steers the scan.
//!
//! GGUF keeps `ssm_a` = −exp(A_log). The authors' files are spelled like Hugging Face's but for the embedding; their
//! configuration has names of its own. Sizes are those of the tensors.

use super::common::recurrent::{no_attention, recurrent, size, small_count};
use super::common::{self, decimal};
use super::{Architecture, classes};
use crate::Error;
use crate::hf::{Guess, Op, Rule, Shapes};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{InputNorm, MambaSpec, MixerSpec, ModelSpec};
use serde_json::{Map, Value as Json, json};

/// fonio's own: the epsilon of Falcon Mamba's inner norms, where it is not that of the others.
const INNER_EPS: &str = "ssm.dt_b_c_rms_epsilon";

pub(super) const MAMBA: Architecture = Architecture {
    name: "mamba",
    model_types: &["mamba", "falcon_mamba"],
    models: "Mamba, Falcon Mamba",
    spec,
    from_config,
    is_config: |config| authors_layer(config) == Some("Mamba1"),
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
        Rule("backbone.layers.{}.mixer.x_proj.weight", "blk.{}.ssm_x.weight", Op::Same),
        Rule("backbone.layers.{}.mixer.dt_proj.weight", "blk.{}.ssm_dt.weight", Op::Same),
        Rule("backbone.layers.{}.mixer.dt_proj.bias", "blk.{}.ssm_dt.bias", Op::Same),
        Rule("backbone.layers.{}.mixer.A_log", "blk.{}.ssm_a", Op::NegExp),
        Rule("backbone.layers.{}.mixer.D", "blk.{}.ssm_d", Op::Same),
        Rule("backbone.layers.{}.mixer.out_proj.weight", "blk.{}.ssm_out.weight", Op::Same),
        Rule("backbone.layers.{}.mixer.out_proj.bias", "blk.{}.ssm_out.bias", Op::Same),
    ],
    tied: true,
    prefixes: &[("backbone.embedding.", "backbone.embeddings.")],
    ..Architecture::BARE
};

/// The kind of layers that a configuration in the authors' spelling names.
pub(super) fn authors_layer(config: &Config) -> Option<&'static str> {
    config.get("d_model").and(config.get("n_layer"))?;
    let own = config.object("ssm_cfg")?;
    match own.get("layer").and_then(Json::as_str) {
        None | Some("Mamba1") => Some("Mamba1"),
        Some("Mamba2") => Some("Mamba2"),
        Some(_) => None,
    }
}

/// Errors about what the authors' configurations can say and fonio does not compute.
pub(super) fn expect_plain_authors(config: &Config) -> Result<(), Error> {
    if !config.flag_or("rms_norm", true)? {
        return Err(config.unsupported("rms_norm", "layer norms"));
    }
    if config.get("attn_layer_idx").and_then(Json::as_array).is_some_and(|all| !all.is_empty()) {
        return Err(config.unsupported("attn_layer_idx", "layers with attention"));
    }
    if config.count_opt("d_intermediate")?.is_some_and(|n| n > 0) {
        return Err(config.unsupported("d_intermediate", "feed-forward parts"));
    }
    Ok(())
}

fn spec(keys: &Keys<'_>) -> Result<ModelSpec, Error> {
    let inner = keys.count("ssm.inner_size")?;
    let states = small_count(keys, "ssm.state_size")?;
    let taps = small_count(keys, "ssm.conv_kernel")?;
    let rank = keys.count("ssm.time_step_rank")?;
    let eps = keys.positive_or("attention.layer_norm_rms_epsilon", 1e-5)?;
    let inner_eps = keys.positive_or(INNER_EPS, eps)?;
    let normed = keys.flag_opt("ssm.dt_b_c_rms")?.unwrap_or(false);
    recurrent(keys, "mamba", |i| {
        let has = |name: &str| keys.has_tensor(&format!("blk.{i}.{name}"));
        let weights = has("ssm_dt_norm.weight");
        let mamba = MambaSpec {
            inner,
            states,
            rank,
            taps,
            conv_bias: has("ssm_conv1d.bias"),
            bias: has("ssm_in.bias"),
            inputs: (normed || weights).then_some(InputNorm { eps: inner_eps, weights }),
        };
        Ok((MixerSpec::Mamba(mamba), None))
    })
}

fn from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    common::expect_activation(config, "hidden_act", &["silu", "swish"])?;
    expect_plain_authors(config)?;
    let embedding = ["backbone.embeddings.weight", "backbone.embedding.weight"];
    let of_layer = |name: &str| format!("backbone.layers.0.mixer.{name}");
    let (a, dt) = (of_layer("A_log"), of_layer("dt_proj.weight"));
    let eps = config.float_opt("layer_norm_epsilon")?.unwrap_or(1e-5);
    let falcon = config.text_opt("model_type")? == Some("falcon_mamba");
    no_attention(draft);
    draft.set("vocab_size", size(draft, &embedding, 1)?);
    draft.set("embedding_length", size(draft, &embedding, 0)?);
    draft.set("block_count", common::count_of(config, &["num_hidden_layers", "n_layer"])?);
    draft.set("feed_forward_length", 0u32);
    draft.set("ssm.conv_kernel", size(draft, &[&of_layer("conv1d.weight")], 0)?);
    draft.set("ssm.inner_size", size(draft, &[&a], 1)?);
    draft.set("ssm.state_size", size(draft, &[&a], 0)?);
    draft.set("ssm.time_step_rank", size(draft, &[&dt], 0)?);
    draft.set("ssm.dt_b_c_rms", falcon);
    draft.set("attention.layer_norm_rms_epsilon", eps);
    let inner_eps = config.float_opt("mixer_rms_eps")?.unwrap_or(1e-6);
    if falcon && inner_eps != eps {
        draft.set(INNER_EPS, inner_eps);
    }
    Ok(())
}

fn guess(shapes: &Shapes<'_>) -> Option<Guess> {
    // Mamba-2 has one A for each head.
    let [_, _] = *shapes.shape("backbone.layers.0.mixer.A_log")? else { return None };
    let mut guess = Guess::new("mamba");
    guess.set("num_hidden_layers", shapes.count("backbone.layers.{}.mixer.A_log"));
    guess.set("tie_word_embeddings", !shapes.has("lm_head.weight"));
    guess.assume("layer_norm_epsilon", 1e-5, "epsilon 1e-5");
    guess.assumed.push("Mamba itself, not Falcon Mamba, which names its tensors alike".into());
    Some(guess)
}

fn to_config(spec: &ModelSpec, keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    let Some(MixerSpec::Mamba(mamba)) = spec.layers.first().map(|layer| &layer.mixer) else {
        return Err(keys.wrong("block_count", "no layer is a selective scan"));
    };
    match mamba.inputs {
        Some(InputNorm { weights: true, .. }) => {
            return Err(keys.unsupported("ssm.dt_b_c_rms", "norms with weights have no name there"));
        }
        Some(norm) => {
            classes(json, "FalconMambaForCausalLM", "falcon_mamba");
            json.insert("mixer_rms_eps".into(), json!(decimal(norm.eps)));
        }
        None => classes(json, "MambaForCausalLM", "mamba"),
    }
    let mut set = |key: &str, value: Json| json.insert(key.into(), value);
    set("hidden_act", json!("silu"));
    set("hidden_size", json!(spec.dim));
    set("intermediate_size", json!(mamba.inner));
    set("expand", ratio(mamba.inner, spec.dim));
    set("state_size", json!(mamba.states));
    set("conv_kernel", json!(mamba.taps));
    set("time_step_rank", json!(mamba.rank));
    set("use_bias", json!(mamba.bias));
    set("use_conv_bias", json!(mamba.conv_bias));
    set("num_hidden_layers", json!(spec.layers.len()));
    set("layer_norm_epsilon", json!(decimal(spec.final_norm.eps())));
    set("vocab_size", json!(spec.vocab_size));
    set("tie_word_embeddings", json!(!spec.has_head));
    Ok(())
}

/// A quotient, as an integer where it is one.
pub(super) fn ratio(a: usize, b: usize) -> Json {
    if b > 0 && a.is_multiple_of(b) { json!(a / b) } else { json!(a as f64 / b as f64) }
}
