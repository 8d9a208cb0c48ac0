"""Llama, and Mistral, which is Llama with a window or with heads of their own size."""

from typing import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import vocabularies
from harness import Case

LLAMA3_IDS = dict(bos_token_id=284, eos_token_id=[285, 288])
LLAMA2_IDS = dict(bos_token_id=1, eos_token_id=2)


def llama(**options) -> Callable[[int], LlamaConfig]:
    base = dict(hidden_size=32, max_position_embeddings=256, rms_norm_eps=1e-5)
    return lambda vocab: LlamaConfig(vocab_size=vocab, **(base | options))


def mistral(**options) -> Callable[[int], MistralConfig]:
    base = dict(hidden_size=24, max_position_embeddings=256, rms_norm_eps=1e-5)
    return lambda vocab: MistralConfig(vocab_size=vocab, **(base | options))


CASES = {
    "llama-gqa": Case(
        seed=11,
        model=LlamaForCausalLM,
        config=llama(
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            **LLAMA3_IDS,
        ),
        vocabulary=vocabularies.llama3,
        generation=LLAMA3_IDS | dict(do_sample=True, temperature=0.6, top_p=0.9),
        dtype=torch.float16,
        strict=False,
        tokens=40,
    ),
    "llama-rope3": Case(
        seed=12,
        model=LlamaForCausalLM,
        config=llama(
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=24,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            **LLAMA3_IDS,
        ),
        vocabulary=vocabularies.llama3,
        generation=LLAMA3_IDS,
        old_drop=["rope_parameters"],
        old_add={
            "rope_theta": 500.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        strict=False,
        tokens=40,
    ),
    "llama-linear": Case(
        seed=13,
        model=LlamaForCausalLM,
        config=llama(
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            **LLAMA2_IDS,
        ),
        vocabulary=vocabularies.llama2,
        generation=LLAMA2_IDS,
        container="sharded",
        old_drop=["rope_parameters", "head_dim"],
        old_add={"rope_scaling": {"type": "linear", "factor": 4.0}},
        strict=False,
        tokens=40,
    ),
    "mistral-nemo": Case(
        seed=41,
        model=MistralForCausalLM,
        config=mistral(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=12,
            sliding_window=None,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            **LLAMA2_IDS,
        ),
        vocabulary=vocabularies.tekken,
        generation=LLAMA2_IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters"],
        old_add={"rope_theta": 1000000.0},
    ),
    "mistral-window": Case(
        seed=44,
        model=MistralForCausalLM,
        config=mistral(
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=8,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            **LLAMA2_IDS,
        ),
        vocabulary=lambda folder: vocabularies.mistral(folder, keep_model=True),
        generation=LLAMA2_IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters", "head_dim"],
        old_add={"rope_theta": 10000.0},
        matters=[{"sliding_window": None}, {"sliding_window": 7}, {"sliding_window": 9}],
    ),
}
