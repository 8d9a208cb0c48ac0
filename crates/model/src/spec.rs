//! What a model is, as pure data.

mod recurrent;

pub use recurrent::{
    ChannelMixSpec, InputNorm, Mamba2Spec, MambaSpec, Rwkv4Spec, Rwkv6Spec, Rwkv7Spec, Shift,
};

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
    /// The norm of embeddings, if they have one.
    pub embedding_norm: Option<NormSpec>,
    /// Positions that have an embedding of their own, which is added to the token's.
    pub n_positions: Option<usize>,
    /// The layers, first to last.
    pub layers: Vec<LayerSpec>,
    /// The norm before the head.
    pub final_norm: NormSpec,
    /// Whether the head is a tensor of its own; else it is the embedding.
    pub has_head: bool,
    /// Whether the head has a bias.
    pub head_bias: bool,
    /// Logits are multiplied with this.
    pub logit_scale: f32,
    /// Logits become `cap · tanh(logit / cap)`.
    pub logit_softcap: Option<f32>,
}

impl ModelSpec {
    /// The attention of the first layer that has one.
    pub fn first_attention(&self) -> Option<&AttentionSpec> {
        self.layers.iter().find_map(|layer| layer.mixer.attention())
    }
}

/// One layer: what mixes tokens, then what works on each token alone, each added to the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// What mixes tokens.
    pub mixer: MixerSpec,
    /// What works on each token alone, if anything does.
    pub ffn: Option<FfnSpec>,
    /// The kind of all norms of the layer.
    pub norm: NormSpec,
    /// Where norms are.
    pub norms: NormPlaces,
    /// What mixer and feed-forward part see.
    pub residual: Residual,
    /// Their outputs are multiplied with this before they are added.
    pub residual_scale: f32,
}

/// Where the norms of a layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlaces {
    /// Before mixer and feed-forward part.
    Before,
    /// Before them, and behind them before their output is added.
    Both,
    /// Behind them alone.
    After,
}

/// How the parts of a layer follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `x += mixer(norm(x))`, then `x += ffn(norm(x))`.
    Sequential,
    /// `x += mixer(norm(x)) + ffn(norm(x))`, with one norm for both.
    Parallel,
}

/// How rows are normed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormSpec {
    /// By the root mean square, with this epsilon.
    Rms(f32),
    /// By mean and variance, with this epsilon, and possibly a bias.
    Layer {
        /// Added to the variance.
        eps: f32,
        /// Whether there is a bias.
        bias: bool,
    },
}

impl NormSpec {
    /// Its epsilon.
    pub fn eps(self) -> f32 {
        match self {
            NormSpec::Rms(eps) | NormSpec::Layer { eps, .. } => eps,
        }
    }
}

/// What mixes tokens.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MixerSpec {
    /// Softmax attention over cached keys and values.
    Attention(AttentionSpec),
    /// Softmax attention over a cached latent vector.
    Mla(MlaSpec),
    /// A selective scan.
    Mamba(MambaSpec),
    /// A selective scan with one decay for each head.
    Mamba2(Mamba2Spec),
    /// A decaying mean of values for each channel.
    Rwkv4(Rwkv4Spec),
    /// A matrix of keys and values for each head, with a decay that tokens set.
    Rwkv6(Rwkv6Spec),
    /// A matrix of keys and values for each head, changed by a generalized delta rule.
    Rwkv7(Rwkv7Spec),
}

impl MixerSpec {
    /// The attention, if it is one.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        match self {
            MixerSpec::Attention(attention) => Some(attention),
            _ => None,
        }
    }
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
    /// What takes the place of `rotary` where the cache has place for more positions than this.
    pub long_rotary: Option<(usize, Rotary)>,
    /// Scores are multiplied with this.
    pub scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A token sees this many positions, its own included; all before it if `None`.
    pub window: Option<usize>,
    /// Whether queries, keys and values are one projection's rows, in this order.
    pub fused: bool,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// How queries and keys are normed, if they are.
    pub qk_norm: Option<QkNorm>,
    /// Whether each query head has a score that takes part in the softmax without a value (attention sinks).
    pub sinks: bool,
}

