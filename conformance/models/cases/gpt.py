"""GPT-2 and GPT-J."""

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM

import vocabularies
from harness import Case, Tensors

IDS = dict(bos_token_id=268, eos_token_id=268)
# The text and its continuation, so that the masks stay small.
POSITIONS = 56


def values(name: str, value: np.ndarray) -> np.ndarray | None:
    if name.endswith("bias"):
        return None
    if "ln_" in name:
        return 1.0 + 0.3 * value
    if "wte" in name or "wpe" in name:
        return 0.4 * value
    if ".c_" in name:
        # Kept as [in, out]; the first third and the second of c_attn are queries and keys.
        return (1.6 if "c_attn" in name else 1.2) * value / np.sqrt(value.shape[0])
    return None


def first_names(tensors: Tensors) -> Tensors:
    """As in the file of the smallest GPT-2: no prefix, and the causal masks among the weights."""
    out = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    layers = {name.split(".")[1] for name in out if name.startswith("h.")}
    mask = torch.ones(POSITIONS, POSITIONS, dtype=torch.float16).tril().view(1, 1, POSITIONS, POSITIONS)
    return out | {f"h.{i}.attn.bias": mask.clone() for i in layers}


CASES = {
    "gpt2": Case(
        seed=141,
        model=GPT2LMHeadModel,
        config=lambda vocab: GPT2Config(
            vocab_size=vocab, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4, **IDS
        ),
        vocabulary=lambda folder: vocabularies.gpt2(folder, files=True),
        generation=IDS,
        dtype=torch.float16,
        special=values,
        publish=first_names,
        # The first file calls the positions n_ctx as well, and does not say that the head is tied.
        old_drop=["tie_word_embeddings"],
        old_add={"n_ctx": POSITIONS},
    ),
    "gptj": Case(
        seed=142,
        model=GPTJForCausalLM,
        config=lambda vocab: GPTJConfig(
            vocab_size=vocab, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=2, rotary_dim=12, n_inner=64, **IDS
        ),
        vocabulary=vocabularies.gpt2,
        generation=IDS,
        dtype=torch.float16,
        special=values,
        extra_ids=3,
        matters=[{"rotary_dim": 16}],
    ),
}
