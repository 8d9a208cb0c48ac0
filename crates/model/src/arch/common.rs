//! What transformers of the LLaMA kind share: keys, rotary scaling, the usual names.

use crate::Error;
use crate::hf::{Op, Rule};
use crate::keys::{Config, Draft, Keys};
use crate::spec::{AttentionSpec, FfnSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec};
use fonio_kernel::{Activation, Pairing, Rotary};
use serde_json::{Map, Value as Json, json};

/// Name of the tensor that divides the rotary frequencies, one factor for each pair.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Names that the usual decoder has at Hugging Face. `q` and `k` say what happens to the rows of queries and keys.
macro_rules! decoder_rules {
    ($q:expr, $k:expr, $norm:expr $(, $more:expr)*) => {
        &[
            $crate::hf::Rule("model.embed_tokens.weight", "token_embd.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("lm_head.weight", "output.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("model.norm.weight", "output_norm.weight", $norm),
            $crate::hf::Rule("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", $norm),
            $crate::hf::Rule("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", $q),
            $crate::hf::Rule("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", $q),
            $crate::hf::Rule("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", $k),
            $crate::hf::Rule("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", $k),
            $crate::hf::Rule("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias", $crate::hf::Op::Same)
            $(, $more)*
        ]
    };
}
pub(super) use decoder_rules;

/// Rules that only say where the second norm is.
pub(super) const FFN_NORM: Rule =
    Rule("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", Op::Same);

/// Tensors that older checkpoints carry and that the configuration determines.
pub(super) const DERIVED: &[&str] = &["model.layers.{}.self_attn.rotary_emb.inv_freq"];

/// A spec of the usual decoder: norms before attention and a gated feed-forward part.
pub(super) fn decoder(
    keys: &Keys<'_>,
    architecture: &'static str,
    pairing: Pairing,
    activation: Activation,
) -> Result<ModelSpec, Error> {
    let n_layers = keys.count("block_count")?;
    // Each layer has tensors of its own, so a file cannot have more layers than tensors.
    if n_layers > keys.checkpoint().tensors().len() {
        return Err(keys.wrong("block_count", format!("{n_layers} layers, but fewer tensors")));
    }
    let dim = keys.count("embedding_length")?;
    let heads = keys.counts("attention.head_count", n_layers, None)?;
    let norm = NormSpec::Rms(keys.positive_or("attention.layer_norm_rms_epsilon", 1e-5)?);
    let ffn_dims = keys.counts("feed_forward_length", n_layers, None)?;
    let embedding = keys.checkpoint().find("token_embd.weight");
    let vocab_size = embedding.and_then(|t| keys.checkpoint().tensors().get(t)).and_then(|t| t.shape.first());
    let vocab_size = vocab_size
        .and_then(|&n| usize::try_from(n).ok())
        .ok_or_else(|| Error::MissingTensor { file: keys.file(), tensor: "token_embd.weight".into() })?;
    let mut layers = Vec::with_capacity(n_layers);
    let default_kv = heads.clone();
    let kv = match keys.count_opt("attention.head_count_kv") {
        Ok(None) => default_kv,
        _ => keys.counts("attention.head_count_kv", n_layers, None)?,
    };
    for i in 0..n_layers {
        let (n_heads, n_kv_heads) = (heads[i], kv[i]);
        if n_heads == 0 || n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            let reason = format!("{n_heads} query heads can't share {n_kv_heads} key heads evenly");
            return Err(keys.wrong("attention.head_count_kv", reason));
        }
        let head_dim = match keys.count_opt("attention.key_length")? {
            Some(n) => n,
            None if dim.is_multiple_of(n_heads) => dim / n_heads,
            None => {
                return Err(
                    keys.wrong("embedding_length", format!("{dim} is no multiple of {n_heads} heads"))
                );
            }
        };
        let value_dim = keys.count_opt("attention.value_length")?.unwrap_or(head_dim);
        if head_dim == 0 || value_dim == 0 || head_dim > 1 << 16 || value_dim > 1 << 16 {
            return Err(keys.wrong("attention.key_length", format!("{head_dim} is no sensible head size")));
        }
        let n_rot = keys.count_opt("rope.dimension_count")?.unwrap_or(head_dim);
        let has = |name: &str| keys.has_tensor(&format!("blk.{i}.{name}"));
        layers.push(LayerSpec {
            mixer: MixerSpec::Attention(AttentionSpec {
                n_heads,
                n_kv_heads,
                head_dim,
                value_dim,
                rotary: Some(rotary(keys, pairing, n_rot, head_dim)?),
                scale: keys.positive_or("attention.scale", 1.0 / (head_dim as f32).sqrt())?,
                softcap: None,
                window: None,
                qkv_bias: has("attn_q.bias"),
                output_bias: has("attn_output.bias"),
                qk_norm: None,
            }),
            ffn: FfnSpec::Dense { ffn_dim: ffn_dims[i], activation, gated: true, bias: has("ffn_down.bias") },
            norm,
            post_norms: false,
            residual_scale: 1.0,
        });
    }
    Ok(ModelSpec {
        architecture,
        vocab_size,
        dim,
        context_len: keys.count("context_length")?,
        embedding_scale: 1.0,
        layers,
        final_norm: norm,
        has_head: keys.has_tensor("output.weight"),
        logit_scale: 1.0,
        logit_softcap: None,
    })
}

