"""gpt-oss: packed as published, and as transformers saves it unpacked."""

import numpy as np
import torch
from transformers import GptOssConfig, GptOssForCausalLM

import vocabularies
from harness import Case, Tensors, by_logits
from packing import pack_mxfp4, unpack_mxfp4

IDS = dict(bos_token_id=268, eos_token_id=[270, 269], pad_token_id=269)
YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 8.0,
    "original_max_position_embeddings": 256,
    "rope_type": "yarn",
    "truncate": False,
}
THETA = 1000.0


def config(**options):
    base = dict(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        sliding_window=8,
        max_position_embeddings=2048,
        rope_parameters=YARN | {"rope_theta": THETA},
        eos_token_id=270,
        pad_token_id=269,
    )
    return lambda vocab: GptOssConfig(vocab_size=vocab, **(base | options))


def values(name: str, value: np.ndarray) -> np.ndarray | None:
    last = name.rsplit(".", 1)[-1]
    if last == "sinks":
        return 1.0 + value
    if last == "gate_up_proj_bias":
        return 1.5 * value
    if last == "gate_up_proj":
        # Some of what comes out is beyond the limit of 7. Kept as [expert, in, out].
        return 3.5 * value / np.sqrt(value.shape[1])
    if last == "down_proj":
        return 0.5 * value / np.sqrt(value.shape[1])
    return None


def pack(tensors: Tensors) -> Tensors:
    out = {}
    for name, value in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            # Turned to [expert, out, in]: the blocks are along what is summed.
            out[f"{name}_blocks"], out[f"{name}_scales"] = pack_mxfp4(value.transpose(1, 2))
        else:
            out[name] = value
    return out


def unpack(tensors: Tensors) -> Tensors:
    out = {}
    for name, value in tensors.items():
        if name.endswith("_blocks"):
            plain = name.removesuffix("_blocks")
            out[plain] = unpack_mxfp4(value, tensors[f"{plain}_scales"]).transpose(1, 2)
        elif not name.endswith("_scales"):
            out[name] = value
    return out


COMMON = dict(
    model=GptOssForCausalLM,
    vocabulary=vocabularies.harmony,
    generation=IDS,
    dtype=torch.bfloat16,
    special=values,
    old_drop=["rope_parameters", "swiglu_alpha"],
    routing=by_logits,
)
SETTINGS = [
    {"swiglu_limit": 100.0},
    {"sliding_window": 7},
    {"sliding_window": 9},
    {"layer_types": ["full_attention", "sliding_attention"]},
    {"rope_parameters": YARN | {"rope_theta": THETA, "truncate": True}},
    {"rope_parameters": {"rope_theta": THETA, "rope_type": "default"}},
]


def old(experts: int) -> dict:
    return {
        "rope_theta": THETA,
        "rope_scaling": YARN,
        "initial_context_length": 256,
        "experts_per_token": experts,
        "swiglu_limit": 7.0,
    }


CASES = {
    "gpt-oss-mxfp4": Case(
        seed=121,
        config=config(hidden_size=32, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2),
        publish=pack,
        unpack=unpack,
        config_add={
            "quantization_config": {
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ],
                "quant_method": "mxfp4",
            }
        },
        old_add=old(2),
        matters=SETTINGS,
        **COMMON,
    ),
    "gpt-oss-bf16": Case(
        seed=122,
        config=config(hidden_size=24, intermediate_size=20, num_local_experts=6, num_experts_per_tok=4),
        old_add=old(4),
        matters=SETTINGS,
        **COMMON,
    ),
}
