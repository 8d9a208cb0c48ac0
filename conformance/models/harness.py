"""What every case has in common: random weights, the files of a folder, and what transformers computes with them.

A case is anything with a `seed` and a `build(folder, seed)`: `Case` for the classes of transformers, `Spelling` for
other words of one, `Recurrent` in `cases/rwkv.py`.
Expected values are computed in f32 on one thread and may differ in the last bits between CPUs; all else is the same
bytes on any machine.
"""

import json
import re
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

import numpy as np
import sentencepiece as spm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, GenerationConfig

import vocabularies

# The whole folder is to stay small, and logits are most of what is expected.
N_TOKENS = 24
N_GREEDY = 16
# A longer text, of which only the last logits are kept.
N_LONG = 40
N_LONG_KEPT = 4
TEXT = (
    "She said: \"It's 1998, and they'll reap 2021 grains in the dry soil\"; "
    "das Korn ist klein, naïve 谷! We don't know the weight of the harvest, but it's said that the seed "
    "of the universe was a single grain."
)

# A reader that computes in another order must come to the same ids and the same experts.
GREEDY_MARGIN = 0.002
ROUTING_MARGIN = 0.001
# By how much of the largest logit a weight or a setting has to change some logit to count as tested.
SHOWS = 0.002

NORM = re.compile(r"norm|(^|[._])ln|_ln")

Tensors = dict[str, torch.Tensor]


class Unfit(Exception):
    """The weights of this seed leave something undecided or untested; another seed is needed."""


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
    # What the family's weights need beyond `randomize`: (name, standard normal values) -> values, or None.
    special: Callable[[str, np.ndarray], np.ndarray | None] = lambda name, value: None
    # From the tensors as save_pretrained writes them to the tensors of the published files.
    publish: Callable[[Tensors], Tensors] | None = None
    # Where those are packed: from what is on disk back to the tensors that transformers loads.
    unpack: Callable[[Tensors], Tensors] | None = None
    # Which of those to keep among what is expected, as `weight.<name>`.
    show: list[str] = field(default_factory=list)
    # Settings that must show: configurations with one of these changes must give other logits.
    matters: list[dict] = field(default_factory=list)
    # How far the choice of experts is from another: (router module, its output) -> one margin per token.
    routing: Callable[[Any, Any], torch.Tensor] | None = None
    # Keys for config.json that the published files have and save_pretrained drops.
    config_add: dict = field(default_factory=dict)
    # Whether each weight must show; the eight oldest cases were chosen before there was such a rule.
    strict: bool = True
    tokens: int = N_TOKENS

    def build(self, folder: Path, seed: int | None = None) -> None:
        vocab_size = self.vocabulary(folder) + self.extra_ids
        config = self.config(vocab_size)
        config._attn_implementation = "eager"
        model = self.model(config)
        randomize(model, self.seed if seed is None else seed, self.special)
        model.to(self.dtype)
        write_weights(self, model, folder)
        write_configs(self, folder)
        expectations(self, folder)


@dataclass
class Spelling:
    """The weights of another case in other words: `write(source, folder)`. What to expect, and the tokenizer where
    there is none, are in the folder that `expected.from` names."""

    of: str
    write: Callable[[Path, Path], None]
    seed: int = 0

    def build(self, folder: Path, seed: int | None = None) -> None:
        from cases import CASES

        with tempfile.TemporaryDirectory() as temp:
            CASES[self.of].build(Path(temp))
            self.write(Path(temp), folder)
        (folder / "expected.from").write_text(self.of + "\n")


