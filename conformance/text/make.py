"""Writes prose.txt: paragraphs of The Rust Programming Language, without its listings.

    python make.py FOLDER      FOLDER holds the book as HTML (`rustup doc --path`, then `book/`)

The book is MIT OR Apache-2.0, as this project is.
"""

import html
import pathlib
import re
import sys

SIZE = 48_000
CHAPTERS = ["ch00-00-introduction", "ch01-00-getting-started", "ch01-03-hello-cargo", "ch02-00-guessing-game-tutorial",
            "ch03-01-variables-and-mutability", "ch04-01-what-is-ownership", "ch04-02-references-and-borrowing",
            "ch05-01-defining-structs", "ch07-00-managing-growing-projects-with-packages-crates-and-modules",
            "ch09-03-to-panic-or-not-to-panic", "ch17-00-async-await", "ch18-01-what-is-oo", "ch20-01-unsafe-rust"]


def paragraphs(page):
    page = re.sub(r"(?s)<(pre|script|style|nav)\b.*?</\1>", "", page)
    for text in re.findall(r"(?s)<p\b[^>]*>(.*?)</p>", page):
        text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())
        # Captions and fragments say little by themselves.
        if len(text) > 120:
            yield text


folder = pathlib.Path(sys.argv[1])
prose = "\n\n".join(p for c in CHAPTERS for p in paragraphs((folder / f"{c}.html").read_text(encoding="utf-8")))
prose = prose.encode()[:SIZE].decode(errors="ignore").rsplit("\n\n", 1)[0] + "\n"
pathlib.Path(__file__).with_name("prose.txt").write_text(prose, encoding="utf-8")
print(len(prose.encode()), "bytes")
