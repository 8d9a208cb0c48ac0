#!/usr/bin/env python3
"""Makes dequantize.safetensors: what ggml unpacks from given bytes, for every type that it can unpack.

    generate.py PATH/libggml-base.so [-o dequantize.safetensors] [--check-gguf]

For each type T the file holds
  T.packed  u8   blocks: random bytes, some with special scales, then blocks that ggml_quantize_chunk made
  T.values  f32  the values that ggml unpacks from them
  T.hash    u64  for each run of HASH_BLOCKS blocks of pseudo-random bytes, a hash of the values' bits
The bytes behind T.hash are not stored: they are the little-endian words of splitmix64 seeded with the type's
number, so thousands of blocks (every entry of every codebook) cost a few bytes. The hash is
h = h * HASH_FACTOR + bits (mod 2**64) over the values in order, each NaN counted as 0x7fc00000.
F16 and BF16 have all 65536 patterns there, in order, in place of pseudo-random bytes.

Needs numpy and safetensors; --check-gguf compares with the gguf package as well.
"""

import argparse
import ctypes
import pathlib

import numpy as np
from safetensors.numpy import save_file

# name: (ggml number, byte offsets of its scales, how they are stored)
TYPES = {
    "F16": (1, [], None),
    "BF16": (30, [], None),
    "Q4_0": (2, [0], "f16"),
    "Q4_1": (3, [0, 2], "f16"),
    "Q5_0": (6, [0], "f16"),
    "Q5_1": (7, [0, 2], "f16"),
    "Q8_0": (8, [0], "f16"),
    "Q2_K": (10, [80, 82], "f16"),
    "Q3_K": (11, [108], "f16"),
    "Q4_K": (12, [0, 2], "f16"),
    "Q5_K": (13, [0, 2], "f16"),
    "Q6_K": (14, [208], "f16"),
    "Q8_K": (15, [0], "f32"),
    "IQ2_XXS": (16, [0], "f16"),
    "IQ2_XS": (17, [0], "f16"),
    "IQ3_XXS": (18, [0], "f16"),
    "IQ1_S": (19, [0], "f16"),
    "IQ4_NL": (20, [0], "f16"),
    "IQ3_S": (21, [0], "f16"),
    "IQ2_S": (22, [0], "f16"),
    "IQ4_XS": (23, [0], "f16"),
    "IQ1_M": (29, [48], "spread"),
    "TQ1_0": (34, [52], "f16"),
    "TQ2_0": (35, [64], "f16"),
    "MXFP4": (39, [0], "byte"),
    "NVFP4": (40, [0, 1, 2, 3], "byte"),
}
SPECIAL_F16 = [0x0000, 0x8000, 0x0001, 0x83FF, 0x7C00, 0xFC00, 0x7E01, 0x7BFF, 0xFBFF, 0x0400]
SPECIAL_BYTE = [0x00, 0x01, 0x02, 0x7E, 0x7F, 0x80, 0x81, 0xFD, 0xFE, 0xFF]
HASHED_VALUES = 1 << 19
HASH_BLOCKS = 64
HASH_FACTOR = 0x9E3779B97F4A7C15


class Traits(ctypes.Structure):
    TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block_len", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", TO_FLOAT),
        ("from_float", TO_FLOAT),
    ]


