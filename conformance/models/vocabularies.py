"""Tiny tokenizers with the structure of the real ones.

Each function writes the tokenizer files of one family into a folder and
returns the number of ids. What is copied from the real families is structure:
the pre-tokenizer expression, normalizer, decoder, post-processor, byte
fallback, where the special ids sit. The vocabulary itself is learned from the
few sentences below, so that the files stay small.
"""

import ast
import json
import re
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

# Upper and lower case apart, endings of contractions with the word (gpt-oss, Phi-4) or not (Mistral's Tekken).
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+ENDING|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*ENDING|DIGITS|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_SPLIT = _CASED.replace("ENDING", "").replace("DIGITS", r"\p{N}")
O200K_SPLIT = _CASED.replace("ENDING", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", r"\p{N}{1,3}")
DEEPSEEK2_SPLITS = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+"]
DEEPSEEK3_SPLITS = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]

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

PHI3_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
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


def _train_sentencepiece(folder: Path, sentences: int = 7, **options) -> spm.SentencePieceProcessor:
    """A SentencePiece BPE model with byte fallback, written as tokenizer.model."""
    model = folder / "tokenizer.model"
    with open(model, "wb") as out:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES[:sentences]),
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


def gemma(folder: Path, size: int = 352, keep_model: bool = False, sentences: int = 7) -> int:
    """Gemma's form of a SentencePiece vocabulary as tokenizer.json: spaces become
    U+2581 everywhere and no prefix is added, bytes as <0xNN>, BOS added. Runs of
    newlines and of spaces are user-defined pieces, as in the real vocabulary; the
    normalizer hides a run of spaces from the added tokens, so it also has a merge."""
    runs = ["\n", "\n\n", "\n\n\n", "\u2581\u2581"]
    sp = _train_sentencepiece(
        folder,
        sentences,
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


def _splits(*expressions: str) -> list:
    return [pre_tokenizers.Split(Regex(e), behavior="isolated", invert=False) for e in expressions]


def _byte_family(
    folder: Path,
    steps: list,
    names: list[str],
    config: dict,
    base: int = 268,
    first: bool = False,
    bos: str | None = None,
    normalizer=None,
    own_split: bool = False,
    files: bool = False,
) -> int:
    """A byte-level BPE: `steps` before the bytes, special `names` after the learned ids or `first`, `bos` added by the
    post-processor. `own_split` is the expression of GPT-2, inside the byte-level step; `files` adds the vocab.json and
    merges.txt of the older families."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own_split)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps + [last]) if steps else last
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(n, special=True, normalized=False) for n in names]
    trainer = trainers.BpeTrainer(
        vocab_size=base + (len(names) if first else 0),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials if first else [],
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    _save(tokenizer, folder)
    if files:
        model = json.loads(tokenizer.to_str())["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
        merges = "".join(f"{a} {b}\n" for a, b in model["merges"])
        (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    common = {"clean_up_tokenization_spaces": False, "model_max_length": 256}
    _write_json(folder / "tokenizer_config.json", common | config)
    return tokenizer.get_vocab_size()


def gpt2(folder: Path, files: bool = False) -> int:
    """GPT-2 and what took its tokenizer (GPT-J, Phi-1 to Phi-2): its expression, one special id, no BOS."""
    end = "<|endoftext|>"
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": end, "eos_token": end, "unk_token": end}
    return _byte_family(folder, [], [end], config | {"add_prefix_space": False}, own_split=True, files=files)


def neox(folder: Path) -> int:
    """GPT-NeoX (Mamba, RWKV-4, StableLM 3B): GPT-2's expression after NFC, specials before the learned ids."""
    names = ["<|endoftext|>", "<|padding|>"]
    config = {
        "tokenizer_class": "GPTNeoXTokenizer",
        "add_prefix_space": False,
        "bos_token": names[0],
        "eos_token": names[0],
        "unk_token": names[0],
    }
    return _byte_family(folder, [], names, config, first=True, normalizer=normalizers.NFC(), own_split=True)


def starcoder(folder: Path) -> int:
    """Granite: digits one by one, then GPT-2's expression; specials first."""
    names = ["<|end_of_text|>", "<fim_prefix>", "<|start_of_role|>", "<|end_of_role|>"]
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": names[0],
        "eos_token": names[0],
        "pad_token": names[0],
        "unk_token": names[0],
        "chat_template": (
            "{% for m in messages %}<|start_of_role|>{{ m['role'] }}<|end_of_role|>{{ m['content'] }}<|end_of_text|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
        ),
    }
    digits = pre_tokenizers.Digits(individual_digits=True)
    return _byte_family(folder, [digits], names, config, first=True, own_split=True)