def learned(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    tensors = sorted(model.named_parameters())
    # The one buffer that is learned rather than computed (DeepSeek-V3's).
    return tensors + [(n, b) for n, b in sorted(model.named_buffers()) if n.endswith("e_score_correction_bias")]


def randomize(model: torch.nn.Module, seed: int, special=lambda name, value: None) -> None:
    """Weights large enough that a wrong bias, norm, scale or rotation shows in the
    output. RandomState's stream is frozen by numpy's policy, unlike torch's."""
    stream = np.random.RandomState(seed)
    gemma = "gemma" in type(model).__name__.lower()
    for name, parameter in learned(model):
        value = stream.standard_normal(tuple(parameter.shape))
        chosen = special(name, value)
        if chosen is not None:
            value = chosen
        elif name.endswith("bias"):
            value *= 0.3
        elif "norm" in name:
            # Gemma multiplies by 1 + weight. Query and key norms are kept above 1:
            # they alone decide how far from uniform the attention is.
            center = 0.0 if gemma else 1.0
            value = center + 0.3 * value + (0.5 if "q_norm" in name or "k_norm" in name else 0.0)
        elif "embed" in name:
            # Small beside what the layers add, or a tied model would only repeat its input.
            value *= 0.1 if gemma else 0.4
        elif name.endswith(("mlp.gate.weight", "router.weight")):
            # Routers: decisive, so that few tokens are near a tie.
            value *= 4.0 / np.sqrt(value.shape[-1])
        elif value.ndim == 3:
            # Experts, stacked.
            value *= 1.6 / np.sqrt(value.shape[-1])
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
    if case.publish:
        path = folder / "model.safetensors"
        tensors = case.publish(load_file(path))
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


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
    config.update(case.config_add)
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
    if (folder / vocabularies.RWKV_FILE).exists():
        return vocabularies.rwkv_encode(folder / vocabularies.RWKV_FILE, text)
    sp = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [sp.bos_id()] + sp.encode(text)


def prompt(folder: Path, tokens: int) -> tuple[str, list[int]]:
    """The longest prefix of TEXT that is at most so many tokens long."""
    for end in range(len(TEXT), 0, -1):
        ids = encode(folder, TEXT[:end])
        if len(ids) <= tokens:
            return TEXT[:end], ids
    raise ValueError("no prefix fits")


def layers_and_norm(model: torch.nn.Module) -> tuple[Any, torch.nn.Module]:
    inner = model.base_model
    inner = getattr(inner, "language_model", inner)
    places = [("layers", norm) for norm in ("norm", "norm_f", "final_layernorm")]
    for layers, norm in places + [("h", "ln_f"), ("blocks", "ln_out")]:
        if hasattr(inner, layers) and hasattr(inner, norm):
            return getattr(inner, layers), getattr(inner, norm)
    raise ValueError(f"the layers of {type(inner).__name__} are not where they are looked for")


def load(case: Case, folder: Path, **options) -> torch.nn.Module:
    if case.routing:
        options["experts_implementation"] = "eager"
    if case.unpack:
        with tempfile.TemporaryDirectory() as temp:
            plain = Path(temp)
            config = json.loads((folder / "config.json").read_text())
            del config["quantization_config"]
            (plain / "config.json").write_text(json.dumps(config))
            tensors = case.unpack(load_file(folder / "model.safetensors"))
            save_file({k: v.contiguous() for k, v in tensors.items()}, plain / "model.safetensors", {"format": "pt"})
            if "config" in options:
                options["config"].__dict__.pop("quantization_config", None)
            return load(replace(case, unpack=None), plain, **options)
    model = case.model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options)
    return model.eval()


def forward(model: torch.nn.Module, tokens: list[int]) -> Tensors:
    """Logits, and by hooks what enters layer 0, leaves each layer and leaves the final norm."""
    seen: Tensors = {}
    layers, norm = layers_and_norm(model)

    def value(x) -> torch.Tensor:
        x = x[0] if isinstance(x, tuple) else x
        return x.detach().reshape(len(tokens), -1).clone()

    def keep(name: str):
        return lambda _module, _inputs, output: seen.__setitem__(name, value(output))

    if hasattr(layers[0], "pre_ln"):
        # RWKV norms the embedding within its first layer.
        handles = [layers[0].pre_ln.register_forward_hook(keep("embedding"))]
    else:
        before = lambda _module, inputs: seen.__setitem__("embedding", value(inputs))
        handles = [layers[0].register_forward_pre_hook(before)]
    handles += [layer.register_forward_hook(keep(f"layer.{i}")) for i, layer in enumerate(layers)]
    handles += [norm.register_forward_hook(keep("final_norm"))]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
    for handle in handles:
        handle.remove()
    seen["logits"] = logits[0].clone()
    return seen


def greedy(logits_of: Callable[[list[int]], torch.Tensor], tokens: list[int]) -> Tensors:
    """Greedy continuation without a cache, with how far the best logit leads the second."""
    ids, margins = list(tokens), []
    for _ in range(N_GREEDY):
        best = logits_of(ids)[-1].topk(2)
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return {"greedy": torch.tensor(ids[len(tokens) :]), "greedy_margin": torch.tensor(margins)}


