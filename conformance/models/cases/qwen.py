"""Qwen2 and Qwen3, dense and with experts."""

from pathlib import Path
from typing import Callable

import torch
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import vocabularies
from harness import Case, by_logits

QWEN2_IDS = dict(bos_token_id=284, eos_token_id=[286, 284], pad_token_id=284)


def qwen2(**options) -> Callable[[int], Qwen2Config]:
    base = dict(hidden_size=32, max_position_embeddings=256, bos_token_id=None)
    return lambda vocab: Qwen2Config(vocab_size=vocab, **(base | options))


# Of a vocabulary smaller than that of the first cases.
BASE = dict(hidden_size=24, max_position_embeddings=256, eos_token_id=270)
SMALL_IDS = dict(bos_token_id=268, eos_token_id=[270, 268], pad_token_id=268)


def small_vocabulary(folder: Path) -> int:
    return vocabularies.qwen2(folder, base=268)


def qwen2_moe(**options) -> Callable[[int], Qwen2MoeConfig]:
    return lambda vocab: Qwen2MoeConfig(vocab_size=vocab, **(BASE | options))


def qwen3(**options) -> Callable[[int], Qwen3Config]:
    return lambda vocab: Qwen3Config(vocab_size=vocab, **(BASE | options))


def qwen3_moe(**options) -> Callable[[int], Qwen3MoeConfig]:
    return lambda vocab: Qwen3MoeConfig(vocab_size=vocab, **(BASE | options))


CASES = {
    "qwen2-tied": Case(
        seed=21,
        model=Qwen2ForCausalLM,
        config=qwen2(
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            eos_token_id=286,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        vocabulary=vocabularies.qwen2,
        generation=QWEN2_IDS | dict(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1),
        extra_ids=17,
        old_drop=["rope_parameters", "layer_types"],
        old_add={"rope_theta": 1000000.0, "sliding_window": 4096},
        strict=False,
        tokens=40,
    ),
    "qwen2-window": Case(
        seed=22,
        model=Qwen2ForCausalLM,
        config=qwen2(
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=False,
            eos_token_id=286,
            use_sliding_window=True,
            sliding_window=8,
            max_window_layers=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        vocabulary=vocabularies.qwen2,
        generation=QWEN2_IDS,
        dtype=torch.bfloat16,
        container="bin",
        old_drop=["rope_parameters", "layer_types"],
        old_add={"rope_theta": 10000.0},
        strict=False,
        tokens=40,
    ),
    "qwen2moe": Case(
        seed=61,
        model=Qwen2MoeForCausalLM,
        # Every second layer would have experts; the list leaves them to layer 1 alone.
        config=qwen2_moe(
            hidden_size=32,
            intermediate_size=16,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=1,
            num_experts=4,
            num_experts_per_tok=2,
            decoder_sparse_step=2,
            mlp_only_layers=[3],
            norm_topk_prob=False,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        vocabulary=small_vocabulary,
        generation=SMALL_IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters", "layer_types"],
        old_add={"rope_theta": 1000000.0, "sliding_window": 4096},
        matters=[{"num_experts_per_tok": 1}, {"num_experts_per_tok": 3}, {"norm_topk_prob": True}],
        routing=by_logits,
        tokens=16,
    ),
    "qwen3-tied": Case(
        seed=71,
        model=Qwen3ForCausalLM,
        config=qwen3(
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=24,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        vocabulary=small_vocabulary,
        generation=SMALL_IDS | dict(do_sample=True, temperature=0.6, top_p=0.95, top_k=20),
        dtype=torch.bfloat16,
        extra_ids=5,
        old_drop=["rope_parameters", "layer_types"],
        old_add={"rope_theta": 1000000.0, "rope_scaling": None},
    ),
    "qwen3-untied": Case(
        seed=73,
        model=Qwen3ForCausalLM,
        config=qwen3(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=12,
            tie_word_embeddings=False,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        vocabulary=small_vocabulary,
        generation=SMALL_IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters", "layer_types"],
        old_add={
            "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        },
        matters=[{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}],
    ),
    "qwen3moe": Case(
        seed=83,
        model=Qwen3MoeForCausalLM,
        config=qwen3_moe(
            hidden_size=32,
            intermediate_size=48,
            moe_intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=12,
            num_experts=8,
            num_experts_per_tok=3,
            norm_topk_prob=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        vocabulary=small_vocabulary,
        generation=SMALL_IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters", "num_local_experts"],
        old_add={"num_experts": 8, "rope_theta": 1000000.0, "rope_scaling": None, "max_window_layers": 1},
        matters=[{"num_experts_per_tok": 2}, {"num_experts_per_tok": 4}, {"norm_topk_prob": False}],
        routing=by_logits,
    ),
    "qwen3moe-dense": Case(
        seed=83,
        model=Qwen3MoeForCausalLM,
        config=qwen3_moe(
            intermediate_size=40,
            moe_intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=20,
            num_experts=5,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            mlp_only_layers=[1],
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        vocabulary=small_vocabulary,
        generation=SMALL_IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters", "num_local_experts"],
        old_add={"num_experts": 5, "rope_theta": 10000.0, "rope_scaling": None},
        matters=[{"num_experts_per_tok": 1}, {"norm_topk_prob": False}],
        routing=by_logits,
    ),
}