def cl100k(folder: Path, split: str = LLAMA3_SPLIT) -> int:
    """OLMo 2 (numbers in threes) and StableLM 2 (digit by digit): no BOS."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": names[0],
        "eos_token": names[0],
        "pad_token": names[3],
        "unk_token": names[0],
        "chat_template": CHATML_TEMPLATE,
    }
    return _byte_family(folder, _splits(split), names, config)


def tekken(folder: Path) -> int:
    """Mistral Nemo: upper and lower case split apart, specials before the learned ids, BOS added."""
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": LLAMA2_TEMPLATE,
    }
    return _byte_family(folder, _splits(TEKKEN_SPLIT), names, config, first=True, bos="<s>")


def harmony(folder: Path) -> int:
    """gpt-oss: endings of contractions stay with the word, numbers in threes, no BOS."""
    names = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>"]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[0],
        "eos_token": names[2],
        "pad_token": names[1],
        "chat_template": (
            "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
        ),
    }
    return _byte_family(folder, _splits(O200K_SPLIT), names, config)


def phi4(folder: Path) -> int:
    """Phi-4-mini: the same split as gpt-oss, other specials."""
    names = ["<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"]
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": names[0],
        "eos_token": names[0],
        "pad_token": names[0],
        "unk_token": names[0],
        "chat_template": PHI3_TEMPLATE.replace("\n", ""),
    }
    return _byte_family(folder, _splits(O200K_SPLIT), names, config)


def deepseek(folder: Path, splits: list[str], digits: bool) -> int:
    """DeepSeek: several expressions in turn; specials with full-width bars; BOS added."""
    names = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
    config = {
        "tokenizer_class": "LlamaTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": names[0],
        "eos_token": names[1],
        "pad_token": names[1],
        "unk_token": None,
        "chat_template": (
            "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}User: {{ m['content'] }}\n\n"
            "{% else %}Assistant: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}Assistant:{% endif %}"
        ),
    }
    steps = _splits(*splits) + ([pre_tokenizers.Digits(individual_digits=True)] if digits else [])
    return _byte_family(folder, steps, names, config, bos=names[0])


def deepseek2(folder: Path) -> int:
    return deepseek(folder, DEEPSEEK2_SPLITS, digits=True)


def deepseek3(folder: Path) -> int:
    return deepseek(folder, DEEPSEEK3_SPLITS, digits=False)


# Little more than controls, bytes and characters; fewer sentences, or the characters alone would be too many.
MISTRAL_SIZE = 304


def mistral(
    folder: Path,
    keep_model: bool = False,
    added: tuple[str, ...] = (),
    bos: str | None = "<s>",
    config: dict | None = None,
) -> int:
    """Llama 2's SentencePiece form as tokenizer.json (Mistral, Mixtral, Phi-3): U+2581 before the text and for each
    space, bytes as <0xNN>, `added` ids after the learned ones."""
    sp = _train_sentencepiece(
        folder,
        sentences=3,
        vocab_size=MISTRAL_SIZE,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        unk_surface=" \u2047 ",
        add_dummy_prefix=True,
    )
    pieces = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    learned = [i for i in range(3, len(pieces)) if not sp.is_byte(i)]
    ranked = [pieces[i] for i in sorted(learned, key=lambda i: -sp.get_score(i))]
    rank = {p: i for i, p in enumerate(ranked)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab={p: i for i, p in enumerate(pieces)},
            merges=[tuple(m) for m in _merges(ranked, rank)],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in pieces[:3]])
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False, rstrip=True) for n in added])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    _save(tokenizer, folder)
    text = SENTENCES[1] + "  " + SENTENCES[3]
    assert tokenizer.encode(text, add_special_tokens=False).ids == sp.encode(text), "both forms must agree"
    if not keep_model:
        (folder / "tokenizer.model").unlink()
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": bos is not None,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": None,
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "model_max_length": 256,
            "sp_model_kwargs": {},
            "chat_template": LLAMA2_TEMPLATE,
        }
        | (config or {}),
    )
    return tokenizer.get_vocab_size()


def phi3(folder: Path) -> int:
    """Phi-3: Llama 2's pieces, then specials that take the white space after them; no BOS."""
    return mistral(
        folder,
        added=("<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"),
        bos=None,
        config={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "chat_template": PHI3_TEMPLATE},
    )


# The name of the file that the authors publish; readers know the kind of vocabulary by it.
RWKV_FILE = "rwkv_vocab_v20230424.txt"


def _rwkv_pieces(path: Path) -> dict[bytes, int]:
    pieces = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        number, rest = line.split(" ", 1)
        literal, length = rest.rsplit(" ", 1)
        value = ast.literal_eval(literal)
        value = value.encode() if isinstance(value, str) else value
        assert len(value) == int(length)
        pieces[value] = int(number)
    return pieces


def rwkv_encode(path: Path, text: str) -> list[int]:
    """The longest piece that fits, again and again; there are no merges."""
    pieces = _rwkv_pieces(path)
    longest = max(len(p) for p in pieces)
    data, ids = text.encode(), []
    while data:
        size = next(n for n in range(min(longest, len(data)), 0, -1) if data[:n] in pieces)
        ids.append(pieces[data[:size]])
        data = data[size:]
    return ids


def rwkv_world(folder: Path, learned: int = 60) -> int:
    """The world vocabulary: a text file of id, Python literal (text where it is UTF-8, bytes where not) and length in
    bytes. Ids start at 1: the 256 bytes, then words of the sentences, shorter ones first. Id 0 ends a text."""
    words = sorted({w for s in SENTENCES for w in re.findall(r" ?[^\W\d]+|\d+|\s{2,}", s)})
    pieces = [bytes([i]) for i in range(256)]
    pieces += sorted((w.encode() for w in words if len(w.encode()) > 1), key=lambda p: (len(p), p))[:learned]
    lines = []
    for number, piece in enumerate(pieces, 1):
        try:
            literal = repr(piece.decode())
        except UnicodeDecodeError:
            literal = repr(piece)
        lines.append(f"{number} {literal} {len(piece)}\n")
    (folder / RWKV_FILE).write_text("".join(lines), encoding="utf-8")
    assert rwkv_encode(folder / RWKV_FILE, "a\n é") == [98, 11, 33, 196, 170]
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "RwkvTokenizer",
            "add_prefix_space": False,
            "bos_token": "<|rwkv_tokenizer_end_of_text|>",
            "eos_token": "<|rwkv_tokenizer_end_of_text|>",
            "unk_token": "<|rwkv_tokenizer_end_of_text|>",
            "model_max_length": 256,
        },
    )
    # Published tables are larger than the vocabulary (65536 against 65530).
    return len(pieces) + 4
