"""Mamba in the spellings of Hugging Face and of its authors, and Mamba 2."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

import vocabularies
from cases.llama import LLAMA2_IDS
from harness import Case, Spelling, tensors_of

IDS = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)


def values(name: str, value: np.ndarray) -> np.ndarray | None:
    last = name.rsplit(".", 1)[-1]
    if last == "A_log":
        # Speeds from slow to fast; positive and negative logarithms.
        return 0.8 * value
    if last == "D":
        return 1.0 + 0.4 * value
    if name.endswith("dt_proj.weight"):
        return 0.7 * value / np.sqrt(value.shape[1])
    return None


def authors(source: Path, folder: Path) -> None:
    """The files of state-spaces: a configuration without model_type, one embedding under two names, and no tokenizer
    (the published ones leave it to GPT-NeoX's)."""
    theirs = json.loads((source / "config.json").read_text())
    config = {
        "d_model": theirs["hidden_size"],
        "n_layer": theirs["num_hidden_layers"],
        # The rows of the embedding are this rounded up.
        "vocab_size": theirs["vocab_size"] - 2,
        "ssm_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    tensors = tensors_of(source / "model.safetensors")
    tensors = {k.replace("embeddings.", "embedding."): v.clone() for k, v in tensors.items()}
    tensors["lm_head.weight"] = tensors["backbone.embedding.weight"]
    torch.save(tensors, folder / "pytorch_model.bin")


CASES = {
    "mamba": Case(
        seed=124,
        model=MambaForCausalLM,
        # What follows from d_model where ssm_cfg is empty: state 16, inner size twice the outer, rank of the time step
        # a sixteenth (rounded up where that is needed).
        config=lambda vocab: MambaConfig(vocab_size=vocab, hidden_size=32, num_hidden_layers=2, **IDS),
        vocabulary=vocabularies.neox,
        generation=IDS,
        dtype=torch.bfloat16,
        extra_ids=2,
        special=values,
        # The published files do not say that the head is tied.
        old_drop=["tie_word_embeddings"],
        old_add={"fused_add_norm": True, "rms_norm": True, "intermediate_size": 64},
    ),
    "mamba-authors": Spelling("mamba", authors),
    "mamba2": Case(
        seed=113,
        model=Mamba2ForCausalLM,
        config=lambda vocab: Mamba2Config(
            vocab_size=vocab,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=10,
            num_heads=4,
            head_dim=16,
            n_groups=2,
            chunk_size=16,
            tie_word_embeddings=False,
            pad_token_id=0,
            norm_before_gate=False,
            rms_norm=True,
            **LLAMA2_IDS,
        ),
        vocabulary=vocabularies.mistral,
        generation=LLAMA2_IDS,
        dtype=torch.bfloat16,
        special=values,
        old_drop=["time_step_limit"],
        # Bare, as transformers 4 wrote it, which strict readers of JSON refuse.
        old_add={"time_step_limit": [0.0, float("inf")]},
    ),
}
