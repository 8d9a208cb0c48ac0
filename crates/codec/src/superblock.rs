//! The search for super-blocks: `L` groups of `N` values whose scales (and minima) are small integers times one
//! half-precision number each.
//!
//! First each group for itself: the best real scale (and minimum) from several starting points. Then the super-block's
//! own scale, from the largest of these; without minima, from several quotients of it, the one whose multiples come
//! nearest to all of them. Small integers for the groups, and for each group the neighbours of its integers by the true
//! error, levels chosen anew. Then the super-block's scale is fitted to these by least squares, rounded to half
//! precision, and the neighbours are tried once more.

use crate::search::{Levels, Starts, Sums, Tile, clamp, inverse, lanes, least, ratio, round, total};

/// A super-block with a scale for each group.
pub(crate) struct Scaled<const N: usize, const L: usize> {
    /// The super-block's scale, in half precision.
    pub d: u16,
    /// The groups' scales.
    pub scale: [i8; L],
    /// Levels, value by value: row i holds the i-th of every group.
    pub q: [[i8; L]; N],
}

/// A super-block with a scale and a minimum for each group.
pub(crate) struct ScaledMin<const N: usize, const L: usize> {
    /// The super-block's scale of scales, in half precision.
    pub d: u16,
    /// The super-block's scale of minima, in half precision.
    pub dmin: u16,
    /// The groups' scales.
    pub scale: [u8; L],
    /// The groups' minima.
    pub min: [u8; L],
    /// Levels, value by value: row i holds the i-th of every group.
    pub q: [[u8; L]; N],
}

/// Where `better` holds, `new` takes the place of `old`.
#[inline(always)]
fn replace<const L: usize>(better: &[bool; L], old: &mut [f32; L], new: &[f32; L]) {
    for l in 0..L {
        old[l] = if better[l] { new[l] } else { old[l] };
    }
}

/// Where the errors of `new` are less.
#[inline(always)]
fn less<const L: usize>(new: &[f32; L], old: &[f32; L]) -> [bool; L] {
    let mut out = [false; L];
    for l in 0..L {
        out[l] = new[l] < old[l];
    }
    out
}

/// Finds scales from `lo` to `-lo - 1` for groups of levels `Q`. `starts` says: the (fractional) levels
/// that the value with the largest magnitude of each group is tried at.
#[inline(always)]
pub(crate) fn scales<Q: Levels, const N: usize, const L: usize, const A: usize, const B: usize>(
    src: &[f32],
    importance: Option<&[f32]>,
    lo: f32,
    starts: &Starts<f32, A, B>,
) -> Scaled<N, L> {
    match importance {
        None => scales_with::<Q, N, L, 0, A>(src, &[], lo, &starts.plain),
        Some(w) => scales_with::<Q, N, L, L, B>(src, w, lo, &starts.weighted),
    }
}

#[inline(always)]
fn scales_with<Q: Levels, const N: usize, const L: usize, const W: usize, const S: usize>(
    src: &[f32],
    importance: &[f32],
    lo: f32,
    targets: &[f32; S],
) -> Scaled<N, L> {
    let mut out = Scaled { d: 0, scale: [0; L], q: [[0; L]; N] };
    let Some(tile) = Tile::<N, L, W, false>::new(src, importance) else { return out };
    let peak = inverse(&tile.peaks());
    let (mut xq, mut qq) = ([0f32; L], [1f32; L]);
    for target in targets {
        let new = tile.scale_sums::<Q, L>(&lanes(|l| target * peak[l]));
        let better = less(&lanes(|l| xq[l] * xq[l] * new.qq[l]), &lanes(|l| new.xq[l] * new.xq[l] * qq[l]));
        replace(&better, &mut xq, &new.xq);
        replace(&better, &mut qq, &new.qq);
    }
    let ideal: [f32; L] = lanes(|l| ratio(xq[l], qq[l]));
    let mut d = best_step(&tile, &ideal, &qq, lo);
    let down = ratio(1.0, d);
    let mut sc: [f32; L] = lanes(|l| round(clamp(ideal[l] * down, lo, -lo - 1.0)));
    // Weights pull the groups' errors apart: one more round still gains.
    let rounds = if W == 0 { 2 } else { 3 };
    for _ in 0..rounds {
        let (centre, mut error) = (sc, [f32::INFINITY; L]);
        // A group whose levels suit both signs may have got the one that the largest scale has no room for.
        let turned: [f32; L] = lanes(|l| round(clamp(-ideal[l] * down, lo, -lo - 1.0)));
        for (from, step) in [(&centre, 0.0), (&centre, -1.0), (&centre, 1.0), (&turned, 0.0)] {
            let near: [f32; L] = lanes(|l| clamp(from[l] + step, lo, -lo - 1.0));
            let scale: [f32; L] = lanes(|l| d * near[l]);
            let new = tile.scale_sums::<Q, L>(&inverse(&scale));
            let new_error = lanes(|l| excess(scale[l], new.xq[l], new.qq[l]));
            let better = less(&new_error, &error);
            replace(&better, &mut sc, &near);
            replace(&better, &mut error, &new_error);
            replace(&better, &mut xq, &new.xq);
            replace(&better, &mut qq, &new.qq);
        }
        let xq = total::<L>(&lanes(|l| sc[l] * xq[l]));
        let qq = total::<L>(&lanes(|l| sc[l] * sc[l] * qq[l]));
        let fit = tile.stored(ratio(xq, qq));
        d = if excess(fit, xq, qq) < excess(d, xq, qq) { fit } else { d };
    }
    out.d = tile.half(d);
    for l in 0..L {
        out.scale[l] = sc[l] as i32 as i8;
    }
    tile.levels::<Q, L, _>(&lanes(|l| d * sc[l]), &[0.0; L], &mut out.q, |q| q as i8);
    out
}

