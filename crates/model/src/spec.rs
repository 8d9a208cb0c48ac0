//! What a model is, as pure data.

use fonio_kernel::{Activation, Rotary};

/// A decoder: embedding, layers, norm, head.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// GGUF's name of the architecture.
    pub architecture: &'static str,
    /// Tokens that have an embedding and a logit.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Tokens that the model was trained to look back on.
    pub context_len: usize,
    /// Embeddings are multiplied with this.
    pub embedding_scale: f32,
    /// The layers, first to last.
    pub layers: Vec<LayerSpec>,
    /// The norm before the head.
    pub final_norm: NormSpec,
    /// Whether the head is a tensor of its own; else it is the embedding.
    pub has_head: bool,
    /// Logits are multiplied with this.
    pub logit_scale: f32,
    /// Logits become `cap · tanh(logit / cap)`.
    pub logit_softcap: Option<f32>,
}

/// One layer: `x += mixer(norm(x))`, then `x += ffn(norm(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// What mixes tokens.
    pub mixer: MixerSpec,
    /// What works on each token alone.
    pub ffn: FfnSpec,
    /// The kind of all norms of the layer.
    pub norm: NormSpec,
    /// Whether the outputs of mixer and ffn are normed before they are added.
    pub post_norms: bool,
    /// Mixer and ffn outputs are multiplied with this before they are added.
    pub residual_scale: f32,
}

/// How rows are normed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormSpec {
    /// By the root mean square, with this epsilon.
    Rms(f32),
    /// By mean and variance, with this epsilon, and a bias.
    Layer(f32),
}

/// What mixes tokens.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MixerSpec {
    /// Softmax attention over cached keys and values.
    Attention(AttentionSpec),
}

/// Softmax attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads, each shared by `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// Values of a query or key head.
    pub head_dim: usize,
    /// Values of a value head.
    pub value_dim: usize,
    /// How positions turn queries and keys, if they do.
    pub rotary: Option<Rotary>,
    /// Scores are multiplied with this.
    pub scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A token sees this many positions, its own included; all before it if `None`.
    pub window: Option<usize>,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Whether each query and key head is normed, with this epsilon.
    pub qk_norm: Option<f32>,
}

/// What works on each token alone.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FfnSpec {
    /// `down(activation(gate(x)) · up(x))`, or `down(activation(up(x)))` without a gate.
    Dense {
        /// Width inside.
        ffn_dim: usize,
        /// The nonlinearity.
        activation: Activation,
        /// Whether there is a gate.
        gated: bool,
        /// Whether the projections have biases.
        bias: bool,
    },
}
