"""Phi-1 to Phi-2, and Phi-3 with what kept its form (Phi-4-mini)."""

import torch
from transformers import Phi3Config, Phi3ForCausalLM, PhiConfig, PhiForCausalLM

import vocabularies
from harness import Case

GPT2_IDS = dict(bos_token_id=268, eos_token_id=268)
# The ids that phi3() adds to the learned ones; Phi-3 stops at the ends of text, of an answer and of a turn.
PHI3_IDS = dict(bos_token_id=1, eos_token_id=304, pad_token_id=304)
PHI4_IDS = dict(bos_token_id=268, eos_token_id=268, pad_token_id=268)
SHORT = [1.0, 1.125, 1.25, 1.5, 1.75, 2.0]
LONG = [1.0, 2.5, 4.0, 7.5, 12.0, 20.0]
THETA = {"rope_type": "default", "rope_theta": 10000.0}


def phi(**options):
    base = dict(num_hidden_layers=2, max_position_embeddings=256, qk_layernorm=False, **GPT2_IDS)
    return lambda vocab: PhiConfig(vocab_size=vocab, **(base | options))


def phi3(**options):
    base = dict(hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    return lambda vocab: Phi3Config(vocab_size=vocab, **(base | options))


def longrope(partial: float, original: int) -> dict:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": partial,
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": original,
    }


CASES = {
    "phi": Case(
        seed=131,
        model=PhiForCausalLM,
        config=phi(
            hidden_size=24,
            intermediate_size=40,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            rope_parameters=THETA | {"partial_rotary_factor": 0.5},
        ),
        vocabulary=vocabularies.gpt2,
        generation=GPT2_IDS,
        dtype=torch.float16,
        old_drop=["rope_parameters"],
        old_add={"rope_theta": 10000.0, "rope_scaling": None, "partial_rotary_factor": 0.5},
        matters=[{"rope_parameters": THETA | {"partial_rotary_factor": 1.0}}],
    ),
    "phi-gqa": Case(
        seed=134,
        model=PhiForCausalLM,
        config=phi(
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            rope_parameters=THETA | {"partial_rotary_factor": 0.375},
        ),
        vocabulary=vocabularies.gpt2,
        generation=GPT2_IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters"],
        old_add={"rope_theta": 10000.0, "rope_scaling": None, "partial_rotary_factor": 0.375},
        matters=[{"rope_parameters": THETA | {"partial_rotary_factor": 0.5}}],
    ),
    "phi3-window": Case(
        seed=136,
        model=Phi3ForCausalLM,
        config=phi3(max_position_embeddings=256, sliding_window=8, rope_parameters=dict(THETA), **PHI3_IDS),
        vocabulary=vocabularies.phi3,
        generation=PHI3_IDS | dict(eos_token_id=[304, 305, 307]),
        dtype=torch.bfloat16,
        old_drop=["rope_parameters"],
        old_add={"rope_theta": 10000.0, "rope_scaling": None, "original_max_position_embeddings": 256},
        matters=[{"sliding_window": 7}, {"sliding_window": 9}],
    ),
    "phi3-longrope-short": Case(
        seed=134,
        model=Phi3ForCausalLM,
        # 40 tokens and 16 more stay within the original 64 positions.
        config=phi3(
            max_position_embeddings=512,
            original_max_position_embeddings=64,
            rope_parameters=longrope(1.0, 64),
            **PHI3_IDS,
        ),
        vocabulary=vocabularies.phi3,
        generation=PHI3_IDS | dict(eos_token_id=[304, 305, 307]),
        dtype=torch.bfloat16,
        old_drop=["rope_parameters"],
        old_add={
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        },
        matters=[
            {"rope_parameters": THETA | {"partial_rotary_factor": 1.0}},
            {"rope_parameters": longrope(1.0, 64) | {"short_factor": LONG}},
            {"rope_parameters": longrope(1.0, 64) | {"attention_factor": 1.0}},
        ],
    ),
    "phi3-longrope-long": Case(
        seed=135,
        model=Phi3ForCausalLM,
        # The text is longer than the original 16 positions; the single token is not.
        config=phi3(
            hidden_size=32,
            max_position_embeddings=512,
            original_max_position_embeddings=16,
            tie_word_embeddings=True,
            rope_parameters=longrope(0.75, 16),
            **PHI4_IDS,
        ),
        vocabulary=vocabularies.phi4,
        generation=PHI4_IDS | dict(eos_token_id=[268, 271]),
        dtype=torch.bfloat16,
        old_drop=["rope_parameters"],
        old_add={
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        },
        matters=[
            {"rope_parameters": THETA | {"partial_rotary_factor": 0.75}},
            {"rope_parameters": longrope(0.75, 16) | {"long_factor": SHORT}},
            {"rope_parameters": longrope(0.75, 16) | {"attention_factor": 1.0}},
        ],
    ),
}