/// The error at a scale less the error of zeros, for levels with these sums.
#[inline(always)]
fn excess(scale: f32, xq: f32, qq: f32) -> f32 {
    scale * (scale * qq - 2.0 * xq)
}

/// The stored step whose multiples from `lo` to `-lo - 1` come nearest to the ideal scales of the groups. An
/// error in a scale counts by `qq`, which is how fast the error of the group grows with it.
#[inline(always)]
fn best_step<const N: usize, const L: usize, const W: usize>(
    tile: &Tile<N, L, W, false>,
    ideal: &[f32; L],
    qq: &[f32; L],
    lo: f32,
) -> f32 {
    let most = crate::search::peak(ideal);
    // The largest scale is tried as one of the last few multiples on either side.
    let d: [f32; 16] = lanes(|s| {
        let inward = (s / 2) as f32;
        tile.stored(most / if s % 2 == 0 { lo + inward } else { -lo - 1.0 - inward })
    });
    let down = inverse(&d);
    let mut error = [0f32; 16];
    for (&ideal, &qq) in ideal.iter().zip(qq) {
        for s in 0..16 {
            let e = ideal - d[s] * round(clamp(ideal * down[s], lo, -lo - 1.0));
            error[s] += qq * (e * e);
        }
    }
    d[least(&error)]
}

/// Finds scales and minima from 0 to `top` for groups of levels from 0 to `levels`. `starts` says: how
/// far below 0 and above `levels` the least and the largest value of each group are tried at.
#[inline(always)]
pub(crate) fn scales_and_mins<
    Q: Levels,
    const N: usize,
    const L: usize,
    const A: usize,
    const B: usize,
    const HALVES: bool,
>(
    src: &[f32],
    importance: Option<&[f32]>,
    top: f32,
    levels: f32,
    starts: &Starts<(f32, f32), A, B>,
) -> ScaledMin<N, L> {
    match importance {
        None => scales_and_mins_with::<Q, N, L, 0, A, HALVES>(src, &[], top, levels, &starts.plain),
        Some(w) => scales_and_mins_with::<Q, N, L, L, B, HALVES>(src, w, top, levels, &starts.weighted),
    }
}

#[inline(always)]
fn scales_and_mins_with<
    Q: Levels,
    const N: usize,
    const L: usize,
    const W: usize,
    const S: usize,
    const HALVES: bool,
>(
    src: &[f32],
    importance: &[f32],
    top: f32,
    levels: f32,
    targets: &[(f32, f32); S],
) -> ScaledMin<N, L> {
    let mut out = ScaledMin { d: 0, dmin: 0, scale: [0; L], min: [0; L], q: [[0; L]; N] };
    let Some(tile) = Tile::<N, L, W, HALVES>::new(src, importance) else { return out };
    let totals = tile.totals();
    let (w, wx) = &totals;
    let (mut ideal, mut ideal_min) =
        each_for_itself::<Q, N, L, W, HALVES, S>(&tile, &totals, levels, targets);
    let mut d = tile.stored(crate::search::peak(&ideal) / top);
    let mut dmin = tile.stored(crate::search::peak(&ideal_min) / top);
    let (mut sc, mut mn) = ([0f32; L], [0f32; L]);
    for pass in 0..3 {
        let sums = tile.min_sums::<Q, L>(&inverse(&ideal), &ideal_min);
        if pass > 0 {
            (ideal, ideal_min) = solve(w, wx, &sums);
        }
        let centre: [f32; L] = lanes(|l| round(clamp(ideal[l] * ratio(1.0, d), 0.0, top)));
        let mut error = [f32::INFINITY; L];
        for step in [0.0, -1.0, 1.0] {
            let near: [f32; L] = lanes(|l| clamp(centre[l] + step, 0.0, top));
            // The best minimum moves with the scale by the mean level.
            let moved: [f32; L] = lanes(|l| ideal_min[l] + (d * near[l] - ideal[l]) * (sums.q[l] / w[l]));
            let goal: [f32; L] = lanes(|l| clamp(moved[l] * ratio(1.0, dmin), 0.0, top));
            for side in [-0.25, 0.25] {
                let near_min: [f32; L] = lanes(|l| clamp(round(goal[l] + side), 0.0, top));
                let new = tile.min_error::<Q, L>(&lanes(|l| d * near[l]), &lanes(|l| dmin * near_min[l]));
                let better = less(&new, &error);
                replace(&better, &mut sc, &near);
                replace(&better, &mut mn, &near_min);
                replace(&better, &mut error, &new);
            }
        }
        if pass < 2 {
            let sums = tile.min_sums::<Q, L>(&inverse(&lanes(|l| d * sc[l])), &lanes(|l| dmin * mn[l]));
            (d, dmin) = refit(&tile, &totals, &sums, (&sc, &mn), (d, dmin));
            ideal = lanes(|l| d * sc[l]);
            ideal_min = lanes(|l| dmin * mn[l]);
        }
    }
    out.d = tile.half(d);
    out.dmin = tile.half(dmin);
    for l in 0..L {
        out.scale[l] = sc[l] as i32 as u8;
        out.min[l] = mn[l] as i32 as u8;
    }
    tile.levels::<Q, L, _>(&lanes(|l| d * sc[l]), &lanes(|l| dmin * mn[l]), &mut out.q, |q| q as u8);
    out
}