/// How queries and keys are normed before they are turned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QkNorm {
    /// Each head, with the same weights for all.
    Head(NormSpec),
    /// Each head, with weights of its own.
    OwnHead(NormSpec),
    /// All heads of a token together.
    Row(NormSpec),
}

/// Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1): keys and values are made of one latent
/// vector for each token, beside a rotated part of the key that all heads share.
#[derive(Clone, Debug, PartialEq)]
pub struct MlaSpec {
    /// Heads.
    pub n_heads: usize,
    /// Width of the queries' latent vector, if they have one.
    pub q_rank: Option<usize>,
    /// Width of the latent vector of keys and values.
    pub kv_rank: usize,
    /// Values of a head's query and key that are not rotated.
    pub nope_dim: usize,
    /// Values that are.
    pub rope_dim: usize,
    /// Values of a value head.
    pub value_dim: usize,
    /// How positions turn the rotated part.
    pub rotary: Rotary,
    /// Scores are multiplied with this.
    pub scale: f32,
    /// Epsilon of the latent vectors' norms.
    pub eps: f32,
    /// Whether the projections to the latent vectors have biases.
    pub bias: bool,
    /// Whether the way from the latent vector is stored as one matrix for keys and one for values. Then scores are
    /// taken in the latent space and nothing but it is cached; else keys and values are cached in full.
    pub absorbed: bool,
}

/// What works on each token alone.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FfnSpec {
    /// One network for all tokens.
    Dense(DenseSpec),
    /// Several networks, of which each token takes some.
    Moe(MoeSpec),
    /// One network for all tokens, which sees the token before too.
    ChannelMix(ChannelMixSpec),
}

/// `down(activation(gate(x)) · up(x))`, or `down(activation(up(x)))` without a gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenseSpec {
    /// Width inside.
    pub ffn_dim: usize,
    /// The nonlinearity.
    pub activation: Activation,
    /// Whether there is a gate.
    pub gate: Gate,
    /// Whether the projections have biases.
    pub bias: bool,
}

/// Where the gate of a feed-forward part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// There is none.
    None,
    /// In a tensor of its own.
    Own,
    /// In the first half of `up`'s rows.
    InUp,
}

/// A mixture of experts (Shazeer et al. 2017; Jiang et al. 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// Experts that there are.
    pub n_experts: usize,
    /// Experts that each token takes.
    pub n_used: usize,
    /// Width inside an expert.
    pub ffn_dim: usize,
    /// The nonlinearity.
    pub activation: Activation,
    /// Whether the experts' projections have biases.
    pub bias: bool,
    /// How a token's experts are chosen and weighed.
    pub router: RouterSpec,
    /// The network that every token takes beside its experts.
    pub shared: Option<SharedSpec>,
}

/// How experts are chosen: by the highest scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterSpec {
    /// From logits to scores.
    pub score: Score,
    /// Whether the logits have a bias.
    pub bias: bool,
    /// Whether scores get an addend for the choice alone, not for the weight (DeepSeek-AI 2024, "DeepSeek-V3").
    pub correction: bool,
    /// Whether the chosen experts' weights are divided by their sum.
    pub normalize: bool,
    /// Weights are multiplied with this.
    pub scale: f32,
    /// Groups of experts of which only the best take part.
    pub groups: Option<Groups>,
}

/// From a router's logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Over all experts.
    Softmax,
    /// Each by itself.
    Sigmoid,
}

/// Groups of experts of the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Groups that there are.
    pub n: usize,
    /// Groups that take part.
    pub n_used: usize,
    /// A group is as good as the sum of this many best experts of it.
    pub best_of: usize,
}

/// The network of a mixture that every token takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedSpec {
    /// Width inside.
    pub ffn_dim: usize,
    /// Whether its output is multiplied with `sigmoid(w · x)`.
    pub gated: bool,
}
