"""Gemma 1, 2 and 3."""

from pathlib import Path
from typing import Callable

import numpy as np
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
)

import vocabularies
from harness import Case

GEMMA_IDS = dict(bos_token_id=2, eos_token_id=[1, 5], pad_token_id=0)

GEMMA_BASE = dict(
    hidden_size=32,
    max_position_embeddings=256,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
    tie_word_embeddings=True,
)


def small_vocabulary(folder: Path) -> int:
    return vocabularies.gemma(folder, size=316, sentences=3)


def gemma3(**options) -> Callable[[int], Gemma3TextConfig]:
    return lambda vocab: Gemma3TextConfig(vocab_size=vocab, **(GEMMA_BASE | options))


def gemma3_vision(**options) -> Callable[[int], Gemma3Config]:
    """The form of the larger Gemma 3 files: text under text_config, a vision tower beside it."""

    def config(vocab: int) -> Gemma3Config:
        return Gemma3Config(
            text_config=Gemma3TextConfig(vocab_size=vocab, **(GEMMA_BASE | options)),
            vision_config=dict(
                model_type="siglip_vision_model",
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=16,
                patch_size=8,
                vision_use_head=False,
            ),
            mm_tokens_per_image=4,
            boi_token_index=vocab - 3,
            eoi_token_index=vocab - 2,
            image_token_index=vocab - 1,
            eos_token_id=[1, 5],
        )

    return config


CASES = {
    "gemma3-window": Case(
        seed=31,
        model=Gemma3ForCausalLM,
        config=gemma3(
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=24,
            query_pre_attn_scalar=16,
            sliding_window=8,
            sliding_window_pattern=3,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        ),
        vocabulary=vocabularies.gemma,
        generation=GEMMA_IDS | dict(do_sample=True, top_k=64, top_p=0.95),
        dtype=torch.bfloat16,
        old_drop=["rope_parameters", "layer_types"],
        old_add={
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 100.0,
            "rope_scaling": None,
            "sliding_window_pattern": 3,
        },
        strict=False,
        tokens=40,
    ),
    "gemma3-linear": Case(
        seed=32,
        model=Gemma3ForCausalLM,
        config=gemma3(
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
        vocabulary=lambda folder: vocabularies.gemma(folder, keep_model=True),
        generation=GEMMA_IDS | dict(cache_implementation="hybrid"),
        dtype=torch.bfloat16,
        old_drop=["rope_parameters", "layer_types"],
        old_add={
            "rope_theta": 1000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window_pattern": 2,
        },
        strict=False,
        tokens=40,
    ),
    "gemma3-vision": Case(
        seed=33,
        model=Gemma3ForConditionalGeneration,
        config=gemma3_vision(
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=256,
            sliding_window=8,
            sliding_window_pattern=3,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
        vocabulary=vocabularies.gemma,
        generation=GEMMA_IDS,
        dtype=torch.bfloat16,
        extra_ids=3,
        # The published configurations name only what differs from the defaults of the class.
        old_under="text_config",
        old_drop=[
            "rope_parameters",
            "layer_types",
            "query_pre_attn_scalar",
            "rms_norm_eps",
            "hidden_activation",
            "tie_word_embeddings",
            "attention_bias",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
        ],
        old_add={"sliding_window_pattern": 3, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        strict=False,
        tokens=40,
    ),
    "gemma": Case(
        seed=34,
        model=GemmaForCausalLM,
        config=lambda vocab: GemmaConfig(
            vocab_size=vocab,
            **GEMMA_BASE,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=24,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        vocabulary=small_vocabulary,
        generation=GEMMA_IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters"],
        # The first files said "gelu" where the tanh form was meant.
        old_add={"rope_theta": 10000.0, "rope_scaling": None, "hidden_act": "gelu"},
    ),
    "gemma2": Case(
        seed=36,
        model=Gemma2ForCausalLM,
        config=lambda vocab: Gemma2Config(
            vocab_size=vocab,
            **GEMMA_BASE,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=12,
            query_pre_attn_scalar=21,
            sliding_window=8,
            attn_logit_softcapping=2.5,
            final_logit_softcapping=1.25,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        vocabulary=small_vocabulary,
        generation=GEMMA_IDS | dict(cache_implementation="hybrid"),
        dtype=torch.bfloat16,
        # Query and key have no norm of their own here: larger projections alone make the attention uneven.
        special=lambda name, value: (
            value * 2.5 / np.sqrt(value.shape[1]) if name.endswith(("q_proj.weight", "k_proj.weight")) else None
        ),
        old_drop=["rope_parameters", "layer_types"],
        old_add={"rope_theta": 10000.0, "hidden_act": "gelu_pytorch_tanh"},
        matters=[
            {"sliding_window": 7},
            {"sliding_window": 9},
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            {"attn_logit_softcapping": None},
            {"final_logit_softcapping": None},
            {"query_pre_attn_scalar": 12},
        ],
    ),
}
