"""Mixtral."""

import torch
from transformers import MixtralConfig, MixtralForCausalLM

import vocabularies
from cases.llama import LLAMA2_IDS
from harness import Case, by_logits

CASES = {
    "mixtral": Case(
        seed=56,
        model=MixtralForCausalLM,
        config=lambda vocab: MixtralConfig(
            vocab_size=vocab,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=256,
            sliding_window=None,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            **LLAMA2_IDS,
        ),
        vocabulary=vocabularies.mistral,
        generation=LLAMA2_IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters", "head_dim"],
        old_add={"rope_theta": 1000000.0},
        matters=[{"num_experts_per_tok": 1}, {"num_experts_per_tok": 3}],
        routing=by_logits,
        tokens=18,
    ),
}