def complete(run: Callable[[list[int]], Tensors], folder: Path, tokens: int = N_TOKENS) -> tuple[str, Tensors]:
    """All expected values from `run`, which gives those of one sequence."""
    text, tokens = prompt(folder, tokens)
    single = [tokens[len(tokens) // 2]]
    out = {"tokens": torch.tensor(tokens)} | run(tokens) | greedy(lambda ids: run(ids)["logits"], tokens)
    out |= {"single.tokens": torch.tensor(single), "single.logits": run(single)["logits"]}
    if not all(torch.isfinite(v).all() for v in out.values()):
        raise Unfit("not finite")
    if (margin := float(out["greedy_margin"].min())) < GREEDY_MARGIN:
        raise Unfit(f"greedy margin {margin:.5f}")
    return text, out


def longer(run: Callable[[list[int]], Tensors], folder: Path, tokens: torch.Tensor) -> Tensors:
    """The last logits of a text of N_LONG tokens, where `tokens` are fewer."""
    ids = prompt(folder, N_LONG)[1]
    if len(ids) <= len(tokens):
        return {}
    return {"long.tokens": torch.tensor(ids), "long.logits": run(ids)["logits"][-N_LONG_KEPT:].clone()}


def expectations(case: Case, folder: Path) -> None:
    model = load(case, folder)
    margins = watch_routing(case, model)
    text, out = complete(lambda ids: forward(model, ids), folder, case.tokens)
    if case.routing and min(margins) < ROUTING_MARGIN:
        raise Unfit(f"routing margin {min(margins):.5f}")
    margins.clear()
    out |= longer(lambda ids: forward(model, ids), folder, out["tokens"])
    # No near tie: one that is undecided by rounding, not by the little that margins ask for elsewhere.
    if case.routing and margins and min(margins) < ROUTING_MARGIN / 50:
        raise Unfit(f"routing margin {min(margins):.6f} in the longer text")
    weights = dict(model.named_parameters())
    out |= {f"weight.{name}": weights[name].detach().clone() for name in case.show}
    save_file(out, folder / "expected.safetensors", metadata={"text": text})
    tokens = out["tokens"].tolist()
    if case.old_add:
        check_old_spelling(case, folder, tokens, out["logits"])
    if case.strict:
        check_settings_show(case, folder, tokens, out["logits"])
        check_weights_show(learned(model), lambda: forward(model, tokens)["logits"])


def watch_routing(case: Case, model: torch.nn.Module) -> list[float]:
    """A list that grows by the smallest margin of each routing decision from now on."""
    margins: list[float] = []
    if case.routing:
        routers = [m for m in model.modules() if type(m).__name__.lower().endswith("router")]
        assert routers, "no router found"
        for router in routers:
            router.register_forward_hook(lambda m, _inputs, out: margins.append(float(case.routing(m, out).min())))
    return margins


def lead(scores: torch.Tensor, k: int) -> torch.Tensor:
    """By how much the last of the k best leads the next, per row."""
    best = scores.topk(k + 1, dim=-1).values
    return best[..., k - 1] - best[..., k]


def by_logits(module, output) -> torch.Tensor:
    """The margin of routers that take the best logits (or what grows with them) and return logits first."""
    return lead(output[0], module.top_k)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


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


def check_settings_show(case: Case, folder: Path, tokens: list[int], logits: torch.Tensor) -> None:
    for change in case.matters:
        config = AutoConfig.from_pretrained(folder)
        for key, value in change.items():
            assert hasattr(config, key), key
            setattr(config, key, value)
        other = forward(load(case, folder, config=config), tokens)["logits"]
        if (off := difference(other, logits)) < SHOWS:
            raise Unfit(f"{change} changes the logits by {off:.6f} only")


def check_weights_show(parameters: list, logits: Callable[[], torch.Tensor]) -> None:
    """Every tensor must matter: without what is particular in it the logits must be others."""
    want = logits()
    for name, parameter in parameters:
        parts = range(len(parameter)) if parameter.ndim == 3 and "experts" in name else [...]
        for part in parts:
            whole = parameter.data.clone()
            # A norm's weights are replaced by their mean, the rest by nothing.
            parameter.data[part] = whole[part].mean() if parameter.ndim == 1 and NORM.search(name) else 0.0
            off = difference(logits(), want)
            parameter.data.copy_(whole)
            if off < SHOWS:
                raise Unfit(f"{name}[{part}] changes the logits by {off:.6f} only")


def tensors_of(path: Path) -> Tensors:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}