/// Frequencies from `rope.*` keys and the factors tensor.
pub(super) fn rotary(
    keys: &Keys<'_>,
    pairing: Pairing,
    n_rot: usize,
    head_dim: usize,
) -> Result<Rotary, Error> {
    if n_rot == 0 || n_rot > head_dim || !n_rot.is_multiple_of(2) {
        return Err(
            keys.wrong("rope.dimension_count", format!("{n_rot} of {head_dim} values can't form pairs"))
        );
    }
    let base = keys.positive_or("rope.freq_base", 10_000.0)?;
    let mut inv_freq = frequencies(base, n_rot);
    let mut magnitude = 1.0;
    let kind = keys.text_opt("rope.scaling.type")?.unwrap_or("none");
    let linear = keys.positive_or("rope.scale_linear", 1.0)?;
    let factor = keys.positive_or("rope.scaling.factor", linear)?;
    match kind {
        "none" | "llama3" => {}
        "linear" => inv_freq.iter_mut().for_each(|f| *f /= factor),
        "yarn" => {
            let original = keys.count("rope.scaling.original_context_length")? as f32;
            let fast = keys.positive_or("rope.scaling.yarn_beta_fast", 32.0)?;
            let slow = keys.positive_or("rope.scaling.yarn_beta_slow", 1.0)?;
            yarn(&mut inv_freq, base, n_rot, factor, original, (fast, slow));
            let attention = keys.positive_or("rope.scaling.attn_factor", 1.0)?;
            magnitude = attention * (1.0 + 0.1 * factor.max(1.0).ln());
        }
        other => return Err(keys.unsupported("rope.scaling.type", format!("{other:?}"))),
    }
    if let Some(factors) = keys.vector_opt(ROPE_FACTORS, n_rot / 2)? {
        if factors.iter().any(|&f| !(f.is_finite() && f > 0.0)) {
            return Err(keys.wrong("rope_freqs", "a factor is not above 0"));
        }
        inv_freq.iter_mut().zip(factors).for_each(|(f, factor)| *f /= factor);
    }
    Ok(Rotary { pairing, inv_freq, magnitude })
}

/// `base^(−2i / n_rot)` for each pair `i`.
pub(super) fn frequencies(base: f32, n_rot: usize) -> Vec<f32> {
    let power = |i: usize| f64::from(base).powf(-((2 * i) as f64) / n_rot as f64) as f32;
    (0..n_rot / 2).map(power).collect()
}

