#!/usr/bin/env python3
"""How many simple questions grain answers word for word, by kind, greedily.

    python score.py [FOLDER]

The questions have the forms of the training corpus, and their facts are in it: this
measures recall and copying, not reasoning. Answers that may be worded freely are left out.
"""

import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

import talk
from grammar import expand
from train import END, TURN

KINDS = [talk.about_animal, talk.about_numbers, talk.about_time, talk.about_things]
ASKED = 60


def answer(model: LlamaForCausalLM, tokenizer: Tokenizer, ask: str) -> str:
    ids = torch.tensor([tokenizer.encode(f"{TURN}user\n{ask}{END}\n{TURN}assistant\n").ids])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64, eos_token_id=[0, 2], pad_token_id=0
    )
    return tokenizer.decode(made[0, ids.shape[1] :].tolist())


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(99)
    for kind in KINDS:
        right, wrong, asked = 0, [], 0
        while asked < ASKED:
            ask, wanted = kind(rng)
            if wanted.count(".") > 1:
                continue
            ask, wanted = expand(rng, ask), expand(rng, wanted)
            got = answer(model, tokenizer, ask)
            asked, right = asked + 1, right + (got == wanted)
            if got != wanted:
                wrong.append(f"    {ask} -> {got}")
        print(f"{kind.__name__}: {right}/{asked}", *wrong[:5], sep="\n")


if __name__ == "__main__":
    main()