/// The best real scale and minimum of each group, from several starts.
#[inline(always)]
fn each_for_itself<
    Q: Levels,
    const N: usize,
    const L: usize,
    const W: usize,
    const HALVES: bool,
    const S: usize,
>(
    tile: &Tile<N, L, W, HALVES>,
    (w, wx): &([f32; L], [f32; L]),
    levels: f32,
    targets: &[(f32, f32); S],
) -> ([f32; L], [f32; L]) {
    let (lo, hi) = tile.ranges();
    let lo: [f32; L] = lanes(|l| if lo[l] < 0.0 { lo[l] } else { 0.0 });
    let (mut ideal, mut ideal_min, mut gain) = ([0f32; L], [0f32; L], [0f32; L]);
    // Sums with weights are less exact.
    let tie = 1.0 + f32::EPSILON * if W == 0 { 4.0 } else { 16.0 };
    for &(below, above) in targets {
        let start: [f32; L] = lanes(|l| (hi[l] - lo[l]) * (1.0 / (levels + below + above)));
        let offset = lanes(|l| -lo[l] - start[l] * below);
        let sums = tile.min_sums::<Q, L>(&inverse(&start), &offset);
        let (scale, min) = solve(w, wx, &sums);
        let new = lanes(|l| scale[l] * sums.xq[l] - min[l] * wx[l]);
        // Where values come from the same format, several starts meet all of them. The first, with the least minimum,
        // is the one that was stored: a later one has to be better by more than rounding.
        let better = less(&lanes(|l| gain[l] * tie), &new);
        replace(&better, &mut ideal, &scale);
        replace(&better, &mut ideal_min, &min);
        replace(&better, &mut gain, &new);
    }
    (ideal, ideal_min)
}

/// The two steps of a super-block, as stored, with the least error for given scales, minima and levels; the old ones
/// where that has no sensible answer.
#[inline(always)]
fn refit<const N: usize, const L: usize, const W: usize, const HALVES: bool>(
    tile: &Tile<N, L, W, HALVES>,
    (w, wx): &([f32; L], [f32; L]),
    sums: &Sums<L>,
    (sc, mn): (&[f32; L], &[f32; L]),
    old: (f32, f32),
) -> (f32, f32) {
    let a = total::<L>(&lanes(|l| sc[l] * sc[l] * sums.qq[l]));
    let b = total::<L>(&lanes(|l| mn[l] * mn[l] * w[l]));
    let c = total::<L>(&lanes(|l| sc[l] * mn[l] * sums.q[l]));
    let xq = total::<L>(&lanes(|l| sc[l] * sums.xq[l]));
    let x = total::<L>(&lanes(|l| mn[l] * wx[l]));
    let fit = if b > 0.0 { ratio(xq * b - c * x, a * b - c * c) } else { ratio(xq, a) };
    if fit > 0.0 {
        let d = tile.stored(fit);
        (d, tile.stored(ratio(c * d - x, b)))
    } else {
        old
    }
}

/// The scale and the minimum, not negative, with the least error for given levels.
#[inline(always)]
fn solve<const L: usize>(w: &[f32; L], wx: &[f32; L], sums: &Sums<L>) -> ([f32; L], [f32; L]) {
    let scale: [f32; L] = lanes(|l| {
        let spread = w[l] * sums.qq[l] - sums.q[l] * sums.q[l];
        ratio(w[l] * sums.xq[l] - wx[l] * sums.q[l], spread)
    });
    let min: [f32; L] = lanes(|l| (scale[l] * sums.q[l] - wx[l]) / w[l]);
    let alone: [f32; L] = lanes(|l| ratio(sums.xq[l], sums.qq[l]));
    (
        lanes(|l| if min[l] > 0.0 { scale[l] } else { alone[l] }),
        lanes(|l| if min[l] > 0.0 { min[l] } else { 0.0 }),
    )
}
