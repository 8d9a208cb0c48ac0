"""RWKV 4, 6 and 7, each in the spelling of Hugging Face's files and in that of the authors' `.pth` files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, RwkvConfig, RwkvForCausalLM

import recurrences
import vocabularies
from harness import Case, Spelling, Tensors, Unfit, check_weights_show, complete, difference, longer, tensors_of

DIM, FEED, HEADS, LAYERS = 32, 64, 4, 2
WORLD_IDS = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)


def values(name: str, value: np.ndarray) -> np.ndarray | None:
    """Of the standard normal numbers drawn for a tensor, values that suit it; None where the common rule does."""
    last = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if name.endswith("bias"):
        return 0.3 * value
    if last in ("ln0", "pre_ln"):
        # Large beside any epsilon: the spellings of RWKV-7 do not agree on one but for heads of 64.
        return 2.0 + 0.6 * value
    if last in ("ln1", "ln2", "ln_out", "ln_x"):
        return 1.0 + 0.3 * value
    if last.startswith(("time_mix", "time_maa_", "x_")) and "_w1" not in last and "_w2" not in last:
        # How much of the token before is mixed in: between none and all.
        return 1 / (1 + np.exp(-value))
    if last == "time_decay":
        return -1.0 + 1.5 * value
    if last in ("time_first", "time_faaaa"):
        return 0.8 * value
    if last in ("k_k", "k_a"):
        return 0.9 + 0.3 * value
    if last == "r_k":
        return 0.5 * value
    if last in ("w0", "a0", "v0"):
        return 0.8 * value
    if last in ("w1", "a1", "v1", "g1", "w2", "a2", "v2", "g2", "time_decay_w1", "time_decay_w2", "time_maa_w1"):
        # Kept as [in, out], unlike the projections.
        return 1.5 * value / np.sqrt(value.shape[0])
    if last == "time_maa_w2":
        return 0.6 * value / np.sqrt(value.shape[1])
    if last in ("emb", "embeddings"):
        return value
    if "time" not in last and value.ndim == 2:
        return 1.2 * value / np.sqrt(value.shape[1])
    return None


def shapes6(vocab: int) -> dict[str, tuple[int, ...]]:
    row, mix, decay = (1, 1, DIM), 6, 10
    att = {f"time_maa_{c}": row for c in "xwkvrg"}
    att |= {"time_maa_w1": (DIM, 5 * mix), "time_maa_w2": (5, mix, DIM), "time_decay": row}
    att |= {"time_decay_w1": (DIM, decay), "time_decay_w2": (decay, DIM), "time_faaaa": (HEADS, DIM // HEADS)}
    att |= {f"{p}.weight": (DIM, DIM) for p in ("receptance", "key", "value", "gate", "output")}
    ffn = {"time_maa_k": row, "time_maa_r": row, "receptance.weight": (DIM, DIM)}
    return around(vocab, lambda layer: att, ffn)


def shapes7(vocab: int) -> dict[str, tuple[int, ...]]:
    row, ranks = (1, 1, DIM), {"w": 6, "a": 5, "v": 4, "g": 7}

    def att(layer: int) -> dict[str, tuple[int, ...]]:
        out = {f"x_{c}": row for c in "rwkvag"}
        for c, rank in ranks.items():
            # The first layer's v0, v1 and v2 are never used; the authors' files have them all the same.
            out |= {} if c == "g" else {f"{c}0": row}
            out |= {f"{c}1": (DIM, rank), f"{c}2": (rank, DIM)}
        out |= {"k_k": row, "k_a": row, "r_k": (HEADS, DIM // HEADS)}
        return out | {f"{p}.weight": (DIM, DIM) for p in ("receptance", "key", "value", "output")}

    return around(vocab, att, {"x_k": row})


def around(vocab: int, att: Callable[[int], dict], ffn: dict) -> dict[str, tuple[int, ...]]:
    """What both versions have around their own tensors."""
    norm = lambda name: {f"{name}.weight": (DIM,), f"{name}.bias": (DIM,)}
    out = {"emb.weight": (vocab, DIM), "head.weight": (vocab, DIM)} | norm("ln_out") | norm("blocks.0.ln0")
    for i in range(LAYERS):
        out |= norm(f"blocks.{i}.ln1") | norm(f"blocks.{i}.ln2") | norm(f"blocks.{i}.att.ln_x")
        out |= {f"blocks.{i}.att.{k}": s for k, s in att(i).items()}
        out |= {f"blocks.{i}.ffn.{k}": s for k, s in ffn.items()}
        out |= {f"blocks.{i}.ffn.key.weight": (FEED, DIM), f"blocks.{i}.ffn.value.weight": (DIM, FEED)}
    return out


@dataclass
class Recurrent:
    """A checkpoint of a version that transformers lacks; expected values come from `recurrences`."""

    seed: int
    shapes: Callable[[int], dict[str, tuple[int, ...]]]
    spell: Callable[[Tensors], Tensors]
    config: Callable[[int], dict]

    def weights(self, vocab: int, seed: int) -> Tensors:
        """By the authors' names, rounded to what the file holds."""
        stream = np.random.RandomState(seed)
        out = {}
        for name, shape in sorted(self.shapes(vocab).items()):
            value = values(name, stream.standard_normal(shape))
            assert value is not None, name
            out[name] = torch.from_numpy(value).to(torch.bfloat16)
        return out

    def build(self, folder: Path, seed: int | None = None) -> None:
        vocab = vocabularies.rwkv_world(folder, learned=20)
        weights = self.weights(vocab, self.seed if seed is None else seed)
        tensors = self.spell(weights)
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.config(vocab), indent=2, sort_keys=True) + "\n")
        GenerationConfig(**WORLD_IDS).save_pretrained(folder)
        exact = {k: v.double() for k, v in weights.items()}
        text, out = complete(lambda ids: recurrences.run(exact, ids), folder)
        out |= longer(lambda ids: recurrences.run(exact, ids), folder, out["tokens"])
        save_file(out, folder / "expected.safetensors", metadata={"text": text})
        tokens = out["tokens"].tolist()
        logits = lambda: recurrences.run(exact, tokens)["logits"]
        check_weights_show([(k, v) for k, v in exact.items() if ".0.att.v" not in k or "value" in k], logits)
        if (epsilon := self.config(vocab).get("norm_eps")) is not None:
            check_epsilon(exact, tokens, epsilon, out["logits"])


