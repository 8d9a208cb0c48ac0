//! Which tensors are needed together, by GGUF's names.

use fonio_checkpoint::Group;

/// What a tensor is read together with when the model runs: the matrices of `blk.N.` are layer N's, but for the stacked
/// weights of its experts, of which a token needs a few. Norms, biases and other vectors are small: they are read once.
pub fn group(name: &str, shape: &[u64]) -> Group {
    const ONCE: &[&str] =
        &["norm", "ssm_conv1d", "_mix_lerp", "time_mix_first", "rope_freqs", "rope_factors"];
    if dimensions(shape) < 2 || !name.ends_with(".weight") || ONCE.iter().any(|once| name.contains(once)) {
        return if shape.iter().product::<u64>() < SMALL { Group::Small } else { Group::Alone };
    }
    let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return Group::Alone;
    };
    match layer.parse() {
        Ok(layer) if rest.ends_with("_exps.weight") => Group::Experts(layer),
        Ok(layer) => Group::Layer(layer),
        Err(_) => Group::Alone,
    }
}

/// Values from which on a tensor is not small, whatever it is for.
const SMALL: u64 = 1 << 22;

/// Whether a tensor takes part in matrix products with activations and may be rounded.
pub fn is_product_weight(name: &str, shape: &[u64]) -> bool {
    const KEPT: &[&str] = &[
        "norm",
        "ffn_gate_inp.",
        "position_embd",
        "token_types",
        "ssm_conv1d",
        "rope_freqs",
        // What RWKV mixes tokens by: factors, and matrices through few dimensions.
        "_mix_lerp",
        "time_mix_first",
        "time_mix_decay",
        "time_mix_w",
        "time_mix_a",
        "time_mix_v0",
        "time_mix_v1",
        "time_mix_v2",
        "time_mix_g1",
        "time_mix_g2",
    ];
    dimensions(shape) >= 2 && name.ends_with(".weight") && !KEPT.iter().any(|kept| name.contains(kept))
}

/// Dimensions of 1 in front make no matrix of a vector.
fn dimensions(shape: &[u64]) -> usize {
    shape.iter().skip_while(|&&n| n == 1).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_their_experts() {
        let weight = |name| group(name, &[8, 8]);
        assert_eq!(weight("blk.12.attn_q.weight"), Group::Layer(12));
        assert_eq!(group("blk.3.ffn_gate_exps.weight", &[4, 8, 8]), Group::Experts(3));
        assert_eq!(group("blk.3.ffn_gate_exps.bias", &[4, 8]), Group::Small, "biases are few");
        assert_eq!(group("blk.3.attn_norm.weight", &[8]), Group::Small);
        assert_eq!(weight("blk.3.ffn_gate_inp.weight"), Group::Layer(3), "a router");
        assert_eq!(group("position_embd.weight", &[1 << 12, 1 << 12]), Group::Alone);
        for name in ["token_embd.weight", "output.weight", "blk.x.y.weight"] {
            assert_eq!(weight(name), Group::Alone, "{name}");
        }
    }
}