/// YaRN (Peng et al. 2023): fast pairs keep their frequency, slow ones are stretched, those between are mixed.
fn yarn(inv_freq: &mut [f32], base: f32, n_rot: usize, factor: f32, original: f32, (fast, slow): (f32, f32)) {
    let turns =
        |n: f32| n_rot as f32 * (original / (n * 2.0 * std::f32::consts::PI)).ln() / (2.0 * base.ln());
    let low = turns(fast).floor().max(0.0);
    let high = turns(slow).ceil().min(n_rot as f32 - 1.0);
    for (i, f) in inv_freq.iter_mut().enumerate() {
        let ramp = ((i as f32 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        *f = *f / factor * ramp + *f * (1.0 - ramp);
    }
}

/// Metadata of the usual decoder from Hugging Face's configuration.
pub(super) fn decoder_from_config(config: &Config, draft: &mut Draft<'_>) -> Result<(), Error> {
    let dim = config.count("hidden_size")?;
    let heads = config.count("num_attention_heads")?;
    draft.set("context_length", config.count("max_position_embeddings")?);
    draft.set("embedding_length", dim);
    draft.set("block_count", config.count("num_hidden_layers")?);
    draft.set("feed_forward_length", config.count("intermediate_size")?);
    draft.set("attention.head_count", heads);
    draft.set("attention.head_count_kv", config.count_opt("num_key_value_heads")?.unwrap_or(heads));
    let epsilon =
        config.float_opt("rms_norm_eps")?.ok_or_else(|| config.wrong("rms_norm_eps", "is missing"))?;
    draft.set("attention.layer_norm_rms_epsilon", epsilon);
    if let Some(vocab_size) = config.count_opt("vocab_size")? {
        draft.set("vocab_size", vocab_size);
    }
    if heads == 0 || dim == 0 {
        return Err(config.wrong("num_attention_heads", "sizes must not be 0"));
    }
    let head_dim = config.count_opt("head_dim")?.unwrap_or(dim / heads);
    if head_dim.checked_mul(heads) != Some(dim) {
        draft.set("attention.key_length", head_dim);
        draft.set("attention.value_length", head_dim);
    }
    draft.set("rope.dimension_count", head_dim);
    rope_from_config(config, draft, head_dim)
}

/// An error unless the activation is one of these.
pub(super) fn expect_activation(config: &Config, key: &str, known: &[&str]) -> Result<(), Error> {
    match config.text_opt(key)? {
        Some(name) if !known.contains(&name) => Err(config.unsupported(key, format!("activation {name:?}"))),
        _ => Ok(()),
    }
}

/// The rotary part of a configuration, in its present spelling or the older one.
pub(super) struct Rope {
    pub theta: f32,
    pub scaling: Option<Config>,
}

/// Reads `rope_parameters` (possibly one for each kind of layer) or `rope_theta` and `rope_scaling`.
pub(super) fn rope_config(config: &Config, layer_type: Option<&str>, default: f32) -> Result<Rope, Error> {
    let of_type = |all: Config| layer_type.and_then(|t| all.object(t)).unwrap_or(all);
    if let Some(parameters) = config.object("rope_parameters").map(of_type) {
        let theta =
            parameters.float_opt("rope_theta")?.or(config.float_opt("rope_theta")?).unwrap_or(default);
        return Ok(Rope { theta, scaling: Some(parameters) });
    }
    let theta = config.float_opt("rope_theta")?.unwrap_or(default);
    Ok(Rope { theta, scaling: config.object("rope_scaling") })
}

/// Writes `rope.*` keys. The factors of llama3's scaling become a tensor, see [`llama3_factors`].
fn rope_from_config(config: &Config, draft: &mut Draft<'_>, head_dim: u32) -> Result<(), Error> {
    let rope = rope_config(config, None, 10_000.0)?;
    draft.set("rope.freq_base", rope.theta);
    write_scaling(config, rope.scaling.as_ref(), draft)?;
    if !head_dim.is_multiple_of(2) {
        return Err(config.wrong("head_dim", format!("{head_dim} values can't form pairs")));
    }
    Ok(())
}

/// Writes `rope.scaling.*` keys.
pub(super) fn write_scaling(
    config: &Config,
    scaling: Option<&Config>,
    draft: &mut Draft<'_>,
) -> Result<(), Error> {
    let Some(scaling) = scaling else { return Ok(()) };
    let factor = || scaling.float_opt("factor")?.ok_or_else(|| scaling.wrong("factor", "is missing"));
    match scaling_type(scaling)? {
        "default" => {}
        "linear" => {
            draft.set("rope.scaling.type", "linear");
            draft.set("rope.scaling.factor", factor()?);
        }
        "yarn" => {
            draft.set("rope.scaling.type", "yarn");
            draft.set("rope.scaling.factor", factor()?);
            let original = match scaling.count_opt("original_max_position_embeddings")? {
                Some(n) => n,
                None => config.count("max_position_embeddings")?,
            };
            draft.set("rope.scaling.original_context_length", original);
            for (from, to) in
                [("beta_fast", "rope.scaling.yarn_beta_fast"), ("beta_slow", "rope.scaling.yarn_beta_slow")]
            {
                if let Some(x) = scaling.float_opt(from)? {
                    draft.set(to, x);
                }
            }
            for key in ["attention_factor", "mscale", "mscale_all_dim"] {
                if scaling.get(key).is_some() {
                    return Err(scaling.unsupported(key, "of YaRN scaling"));
                }
            }
        }
        // The factors depend on the frequencies alone and are stored as a tensor.
        "llama3" => {}
        other => return Err(scaling.unsupported("rope_type", format!("{other:?}"))),
    }
    Ok(())
}

/// `rope_type`, or `type` in older files.
fn scaling_type(scaling: &Config) -> Result<&str, Error> {
    Ok(match scaling.text_opt("rope_type")? {
        Some(name) => name,
        None => scaling.text_opt("type")?.unwrap_or("default"),
    })
}

/// The factors that Llama 3.1's scaling divides the frequencies by (Meta's reference: pairs that turn slowly within
/// the original context are stretched by `factor`, fast ones not, those between smoothly).
pub(super) fn llama3_factors(config: &Config) -> Result<Option<Vec<f32>>, Error> {
    let rope = rope_config(config, None, 10_000.0)?;
    let Some(scaling) = rope.scaling else { return Ok(None) };
    if scaling_type(&scaling)? != "llama3" {
        return Ok(None);
    }
    let number = |key: &str| {
        let x = scaling.float_opt(key)?.ok_or_else(|| scaling.wrong(key, "is missing"))?;
        if x > 0.0 { Ok(f64::from(x)) } else { Err(scaling.wrong(key, format!("{x} is not above 0"))) }
    };
    let (factor, low, high) = (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
    let original = number("original_max_position_embeddings")?;
    if high <= low {
        return Err(scaling.wrong("high_freq_factor", "must be above low_freq_factor"));
    }
    let dim = config.count("hidden_size")?;
    let head_dim = match config.count_opt("head_dim")? {
        Some(n) => n,
        None => dim / config.count("num_attention_heads")?.max(1),
    };
    Ok(Some(llama3(&[factor, low, high, original], rope.theta, head_dim as usize)))
}

/// One divisor for each pair.
fn llama3(&[factor, low, high, original]: &[f64; 4], base: f32, n_rot: usize) -> Vec<f32> {
    let divisor = |f: f32| {
        let wavelength = 2.0 * std::f64::consts::PI / f64::from(f);
        let divisor = if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        divisor as f32
    };
    frequencies(base, n_rot).into_iter().map(divisor).collect()
}

/// Hugging Face's configuration of the usual decoder.
pub(super) fn decoder_to_config(
    spec: &ModelSpec,
    keys: &Keys<'_>,
    json: &mut Map<String, Json>,
) -> Result<(), Error> {
    let MixerSpec::Attention(attention) = &spec.layers[0].mixer;
    let FfnSpec::Dense { ffn_dim, .. } = &spec.layers[0].ffn;
    let (NormSpec::Rms(epsilon) | NormSpec::Layer(epsilon)) = spec.final_norm;
    let base = keys.positive_or("rope.freq_base", 10_000.0)?;
    let mut set = |key: &str, value: Json| json.insert(key.into(), value);
    set("hidden_size", json!(spec.dim));
    set("intermediate_size", json!(ffn_dim));
    set("num_hidden_layers", json!(spec.layers.len()));
    set("num_attention_heads", json!(attention.n_heads));
    set("num_key_value_heads", json!(attention.n_kv_heads));
    set("head_dim", json!(attention.head_dim));
    set("max_position_embeddings", json!(spec.context_len));
    set("vocab_size", json!(spec.vocab_size));
    set("rms_norm_eps", json!(decimal(epsilon)));
    set("tie_word_embeddings", json!(!spec.has_head));
    set("rope_theta", json!(decimal(base)));
    if let Some(scaling) = scaling_to_config(keys, base, attention.head_dim)? {
        set("rope_scaling", scaling);
    }
    Ok(())
}

/// Rotary scaling as Hugging Face spells it.
fn scaling_to_config(keys: &Keys<'_>, base: f32, head_dim: usize) -> Result<Option<Json>, Error> {
    if let Some(factors) = keys.vector_opt(ROPE_FACTORS, head_dim / 2)? {
        return llama3_from_factors(&factors, base, head_dim).map(Some).ok_or_else(|| {
            keys.unsupported("rope_freqs", "factors that are not those of a Llama 3 release")
        });
    }
    let kind = keys.text_opt("rope.scaling.type")?.unwrap_or("none");
    if kind == "none" {
        return Ok(None);
    }
    let mut scaling = Map::new();
    scaling.insert("rope_type".into(), json!(kind));
    scaling.insert("factor".into(), json!(decimal(keys.float("rope.scaling.factor")?)));
    if let Some(original) = keys.count_opt("rope.scaling.original_context_length")? {
        scaling.insert("original_max_position_embeddings".into(), json!(original));
    }
    Ok(Some(Json::Object(scaling)))
}

/// The llama3 scaling whose factors these are. GGUF keeps only the factors; the largest one is the stretch, and
/// Meta's releases differ in nothing but that and the original context.
fn llama3_from_factors(factors: &[f32], base: f32, head_dim: usize) -> Option<Json> {
    let factor = factors.iter().copied().fold(1.0, f32::max);
    (5..18).map(|power| 1u32 << power).find_map(|original| {
        let scaling = json!({
            "rope_type": "llama3", "factor": decimal(factor), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        });
        let same = llama3(&[factor, 1.0, 4.0, original as f32].map(f64::from), base, head_dim)
            .iter()
            .zip(factors)
            .all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs());
        same.then_some(scaling)
    })
}

/// The shortest decimal that is this `f32`, not the long one that its `f64` has.
pub(super) fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

const WINDOW_PATTERN: &str = "attention.sliding_window_pattern";

/// Every layer but each `period`th; none if that is 0.
fn every_but(layers: usize, period: usize) -> Vec<bool> {
    (1..=layers).map(|i| period > 0 && !i.is_multiple_of(period)).collect()
}

/// Which layers have a window: a list, every one but each `n`th, or this `n` where the file does not say.
pub(super) fn windowed_layers(keys: &Keys<'_>, layers: usize, period: usize) -> Result<Vec<bool>, Error> {
    if let Some(list) = keys.flags_opt(WINDOW_PATTERN, layers)? {
        return Ok(list.to_vec());
    }
    Ok(every_but(layers, keys.count_opt(WINDOW_PATTERN)?.unwrap_or(period)))
}

/// Writes which layers have a window, unless it is each but every `period`th.
pub(super) fn windows_to_keys(windowed: Vec<bool>, period: usize, draft: &mut Draft<'_>) {
    let layers = windowed.len();
    if windowed == every_but(layers, period) {
        return;
    }
    match (2..=layers).find(|&n| windowed == every_but(layers, n)) {
        Some(n) => draft.set(WINDOW_PATTERN, n as u32),
        None => draft.set(WINDOW_PATTERN, windowed),
    }
}

/// Which layers have a window, as `layer_types` says.
pub(super) fn layer_types(config: &Config, layers: usize) -> Result<Option<Vec<bool>>, Error> {
    let Some(types) = config.texts_opt("layer_types")? else { return Ok(None) };
    if let Some(other) = types.iter().find(|t| !["sliding_attention", "full_attention"].contains(t)) {
        return Err(config.unsupported("layer_types", format!("{other:?}")));
    }
    if types.len() != layers {
        return Err(config.wrong("layer_types", format!("{} entries for {layers} layers", types.len())));
    }
    Ok(Some(types.iter().map(|&t| t == "sliding_attention").collect()))
}

/// `layer_types` of a spec.
pub(super) fn layer_types_of(spec: &ModelSpec) -> Json {
    let kind = |layer: &LayerSpec| {
        let MixerSpec::Attention(attention) = &layer.mixer;
        if attention.window.is_some() { "sliding_attention" } else { "full_attention" }
    };
    spec.layers.iter().map(kind).collect::<Vec<_>>().into()
}
