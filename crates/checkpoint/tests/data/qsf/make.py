"""Makes source.crc and source.logits of this folder: python make.py FOLDER (no packages needed).

FOLDER has the checkpoint (model.safetensors in F32, config.json) that the format's first converter made the t_*.qsf
files from. source.crc has the CRC-32 of every weight rounded to half precision, under the names that fonio gives the
tensors of a QSF file. source.logits has the logits of the tokens TOKENS after each of them, computed here from the
weights in double precision: a row of little-endian f32 for each token.
"""
import json
import math
import pathlib
import struct
import sys
import zlib

TOKENS = [64, 12, 200, 7, 299, 33, 64, 150]
NAMES = {
    "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "embedding", "model.norm": "final_norm",
    "lm_head": "head",
}
here = pathlib.Path(__file__).parent
source = pathlib.Path(sys.argv[1])
config = json.loads((source / "config.json").read_text())
raw = (source / "model.safetensors").read_bytes()
size = struct.unpack_from("<Q", raw)[0]
weights = {}
for name, entry in json.loads(raw[8:8 + size]).items():
    if name == "__metadata__":
        continue
    assert entry["dtype"] == "F32"
    begin, end = entry["data_offsets"]
    values = struct.unpack_from(f"<{(end - begin) // 4}f", raw, 8 + size + begin)
    weights[name.removesuffix(".weight")] = values


def short(name):
    for long, to in NAMES.items():
        if name == long:
            return to
        if name.endswith("." + long):
            return f"layers.{name.split('.')[2]}.{to}"
    raise KeyError(name)


lines = sorted(f"{short(name)}.weight {zlib.crc32(struct.pack(f'<{len(v)}e', *v)):08x}" for name, v in weights.items())
(here / "source.crc").write_text("\n".join(lines) + "\n")

dim, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
head = dim // heads
half = head // 2


def times(name, x):
    w = weights[name]
    n = len(x)
    return [sum(w[r * n + i] * x[i] for i in range(n)) for r in range(len(w) // n)]


def norm(name, x):
    scale = 1 / math.sqrt(sum(v * v for v in x) / len(x) + config["rms_norm_eps"])
    return [v * scale * w for v, w in zip(x, weights[name])]


def rotate(x, position):
    out = list(x)
    for first in range(0, len(x), head):
        for i in range(half):
            angle = position * config["rope_theta"] ** (-2 * i / head)
            a, b = x[first + i], x[first + half + i]
            out[first + i] = a * math.cos(angle) - b * math.sin(angle)
            out[first + half + i] = b * math.cos(angle) + a * math.sin(angle)
    return out


caches = [([], []) for _ in range(config["num_hidden_layers"])]
rows = []
for position, token in enumerate(TOKENS):
    x = list(weights["model.embed_tokens"][token * dim:(token + 1) * dim])
    for layer, (keys, values) in enumerate(caches):
        at = f"model.layers.{layer}."
        h = norm(at + "input_layernorm", x)
        q = rotate(times(at + "self_attn.q_proj", h), position)
        keys.append(rotate(times(at + "self_attn.k_proj", h), position))
        values.append(times(at + "self_attn.v_proj", h))
        mixed = []
        for n in range(heads):
            from_ = n // (heads // kv) * head
            scores = [sum(q[n * head + i] * k[from_ + i] for i in range(head)) / math.sqrt(head) for k in keys]
            most = max(scores)
            parts = [math.exp(s - most) for s in scores]
            mixed += [sum(p * v[from_ + i] for p, v in zip(parts, values)) / sum(parts) for i in range(head)]
        x = [a + b for a, b in zip(x, times(at + "self_attn.o_proj", mixed))]
        h = norm(at + "post_attention_layernorm", x)
        gate, up = times(at + "mlp.gate_proj", h), times(at + "mlp.up_proj", h)
        x = [a + b for a, b in zip(x, times(at + "mlp.down_proj", [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up)]))]
    rows.append(times("lm_head", norm("model.norm", x)))
(here / "source.logits").write_bytes(b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows))
