//! Rotary embeddings: frequencies, and the ways in which they are stretched for longer contexts.
//!
//! GGUF keeps linear scaling and YaRN as `rope.scaling.*` keys, Llama 3.1's scaling as a tensor of factors, and
//! LongRoPE as two of those.

use crate::Error;
use crate::keys::{Config, Draft, Keys};
use fonio_kernel::{Pairing, Rotary};
use serde_json::{Map, Value as Json, json};

/// Name of the tensor that divides the rotary frequencies, one factor for each pair.
pub(in crate::arch) const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The same for contexts within the original one, and beyond it.
pub(in crate::arch) const SHORT_FACTORS: &str = "rope_factors_short.weight";
pub(in crate::arch) const LONG_FACTORS: &str = "rope_factors_long.weight";

/// Whether the ends of YaRN's ramp are rounded to whole pairs. A key of our own: llama.cpp always rounds.
const YARN_TRUNCATE: &str = "rope.scaling.yarn_truncate";

/// How a model turns its queries and keys.
pub(in crate::arch) struct Turning {
    pub rotary: Rotary,
    /// In place of it, where there is place for more positions than this.
    pub long: Option<(usize, Rotary)>,
}

/// Frequencies from `rope.*` keys and the factors tensors.
pub(in crate::arch) fn turning(
    keys: &Keys<'_>,
    pairing: Pairing,
    n_rot: usize,
    head_dim: usize,
) -> Result<Turning, Error> {
    if n_rot == 0 || n_rot > head_dim || !n_rot.is_multiple_of(2) {
        return Err(
            keys.wrong("rope.dimension_count", format!("{n_rot} of {head_dim} values can't form pairs"))
        );
    }
    let base = keys.positive_or("rope.freq_base", 10_000.0)?;
    let mut inv_freq = frequencies(base, n_rot);
    let attention = keys.positive_or("rope.scaling.attn_factor", 1.0)?;
    let mut magnitude = 1.0;
    let kind = keys.text_opt("rope.scaling.type")?.unwrap_or("none");
    let linear = keys.positive_or("rope.scale_linear", 1.0)?;
    let factor = keys.positive_or("rope.scaling.factor", linear)?;
    match kind {
        "none" | "llama3" | "longrope" => {}
        "linear" => inv_freq.iter_mut().for_each(|f| *f /= factor),
        "yarn" => {
            let original = keys.count("rope.scaling.original_context_length")? as f32;
            let fast = keys.positive_or("rope.scaling.yarn_beta_fast", 32.0)?;
            let slow = keys.positive_or("rope.scaling.yarn_beta_slow", 1.0)?;
            let truncate = keys.flag_opt(YARN_TRUNCATE)?.unwrap_or(true);
            yarn(&mut inv_freq, base, factor, original, (fast, slow), truncate);
            magnitude = attention * yarn_magnitude(factor);
        }
        other => return Err(keys.unsupported("rope.scaling.type", format!("{other:?}"))),
    }
    let divided = |name: &str| -> Result<Option<Vec<f32>>, Error> {
        let Some(factors) = keys.vector_opt(name, n_rot / 2)? else { return Ok(None) };
        if factors.iter().any(|&f| !(f.is_finite() && f > 0.0)) {
            return Err(keys.wrong(name, "a factor is not above 0"));
        }
        Ok(Some(inv_freq.iter().zip(factors).map(|(f, factor)| f / factor).collect()))
    };
    let turned = |inv_freq: Vec<f32>, magnitude: f32| Rotary { pairing, inv_freq, magnitude };
    if let (Some(short), Some(long)) = (divided(SHORT_FACTORS)?, divided(LONG_FACTORS)?) {
        let original = keys.count("rope.scaling.original_context_length")?;
        let long = Some((original, turned(long, attention)));
        return Ok(Turning { rotary: turned(short, attention), long });
    }
    let inv_freq = divided(ROPE_FACTORS)?.unwrap_or(inv_freq);
    Ok(Turning { rotary: turned(inv_freq, magnitude), long: None })
}