class Ggml:
    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [
            ctypes.c_int64
        ] * 3 + [ctypes.c_void_p]

    def traits(self, number):
        return self.lib.ggml_get_type_traits(number).contents

    def dequantize(self, number, packed):
        t = self.traits(number)
        packed = np.ascontiguousarray(packed, dtype=np.uint8)
        values = np.empty(packed.size // t.block_bytes * t.block_len, dtype=np.float32)
        # Q8_K has no to_float, only the function by its own name.
        to_float = t.to_float or Traits.TO_FLOAT(("dequantize_row_" + t.name.decode(), self.lib))
        to_float(packed.ctypes.data, values.ctypes.data, values.size)
        return values

    def quantize(self, number, values):
        t = self.traits(number)
        packed = np.zeros(values.size // t.block_len * t.block_bytes, dtype=np.uint8)
        if number == TYPES["Q8_K"][0]:  # the only type that ggml_quantize_chunk refuses
            self.lib.quantize_row_q8_K_ref(
                ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(packed.ctypes.data), ctypes.c_int64(values.size)
            )
        else:
            weights = np.ones(values.size, dtype=np.float32)
            self.lib.ggml_quantize_chunk(
                number, values.ctypes.data, packed.ctypes.data, 0, 1, values.size, weights.ctypes.data
            )
        return packed


def splitmix64(seed, count):
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def hash_runs(values, run):
    bits = values.view(np.uint32).astype(np.uint64)
    bits[np.isnan(values)] = 0x7FC00000
    bits = bits.reshape(-1, run)
    power = np.ones(run, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for i in range(run - 2, -1, -1):
            power[i] = power[i + 1] * np.uint64(HASH_FACTOR)
        return (bits * power).sum(axis=1, dtype=np.uint64)


def put_scale(block, at, kind, i):
    if kind == "f16":
        block[at : at + 2] = np.array([SPECIAL_F16[i]], dtype="<u2").view(np.uint8)
    elif kind == "f32":
        wide = np.array([SPECIAL_F16[i]], dtype="<u2").view(np.float16).astype("<f4")
        block[at : at + 4] = wide.view(np.uint8)
    elif kind == "byte":
        block[at] = SPECIAL_BYTE[i]
    elif kind == "spread":  # a nibble of the half at the top of each of four 16-bit words
        for nibble in range(4):
            high = at + 2 * nibble + 1
            block[high] = (block[high] & 15) | ((SPECIAL_F16[i] >> (4 * nibble) & 15) << 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("-o", default=str(pathlib.Path(__file__).with_name("dequantize.safetensors")))
    parser.add_argument("--check-gguf", action="store_true")
    args = parser.parse_args()
    ggml = Ggml(args.library)
    rng = np.random.default_rng(20)
    out = {}
    for name, (number, offsets, kind) in TYPES.items():
        t = ggml.traits(number)
        assert t.name.decode().lower() == name.lower(), (t.name, name)
        if kind is None:
            patterns = np.arange(65536, dtype="<u2").view(np.uint8)
            packed = patterns.reshape(-1, 2)[rng.integers(0, 65536, 256)].reshape(-1)
            hashed = patterns
        else:
            specials = 4 if t.block_len == 256 else 10
            blocks = rng.integers(0, 256, (specials + 2, t.block_bytes), dtype=np.uint8)
            start = rng.integers(0, 10)
            for b in range(specials):
                for k, at in enumerate(offsets):
                    put_scale(blocks[b], at, kind, (start + b + 3 * k) % 10)
            real = (rng.standard_normal(t.block_len * 3) * 0.04).astype(np.float32)
            packed = np.concatenate([blocks.reshape(-1), ggml.quantize(number, real)])
            count = HASHED_VALUES // t.block_len
            words = splitmix64(number, count * t.block_bytes // 8)
            hashed = words.astype("<u8").view(np.uint8)
        out[f"{name}.packed"] = packed
        out[f"{name}.values"] = ggml.dequantize(number, packed)
        run = HASH_BLOCKS * max(t.block_len, 32)
        values = ggml.dequantize(number, hashed)
        out[f"{name}.hash"] = hash_runs(values, run)
        if args.check_gguf:
            check(name, number, packed, out[f"{name}.values"])
            check(name, number, hashed, values)
    save_file(out, args.o)
    print(f"{args.o}: {pathlib.Path(args.o).stat().st_size} bytes, {len(TYPES)} types")


def check(name, number, packed, values):
    import gguf

    try:
        with np.errstate(all="ignore"):
            theirs = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(number)).astype(np.float32).reshape(-1)
    except NotImplementedError:
        print(f"{name}: gguf has no dequantization")
        return
    nan = np.isnan(values)
    same = (theirs.view(np.uint32) == values.view(np.uint32)) | (nan & np.isnan(theirs))
    print(f"{name}: {int((~same).sum())} of {same.size} values differ from gguf")


if __name__ == "__main__":
    main()
