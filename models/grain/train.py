#!/usr/bin/env python3
"""Trains grain: corpus, tokenizer, model, held-out text. One thread of one CPU is enough.

    python train.py --minutes 25
    python train.py --minutes 18 --start . --context 512 --batch 6 --peak 0.5 --chat 0.5 --seed 40 --characters 24000000

The first run makes everything; the second goes on from it with longer windows and fresh
text. The corpus comes from stories.py and talk.py. Everything is seeded. The learning
rate follows the clock's share of --minutes, or of --steps when that is given, in which
case a run is repeatable on the same machine and versions.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

import stories
import talk

BOS, TURN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCAB = 1024
HELD_OUT_SEED = 21
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def document(rng: random.Random, chat: float) -> str:
    """One text without its leading BOS."""
    if rng.random() < chat:
        return "".join(f"{TURN}{role}\n{text}{END}\n" for role, text in talk.conversation(rng))
    return rng.choices([stories.story, talk.scene, talk.facts], [66, 19, 15])[0](rng)


def corpus(seed: int, characters: int, chat: float = 0.32) -> list[str]:
    rng, out, size = random.Random(seed), [], 0
    while size < characters:
        out.append(document(rng, chat))
        size += len(out[-1])
    return out


def make_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with Llama 3's pre-tokenizer; special ids first; BOS added."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t in (BOS, TURN, END)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    plain = (t.replace(TURN, "\n").replace(END, "\n") for t in texts)
    tokenizer.train_from_iterator(plain, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
            ),
        ]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All documents behind one another, each begun by BOS."""
    ids = [np.array(e.ids, dtype=np.int64) for e in tokenizer.encode_batch(texts)]
    return np.concatenate(ids)


def make_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=0,
        eos_token_id=2,
        dtype="bfloat16",
    )
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config).float()


@torch.no_grad()
def orthogonal(update: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearest semi-orthogonal matrix by the quintic Newton-Schulz iteration (Jordan et al., Muon, 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update.bfloat16()
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        g = x @ x.T
        x = a * x + (b * g + c * g @ g) @ x
    return (x.T if flip else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalized, for the matrices inside the layers."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.02):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(momentum, group["momentum"]))
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        Muon(matrices, lr=0.02),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def rate(progress: float) -> float:
    """Warm-up over the first 2 %, then a cosine down to 2 % of the peak."""
    if progress < 0.02:
        return progress / 0.02
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - 0.02) / 0.98))


def loss_of(model: LlamaForCausalLM, window: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=window[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, ids: np.ndarray, context: int) -> float:
    count = (len(ids) - 1) // context
    windows = np.stack([ids[i * context : (i + 1) * context + 1] for i in range(count)])
    losses = [loss_of(model, torch.from_numpy(w)).item() * len(w) for w in np.array_split(windows, max(1, count // 16))]
    return sum(losses) / count


def train(model: LlamaForCausalLM, ids: np.ndarray, args) -> int:
    rng = np.random.RandomState(args.seed)
    opts = optimizers(model)
    peaks = [o.param_groups[0]["lr"] for o in opts]
    began, step, seen = time.time(), 0, 0
    windows = len(ids) // args.context - 1
    order = rng.permutation(windows)
    while True:
        progress = step / args.steps if args.steps else (time.time() - began) / (60 * args.minutes)
        if progress >= 1:
            return seen
        starts = [order[(step * args.batch + i) % windows] * args.context for i in range(args.batch)]
        batch = torch.from_numpy(np.stack([ids[s : s + args.context + 1] for s in starts]))
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt, peak in zip(opts, peaks):
            opt.param_groups[0]["lr"] = peak * args.peak * rate(progress)
            opt.step()
            opt.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + batch[:, 1:].numel()
        if step % 100 == 0:
            speed = seen / (time.time() - began)
            print(f"step {step} {progress:.1%} loss {loss.item():.3f} tokens {seen / 1e6:.2f}M {speed:.0f}/s", flush=True)


def write(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    model.config.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "eos_token_id": [0, 2]}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {k: v.bfloat16().contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    GenerationConfig(bos_token_id=0, eos_token_id=[0, 2], pad_token_id=0, do_sample=True, temperature=0.5, top_p=0.95, top_k=40).save_pretrained(out)
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": BOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def samples(model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Greedy and sampled continuations, to be read by a person."""
    asks = ["Who are you?", "What is the opposite of hot?", "What does a cow say?", "Tell me a story about a fox.", "What is 3 plus 4?"]
    prompts = ["Once upon a time", "One day, a little girl named Mia", "A bee is"]
    prompts += [f"{TURN}user\n{ask}{END}\n{TURN}assistant\n" for ask in asks]
    torch.manual_seed(7)
    for text in prompts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        for options in (dict(do_sample=False), dict(do_sample=True, temperature=0.7, top_k=40)):
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=160, eos_token_id=[0, 2], pad_token_id=0, **options
            )
            print(f"--- {text!r} {options}\n{tokenizer.decode(made[0, ids.shape[1] :].tolist())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--steps", type=int, default=0, help="fix the number of steps instead of the minutes")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--characters", type=int, default=48_000_000)
    parser.add_argument("--chat", type=float, default=0.32, help="share of conversations among the documents")
    parser.add_argument("--context", type=int, default=256, help="tokens a window")
    parser.add_argument("--peak", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument("--start", type=Path, help="go on from this checkpoint and its tokenizer")
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)

    texts = corpus(args.seed, args.characters, args.chat)
    tokenizer = Tokenizer.from_file(str(args.start / "tokenizer.json")) if args.start else make_tokenizer(texts[:8000])
    held_texts = corpus(HELD_OUT_SEED, 60_000)
    (args.out / "eval.txt").write_text("\n\n".join(t for t in held_texts if TURN not in t) + "\n")
    ids, held = encode(tokenizer, texts), encode(tokenizer, held_texts)
    print(f"{len(ids)} tokens, {sum(map(len, texts)) / len(ids):.2f} characters each", flush=True)
    del texts
    model = LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32) if args.start else make_model()
    print(f"{sum(p.numel() for p in model.parameters())} weights", flush=True)
    seen = train(model, ids, args)
    write(model, tokenizer, args.out)
    final = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
    for context in (256, 512):
        loss = held_out_loss(final, held, context)
        bits = loss / math.log(2) * len(held) / sum(map(len, held_texts))
        print(f"{seen} tokens seen; held-out loss {loss:.4f}, perplexity {math.exp(loss):.3f}, "
              f"{bits:.4f} bits a character in windows of {context}")
    samples(final, tokenizer)


if __name__ == "__main__":
    main()
