#!/usr/bin/env python3
"""Writes the tiny checkpoints of this folder and what is computed with them.

    pip install -r requirements.txt
    python generate.py                 # rewrite every folder
    python generate.py NAME...         # or only these
    python generate.py --check         # regenerate elsewhere and compare with what is committed
    python generate.py --seek 50 NAME  # which of the 50 seeds from the case's own on leave nothing undecided

README.md describes the layout, `cases/` has the cases, `harness.py` what they share.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

# The order in which threads add up must not depend on the machine.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from safetensors.torch import load_file
from transformers.utils import logging

from cases import CASES
from harness import Spelling, Unfit

HERE = Path(__file__).resolve().parent


def build(name: str, root: Path, seed: int | None = None) -> Path:
    """Writes one folder, or leaves nothing new where it cannot be written."""
    folder = root / name
    with tempfile.TemporaryDirectory() as temp:
        fresh = Path(temp) / name
        fresh.mkdir()
        CASES[name].build(fresh, seed)
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            file.unlink()
        for file in fresh.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


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
            fresh = build(name, Path(temp))
            committed = HERE / name
            for file in sorted({p.name for folder in (committed, fresh) if folder.exists() for p in folder.iterdir()}):
                pair = committed / file, fresh / file
                if not (pair[0].exists() and pair[1].exists() and same(*pair)):
                    print(f"differs: {name}/{file}")
                    bad += 1
    return 1 if bad else 0


def seek(names: list[str], many: int) -> int:
    """Prints the seeds that fit, and why the others do not."""
    for name in names:
        if isinstance(CASES[name], Spelling):
            continue  # of another case, which has the seed
        first = CASES[name].seed
        for seed in range(first, first + many):
            with tempfile.TemporaryDirectory() as temp:
                try:
                    expected = load_file(build(name, Path(temp), seed) / "expected.safetensors")
                except Unfit as why:
                    print(f"{name} {seed}: {why}", flush=True)
                    continue
            margin = float(expected["greedy_margin"].min())
            print(f"{name} {seed}: fits, margin {margin:.4f}, greedy {expected['greedy'].tolist()}", flush=True)
            break
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="cases (default: all)")
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--seek", type=int, metavar="N", help="try N seeds")
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    names = args.names or list(CASES)
    if args.check:
        return check(names)
    if args.seek:
        return seek(names, args.seek)
    for name in names:
        try:
            folder = build(name, HERE)
        except Unfit as why:
            raise SystemExit(f"{name}: {why}")
        print(f"{name}: {sum(p.stat().st_size for p in folder.iterdir()) / 1024:.0f} KiB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
