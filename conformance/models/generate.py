#!/usr/bin/env python3
"""Writes the tiny checkpoints of this folder and what transformers computes with them.

    pip install -r requirements.txt
    python generate.py            # rewrite every folder
    python generate.py --check    # regenerate elsewhere and compare with what is committed

README.md describes the layout. Weights come from a fixed random stream, so the
weight files are the same bytes on any machine; expected values are computed in
f32 on one thread and may differ in the last bits between CPUs.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import numpy as np
import sentencepiece as spm
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from transformers.utils import logging

import vocabularies

HERE = Path(__file__).resolve().parent
N_TOKENS = 40
N_GREEDY = 16
TEXT = (
    "She said: \"It's 1998, and they'll reap 2021 grains in the dry soil\"; "
    "das Korn ist klein, naïve 谷! We don't know the weight of the harvest, but it's said that the seed "
    "of the universe was a single grain."
)


@dataclass
class Case:
    """One checkpoint: `config(vocab_size)` gives the transformers configuration."""

    seed: int
    model: Any
    config: Callable[[int], Any]
    vocabulary: Callable[[Path], int]
    generation: dict
    dtype: torch.dtype = torch.float32
    # "safetensors", "sharded" or "bin"
    container: str = "safetensors"
    # Ids that the model has beyond those of the tokenizer, as in Qwen2.
    extra_ids: int = 0
    # The same configuration as transformers 4 spelled it: keys to drop, keys to add.
    old_drop: list[str] = field(default_factory=list)
    old_add: dict = field(default_factory=dict)
    # Where those keys are: "" for the top, or the name of a nested configuration.
    old_under: str = ""


def llama(**options) -> Callable[[int], LlamaConfig]:
    base = dict(hidden_size=32, max_position_embeddings=256, rms_norm_eps=1e-5)
    return lambda vocab: LlamaConfig(vocab_size=vocab, **(base | options))


def qwen2(**options) -> Callable[[int], Qwen2Config]:
    base = dict(hidden_size=32, max_position_embeddings=256, bos_token_id=None)
    return lambda vocab: Qwen2Config(vocab_size=vocab, **(base | options))


GEMMA_BASE = dict(
    hidden_size=32,
    max_position_embeddings=256,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
    tie_word_embeddings=True,
)


def gemma3(**options) -> Callable[[int], Gemma3TextConfig]:
    return lambda vocab: Gemma3TextConfig(vocab_size=vocab, **(GEMMA_BASE | options))


def gemma3_vision(**options) -> Callable[[int], Gemma3Config]:
    """The form of the larger Gemma 3 files: text under text_config, a vision tower beside it."""

    def config(vocab: int) -> Gemma3Config:
        return Gemma3Config(
            text_config=Gemma3TextConfig(vocab_size=vocab, **(GEMMA_BASE | options)),
            vision_config=dict(
                model_type="siglip_vision_model",
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=16,
                patch_size=8,
                vision_use_head=False,
            ),
            mm_tokens_per_image=4,
            boi_token_index=vocab - 3,
            eoi_token_index=vocab - 2,
            image_token_index=vocab - 1,
            eos_token_id=[1, 5],
        )

    return config


LLAMA3_IDS = dict(bos_token_id=284, eos_token_id=[285, 288])
LLAMA2_IDS = dict(bos_token_id=1, eos_token_id=2)
QWEN2_IDS = dict(bos_token_id=284, eos_token_id=[286, 284], pad_token_id=284)
GEMMA_IDS = dict(bos_token_id=2, eos_token_id=[1, 5], pad_token_id=0)

CASES: dict[str, Case] = {
    "llama-gqa": Case(
        seed=11,
        model=LlamaForCausalLM,
        config=llama(
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            **LLAMA3_IDS,
        ),
        vocabulary=vocabularies.llama3,
        generation=LLAMA3_IDS | dict(do_sample=True, temperature=0.6, top_p=0.9),
        dtype=torch.float16,
    ),
    "llama-rope3": Case(
        seed=12,
        model=LlamaForCausalLM,
        config=llama(
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=24,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            **LLAMA3_IDS,
        ),
        vocabulary=vocabularies.llama3,
        generation=LLAMA3_IDS,
        old_drop=["rope_parameters"],
        old_add={
            "rope_theta": 500.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama-linear": Case(
        seed=13,
        model=LlamaForCausalLM,
        config=llama(
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            **LLAMA2_IDS,
        ),
        vocabulary=vocabularies.llama2,
        generation=LLAMA2_IDS,
        container="sharded",
        old_drop=["rope_parameters", "head_dim"],
        old_add={"rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "qwen2-tied": Case(
        seed=21,
        model=Qwen2ForCausalLM,
        config=qwen2(
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            eos_token_id=286,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        vocabulary=vocabularies.qwen2,
        generation=QWEN2_IDS | dict(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1),
        extra_ids=17,
        old_drop=["rope_parameters", "layer_types"],
        old_add={"rope_theta": 1000000.0, "sliding_window": 4096},
    ),
    "qwen2-window": Case(
        seed=22,
        model=Qwen2ForCausalLM,
        config=qwen2(
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=False,
            eos_token_id=286,
            use_sliding_window=True,
            sliding_window=8,
            max_window_layers=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        vocabulary=vocabularies.qwen2,
        generation=QWEN2_IDS,
        dtype=torch.bfloat16,
        container="bin",
        old_drop=["rope_parameters", "layer_types"],
        old_add={"rope_theta": 10000.0},
    ),
    "gemma3-window": Case(
        seed=31,
        model=Gemma3ForCausalLM,
        config=gemma3(
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=24,
            query_pre_attn_scalar=16,
            sliding_window=8,
            sliding_window_pattern=3,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        ),
        vocabulary=vocabularies.gemma,
        generation=GEMMA_IDS | dict(do_sample=True, top_k=64, top_p=0.95),
        dtype=torch.bfloat16,
        old_drop=["rope_parameters", "layer_types"],
        old_add={
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 100.0,
            "rope_scaling": None,
            "sliding_window_pattern": 3,
        },
    ),
    "gemma3-linear": Case(
        seed=32,
        model=Gemma3ForCausalLM,
        config=gemma3(
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
        vocabulary=lambda folder: vocabularies.gemma(folder, keep_model=True),
        generation=GEMMA_IDS | dict(cache_implementation="hybrid"),
        dtype=torch.bfloat16,
        old_drop=["rope_parameters", "layer_types"],
        old_add={
            "rope_theta": 1000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window_pattern": 2,
        },
    ),
    "gemma3-vision": Case(
        seed=33,
        model=Gemma3ForConditionalGeneration,
        config=gemma3_vision(
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=256,
            sliding_window=8,
            sliding_window_pattern=3,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
        vocabulary=vocabularies.gemma,
        generation=GEMMA_IDS,
        dtype=torch.bfloat16,
        extra_ids=3,
        # The published configurations name only what differs from the defaults of the class.
        old_under="text_config",
        old_drop=[
            "rope_parameters",
            "layer_types",
            "query_pre_attn_scalar",
            "rms_norm_eps",
            "hidden_activation",
            "tie_word_embeddings",
            "attention_bias",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
        ],
        old_add={"sliding_window_pattern": 3, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    ),
}


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that a wrong bias, norm, scale or rotation shows in the
    output. RandomState's stream is frozen by numpy's policy, unlike torch's."""
    stream = np.random.RandomState(seed)
    for name, parameter in sorted(model.named_parameters()):
        value = stream.standard_normal(tuple(parameter.shape))
        if name.endswith("bias"):
            value *= 0.3
        elif "norm" in name:
            # Gemma multiplies by 1 + weight. Query and key norms are kept above 1:
            # they alone decide how far from uniform the attention is.
            center = 0.0 if "gemma" in type(model).__name__.lower() else 1.0
            value = center + 0.3 * value + (0.5 if "q_norm" in name or "k_norm" in name else 0.0)
        elif "embed" in name:
            # Small beside what the layers add, or a tied model would only repeat its input.
            value *= 0.1 if "gemma" in type(model).__name__.lower() else 0.4
        else:
            gain = 1.6 if "q_proj" in name or "k_proj" in name else 1.2
            value *= gain / np.sqrt(np.prod(parameter.shape[1:]))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(value).to(torch.float32))


