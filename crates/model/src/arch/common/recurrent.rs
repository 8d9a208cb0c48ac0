//! What recurrent models share.

use super::skeleton;
use crate::Error;
use crate::keys::{Draft, Keys};
use crate::spec::{FfnSpec, LayerSpec, MixerSpec, ModelSpec, NormPlaces, Residual};

/// Positions that a model without a limit gets: what llama.cpp's converter writes.
const UNLIMITED: u32 = 1 << 20;

/// A spec whose layers `layer` makes; all have their norms before mixer and feed-forward part.
pub(in crate::arch) fn recurrent(
    keys: &Keys<'_>,
    architecture: &'static str,
    layer: impl Fn(usize) -> Result<(MixerSpec, Option<FfnSpec>), Error>,
) -> Result<ModelSpec, Error> {
    let mut spec = skeleton(keys, architecture)?;
    for i in 0..keys.count("block_count")? {
        let (mixer, ffn) = layer(i)?;
        spec.layers.push(LayerSpec {
            mixer,
            ffn,
            norm: spec.final_norm,
            norms: NormPlaces::Before,
            residual: Residual::Sequential,
            residual_scale: 1.0,
        });
    }
    Ok(spec)
}

/// A count that multiplies the size of a state. Real ones are some hundreds; the limit keeps a small file from asking
/// for a large memory.
pub(in crate::arch) fn small_count(keys: &Keys<'_>, key: &str) -> Result<usize, Error> {
    match keys.count(key)? {
        n if n <= 1024 => Ok(n),
        n => Err(keys.unsupported(key, format!("{n}; at most 1024"))),
    }
}

/// Sets what llama.cpp asks for although nothing comes of it.
pub(in crate::arch) fn no_attention(draft: &mut Draft<'_>) {
    draft.set("context_length", UNLIMITED);
    draft.set("attention.head_count", 0u32);
}

/// A dimension of a tensor of the files, which has several names.
pub(in crate::arch) fn size(draft: &Draft<'_>, names: &[&str], from_last: usize) -> Result<u32, Error> {
    let shape = draft.shape(names)?;
    let size = shape.iter().rev().nth(from_last).and_then(|&n| u32::try_from(n).ok()).filter(|&n| n > 0);
    size.ok_or_else(|| Error::Config {
        file: draft.files.files().first().cloned().unwrap_or_default(),
        key: names.first().copied().unwrap_or_default().into(),
        reason: format!("has the dimensions {shape:?}"),
    })
}
