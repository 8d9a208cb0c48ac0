//! The search for blocks of one group: a half-precision scale, or a scale and a minimum.

use crate::block::MAX_BLOCK;
use crate::search::{Levels, Starts, Tile, inverse, lanes, least, ratio};

/// The half-precision scale with the least error for one group of `N` values. `starts` says: the
/// (fractional) levels that the value with the largest magnitude is tried at. 0 if every value rounds to zero.
#[inline(always)]
pub(crate) fn scale<Q: Levels, const N: usize, const A: usize, const B: usize>(
    src: &[f32],
    importance: Option<&[f32]>,
    starts: &Starts<f32, A, B>,
) -> u16 {
    match importance {
        None => scale_with::<Q, N, A, 0>(src, &[], &starts.plain),
        Some(w) => scale_with::<Q, N, B, 1>(src, w, &starts.weighted),
    }
}

#[inline(always)]
fn scale_with<Q: Levels, const N: usize, const L: usize, const W: usize>(
    src: &[f32],
    importance: &[f32],
    targets: &[f32; L],
) -> u16 {
    let Some(tile) = Tile::<N, 1, W, false>::new(src, importance) else { return 0 };
    let peak = tile.peaks()[0];
    let sums = tile.scale_sums::<Q, L>(&lanes(|l| targets[l] / peak));
    let scale: [f32; L] = lanes(|l| tile.stored(ratio(sums.xq[l], sums.qq[l])));
    let best = least(&tile.scale_error::<Q, L>(&scale));
    tile.half(scale[best])
}

/// The half-precision scale and offset with the least error for one group of `N` values, for levels from 0 to `top`.
/// `starts` says: how far below 0 and above `top` the least and the largest value are tried at.
#[inline(always)]
pub(crate) fn scale_and_offset<Q: Levels, const N: usize, const A: usize, const B: usize>(
    src: &[f32],
    importance: Option<&[f32]>,
    top: f32,
    starts: &Starts<(f32, f32), A, B>,
) -> (u16, u16) {
    match importance {
        None => scale_and_offset_with::<Q, N, A, 0>(src, &[], top, &starts.plain),
        Some(w) => scale_and_offset_with::<Q, N, B, 1>(src, w, top, &starts.weighted),
    }
}

#[inline(always)]
fn scale_and_offset_with<Q: Levels, const N: usize, const L: usize, const W: usize>(
    src: &[f32],
    importance: &[f32],
    top: f32,
    targets: &[(f32, f32); L],
) -> (u16, u16) {
    let Some(tile) = Tile::<N, 1, W, false>::new(src, importance) else { return (0, 0) };
    let ([lo], [hi]) = tile.ranges();
    let ([w], [wx]) = tile.totals();
    let start: [f32; L] = lanes(|l| (hi - lo) / (top + targets[l].0 + targets[l].1));
    let offset = lanes(|l| -lo - start[l] * targets[l].0);
    let sums = tile.min_sums::<Q, L>(&crate::search::inverse(&start), &offset);
    let scale: [f32; L] = lanes(|l| {
        let spread = w * sums.qq[l] - sums.q[l] * sums.q[l];
        tile.stored(ratio(w * sums.xq[l] - wx * sums.q[l], spread))
    });
    // The minimum makes up for the rounding of the scale.
    let min: [f32; L] = lanes(|l| tile.stored((scale[l] * sums.q[l] - wx) / w));
    let best = least(&tile.min_error::<Q, L>(&scale, &min));
    (tile.half(scale[best]), tile.half(-min[best]))
}

/// As [`scale`] for a group of any length up to [`MAX_BLOCK`]: the starts are improved in several rounds before their scales are rounded, and
/// the last of them gives way to the plainest choice, the largest magnitude as level `top`.
#[inline(always)]
pub(crate) fn refined_scale<Q: Levels, const L: usize>(
    src: &[f32],
    importance: Option<&[f32]>,
    top: f32,
    starts: &[f32; L],
) -> u16 {
    match importance {
        None => refined_scale_with::<Q, L, 0>(src, &[], top, starts),
        Some(w) => refined_scale_with::<Q, L, 1>(src, w, top, starts),
    }
}

/// Rounds of levels for a scale and a scale for the levels. More gain less than a thousandth of the error.
const ROUNDS: usize = 3;

#[inline(always)]
fn refined_scale_with<Q: Levels, const L: usize, const W: usize>(
    src: &[f32],
    importance: &[f32],
    top: f32,
    targets: &[f32; L],
) -> u16 {
    let Some(tile) = Tile::<MAX_BLOCK, 1, W, false>::new(src, importance) else { return 0 };
    let peak = tile.peaks()[0];
    let mut scale: [f32; L] = lanes(|l| peak / targets[l]);
    for _ in 0..ROUNDS {
        let sums = tile.scale_sums::<Q, L>(&inverse(&scale));
        scale = lanes(|l| ratio(sums.xq[l], sums.qq[l]));
    }
    scale = lanes(|l| tile.stored(if l == L - 1 { peak.abs() / top } else { scale[l] }));
    tile.half(scale[least(&tile.scale_error::<Q, L>(&scale))])
}

/// As [`scale_and_offset`] for a group of any length up to [`MAX_BLOCK`]: the starts are improved in several rounds before their scales and
/// offsets are rounded, and the last of them gives way to the plainest choice, the least value as level 0 and the largest
/// as level `top`.
#[inline(always)]
pub(crate) fn refined_scale_and_offset<Q: Levels, const L: usize>(
    src: &[f32],
    importance: Option<&[f32]>,
    top: f32,
    starts: &[(f32, f32); L],
) -> (u16, u16) {
    match importance {
        None => refined_scale_and_offset_with::<Q, L, 0>(src, &[], top, starts),
        Some(w) => refined_scale_and_offset_with::<Q, L, 1>(src, w, top, starts),
    }
}

#[inline(always)]
fn refined_scale_and_offset_with<Q: Levels, const L: usize, const W: usize>(
    src: &[f32],
    importance: &[f32],
    top: f32,
    targets: &[(f32, f32); L],
) -> (u16, u16) {
    let Some(tile) = Tile::<MAX_BLOCK, 1, W, false>::new(src, importance) else { return (0, 0) };
    let ([lo], [hi]) = tile.ranges();
    let ([w], [wx]) = tile.totals();
    let mut scale: [f32; L] = lanes(|l| (hi - lo) / (top + targets[l].0 + targets[l].1));
    let mut min: [f32; L] = lanes(|l| -lo - scale[l] * targets[l].0);
    let mut mean = [0f32; L];
    for _ in 0..ROUNDS {
        let sums = tile.min_sums::<Q, L>(&inverse(&scale), &min);
        scale = lanes(|l| {
            let spread = w * sums.qq[l] - sums.q[l] * sums.q[l];
            ratio(w * sums.xq[l] - wx * sums.q[l], spread)
        });
        mean = sums.q;
        min = lanes(|l| (scale[l] * mean[l] - wx) / w);
    }
    let plain = |l: usize| l == L - 1;
    scale = lanes(|l| tile.stored(if plain(l) { (hi - lo) / top } else { scale[l] }));
    // The minimum makes up for the rounding of the scale.
    min = lanes(|l| tile.stored(if plain(l) { -lo } else { (scale[l] * mean[l] - wx) / w }));
    let best = least(&tile.min_error::<Q, L>(&scale, &min));
    (tile.half(scale[best]), tile.half(-min[best]))
}
