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


def pack_int32(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned numbers along the last dimension into words of 32 bits, the first in the lowest bits."""
    parts = values.to(torch.int64).unflatten(-1, (-1, 32 // bits))
    words = (parts << (bits * torch.arange(32 // bits))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_int32(words: torch.Tensor, bits: int) -> torch.Tensor:
    shifts = bits * torch.arange(32 // bits)
    return ((words.long().unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)


def affine(weight: torch.Tensor, groups: torch.Tensor, bits: int, symmetric: bool):
    """Scales and zero points [groups, out] and numbers [in, out] of a weight [out, in] whose column i is in group
    groups[i]. No zero point is 0: GPTQ's files store one less, which 0 has not."""
    top = 2**bits - 1
    columns = weight.float().T
    scales, zeros = [], []
    for group in range(int(groups.max()) + 1):
        part = columns[groups == group]
        if symmetric:
            scale = (2 * part.abs().amax(0) / top).half().float()
            zero = torch.full_like(scale, 2 ** (bits - 1))
        else:
            low, high = part.amin(0).clamp(max=0), part.amax(0).clamp(min=0)
            scale = ((high - low) / top).half().float()
            zero = torch.round(-low / scale).clamp(1, top)
        scales.append(scale)
        zeros.append(zero)
    scales, zeros = torch.stack(scales), torch.stack(zeros)
    numbers = torch.round(columns / scales[groups] + zeros[groups]).clamp(0, top)
    return scales.half(), zeros, numbers


def pack_gptq(weight: torch.Tensor, groups: torch.Tensor, bits: int, symmetric: bool) -> Tensors:
    """AutoGPTQ's first format: numbers packed along the input, zero points less one along the output."""
    scales, zeros, numbers = affine(weight, groups, bits, symmetric)
    return {
        "qweight": pack_int32(numbers.T, bits).T,
        "qzeros": pack_int32(zeros - 1, bits),
        "scales": scales,
        "g_idx": groups.to(torch.int32),
    }


def unpack_gptq(parts: Tensors, bits: int) -> torch.Tensor:
    groups = parts["g_idx"].long()
    numbers = unpack_int32(parts["qweight"].T, bits).T
    zeros = unpack_int32(parts["qzeros"], bits) + 1
    return ((numbers - zeros[groups]).float() * parts["scales"].float()[groups]).T


# Which of eight neighbouring outputs has the lowest bits of a word of AWQ's, which the next and so on.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack_awq(weight: torch.Tensor, group: int) -> Tensors:
    """AutoAWQ's GEMM format: numbers and zero points packed along the output in an order of their own."""
    scales, zeros, numbers = affine(weight, torch.arange(weight.shape[1]) // group, 4, symmetric=False)

    def pack(values: torch.Tensor) -> torch.Tensor:
        return pack_int32(values.unflatten(-1, (-1, 8))[..., AWQ_ORDER].flatten(-2), 4)

    return {"qweight": pack(numbers), "qzeros": pack(zeros), "scales": scales}


def unpack_awq(parts: Tensors, group: int) -> torch.Tensor:
    places = torch.tensor(AWQ_ORDER).argsort()

    def unpack(words: torch.Tensor) -> torch.Tensor:
        return unpack_int32(words, 4).unflatten(-1, (-1, 8))[..., places].flatten(-2)

    off = unpack(parts["qweight"]) - unpack(parts["qzeros"]).repeat_interleave(group, dim=0)
    return (off.float() * parts["scales"].float().repeat_interleave(group, dim=0)).T


def pack_ct_int4(weight: torch.Tensor, group: int) -> Tensors:
    """compressed-tensors' pack-quantized: signed numbers raised by 8, packed along the input."""
    parts = weight.float().unflatten(1, (-1, group))
    scale = (parts.abs().amax(-1) / 7.5).bfloat16()
    numbers = torch.round(parts / scale.float().unsqueeze(-1)).clamp(-8, 7).flatten(1)
    return {
        "weight_packed": pack_int32(numbers + 8, 4),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }


def unpack_ct_int4(parts: Tensors, group: int) -> torch.Tensor:
    rows, columns = parts["weight_shape"].tolist()
    numbers = unpack_int32(parts["weight_packed"], 4)[:rows, :columns] - 8
    return numbers.float() * parts["weight_scale"].float().repeat_interleave(group, dim=1)


def pack_ct_int8(weight: torch.Tensor) -> Tensors:
    """compressed-tensors' int-quantized: bytes and a scale for each output."""
    scale = (weight.float().abs().amax(1, keepdim=True) / 127.5).bfloat16()
    numbers = torch.round(weight.float() / scale.float()).clamp(-128, 127).to(torch.int8)
    return {"weight": numbers, "weight_scale": scale}


def pack_ct_fp8(weight: torch.Tensor) -> Tensors:
    """compressed-tensors' float-quantized with one scale for all; the input's scale does not concern the weights."""
    scale = (weight.float().abs().amax() / 448).reshape(1).bfloat16()
    # The scale may have been rounded down, and beyond 448 there are no more numbers.
    numbers = (weight.float() / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {"weight": numbers, "weight_scale": scale, "input_scale": torch.tensor([0.0375]).bfloat16()}


def unpack_scaled(parts: Tensors) -> torch.Tensor:
    return parts["weight"].float() * parts["weight_scale"].float()


def spread(scale: torch.Tensor, shape: torch.Size, block: int) -> torch.Tensor:
    """A scale for each block to one for each number; the last blocks may be cut short."""
    whole = scale.repeat_interleave(block, dim=0).repeat_interleave(block, dim=1)
    return whole[: shape[0], : shape[1]]


def pack_fp8_blocks(weight: torch.Tensor, block: int) -> Tensors:
    """DeepSeek-V3's: a scale in f32 for each square block, by which to multiply in spite of its name."""
    rows, columns = (-(-n // block) for n in weight.shape)
    scale = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            part = weight[i * block : (i + 1) * block, j * block : (j + 1) * block]
            scale[i, j] = part.float().abs().max() / 448
    numbers = (weight.float() / spread(scale, weight.shape, block)).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {"weight": numbers, "weight_scale_inv": scale}


def unpack_fp8_blocks(parts: Tensors, block: int) -> torch.Tensor:
    return parts["weight"].float() * spread(parts["weight_scale_inv"], parts["weight"].shape, block)
