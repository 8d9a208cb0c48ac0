"""Packed weights of published formats: how each is written, and, apart from that, how it is read back.

Written from the formats' descriptions. Reading takes nothing but what is in the file, in float32, so that what
transformers then computes is what any exact reader must compute.
"""

import torch

Tensors = dict[str, torch.Tensor]

# The magnitudes of an E2M1 number; bit 3 is the sign.
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def pack_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., rows, columns] to blocks [..., rows, columns / 32, 16] and scales [..., rows, columns / 32]: 32 numbers
    along a row share the power of two 2^(scale - 127); the even ones are in the low halves of the bytes."""
    groups = weight.float().unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1).clamp(min=1e-30)
    # 6 is below 2^3: the largest number of a group falls between 4 and 8.
    exponent = torch.floor(torch.log2(largest)) - 2
    scaled = groups / torch.exp2(exponent).unsqueeze(-1)
    code = (scaled.abs().unsqueeze(-1) - FP4).abs().argmin(-1)
    code = (code + 8 * (scaled < 0)).to(torch.uint8)
    return code[..., 0::2] | (code[..., 1::2] << 4), (exponent + 127).to(torch.uint8)


def unpack_mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    code = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2)
    value = FP4[(code & 7).long()] * torch.where(code > 7, -1.0, 1.0)
    return (value * torch.exp2(scales.float() - 127).unsqueeze(-1)).flatten(-2)
