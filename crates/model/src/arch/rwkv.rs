//! What RWKV's versions share.
//!
//! Published configurations ask for weights that are divided by two every few layers (`rescale_every`), together with
//! the residual stream, so that it stays within half precision. Here it is `f32` and weights are taken as they are;
//! GGUF files whose weights were divided have them multiplied back, which is exact.

use super::common;
use super::common::recurrent::{no_attention, recurrent, size};
use crate::Error;
use crate::keys::{Config, Draft, Keys};
use crate::spec::{ChannelMixSpec, FfnSpec, MixerSpec, ModelSpec, Shift};
use serde_json::{Map, Value as Json, json};

/// Epsilon of the norm of each head in files that don't say another: what the authors wrote.
pub(super) const HEAD_EPS: f32 = 64e-5;
/// Its key.
pub(super) const HEAD_EPS_KEY: &str = "attention.group_norm_epsilon";
const RESCALE: &str = "rescale_every_n_layers";

/// Names of RWKV-4 and RWKV-6: Hugging Face's, and the authors', which differ in their beginnings.
macro_rules! rwkv_rules {
    (att { $($att:literal => $att_to:literal $att_op:expr;)* } ffn { $($ffn:literal => $ffn_to:literal $ffn_op:expr;)* } more { $($more:expr;)* }) => {
        &[
            Rule("rwkv.embeddings.weight", "token_embd.weight", Op::Same),
            Rule("rwkv.blocks.0.pre_ln.weight", "token_embd_norm.weight", Op::Same),
            Rule("rwkv.blocks.0.pre_ln.bias", "token_embd_norm.bias", Op::Same),
            Rule("rwkv.ln_out.weight", "output_norm.weight", Op::Same),
            Rule("rwkv.ln_out.bias", "output_norm.bias", Op::Same),
            Rule("head.weight", "output.weight", Op::Same),
            Rule("emb.weight", "token_embd.weight", Op::Same),
            Rule("blocks.0.ln0.weight", "token_embd_norm.weight", Op::Same),
            Rule("blocks.0.ln0.bias", "token_embd_norm.bias", Op::Same),
            Rule("ln_out.weight", "output_norm.weight", Op::Same),
            Rule("ln_out.bias", "output_norm.bias", Op::Same),
            Rule("rwkv.blocks.{}.ln1.weight", "blk.{}.attn_norm.weight", Op::Same),
            Rule("rwkv.blocks.{}.ln1.bias", "blk.{}.attn_norm.bias", Op::Same),
            Rule("rwkv.blocks.{}.ln2.weight", "blk.{}.attn_norm_2.weight", Op::Same),
            Rule("rwkv.blocks.{}.ln2.bias", "blk.{}.attn_norm_2.bias", Op::Same),
            Rule("blocks.{}.ln1.weight", "blk.{}.attn_norm.weight", Op::Same),
            Rule("blocks.{}.ln1.bias", "blk.{}.attn_norm.bias", Op::Same),
            Rule("blocks.{}.ln2.weight", "blk.{}.attn_norm_2.weight", Op::Same),
            Rule("blocks.{}.ln2.bias", "blk.{}.attn_norm_2.bias", Op::Same),
            $(Rule(concat!("rwkv.blocks.{}.attention.", $att), concat!("blk.{}.time_mix_", $att_to), $att_op),)*
            $(Rule(concat!("rwkv.blocks.{}.feed_forward.", $ffn), concat!("blk.{}.channel_mix_", $ffn_to), $ffn_op),)*
            $(Rule(concat!("blocks.{}.att.", $att), concat!("blk.{}.time_mix_", $att_to), $att_op),)*
            $(Rule(concat!("blocks.{}.ffn.", $ffn), concat!("blk.{}.channel_mix_", $ffn_to), $ffn_op),)*
            $($more,)*
        ]
    };
}
pub(super) use rwkv_rules;

/// A spec of time mixes and channel mixes.
pub(super) fn spec(
    keys: &Keys<'_>,
    architecture: &'static str,
    (gated, shift): (bool, Shift),
    mixer: impl Fn(usize) -> Result<MixerSpec, Error>,
) -> Result<ModelSpec, Error> {
    let ffn_dims = keys.counts("feed_forward_length", common::layer_count(keys)?, None)?;
    let mut spec = recurrent(keys, architecture, |i| {
        let channel_mix = ChannelMixSpec { ffn_dim: ffn_dims[i], gated, shift };
        Ok((mixer(i)?, Some(FfnSpec::ChannelMix(channel_mix))))
    })?;
    spec.embedding_norm = keys.has_tensor("token_embd_norm.weight").then_some(spec.final_norm);
    let every = keys.count_opt(RESCALE)?.unwrap_or(0);
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        // What a layer adds was divided by 2 for each whole `every` layers before it.
        layer.residual_scale = i.checked_div(every).map_or(1.0, |n| 2f32.powi(n.min(100) as i32));
    }
    Ok(spec)
}

/// Values of a head, which divide the width of the model.
pub(super) fn head_dim(keys: &Keys<'_>) -> Result<usize, Error> {
    let head_dim = common::recurrent::small_count(keys, "wkv.head_size")?;
    if keys.count("embedding_length")?.is_multiple_of(head_dim) {
        return Ok(head_dim);
    }
    Err(keys.wrong("wkv.head_size", format!("heads of {head_dim} values don't divide the width")))
}

/// Metadata that all versions have; sizes are those of the embedding and of a channel mix's key.
pub(super) fn sizes_from_files(
    config: &Config,
    draft: &mut Draft<'_>,
    eps: f32,
    embedding: &[&str],
    ffn_key: &[&str],
) -> Result<(), Error> {
    no_attention(draft);
    draft.set("vocab_size", size(draft, embedding, 1)?);
    draft.set("embedding_length", size(draft, embedding, 0)?);
    draft.set("block_count", config.count("num_hidden_layers")?);
    draft.set("feed_forward_length", size(draft, ffn_key, 1)?);
    draft.set("attention.layer_norm_epsilon", eps);
    Ok(())
}

/// Sets the epsilon of the norm of each head, if it is not the usual one.
pub(super) fn set_head_eps(draft: &mut Draft<'_>, eps: f32) {
    if (eps / HEAD_EPS - 1.0).abs() > 1e-5 {
        draft.set(HEAD_EPS_KEY, eps);
    }
}

/// What all configurations have.
pub(super) fn to_config(
    spec: &ModelSpec,
    keys: &Keys<'_>,
    json: &mut Map<String, Json>,
) -> Result<(), Error> {
    if keys.count_opt(RESCALE)?.is_some_and(|n| n > 0) {
        return Err(keys.unsupported(RESCALE, "weights that were divided for half precision"));
    }
    let mut set = |key: &str, value: Json| json.insert(key.into(), value);
    set("hidden_size", json!(spec.dim));
    set("intermediate_size", json!(keys.count("feed_forward_length")?));
    set("num_hidden_layers", json!(spec.layers.len()));
    set("vocab_size", json!(spec.vocab_size));
    set("tie_word_embeddings", json!(!spec.has_head));
    Ok(())
}

/// Says that no weights were divided.
pub(super) fn set_unscaled(draft: &mut Draft<'_>) {
    draft.set(RESCALE, 0u32);
}
