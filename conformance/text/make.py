#!/usr/bin/env python3
"""Cuts prose.txt from `moonstone-short.txt` of the crate htmlescape 0.3.1.

    python make.py ~/.cargo/registry/src/*/htmlescape-0.3.1/moonstone-short.txt

Drops what stands before the novel, joins the lines of each paragraph, and keeps
whole paragraphs up to about 48 KB.
"""

import re
import sys
from pathlib import Path

LIMIT = 48_000


def main() -> None:
    text = Path(sys.argv[1]).read_text(encoding="ascii").replace("\r\n", "\n")
    text = text[text.index("I address these lines--written in India") :]
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text)]
    kept, size = [], 0
    for paragraph in filter(None, paragraphs):
        if size + len(paragraph) > LIMIT:
            break
        kept.append(paragraph)
        size += len(paragraph) + 2
    Path(__file__).with_name("prose.txt").write_text("\n\n".join(kept) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
