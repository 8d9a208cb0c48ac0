"""One small Llama in the formats that quantized checkpoints are published in."""

import zlib
from typing import Callable

import numpy as np
import torch
from transformers import LlamaForCausalLM

import packing
import vocabularies
from cases.llama import llama
from harness import Case, Tensors

IDS = dict(bos_token_id=268, eos_token_id=[269, 272])
GROUP = 32
BLOCK = 128


def linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def packer(pack: Callable[[str, torch.Tensor], Tensors]) -> Callable[[Tensors], Tensors]:
    """Every projection by `pack`, the rest as it is."""

    def publish(tensors: Tensors) -> Tensors:
        out = {}
        for name, value in tensors.items():
            if linear(name):
                stem = name.removesuffix("weight")
                out |= {stem + part: packed for part, packed in pack(name, value).items()}
            else:
                out[name] = value
        return out

    return publish


def unpacker(unpack: Callable[[Tensors], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    def restore(tensors: Tensors) -> Tensors:
        stems: dict[str, Tensors] = {}
        out = {}
        for name, value in tensors.items():
            stem, _, part = name.rpartition(".")
            if stem.endswith("_proj"):
                stems.setdefault(stem, {})[part] = value
            else:
                out[name] = value
        return out | {f"{stem}.weight": unpack(parts) for stem, parts in stems.items()}

    return restore


def act_order(name: str, value: torch.Tensor) -> torch.Tensor:
    """Groups of columns that are no neighbours: GPTQ takes them up by how much they matter."""
    order = np.random.RandomState(zlib.crc32(name.encode())).permutation(value.shape[1])
    groups = torch.empty(value.shape[1], dtype=torch.int64)
    groups[torch.from_numpy(order)] = torch.arange(value.shape[1]) // GROUP
    return groups


def one_group(name: str, value: torch.Tensor) -> torch.Tensor:
    return torch.zeros(value.shape[1], dtype=torch.int64)


def gptq(bits: int, group: int, desc_act: bool, sym: bool) -> dict:
    return {
        "bits": bits,
        "damp_percent": 0.1,
        "desc_act": desc_act,
        "group_size": group,
        "model_file_base_name": "model",
        "model_name_or_path": None,
        "quant_method": "gptq",
        "static_groups": False,
        "sym": sym,
        "true_sequential": True,
    }


def scheme(bits: int, kind: str, strategy: str, group: int | None = None, dynamic: bool = False) -> dict:
    """How compressed-tensors describes one side of a product."""
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": dynamic,
        "group_size": group,
        "num_bits": bits,
        "observer": None if dynamic else "minmax",
        "observer_kwargs": {},
        "strategy": strategy,
        "symmetric": True,
        "type": kind,
    }


def compressed(format: str, weights: dict, inputs: dict | None) -> dict:
    return {
        "config_groups": {
            "group_0": {
                "input_activations": inputs,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": weights,
            }
        },
        "format": format,
        "global_compression_ratio": 1.5,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def case(
    seed: int, quantization: dict, pack, unpack, dtype=torch.float16, show=("k", "v"), tokens=12, **options
) -> Case:
    sizes = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=1)
    return Case(
        seed=seed,
        model=LlamaForCausalLM,
        config=llama(
            **(sizes | options),
            num_hidden_layers=1,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            **IDS,
        ),
        vocabulary=lambda folder: vocabularies.llama3(folder, base=268),
        generation=IDS,
        dtype=dtype,
        tokens=tokens,
        publish=packer(pack),
        unpack=unpacker(unpack),
        show=[f"model.layers.0.self_attn.{name}_proj.weight" for name in show],
        config_add={"quantization_config": quantization},
        old_drop=["rope_parameters"] + ([] if "head_dim" in options else ["head_dim"]),
        old_add={"rope_theta": 10000.0, "rope_scaling": None},
    )


CASES = {
    "llama-gptq4": case(
        161,
        gptq(4, GROUP, desc_act=True, sym=False),
        lambda name, value: packing.pack_gptq(value, act_order(name, value), 4, symmetric=False),
        lambda parts: packing.unpack_gptq(parts, 4),
    ),
    "llama-gptq8": case(
        172,
        gptq(8, -1, desc_act=False, sym=True),
        lambda name, value: packing.pack_gptq(value, one_group(name, value), 8, symmetric=True),
        lambda parts: packing.unpack_gptq(parts, 8),
    ),
    "llama-awq4": case(
        163,
        {"bits": 4, "group_size": GROUP, "modules_to_not_convert": None, "quant_method": "awq", "version": "gemm"}
        | {"zero_point": True},
        lambda name, value: packing.pack_awq(value, GROUP),
        lambda parts: packing.unpack_awq(parts, GROUP),
    ),
    "llama-ct-int4": case(
        168,
        compressed("pack-quantized", scheme(4, "int", "group", GROUP), None),
        lambda name, value: packing.pack_ct_int4(value, GROUP),
        lambda parts: packing.unpack_ct_int4(parts, GROUP),
        torch.bfloat16,
    ),
    "llama-ct-int8": case(
        165,
        compressed("int-quantized", scheme(8, "int", "channel"), scheme(8, "int", "token", dynamic=True)),
        lambda name, value: packing.pack_ct_int8(value),
        packing.unpack_scaled,
        torch.bfloat16,
    ),
    "llama-fp8": case(
        168,
        compressed("float-quantized", scheme(8, "float", "tensor"), scheme(8, "float", "tensor")),
        lambda name, value: packing.pack_ct_fp8(value),
        packing.unpack_scaled,
        torch.bfloat16,
    ),
    # Two blocks each way, the second of them cut short.
    "llama-fp8-block": case(
        173,
        {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]},
        lambda name, value: packing.pack_fp8_blocks(value, BLOCK),
        lambda parts: packing.unpack_fp8_blocks(parts, BLOCK),
        torch.bfloat16,
        show=("k",),
        tokens=8,
        hidden_size=136,
        intermediate_size=144,
        num_attention_heads=2,
        head_dim=16,
    ),
}
