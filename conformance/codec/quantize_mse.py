#!/usr/bin/env python3
"""Makes sample.safetensors and ggml_mse.json: real weights, and the error of ggml's quantizers on them.

    quantize_mse.py PATH/libggml-base.so MODELS             the two files beside this script
    quantize_mse.py PATH/libggml-base.so MODELS --table     ggml's mean squared error on all of MiniLM, as JSON

MODELS is a folder with all-MiniLM-L6-v2/model.safetensors and SmolLM2-135M-Instruct.Q4_1.gguf.

sample.safetensors holds rows of 256 values, f16: `minilm` from every matrix of MiniLM, `smollm2` from matrices of
SmolLM2 (which were 4-bit before), `importance` f32 [256].
ggml_mse.json: {source: {type: [sum of squared errors, sum with importance-weighted squares and importance given]}}.

Needs numpy, safetensors and gguf.
"""

import argparse
import ctypes
import json
import pathlib

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

# name: (ggml number, values in a block, bytes of a block)
TYPES = {
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136),
    "MXFP4": (39, 32, 17),
}
ROW = 256
SAMPLE_ROWS = 128
FLOATS = ctypes.POINTER(ctypes.c_float)


class Ggml:
    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,
            FLOATS,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            FLOATS,
        ]

    def round_trip(self, name, x, importance=None):
        """Rows of 256 values, quantized and unpacked by ggml."""
        number, length, size = TYPES[name]
        packed = np.zeros(x.size // length * size, np.uint8)
        weights = None if importance is None else importance.ctypes.data_as(FLOATS)
        written = self.lib.ggml_quantize_chunk(
            number, x.ctypes.data_as(FLOATS), packed.ctypes.data, 0, x.size // ROW, ROW, weights
        )
        assert written == packed.size, name
        lower = name.lower().replace("_k", "_K")
        unpack = getattr(self.lib, f"dequantize_row_{lower}")
        unpack.argtypes = [ctypes.c_void_p, FLOATS, ctypes.c_int64]
        unpack.restype = None
        out = np.empty_like(x)
        unpack(packed.ctypes.data, out.ctypes.data_as(FLOATS), x.size)
        return out

    def errors(self, name, x, importance):
        plain = (x.astype(np.float64) - self.round_trip(name, x)) ** 2
        weighted = (x.astype(np.float64) - self.round_trip(name, x, importance)) ** 2 * importance
        return [plain.sum(), weighted.sum()]


def minilm(models):
    """The matrices of MiniLM, each flat in rows of 256: its own rows of 384 are no multiple of that."""
    with safe_open(models / "all-MiniLM-L6-v2/model.safetensors", "numpy") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            if tensor.ndim == 2 and tensor.dtype == np.float32 and tensor.size % ROW == 0:
                yield tensor.reshape(-1, ROW)


def smollm2(models):
    import gguf

    for tensor in gguf.GGUFReader(models / "SmolLM2-135M-Instruct.Q4_1.gguf").tensors:
        if len(tensor.shape) == 2:
            rows = gguf.dequantize(tensor.data[:256], tensor.tensor_type)
            yield rows.reshape(-1)[: rows.size // ROW * ROW].reshape(-1, ROW)


def sample(matrices, rng):
    """SAMPLE_ROWS rows in f16, about equally many of each matrix."""
    matrices = list(matrices)
    rows = [m[rng.integers(len(m))] for m in (matrices * SAMPLE_ROWS)[:SAMPLE_ROWS]]
    return np.stack(rows).astype(np.float16)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    ggml = Ggml(args.library)
    if args.table:
        x = np.ascontiguousarray(np.concatenate(list(minilm(args.models))))
        mse = {name: float(((x.astype(np.float64) - ggml.round_trip(name, x)) ** 2).mean()) for name in TYPES}
        print(json.dumps(mse, indent=1))
        return
    rng = np.random.default_rng(20)
    importance = (rng.standard_normal(ROW) ** 2 * np.exp(rng.standard_normal(ROW))).astype(np.float32)
    sources = {"minilm": sample(minilm(args.models), rng), "smollm2": sample(smollm2(args.models), rng)}
    here = pathlib.Path(__file__).parent
    save_file(sources | {"importance": importance}, here / "sample.safetensors")
    errors = {
        source: {name: ggml.errors(name, x.astype(np.float32), importance) for name in TYPES}
        for source, x in sources.items()
    }
    (here / "ggml_mse.json").write_text(json.dumps(errors, indent=1) + "\n")


main()