def write_weights(case: Case, model: torch.nn.Module, folder: Path) -> None:
    if case.container == "bin":
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        return
    shard = "40KB" if case.container == "sharded" else "1GB"
    model.save_pretrained(folder, max_shard_size=shard)


def write_configs(case: Case, folder: Path) -> None:
    GenerationConfig(**case.generation).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.setdefault("architectures", [case.model.__name__])
    for level in (config, config.get("text_config", {})):
        # Written because the pattern was given by number; the published files have layer_types alone.
        for key in ("_sliding_window_pattern", "sliding_window_pattern"):
            level.pop(key, None)
    config.setdefault("dtype", str(case.dtype).removeprefix("torch."))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if case.old_add:
        old = {k: v for k, v in config.items() if k != "dtype"} | {"transformers_version": "4.50.0"}
        level = old[case.old_under] if case.old_under else old
        for key in case.old_drop:
            del level[key]
        level.update(case.old_add)
        old["torch_dtype"] = str(case.dtype).removeprefix("torch.")
        (folder / "config.old.json").write_text(json.dumps(old, indent=2, sort_keys=True) + "\n")


def encode(folder: Path, text: str) -> list[int]:
    if (folder / "tokenizer.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    sp = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [sp.bos_id()] + sp.encode(text)


def prompt(folder: Path) -> tuple[str, list[int]]:
    """The longest prefix of TEXT that is at most N_TOKENS long."""
    for end in range(len(TEXT), 0, -1):
        ids = encode(folder, TEXT[:end])
        if len(ids) <= N_TOKENS:
            return TEXT[:end], ids
    raise ValueError("no prefix fits")


def text_model(model: torch.nn.Module) -> torch.nn.Module:
    inner = model.model
    return getattr(inner, "language_model", inner)


def load(case: Case, folder: Path) -> torch.nn.Module:
    model = case.model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def forward(model: torch.nn.Module, tokens: list[int]) -> dict[str, torch.Tensor]:
    """Logits, and by hooks what enters layer 0, leaves each layer and leaves the final norm."""
    seen: dict[str, torch.Tensor] = {}
    core = text_model(model)

    def keep(name: str):
        def hook(_module, _inputs, output):
            value = output[0] if isinstance(output, tuple) else output
            seen[name] = value.detach().reshape(len(tokens), -1).clone()

        return hook

    handles = [core.embed_tokens.register_forward_hook(keep("embedding"))]
    handles += [layer.register_forward_hook(keep(f"layer.{i}")) for i, layer in enumerate(core.layers)]
    handles += [core.norm.register_forward_hook(keep("final_norm"))]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
    for handle in handles:
        handle.remove()
    seen["logits"] = logits[0].clone()
    return seen


def greedy(model: torch.nn.Module, tokens: list[int]) -> dict[str, torch.Tensor]:
    """Greedy continuation without a cache, with how far the best logit leads the second."""
    ids, margins = list(tokens), []
    for _ in range(N_GREEDY):
        best = forward(model, ids)["logits"][-1].topk(2)
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return {"greedy": torch.tensor(ids[len(tokens) :]), "greedy_margin": torch.tensor(margins)}


def expectations(case: Case, folder: Path) -> None:
    text, tokens = prompt(folder)
    model = load(case, folder)
    single = [tokens[len(tokens) // 2]]
    out = {"tokens": torch.tensor(tokens)} | forward(model, tokens) | greedy(model, tokens)
    out |= {"single.tokens": torch.tensor(single), "single.logits": forward(model, single)["logits"]}
    save_file(out, folder / "expected.safetensors", metadata={"text": text})
    if case.old_add:
        check_old_spelling(case, folder, tokens, out["logits"])


def check_old_spelling(case: Case, folder: Path, tokens: list[int], logits: torch.Tensor) -> None:
    """config.old.json must mean the same model to transformers."""
    with tempfile.TemporaryDirectory() as temp:
        copy = Path(temp) / "old"
        shutil.copytree(folder, copy)
        (copy / "config.old.json").replace(copy / "config.json")
        assert AutoConfig.from_pretrained(copy).model_type
        again = forward(load(case, copy), tokens)["logits"]
    if not torch.equal(again, logits):
        raise SystemExit(f"{folder.name}: config.old.json gives other logits")


def build(name: str, root: Path) -> None:
    case = CASES[name]
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    vocab_size = case.vocabulary(folder) + case.extra_ids
    config = case.config(vocab_size)
    config._attn_implementation = "eager"
    model = case.model(config)
    randomize(model, case.seed)
    model.to(case.dtype)
    write_weights(case, model, folder)
    write_configs(case, folder)
    expectations(case, folder)


def same(committed: Path, fresh: Path) -> bool:
    """Expected values within 1e-5 of the largest magnitude; every other file the same bytes."""
    if committed.name != "expected.safetensors":
        return committed.read_bytes() == fresh.read_bytes()
    a, b = load_file(committed), load_file(fresh)
    if a.keys() != b.keys():
        return False
    for key, value in a.items():
        tolerance = 1e-5 * float(value.abs().max()) if value.is_floating_point() else 0.0
        if value.shape != b[key].shape or float((value - b[key]).abs().max()) > tolerance:
            return False
    return True


def check(names: list[str]) -> int:
    bad = 0
    with tempfile.TemporaryDirectory() as temp:
        for name in names:
            build(name, Path(temp))
            files = {p.name for p in (HERE / name).iterdir()} | {p.name for p in (Path(temp) / name).iterdir()}
            for file in sorted(files):
                pair = HERE / name / file, Path(temp) / name / file
                if not (pair[0].exists() and pair[1].exists() and same(*pair)):
                    print(f"differs: {name}/{file}")
                    bad += 1
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="cases (default: all)")
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    names = args.names or list(CASES)
    if args.check:
        return check(names)
    for name in names:
        build(name, HERE)
        size = sum(p.stat().st_size for p in (HERE / name).iterdir())
        print(f"{name}: {size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
