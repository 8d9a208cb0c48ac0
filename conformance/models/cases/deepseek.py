"""DeepSeek 2 and 3: keys and values from a small common vector, rotated in neighbouring pairs; experts in groups."""

import numpy as np
import torch
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

import vocabularies
from harness import Case, Tensors, by_logits, lead

IDS = dict(bos_token_id=268, eos_token_id=269)
YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 8,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 64,
}
BASE = dict(
    hidden_size=24,
    intermediate_size=36,
    moe_intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    kv_lora_rank=14,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    first_k_dense_replace=1,
    max_position_embeddings=512,
    **IDS,
)
# Rows that blocks of 32 divide, but for the down projection of layer 0 (and the keys where they are taken apart).
WIDE = BASE | dict(hidden_size=32, intermediate_size=24, moe_intermediate_size=32, kv_lora_rank=32, v_head_dim=16)


def rope(**options) -> dict:
    return {"rope_type": "yarn", "rope_theta": 10000.0} | YARN | options


def old(scoring: str, method: str, **options) -> dict:
    return {
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "yarn"} | YARN | options,
        "scoring_func": scoring,
        "topk_method": method,
        "moe_layer_freq": 1,
        "ep_size": 1,
        "seq_aux": True,
    }


def by_groups(scores: torch.Tensor, group_scores: torch.Tensor, module) -> torch.Tensor:
    """Groups first, then experts within the chosen ones: both choices must be clear."""
    chosen = torch.zeros_like(group_scores, dtype=torch.bool)
    chosen.scatter_(1, group_scores.topk(module.topk_group, dim=-1).indices, True)
    within = scores.masked_fill(~chosen.repeat_interleave(module.num_experts // module.num_group, dim=1), -torch.inf)
    return torch.minimum(lead(group_scores, module.topk_group), lead(within, module.top_k))


def best_of_group(module, output) -> torch.Tensor:
    logits = output[0]
    return by_groups(logits, logits.unflatten(1, (module.num_group, -1)).amax(-1), module)


def two_of_group(module, output) -> torch.Tensor:
    scores = output[0].sigmoid() + module.e_score_correction_bias
    return by_groups(scores, scores.unflatten(1, (module.num_group, -1)).topk(2, dim=-1).values.sum(-1), module)


def values(name: str, value: np.ndarray) -> np.ndarray | None:
    if name.endswith("e_score_correction_bias"):
        # Above 0: readers that blank the scores of other groups with 0 and those that do with -inf agree.
        return 0.25 * np.abs(value)
    return None


def scaled_values(name: str, value: np.ndarray) -> np.ndarray | None:
    # The factor of 16 on what the experts give would drown the rest.
    return 0.25 * value / np.sqrt(value.shape[-1]) if name.endswith("experts.down_proj") else None


def full_bias(tensors: Tensors) -> Tensors:
    """The published files keep this one tensor in f32."""
    return {k: v.float() if k.endswith("e_score_correction_bias") else v for k, v in tensors.items()}


CASES = {
    "deepseek2-lite": Case(
        seed=151,
        model=DeepseekV2ForCausalLM,
        config=lambda vocab: DeepseekV2Config(
            vocab_size=vocab,
            **BASE,
            q_lora_rank=None,
            n_routed_experts=6,
            num_experts_per_tok=2,
            n_shared_experts=2,
            topk_method="greedy",
            n_group=1,
            topk_group=1,
            routed_scaling_factor=1.0,
            norm_topk_prob=False,
            rope_parameters=rope(),
        ),
        vocabulary=vocabularies.deepseek2,
        generation=IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters", "head_dim", "topk_method"],
        old_add=old("softmax", "greedy"),
        matters=[
            {"num_experts_per_tok": 1},
            {"num_experts_per_tok": 3},
            {"rope_parameters": rope(mscale=0, mscale_all_dim=0)},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        ],
        routing=by_logits,
    ),
    "deepseek2-groups": Case(
        seed=157,
        model=DeepseekV2ForCausalLM,
        config=lambda vocab: DeepseekV2Config(
            vocab_size=vocab,
            **WIDE,
            q_lora_rank=32,
            n_routed_experts=6,
            num_experts_per_tok=2,
            n_shared_experts=1,
            topk_method="group_limited_greedy",
            n_group=2,
            topk_group=1,
            routed_scaling_factor=16.0,
            norm_topk_prob=False,
            rope_parameters=rope(),
        ),
        vocabulary=vocabularies.deepseek2,
        generation=IDS,
        dtype=torch.bfloat16,
        special=scaled_values,
        old_drop=["rope_parameters", "head_dim", "topk_method"],
        old_add=old("softmax", "group_limited_greedy"),
        matters=[{"topk_group": 2}, {"topk_method": "greedy"}, {"routed_scaling_factor": 1.0}],
        routing=best_of_group,
        tokens=16,
    ),
    "deepseek3": Case(
        seed=157,
        model=DeepseekV3ForCausalLM,
        config=lambda vocab: DeepseekV3Config(
            vocab_size=vocab,
            **WIDE,
            q_lora_rank=32,
            n_routed_experts=6,
            num_experts_per_tok=3,
            n_shared_experts=1,
            n_group=3,
            topk_group=2,
            routed_scaling_factor=2.5,
            norm_topk_prob=True,
            num_nextn_predict_layers=0,
            rope_parameters=rope(mscale=1.0, mscale_all_dim=1.0),
        ),
        vocabulary=vocabularies.deepseek3,
        generation=IDS,
        dtype=torch.bfloat16,
        special=values,
        publish=full_bias,
        old_drop=["rope_parameters", "head_dim"],
        old_add=old("sigmoid", "noaux_tc", mscale=1.0, mscale_all_dim=1.0),
        matters=[
            {"topk_group": 3},
            {"norm_topk_prob": False},
            {"routed_scaling_factor": 1.0},
            {"rope_interleave": False},
            {"rope_parameters": rope(mscale=0, mscale_all_dim=0)},
        ],
        routing=two_of_group,
        tokens=16,
    ),
}
