//! What tests share.

/// Numbers from −2 to 2 that a seed determines.
pub(crate) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 22) as f32 - 2.0
    })
    .take(n)
    .collect()
}
