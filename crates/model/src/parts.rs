//! Which tensors are needed together, by GGUF's names.

use fonio_checkpoint::Group;

/// What a tensor is read together with when the model runs: all of `blk.N.` is layer N's, but for the stacked weights of
/// its experts, of which a token needs a few.
pub fn group(name: &str) -> Group {
    let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return Group::Alone;
    };
    match layer.parse() {
        Ok(layer) if rest.ends_with("_exps.weight") => Group::Experts(layer),
        Ok(layer) => Group::Layer(layer),
        Err(_) => Group::Alone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_their_experts() {
        assert_eq!(group("blk.12.attn_q.weight"), Group::Layer(12));
        assert_eq!(group("blk.3.ffn_gate_exps.weight"), Group::Experts(3));
        assert_eq!(group("blk.3.ffn_gate_exps.bias"), Group::Layer(3), "biases are few");
        assert_eq!(group("blk.3.ffn_gate_inp.weight"), Group::Layer(3));
        for name in ["token_embd.weight", "output.weight", "blk.x.y", "blk.3"] {
            assert_eq!(group(name), Group::Alone, "{name}");
        }
    }
}
