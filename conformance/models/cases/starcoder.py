"""StarCoder 2: layer norms and biases as in GPT-2, rotary embeddings and shared keys as in Llama, windows."""

import torch
from transformers import Starcoder2Config, Starcoder2ForCausalLM

import vocabularies
from harness import Case

IDS = dict(bos_token_id=0, eos_token_id=0)

CASES = {
    "starcoder2": Case(
        seed=181,
        model=Starcoder2ForCausalLM,
        config=lambda vocab: Starcoder2Config(
            vocab_size=vocab,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            norm_epsilon=1e-5,
            sliding_window=8,
            use_bias=True,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
            **IDS,
        ),
        vocabulary=vocabularies.starcoder,
        generation=IDS,
        dtype=torch.bfloat16,
        old_drop=["rope_parameters"],
        old_add={"rope_theta": 100000.0, "rope_scaling": None},
        matters=[{"sliding_window": 7}, {"sliding_window": 9}],
    ),
}
