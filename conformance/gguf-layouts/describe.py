"""Describes GGUF files: for each, NAME.json with its tensors' shapes and types and its metadata.

    python describe.py FOLDER-WITH-GGUF-FILES

Needs the package `gguf`. Left out are what names or counts the model itself (`general.*` but for two keys), arrays and
templates of the tokenizer, and `tokenizer.ggml.pre`: the converter knows it by a digest of a published vocabulary.
"""

import json
import pathlib
import sys

import gguf

GENERAL = ("general.architecture", "general.file_type")


def wanted(key, kind):
    if key.startswith("tokenizer."):
        return kind != "ARRAY" and key not in ("tokenizer.chat_template", "tokenizer.ggml.pre")
    return key in GENERAL or not key.startswith(("general.", "GGUF."))


def describe(path):
    reader = gguf.GGUFReader(path)
    metadata = {}
    for key, field in sorted(reader.fields.items()):
        kind = field.types[0].name if field.types else ""
        if wanted(key, kind):
            metadata[key] = [field.types[-1].name, field.contents()]
    shapes = {t.name: [t.tensor_type.name, *(int(n) for n in reversed(t.shape))] for t in reader.tensors}
    return metadata, dict(sorted(shapes.items()))


def lines(table):
    return ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items())


for path in sorted(pathlib.Path(sys.argv[1]).glob("*.gguf")):
    metadata, tensors = describe(path)
    text = f'{{"metadata": {{\n{lines(metadata)}\n}}, "tensors": {{\n{lines(tensors)}\n}}}}\n'
    pathlib.Path(__file__).with_name(path.stem + ".json").write_text(text)
