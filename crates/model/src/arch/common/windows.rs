//! Which layers see a window of the context.

use crate::Error;
use crate::keys::{Config, Draft, Keys};
use crate::spec::{LayerSpec, MixerSpec, ModelSpec};
use serde_json::Value as Json;

const WINDOW_PATTERN: &str = "attention.sliding_window_pattern";

/// Every layer but each `period`th; none if that is 0.
fn every_but(layers: usize, period: usize) -> Vec<bool> {
    (1..=layers).map(|i| period > 0 && !i.is_multiple_of(period)).collect()
}

/// Which layers have a window: a list, every one but each `n`th, or this `n` where the file does not say.
pub(in crate::arch) fn windowed_layers(
    keys: &Keys<'_>,
    layers: usize,
    period: usize,
) -> Result<Vec<bool>, Error> {
    if let Some(list) = keys.flags_opt(WINDOW_PATTERN, layers)? {
        return Ok(list.to_vec());
    }
    Ok(every_but(layers, keys.count_opt(WINDOW_PATTERN)?.unwrap_or(period)))
}

/// Writes which layers have a window, unless it is each but every `period`th.
pub(in crate::arch) fn windows_to_keys(windowed: Vec<bool>, period: usize, draft: &mut Draft<'_>) {
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
pub(in crate::arch) fn layer_types(config: &Config, layers: usize) -> Result<Option<Vec<bool>>, Error> {
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
pub(in crate::arch) fn layer_types_of(spec: &ModelSpec) -> Json {
    let kind = |layer: &LayerSpec| {
        let window = layer.mixer.attention().and_then(|attention| attention.window);
        if window.is_some() { "sliding_attention" } else { "full_attention" }
    };
    spec.layers.iter().map(kind).collect::<Vec<_>>().into()
}

/// Gives layers the window of `attention.sliding_window`, if there is one.
pub(in crate::arch) fn set_windows(
    spec: &mut ModelSpec,
    keys: &Keys<'_>,
    windowed: &[bool],
) -> Result<(), Error> {
    give_windows(spec, keys.count_opt("attention.sliding_window")?.unwrap_or(0), windowed);
    Ok(())
}

/// Gives layers a window; 0 is none.
pub(in crate::arch) fn give_windows(spec: &mut ModelSpec, window: usize, windowed: &[bool]) {
    for (layer, &windowed) in spec.layers.iter_mut().zip(windowed) {
        let MixerSpec::Attention(attention) = &mut layer.mixer else { continue };
        attention.window = Some(window).filter(|&w| windowed && w > 0);
    }
}
