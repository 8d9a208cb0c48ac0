//! Names that many of Hugging Face's checkpoints share.

use crate::hf::{Op, Rule};

/// Names that the usual decoder has at Hugging Face. `q` and `k` say what happens to the rows of queries and keys.
macro_rules! decoder_rules {
    ($q:expr, $k:expr, $norm:expr $(, $more:expr)*) => {
        &[
            $crate::hf::Rule("model.embed_tokens.weight", "token_embd.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("lm_head.weight", "output.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("model.norm.weight", "output_norm.weight", $norm),
            $crate::hf::Rule("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", $norm),
            $crate::hf::Rule("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", $q),
            $crate::hf::Rule("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", $q),
            $crate::hf::Rule("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", $k),
            $crate::hf::Rule("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", $k),
            $crate::hf::Rule("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", $crate::hf::Op::Same),
            $crate::hf::Rule("model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias", $crate::hf::Op::Same)
            $(, $more)*
        ]
    };
}
pub(in crate::arch) use decoder_rules;

/// Rules that only say where the second norm is.
pub(in crate::arch) const FFN_NORM: Rule =
    Rule("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", Op::Same);

/// Tensors that older checkpoints carry and that the configuration determines.
pub(in crate::arch) const DERIVED: &[&str] = &["model.layers.{}.self_attn.rotary_emb.inv_freq"];

/// The router of a mixture of experts and its experts, as most checkpoints call them.
pub(in crate::arch) const ROUTER: Rule =
    Rule("model.layers.{}.mlp.gate.weight", "blk.{}.ffn_gate_inp.weight", Op::Same);
pub(in crate::arch) const EXPERT_GATE: Rule =
    Rule("model.layers.{}.mlp.experts.{}.gate_proj.weight", "blk.{}.ffn_gate_exps.weight", Op::Stack);
pub(in crate::arch) const EXPERT_UP: Rule =
    Rule("model.layers.{}.mlp.experts.{}.up_proj.weight", "blk.{}.ffn_up_exps.weight", Op::Stack);
pub(in crate::arch) const EXPERT_DOWN: Rule =
    Rule("model.layers.{}.mlp.experts.{}.down_proj.weight", "blk.{}.ffn_down_exps.weight", Op::Stack);