def check_epsilon(weights: Tensors, tokens: list[int], epsilon: float, logits: torch.Tensor) -> None:
    """fla takes head_dim * norm_eps within the heads, so norm_eps is larger here than the authors' epsilon of the
    other norms, which must not show."""
    kept = recurrences.EPSILON
    recurrences.EPSILON = epsilon
    try:
        off = difference(recurrences.run(weights, tokens)["logits"], logits)
    finally:
        recurrences.EPSILON = kept
    if off > 2e-5:
        raise Unfit(f"the epsilon of the norms shows: {off:.6f}")


def spell6(weights: Tensors) -> Tensors:
    """Hugging Face's names of RWKV-6."""

    def name(own: str) -> str:
        own = own.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.").replace("ln0", "pre_ln")
        return own if own.startswith("head") else "rwkv." + own.replace("emb.", "embeddings.")

    return {name(k): v for k, v in weights.items()}


FLA = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
FLA_LOW_RANK = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}


def spell7(weights: Tensors) -> Tensors:
    """fla's names and shapes of RWKV-7: low-rank pairs turned to [out, in], rows of one dimension."""
    out = {}
    for own, value in weights.items():
        parts = own.split(".")
        if parts[0] != "blocks":
            renamed = {"emb": "model.embeddings", "ln_out": "model.norm", "head": "lm_head"}
            out[f"{renamed[parts[0]]}.{parts[1]}"] = value
            continue
        parts[2] = {"att": "attn", "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}.get(parts[2], parts[2])
        last = parts[3]
        if parts[2] == "attn" and len(last) == 2 and last[0] in "wavg":
            if parts[1] == "0" and last[0] == "v":
                continue
            value = value.reshape(-1) if last[1] == "0" else value.T
            parts[3] = f"{last[0]}_lora.lora.{FLA_LOW_RANK[last[1]]}"
        elif parts[2] == "attn":
            parts[3] = FLA.get(last, last)
        if last in ("k_k", "k_a") or (parts[2] == "ffn" and last == "x_k"):
            value = value.reshape(-1)
        out[".".join(["model.layers", *parts[1:]])] = value
    return out


def authors(weights: Tensors, folder: Path) -> None:
    tensors = {k: v.clone() for k, v in weights.items()}
    torch.save(tensors, folder / "model.pth")


def authors4(source: Path, folder: Path) -> None:
    """RWKV-4 by the authors' names, from Hugging Face's."""

    def name(theirs: str) -> str:
        own = theirs.removeprefix("rwkv.").replace("embeddings.", "emb.").replace("pre_ln", "ln0")
        own = own.replace(".attention.", ".att.").replace(".feed_forward.", ".ffn.")
        for letter in ("key", "value", "receptance"):
            own = own.replace(f"time_mix_{letter}", f"time_mix_{letter[0]}")
        return own

    authors({name(k): v for k, v in tensors_of(source / "model.safetensors").items()}, folder)


def authors_of(case: Recurrent) -> Callable[[Path, Path], None]:
    def write(source: Path, folder: Path) -> None:
        authors(case.weights(json.loads((source / "config.json").read_text())["vocab_size"], case.seed), folder)

    return write


RWKV6 = Recurrent(
    seed=106,
    shapes=shapes6,
    spell=spell6,
    config=lambda vocab: {
        "architectures": ["Rwkv6ForCausalLM"],
        "attention_hidden_size": DIM,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "head_size": DIM // HEADS,
        "head_size_divisor": 8,
        "hidden_size": DIM,
        "intermediate_size": FEED,
        "layer_norm_epsilon": recurrences.EPSILON,
        "max_context_length": 4096,
        "model_type": "rwkv6",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "rescale_every": 6,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0",
        "use_cache": True,
        "vocab_size": vocab,
    },
)
RWKV7 = Recurrent(
    seed=108,
    shapes=shapes7,
    spell=spell7,
    config=lambda vocab: {
        "a_low_rank_dim": 5,
        "architectures": ["RWKV7ForCausalLM"],
        "attn": None,
        "attn_mode": "chunk",
        "bos_token_id": 0,
        "decay_low_rank_dim": 6,
        "eos_token_id": 0,
        "fuse_cross_entropy": True,
        "fuse_norm": False,
        "gate_low_rank_dim": 7,
        "head_dim": DIM // HEADS,
        "hidden_act": "sqrelu",
        "hidden_ratio": FEED / DIM,
        "hidden_size": DIM,
        "initializer_range": 0.006,
        "intermediate_size": FEED,
        "max_position_embeddings": 2048,
        "model_type": "rwkv7",
        "norm_bias": True,
        "norm_eps": recurrences.HEAD_EPSILON / (DIM // HEADS),
        "norm_first": True,
        "num_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.48.0",
        "use_cache": True,
        "v_low_rank_dim": 4,
        "value_dim": [DIM] * LAYERS,
        "vocab_size": vocab,
    },
)

CASES = {
    "rwkv4": Case(
        seed=105,
        model=RwkvForCausalLM,
        config=lambda vocab: RwkvConfig(
            vocab_size=vocab,
            hidden_size=DIM,
            intermediate_size=FEED,
            num_hidden_layers=LAYERS,
            bos_token_id=0,
            eos_token_id=0,
        ),
        vocabulary=vocabularies.neox,
        generation=dict(bos_token_id=0, eos_token_id=0),
        dtype=torch.bfloat16,
        special=values,
    ),
    "rwkv4-pth": Spelling("rwkv4", authors4),
    "rwkv6": RWKV6,
    "rwkv6-pth": Spelling("rwkv6", authors_of(RWKV6)),
    "rwkv7": RWKV7,
    "rwkv7-pth": Spelling("rwkv7", authors_of(RWKV7)),
}
