//! Mamba (Gu & Dao 2023) and Falcon Mamba (Zuo et al. 2024), which norms what steers the scan.
//!
//! GGUF keeps `ssm_a` = −exp(A_log). Files of the authors are spelled like Hugging Face's but for the embedding; their
//! configuration has names of its own.

use super::common::decimal;
use super::common::recurrent::{layers, no_attention, recurrent, shape, small_count};
use super::{Architecture, common};
use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{InputNorm, MambaSpec, MixerSpec, ModelSpec};
use fonio_checkpoint::Checkpoint;
use serde_json::{Map, Value as Json, json};

/// fonio's own: the epsilon of Falcon Mamba's inner norms, where it is not that of the others.
const INNER_EPS: &str = "ssm.dt_b_c_rms_epsilon";

pub(super) const MAMBA: Architecture = Architecture {
    name: "mamba",
    model_types: &["mamba", "falcon_mamba"],
    models: "Mamba, Falcon Mamba",
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
        Rule("backbone.layers.{}.mixer.x_proj.weight", "blk.{}.ssm_x.weight", Op::Same),
        Rule("backbone.layers.{}.mixer.dt_proj.weight", "blk.{}.ssm_dt.weight", Op::Same),
        Rule("backbone.layers.{}.mixer.dt_proj.bias", "blk.{}.ssm_dt.bias", Op::Same),
        Rule("backbone.layers.{}.mixer.A_log", "blk.{}.ssm_a", Op::NegExp),
        Rule("backbone.layers.{}.mixer.D", "blk.{}.ssm_d", Op::Same),
        Rule("backbone.layers.{}.mixer.out_proj.weight", "blk.{}.ssm_out.weight", Op::Same),
        Rule("backbone.layers.{}.mixer.out_proj.bias", "blk.{}.ssm_out.bias", Op::Same),
    ],
    ignored: &[],
    derived: &[],
    tied: true,
    prefixes: &[("backbone.embedding.", "backbone.embeddings.")],
};

fn spec(keys: &Keys<'_>) -> Result<ModelSpec, Error> {
    let inner = keys.count("ssm.inner_size")?;
    let states = small_count(keys, "ssm.state_size")?;
    let taps = small_count(keys, "ssm.conv_kernel")?;
    let rank = keys.count("ssm.time_step_rank")?;
    let inner_eps = match keys.float_opt(INNER_EPS)? {
        Some(_) => keys.positive_or(INNER_EPS, 1e-6)?,
        None => keys.positive_or("attention.layer_norm_rms_epsilon", 1e-5)?,
    };
    let normed = keys.flag_opt("ssm.dt_b_c_rms")?.unwrap_or(false);
    recurrent(keys, "mamba", |i, _| {
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
    let dim = config.count("hidden_size")?;
    let a = draft.shape(&["backbone.layers.0.mixer.A_log"])?;
    let [inner, states] = a[..] else {
        return Err(config.wrong("state_size", format!("A_log of layer 0 has the dimensions {a:?}")));
    };
    let expanded = f64::from(dim) * config.float_opt("expand")?.map_or(2.0, f64::from);
    if expanded as u64 != inner {
        return Err(config.wrong("expand", format!("{inner} channels in the files, not {expanded}")));
    }
    let rank = match config.get("time_step_rank").and_then(Json::as_str) {
        None => config.count_opt("time_step_rank")?.unwrap_or(dim.div_ceil(16)),
        Some("auto") => dim.div_ceil(16),
        Some(other) => return Err(config.wrong("time_step_rank", format!("{other:?} is no count"))),
    };
    let eps = config.float_opt("layer_norm_epsilon")?.unwrap_or(1e-5);
    let falcon = config.text_opt("model_type")? == Some("falcon_mamba");
    no_attention(draft);
    draft.set("embedding_length", dim);
    draft.set("block_count", config.count("num_hidden_layers")?);
    draft.set("feed_forward_length", 0u32);
    draft.set("vocab_size", config.count("vocab_size")?);
    draft.set("ssm.conv_kernel", config.count_opt("conv_kernel")?.unwrap_or(4));
    draft.set("ssm.inner_size", inner as u32);
    draft.set("ssm.state_size", states as u32);
    draft.set("ssm.time_step_rank", rank);
    draft.set("ssm.dt_b_c_rms", falcon);
    draft.set("attention.layer_norm_rms_epsilon", eps);
    let inner_eps = config.float_opt("mixer_rms_eps")?.unwrap_or(1e-6);
    if falcon && inner_eps != eps {
        draft.set(INNER_EPS, inner_eps);
    }
    Ok(())
}

fn to_config(spec: &ModelSpec, keys: &Keys<'_>, json: &mut Map<String, Json>) -> Result<(), Error> {
    let Some(MixerSpec::Mamba(mamba)) = spec.layers.first().map(|layer| &layer.mixer) else {
        return Err(keys.wrong("block_count", "no layer is a selective scan"));
    };
    let mut set = |key: &str, value: Json| json.insert(key.into(), value);
    match mamba.inputs {
        Some(InputNorm { weights: true, .. }) => {
            return Err(keys.unsupported("ssm.dt_b_c_rms", "norms with weights have no name there"));
        }
        Some(norm) => {
            set("architectures", json!(["FalconMambaForCausalLM"]));
            set("model_type", json!("falcon_mamba"));
            set("mixer_rms_eps", json!(decimal(norm.eps)));
        }
        None => {
            set("architectures", json!(["MambaForCausalLM"]));
            set("model_type", json!("mamba"));
        }
    }
    set("hidden_act", json!("silu"));
    set("hidden_size", json!(spec.dim));
    set("intermediate_size", json!(mamba.inner));
    set("expand", json!(mamba.inner / spec.dim));
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

/// The configuration of files in the authors' spelling: all of it follows from shapes, and what they call it by
/// another name has to agree.
pub(super) fn detect(files: &dyn Checkpoint) -> Option<Json> {
    let [vocab, dim] = *shape(files, "backbone.embedding.weight")? else { return None };
    let [_, _] = *shape(files, "backbone.layers.0.mixer.A_log")? else { return None };
    let [inner, rank] = *shape(files, "backbone.layers.0.mixer.dt_proj.weight")? else { return None };
    let [_, _, taps] = *shape(files, "backbone.layers.0.mixer.conv1d.weight")? else { return None };
    Some(json!({
        "model_type": "mamba",
        "vocab_size": vocab,
        "hidden_size": dim,
        "expand": inner as f64 / (dim.max(1)) as f64,
        "time_step_rank": rank,
        "conv_kernel": taps,
        "num_hidden_layers": layers(files, "backbone.layers.{}.mixer.A_log"),
    }))
}
