"""Tiny tokenizers with the structure of the real ones.

Each function writes the tokenizer files of one family into a folder and
returns the number of ids. What is copied from the real families is structure:
the pre-tokenizer expression, normalizer, decoder, post-processor, byte
fallback, where the special ids sit. The vocabulary itself is learned from the
few sentences below, so that the files stay small.
"""

import json
from pathlib import Path

import sentencepiece as spm
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SENTENCES = [
    "Fonio is a tiny grain that grows in dry and sandy soil.",
    "The farmer's children sow it when the first rain comes, and they'll reap it in eight weeks.",
    "It's said that the seed of the universe was a single grain of fonio.",
    "Take 3 cups of water, 1 cup of grain and 1/2 a spoon of salt; cook for 12 minutes.",
    "In 2021 the harvest was 672,000 tonnes, and in 1998 it was 250,000 tonnes.",
    "She said: \"We don't know the weight of one grain, but 2,000 of them weigh a gram!\"",
    "Le grain est petit, mais la récolte est grande; das Korn ist klein, aber fein.",
    "def weigh(grains):\n    return sum(g.weight for g in grains)\n\n\n",
    "  Two spaces   three spaces\tand a tab, then the end.  \n",
    "Зерно маленькое. 谷粒很小。 نحن نزرع الحبوب. 🌾🌾",
]

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a tiny test model.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'].strip() }} [/INST]"
    "{% else %} {{ m['content'].strip() }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json without indentation, to keep the fixture small."""
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")


def _byte_level_bpe(split: str, vocab_size: int, ignore_merges: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def llama3(folder: Path, base: int = 284) -> int:
    """Byte-level BPE, numbers in threes, specials after the learned ids, BOS added."""
    tokenizer = _byte_level_bpe(LLAMA3_SPLIT, base, ignore_merges=True)
    names = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    bos = tokenizer.token_to_id(names[0])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{names[0]} $A",
                pair=f"{names[0]} $A {names[0]}:1 $B:1",
                special_tokens=[(names[0], bos)],
            ),
        ]
    )
    _save(tokenizer, folder)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": names[0],
            "eos_token": names[4],
            "clean_up_tokenization_spaces": False,
            "model_max_length": 256,
            "chat_template": LLAMA3_TEMPLATE,
        },
    )
    return tokenizer.get_vocab_size()


def qwen2(folder: Path, base: int = 284) -> int:
    """Byte-level BPE, numbers digit by digit, NFC, no BOS."""
    tokenizer = _byte_level_bpe(QWEN2_SPLIT, base, ignore_merges=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    _save(tokenizer, folder)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": names[2],
            "pad_token": names[0],
            "unk_token": None,
            "errors": "replace",
            "split_special_tokens": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 256,
            "chat_template": CHATML_TEMPLATE,
        },
    )
    return tokenizer.get_vocab_size()


def _train_sentencepiece(folder: Path, **options) -> spm.SentencePieceProcessor:
    """A SentencePiece BPE model with byte fallback, written as tokenizer.model."""
    model = folder / "tokenizer.model"
    with open(model, "wb") as out:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES[:7]),
            model_writer=out,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
            **options,
        )
    return spm.SentencePieceProcessor(model_file=str(model))


def llama2(folder: Path, size: int = 352) -> int:
    """SentencePiece only: tokenizer.model, no tokenizer.json; dummy prefix; BOS added."""
    pieces = _train_sentencepiece(
        folder,
        vocab_size=size,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        unk_surface=" \u2047 ",
        add_dummy_prefix=True,
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": None,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_max_length": 256,
            "sp_model_kwargs": {},
            "chat_template": LLAMA2_TEMPLATE,
        },
    )
    return pieces.get_piece_size()


GEMMA_CONTROLS = ["<pad>", "<eos>", "<bos>", "<unk>"]
GEMMA_TURNS = ["<start_of_turn>", "<end_of_turn>"]


def _merges(pieces: list[str], rank: dict[str, int]) -> list[list[str]]:
    """Merge list of a SentencePiece BPE: every split of a piece into two known
    pieces, in the order of the merged piece's rank (its negated score)."""
    merges = []
    for piece in pieces:
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        splits = [(a, b) for a, b in splits if a in rank and b in rank]
        splits.sort(key=lambda ab: (rank[ab[0]], rank[ab[1]]))
        merges += [[a, b] for a, b in splits]
    return merges


def gemma(folder: Path, size: int = 352, keep_model: bool = False) -> int:
    """Gemma's form of a SentencePiece vocabulary as tokenizer.json: spaces become
    U+2581 everywhere and no prefix is added, bytes as <0xNN>, BOS added. Runs of
    newlines and of spaces are user-defined pieces, as in the real vocabulary; the
    normalizer hides a run of spaces from the added tokens, so it also has a merge."""
    runs = ["\n", "\n\n", "\n\n\n", "\u2581\u2581"]
    sp = _train_sentencepiece(
        folder,
        vocab_size=size,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        add_dummy_prefix=False,
        user_defined_symbols=GEMMA_TURNS + runs,
    )
    pieces = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    learned = [
        p
        for i, p in enumerate(pieces)
        if not (sp.is_control(i) or sp.is_unknown(i) or sp.is_byte(i)) and p not in GEMMA_TURNS + runs
    ]
    # Learned pieces are in the order of their scores; characters have no splits.
    scores = {p: -sp.get_score(pieces.index(p)) for p in learned}
    ranked = sorted(learned, key=lambda p: scores[p])
    tokenizer = Tokenizer(
        models.BPE(
            vocab={p: i for i, p in enumerate(pieces)},
            merges=[("\u2581", "\u2581")]
            + [tuple(m) for m in _merges(ranked, {p: i for i, p in enumerate(ranked)})],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(n, special=True, normalized=False) for n in GEMMA_CONTROLS + GEMMA_TURNS]
    )
    tokenizer.add_tokens([AddedToken(n, special=False, normalized=False) for n in runs])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A <bos>:1 $B:1",
        special_tokens=[("<bos>", pieces.index("<bos>"))],
    )
    _save(tokenizer, folder)
    if not keep_model:
        (folder / "tokenizer.model").unlink()
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 256,
            "spaces_between_special_tokens": False,
            "chat_template": GEMMA_TEMPLATE,
        },
    )
    return len(pieces)