/// `base^(−2i / n_rot)` for each pair `i`.
pub(in crate::arch) fn frequencies(base: f32, n_rot: usize) -> Vec<f32> {
    let power = |i: usize| f64::from(base).powf(-((2 * i) as f64) / n_rot as f64) as f32;
    (0..n_rot / 2).map(power).collect()
}

/// What YaRN multiplies cosine and sine with (Peng et al. 2023, section 3.4).
pub(in crate::arch) fn yarn_magnitude(factor: f32) -> f32 {
    1.0 + 0.1 * factor.max(1.0).ln()
}

/// YaRN (Peng et al. 2023): fast pairs keep their frequency, slow ones are stretched, those between are mixed.
fn yarn(
    inv_freq: &mut [f32],
    base: f32,
    factor: f32,
    original: f32,
    (fast, slow): (f32, f32),
    truncate: bool,
) {
    let n_rot = 2.0 * inv_freq.len() as f32;
    let turns = |n: f32| n_rot * (original / (n * 2.0 * std::f32::consts::PI)).ln() / (2.0 * base.ln());
    let (mut low, mut high) = (turns(fast), turns(slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(n_rot - 1.0));
    let width = if low == high { 0.001 } else { high - low };
    for (i, f) in inv_freq.iter_mut().enumerate() {
        let ramp = ((i as f32 - low) / width).clamp(0.0, 1.0);
        *f = *f / factor * ramp + *f * (1.0 - ramp);
    }
}

/// The rotary part of a configuration, in its present spelling or the older one.
pub(in crate::arch) struct Rope {
    pub theta: f32,
    pub scaling: Option<Config>,
    /// The share of each head that is turned.
    pub partial: f32,
}

impl Rope {
    /// How the frequencies are stretched: `default` if they are not.
    pub fn kind(&self) -> Result<&str, Error> {
        let Some(scaling) = &self.scaling else { return Ok("default") };
        let name = match scaling.text_opt("rope_type")? {
            Some(name) => name,
            None => scaling.text_opt("type")?.unwrap_or("default"),
        };
        // Phi-3's first name for it.
        Ok(if name == "su" { "longrope" } else { name })
    }
}

/// Reads `rope_parameters` (possibly one for each kind of layer) or `rope_theta` and `rope_scaling`.
pub(in crate::arch) fn rope_config(
    config: &Config,
    layer_type: Option<&str>,
    default: f32,
) -> Result<Rope, Error> {
    let of_type = |all: Config| layer_type.and_then(|t| all.object(t)).unwrap_or(all);
    let own = config.float_opt("rope_theta")?;
    let partial = config.float_opt("partial_rotary_factor")?;
    let older = config.object("rope_scaling");
    if let Some(parameters) = config.object("rope_parameters").map(of_type) {
        let theta = parameters.float_opt("rope_theta")?.or(own).unwrap_or(default);
        let partial = parameters.float_opt("partial_rotary_factor")?.or(partial).unwrap_or(1.0);
        return Ok(Rope { theta, scaling: Some(parameters), partial });
    }
    Ok(Rope { theta: own.unwrap_or(default), scaling: older, partial: partial.unwrap_or(1.0) })
}

/// Writes `rope.*` keys and tensors for heads of which `n_rot` values are turned.
pub(in crate::arch) fn write(
    config: &Config,
    rope: &Rope,
    n_rot: u32,
    draft: &mut Draft<'_>,
) -> Result<(), Error> {
    // No head is that large; each pair costs some memory.
    if !n_rot.is_multiple_of(2) || n_rot == 0 || n_rot > 1 << 16 {
        return Err(config.wrong("head_dim", format!("{n_rot} values can't form pairs")));
    }
    draft.set("rope.dimension_count", n_rot);
    draft.set("rope.freq_base", rope.theta);
    write_scaling(config, rope, draft)?;
    match rope.kind()? {
        "llama3" => {
            if let Some(factors) = llama3_factors(rope, n_rot)? {
                draft.tensors.push((ROPE_FACTORS.into(), factors));
            }
        }
        "longrope" => long_rope(config, rope, n_rot, draft)?,
        _ => {}
    }
    Ok(())
}

/// Writes `rope.scaling.*` keys.
pub(in crate::arch) fn write_scaling(
    config: &Config,
    rope: &Rope,
    draft: &mut Draft<'_>,
) -> Result<(), Error> {
    let Some(scaling) = &rope.scaling else { return Ok(()) };
    let factor = || scaling.float_opt("factor")?.ok_or_else(|| scaling.wrong("factor", "is missing"));
    match rope.kind()? {
        // The factors of the latter two become tensors.
        "default" | "llama3" | "longrope" => {}
        "linear" => {
            draft.set("rope.scaling.type", "linear");
            draft.set("rope.scaling.factor", factor()?);
        }
        "yarn" => {
            let factor = factor()?;
            draft.set("rope.scaling.type", "yarn");
            draft.set("rope.scaling.factor", factor);
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
            if !scaling.flag_or("truncate", true)? {
                draft.set(YARN_TRUNCATE, false);
            }
            let magnitude = yarn_attention_factor(scaling, factor)?;
            if magnitude != yarn_magnitude(factor) {
                draft.set("rope.scaling.attn_factor", magnitude / yarn_magnitude(factor));
            }
        }
        other => return Err(scaling.unsupported("rope_type", format!("{other:?}"))),
    }
    Ok(())
}

/// `attention_factor`, or the quotient that DeepSeek's `mscale` and `mscale_all_dim` make, or YaRN's own.
pub(in crate::arch) fn yarn_attention_factor(scaling: &Config, factor: f32) -> Result<f32, Error> {
    if let Some(given) = scaling.float_opt("attention_factor")? {
        return Ok(given);
    }
    let of = |mscale: f32| if factor <= 1.0 { 1.0 } else { 1.0 + 0.1 * mscale * factor.ln() };
    Ok(match (scaling.float_opt("mscale")?, scaling.float_opt("mscale_all_dim")?) {
        (Some(a), Some(b)) if a != 0.0 && b != 0.0 => of(a) / of(b),
        _ => yarn_magnitude(factor),
    })
}

/// LongRoPE (Ding et al. 2024): one divisor for each pair within the original context and another beyond it.
fn long_rope(config: &Config, rope: &Rope, n_rot: u32, draft: &mut Draft<'_>) -> Result<(), Error> {
    let Some(scaling) = &rope.scaling else { return Ok(()) };
    let full = config.count("max_position_embeddings")?;
    let inside = scaling.count_opt("original_max_position_embeddings")?;
    let original = match inside.or(config.count_opt("original_max_position_embeddings")?) {
        Some(n) if n > 1 => n,
        _ => return Err(scaling.wrong("original_max_position_embeddings", "is missing")),
    };
    let factor = scaling.float_opt("factor")?.unwrap_or(full as f32 / original as f32);
    let given = scaling.float_opt("attention_factor")?;
    let attention = given.unwrap_or(if factor <= 1.0 {
        1.0
    } else {
        (1.0 + factor.ln() / (original as f32).ln()).sqrt()
    });
    draft.set("rope.scaling.original_context_length", original);
    draft.set("rope.scaling.attn_factor", attention);
    for (key, tensor) in [("short_factor", SHORT_FACTORS), ("long_factor", LONG_FACTORS)] {
        let factors = scaling.floats(key)?;
        if factors.len() != n_rot as usize / 2 {
            let got = factors.len();
            return Err(scaling.wrong(key, format!("has {got} factors for {} pairs", n_rot / 2)));
        }
        draft.tensors.push((tensor.into(), factors));
    }
    Ok(())
}

/// The factors that Llama 3.1's scaling divides the frequencies by (Meta's reference: pairs that turn slowly within
/// the original context are stretched by `factor`, fast ones not, those between smoothly).
fn llama3_factors(rope: &Rope, n_rot: u32) -> Result<Option<Vec<f32>>, Error> {
    let Some(scaling) = &rope.scaling else { return Ok(None) };
    let number = |key: &str| {
        let x = scaling.float_opt(key)?.ok_or_else(|| scaling.wrong(key, "is missing"))?;
        if x > 0.0 { Ok(f64::from(x)) } else { Err(scaling.wrong(key, format!("{x} is not above 0"))) }
    };
    let (factor, low, high) = (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
    let original = number("original_max_position_embeddings")?;
    if high <= low {
        return Err(scaling.wrong("high_freq_factor", "must be above low_freq_factor"));
    }
    Ok(Some(llama3(&[factor, low, high, original], rope.theta, n_rot as usize)))
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

/// `rope_theta`, `partial_rotary_factor` and `rope_scaling` as Hugging Face spells them, for heads of which `n_rot`
/// values are turned.
pub(in crate::arch) fn to_config(
    keys: &Keys<'_>,
    n_rot: usize,
    head_dim: usize,
    json: &mut Map<String, Json>,
) -> Result<(), Error> {
    let base = keys.positive_or("rope.freq_base", 10_000.0)?;
    json.insert("rope_theta".into(), json!(super::decimal(base)));
    if n_rot != head_dim {
        json.insert("partial_rotary_factor".into(), json!(n_rot as f64 / head_dim as f64));
    }
    if let Some(scaling) = scaling_to_config(keys, base, n_rot)? {
        json.insert("rope_scaling".into(), scaling);
    }
    Ok(())
}

fn scaling_to_config(keys: &Keys<'_>, base: f32, n_rot: usize) -> Result<Option<Json>, Error> {
    if let Some(factors) = keys.vector_opt(ROPE_FACTORS, n_rot / 2)? {
        return llama3_from_factors(&factors, base, n_rot).map(Some).ok_or_else(|| {
            keys.unsupported("rope_freqs", "factors that are not those of a Llama 3 release")
        });
    }
    let original = keys.count_opt("rope.scaling.original_context_length")?;
    let short = keys.vector_opt(SHORT_FACTORS, n_rot / 2)?;
    if let (Some(short), Some(long)) = (short, keys.vector_opt(LONG_FACTORS, n_rot / 2)?) {
        let attention = keys.positive_or("rope.scaling.attn_factor", 1.0)?;
        let list = |x: Vec<f32>| x.into_iter().map(super::decimal).collect::<Vec<_>>();
        return Ok(Some(json!({
            "rope_type": "longrope", "short_factor": list(short), "long_factor": list(long),
            "original_max_position_embeddings": original, "attention_factor": super::decimal(attention),
        })));
    }
    let kind = keys.text_opt("rope.scaling.type")?.unwrap_or("none");
    if kind == "none" {
        return Ok(None);
    }
    let mut scaling = Map::new();
    let factor = keys.float("rope.scaling.factor")?;
    scaling.insert("rope_type".into(), json!(kind));
    scaling.insert("factor".into(), json!(super::decimal(factor)));
    if let Some(original) = original {
        scaling.insert("original_max_position_embeddings".into(), json!(original));
    }
    if kind == "yarn" {
        for (from, to) in
            [("rope.scaling.yarn_beta_fast", "beta_fast"), ("rope.scaling.yarn_beta_slow", "beta_slow")]
        {
            if let Some(x) = keys.float_opt(from)? {
                scaling.insert(to.into(), json!(super::decimal(x)));
            }
        }
        if let Some(truncate) = keys.flag_opt(YARN_TRUNCATE)? {
            scaling.insert("truncate".into(), json!(truncate));
        }
        if let Some(x) = keys.float_opt("rope.scaling.attn_factor")? {
            scaling.insert("attention_factor".into(), json!(super::decimal(x * yarn_magnitude(factor))));
        }
    }
    Ok(Some(Json::Object(scaling)))
}

/// The llama3 scaling whose factors these are. GGUF keeps only the factors; the largest one is the stretch, and
/// Meta's releases differ in nothing but that and the original context.
fn llama3_from_factors(factors: &[f32], base: f32, n_rot: usize) -> Option<Json> {
    let factor = factors.iter().copied().fold(1.0, f32::max);
    (5..18).map(|power| 1u32 << power).find_map(|original| {
        let scaling = json!({
            "rope_type": "llama3", "factor": super::decimal(factor), "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": original,
        });
        let same = llama3(&[factor, 1.0, 4.0, original as f32].map(f64::from), base, n_rot)
            .iter()
            .zip(factors)
            .all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs());
        same.then_some(scaling)
    })
}
