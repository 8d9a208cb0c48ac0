"""Writes reference.safetensors: quantized modules with the weights that their own libraries make of them.

    pip install torch==2.15.0 transformers==5.23.0 compressed-tensors==0.20.0 safetensors numpy
    python generate.py

Each module is a case of its own: planes under `CASE/x.…` as a checkpoint has them, the dequantized weight in f32 under
`CASE/expected`, and the configurations of all in the metadata, as JSON. compressed-tensors packs and unpacks its
formats here; scales are f32 with 11 significant bits, so that nothing is rounded on the way. transformers unpacks MXFP4
and DeepSeek's FP8.
"""

import json
import pathlib

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

generator = torch.Generator().manual_seed(7)
tensors, configurations = {}, {}


def integers(low, high, shape, dtype=torch.int8):
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def scales(shape):
    return (0.001 + 0.05 * torch.rand(shape, generator=generator)).half().float()


def add(case, config, planes, expected):
    for name, tensor in planes.items():
        tensors[f"{case}/{name}"] = tensor.contiguous()
    tensors[f"{case}/expected"] = expected.float().contiguous()
    configurations[case] = config


def compressed(case, format, rows, cols, scale_shape, zeros=None, **arguments):
    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    scale = scales(scale_shape)
    bits = args.num_bits
    if args.type == "float":
        q = torch.randn((rows, cols), generator=generator) * 60
    else:
        q = integers(-(1 << (bits - 1)), 1 << (bits - 1), (rows, cols)).float()
    def spread(t):
        if args.strategy == "block":
            r, c = args.block_structure
            return t.repeat_interleave(r, 0)[:rows].repeat_interleave(c, 1)[:, :cols]
        t = t.reshape(-1, t.shape[-1]) if t.ndim > 1 else t.reshape(1, 1)
        return t.expand(rows, -1).repeat_interleave(cols // t.shape[-1], 1)
    zero = None
    weight = q * spread(scale)
    if zeros:
        zero = integers(-(1 << (bits - 1)), 1 << (bits - 1), scale_shape)
        weight = (q - spread(zero).float()) * spread(scale)
    state = {"weight": weight, "weight_scale": scale}
    if zero is not None:
        state["weight_zero_point"] = zero
    compressor = BaseCompressor.get_value_from_registry(format)
    planes = compressor.compress(state, scheme)
    expected = compressor.decompress(planes, scheme)["weight"]
    assert expected.dtype == torch.float32
    config = {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
        "ignore": ["lm_head"],
    }
    add(case, config, {f"x.{name}": t for name, t in planes.items()}, expected)


group = dict(type="int", strategy="group")
compressed("pack4", "pack-quantized", 24, 96, (24, 3), num_bits=4, symmetric=True, group_size=32, **group)
compressed("pack4-asym", "pack-quantized", 20, 96, (20, 3), True, num_bits=4, symmetric=False, group_size=32, **group)
compressed("pack8-asym", "pack-quantized", 6, 72, (6, 3), True, num_bits=8, symmetric=False, group_size=24, **group)
compressed("pack2", "pack-quantized", 6, 64, (6, 1), num_bits=2, type="int", symmetric=True, strategy="channel")
compressed("pack4-tensor", "pack-quantized", 6, 44, (1,), num_bits=4, type="int", symmetric=True, strategy="tensor")
compressed("int8", "int-quantized", 6, 64, (6, 1), num_bits=8, type="int", symmetric=True, strategy="channel")
compressed("int8-asym", "int-quantized", 6, 40, (6, 1), True, num_bits=8, type="int", symmetric=False, strategy="channel")
compressed("int8-naive", "naive-quantized", 6, 40, (1,), num_bits=8, type="int", symmetric=True, strategy="tensor")
compressed("float", "float-quantized", 6, 40, (1,), num_bits=8, type="float", symmetric=True, strategy="tensor")
compressed("float-channel", "naive-quantized", 6, 40, (6, 1), num_bits=8, type="float", symmetric=True, strategy="channel")
compressed(
    "float-block", "float-quantized", 20, 40, (2, 3),
    num_bits=8, type="float", symmetric=True, strategy="block", block_structure=[16, 16],
)

q = torch.randn((32, 48), generator=generator).mul(80).to(torch.float8_e4m3fn)
scale = scales((2, 3))
add(
    "fp8-block",
    {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [16, 16]},
    {"x.weight": q, "x.weight_scale_inv": scale},
    Fp8Dequantize(None)._dequantize_one(q, scale, output_dtype=torch.float32),
)

blocks = integers(0, 256, (2, 6, 3, 16), torch.uint8)
exponents = integers(110, 135, (2, 6, 3), torch.uint8)
unpacked = convert_moe_packed_tensors(blocks, exponents, dtype=torch.float32)
add(
    "mxfp4",
    {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    {"x.weight_blocks": blocks, "x.weight_scales": exponents},
    unpacked.transpose(1, 2),
)

save_file(tensors, pathlib.Path(__file__).with_name("reference.safetensors"), metadata={"configurations": json.dumps(configurations)})
