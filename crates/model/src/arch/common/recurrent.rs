//! What recurrent models share.

use super::skeleton;
use crate::Error;
use crate::keys::{Draft, Keys};
use crate::spec::{FfnSpec, LayerSpec, MixerSpec, ModelSpec, NormPlaces, Residual};
use fonio_checkpoint::Checkpoint;

/// Positions that a model without a limit gets: what llama.cpp's converter writes.
pub(in crate::arch) const UNLIMITED: u32 = 1 << 20;

/// A spec whose layers `layer` makes; all have their norms before mixer and feed-forward part.
pub(in crate::arch) fn recurrent(
    keys: &Keys<'_>,
    architecture: &'static str,
    layer: impl Fn(usize, usize) -> Result<(MixerSpec, Option<FfnSpec>), Error>,
) -> Result<ModelSpec, Error> {
    let mut spec = skeleton(keys, architecture)?;
    for i in 0..keys.count("block_count")? {
        let (mixer, ffn) = layer(i, spec.dim)?;
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

/// The dimensions of a tensor, outermost first; none if it is not there.
pub(in crate::arch) fn shape<'a>(checkpoint: &'a dyn Checkpoint, name: &str) -> Option<&'a [u64]> {
    Some(&checkpoint.tensors().get(checkpoint.find(name)?)?.shape)
}

/// One dimension of a tensor that has to be there.
pub(in crate::arch) fn dimension(keys: &Keys<'_>, name: &str, at: usize) -> Result<usize, Error> {
    let found = shape(keys.checkpoint(), name).and_then(|shape| usize::try_from(*shape.get(at)?).ok());
    found.ok_or_else(|| Error::MissingTensor { file: keys.file(), tensor: name.into() })
}

/// Writes keys that are 0 where there is no attention, because llama.cpp asks for them.
pub(in crate::arch) fn no_attention(draft: &mut Draft<'_>) {
    draft.set("context_length", UNLIMITED);
    draft.set("attention.head_count", 0u32);
}

/// How many layers there are: the number behind the last that a name has in the place of `{}`.
pub(in crate::arch) fn layers(checkpoint: &dyn Checkpoint, pattern: &str) -> u32 {
    let numbers = checkpoint.tensors().iter().filter_map(|t| crate::hf::names::capture(pattern, &t.name));
    numbers.filter_map(|n| n.first()?.checked_add(1)).max().unwrap_or(0)
}
