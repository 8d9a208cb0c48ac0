#!/usr/bin/env python3
"""Makes crates/codec/src/grid/tables.rs: the codebooks of the IQ1, IQ2 and IQ3 types.

    grids.py PATH/libggml-base.so [-o tables.rs]

Nothing is read but values that ggml unpacks: for each codebook, blocks with scale 1 and every index in turn. An entry
is printed as its values' levels, value i in bits WIDTH * i, the lowest level being 0; the levels are in grid.rs.
"""

import argparse
import pathlib

import numpy as np

from generate import Ggml

ONE = [0x00, 0x3C]  # 1.0 in half precision


def iq1_s(i):  # index: 8 bits in qs, 3 in qh; the smallest scale is 1, the shift +1/8
    return ONE + [i & 255] + [0] * 31 + [i >> 8, 0] + [0] * 14


def iq2_xxs(i):
    return ONE + [i] + [0] * 63


def iq2_xs(i):
    return ONE + [i & 255, i >> 8] + [0] * 62 + [0] * 8


def iq2_s(i):
    return ONE + [i & 255] + [0] * 63 + [i >> 8] + [0] * 7 + [0] * 8


def iq3_xxs(i):
    return ONE + [i] + [0] * 95


def iq3_s(i):
    return ONE + [i & 255] + [0] * 63 + [i >> 8] + [0] * 7 + [0] * 36


# table: (ggml number, entries, values of an entry, factor to integers, shift, levels, bits of a level, block of an index)
GRIDS = {
    "IQ1": (19, 2048, 8, 1.0, 0.125, [-1, 0, 1], 2, iq1_s),
    "IQ2_XXS": (16, 256, 8, 8.0, 0.0, [8, 25, 43], 2, iq2_xxs),
    "IQ2_XS": (17, 512, 8, 8.0, 0.0, [8, 25, 43], 2, iq2_xs),
    "IQ2_S": (22, 1024, 8, 8.0, 0.0, [8, 25, 43], 2, iq2_s),
    "IQ3_XXS": (18, 256, 4, 4.0, 0.0, [4, 12, 20, 28, 36, 44, 52, 62], 3, iq3_xxs),
    "IQ3_S": (21, 512, 4, 1.0, 0.0, [1, 3, 5, 7, 9, 11, 13, 15], 3, iq3_s),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("-o", default=str(root / "crates/codec/src/grid/tables.rs"))
    args = parser.parse_args()
    ggml = Ggml(args.library)
    lines = ["//! Made by `conformance/codec/grids.py`; see `grid.rs` for what the numbers mean.", ""]
    for name, (number, count, width, factor, shift, levels, bits, block) in GRIDS.items():
        packed = np.array([block(i) for i in range(count)], dtype=np.uint8)
        values = ggml.dequantize(number, packed.reshape(-1)).reshape(count, -1)[:, :width]
        ints = values * np.float32(factor) - np.float32(shift)
        index = {float(v): i for i, v in enumerate(levels)}
        words = [sum(index[float(v)] << (bits * k) for k, v in enumerate(row)) for row in ints]
        assert len(set(words)) == count, name
        lines += ["#[rustfmt::skip]", f"pub(super) const {name}: [u16; {count}] = ["]
        for i in range(0, count, 14):
            lines.append("    " + " ".join(f"0x{w:04x}," for w in words[i : i + 14]))
        lines += ["];", ""]
    pathlib.Path(args.o).write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
