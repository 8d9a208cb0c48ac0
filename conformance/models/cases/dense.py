"""Families that differ from Llama in norms, factors or the order of the residual: Granite, OLMo 2, StableLM."""

import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

import vocabularies
from harness import Case

BASE = dict(hidden_size=32, max_position_embeddings=256)
THETA = {"rope_type": "default", "rope_theta": 10000.0}
GRANITE_IDS = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
OLMO_IDS = dict(bos_token_id=None, eos_token_id=268, pad_token_id=271)

CASES = {
    "granite": Case(
        seed=91,
        model=GraniteForCausalLM,
        config=lambda vocab: GraniteConfig(
            vocab_size=vocab,
            **BASE,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=1,
            embedding_multiplier=3.0,
            attention_multiplier=0.5,
            residual_multiplier=0.75,
            logits_scaling=2.5,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            rope_parameters=THETA,
            **GRANITE_IDS,
        ),
        vocabulary=vocabularies.starcoder,
        generation=GRANITE_IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters"],
        old_add={"rope_theta": 10000.0, "rope_scaling": None},
        # With the factor on top, the input would outweigh what the layers add.
        special=lambda name, value: value * 0.15 if "embed" in name else None,
        matters=[
            {"embedding_multiplier": 1.0},
            {"attention_multiplier": 8**-0.5},
            {"residual_multiplier": 1.0},
            {"logits_scaling": 1.0},
        ],
    ),
    "olmo2": Case(
        seed=92,
        model=Olmo2ForCausalLM,
        config=lambda vocab: Olmo2Config(
            vocab_size=vocab,
            **BASE,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            rope_parameters=THETA | {"rope_theta": 500000.0},
            **OLMO_IDS,
        ),
        vocabulary=vocabularies.cl100k,
        generation=OLMO_IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters"],
        old_add={"rope_theta": 500000.0, "rope_scaling": None},
    ),
    "stablelm": Case(
        seed=95,
        model=StableLmForCausalLM,
        config=lambda vocab: StableLmConfig(
            vocab_size=vocab,
            **BASE,
            intermediate_size=36,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            use_qkv_bias=True,
            tie_word_embeddings=False,
            rope_parameters=THETA | {"partial_rotary_factor": 0.25},
            bos_token_id=0,
            eos_token_id=0,
        ),
        vocabulary=vocabularies.neox,
        generation=dict(bos_token_id=0, eos_token_id=0),
        dtype=torch.bfloat16,
        old_drop=["rope_parameters"],
        old_add={"rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        matters=[{"rope_parameters": THETA | {"partial_rotary_factor": 0.5}}],
    ),
    "stablelm-parallel": Case(
        seed=94,
        model=StableLmForCausalLM,
        config=lambda vocab: StableLmConfig(
            vocab_size=vocab,
            **BASE,
            intermediate_size=36,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            use_qkv_bias=False,
            use_parallel_residual=True,
            qk_layernorm=True,
            tie_word_embeddings=False,
            rope_parameters=THETA | {"partial_rotary_factor": 0.75},
            bos_token_id=268,
            eos_token_id=270,
        ),
        vocabulary=lambda folder: vocabularies.cl100k(folder, vocabularies.QWEN2_SPLIT),
        generation=dict(bos_token_id=268, eos_token_id=270),
        dtype=torch.float16,
        old_drop=["rope_parameters"],
        old_add={"rope_theta": 10000.0, "partial_rotary_factor": 0.75},
        matters=[{"rope_parameters": THETA | {"partial_rotary_factor": 0.5}}],
    ),
}
