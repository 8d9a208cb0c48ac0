//! Mixers whose memory of earlier tokens has the same size however many there were.

/// Mamba (Gu & Dao 2023).
#[derive(Clone, Debug, PartialEq)]
pub struct MambaSpec {
    /// Channels of the scan.
    pub inner: usize,
    /// Values of the state for each channel.
    pub states: usize,
    /// Width of the projection to time steps.
    pub rank: usize,
    /// Tokens that the convolution sees.
    pub taps: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether the projections in and out have biases.
    pub bias: bool,
    /// How time steps and the scan's inputs are normed, if they are.
    pub inputs: Option<InputNorm>,
}

/// Root mean square norms of what Mamba's scan is steered by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InputNorm {
    /// Added to the mean of squares.
    pub eps: f32,
    /// Whether there are weights.
    pub weights: bool,
}

/// Mamba-2 (Dao & Gu 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba2Spec {
    /// Heads.
    pub heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Values of the state for each of them.
    pub states: usize,
    /// Groups of heads that share what steers them.
    pub groups: usize,
    /// Tokens that the convolution sees.
    pub taps: usize,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Whether the projections in and out have biases.
    pub bias: bool,
    /// Epsilon of the norm of each group behind the gate, if there is one.
    pub norm: Option<f32>,
}

/// RWKV-4 (Peng et al. 2023).
#[derive(Clone, Debug, PartialEq)]
pub struct Rwkv4Spec {
    /// Channels of keys and values.
    pub inner: usize,
}

/// RWKV-6 (Peng et al. 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct Rwkv6Spec {
    /// Values of a head.
    pub head_dim: usize,
    /// Epsilon of the norm of each head.
    pub eps: f32,
    /// Width of each of the five projections to how tokens are mixed with those before.
    pub mix_rank: usize,
    /// Width of the projection to the decay.
    pub decay_rank: usize,
}

/// RWKV-7 (Peng et al. 2025).
#[derive(Clone, Debug, PartialEq)]
pub struct Rwkv7Spec {
    /// Values of a head.
    pub head_dim: usize,
    /// Epsilon of the norm of each head.
    pub eps: f32,
    /// Width of the projection to the decay.
    pub decay_rank: usize,
    /// Width of the projection to the in-context learning rate.
    pub rate_rank: usize,
    /// Width of the projection to the share of the first layer's values; none in the first layer.
    pub value_rank: Option<usize>,
    /// Width of the projection to the gate.
    pub gate_rank: usize,
}

/// RWKV's feed-forward part, the channel mix: `value(max(key(x'), 0)²)`, where x' is a mixture of the token and the one
/// before, and possibly times `sigmoid(receptance(x''))`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelMixSpec {
    /// Width inside.
    pub ffn_dim: usize,
    /// Whether there is a receptance.
    pub gated: bool,
    /// What the factors of the mixture count.
    pub shift: Shift,
}

/// What the factors of a mixture of a token and the one before count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// The share of the token itself, as RWKV-4 has it.
    Present,
    /// The share of the one before, as later ones do.
    Past,
}
