"""Makes small/: tokenizers of every kind, learned from ../text/prose.txt, and what their own libraries make of texts.

usage: python make_small.py OUT

Libraries: sentencepiece, tokenizers, tiktoken, and rwkv for its tokenizer. Each folder is what a model's folder would
hold; ids.json has the texts and, by folder, whether special tokens are read in them, and the ids without and with what
the model puts around a text (null where the library has no such notion). The library's Precompiled looks sequences of
several graphemes or marks up in another way than SentencePiece, so texts with those are left out there.
"""
import base64, io, json, random, sys
from pathlib import Path

import sentencepiece as spm
import tiktoken
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER
from tiktoken._educational import bpe_train
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

out = Path(sys.argv[1])
out.mkdir(exist_ok=True)
prose = (Path(__file__).parent.parent / 'text' / 'prose.txt').read_text()
LINES = prose.splitlines() + ['naïve café Ελλάδα мир', '你好 世界 こんにちは 한국어', 'हिन्दी ไทย עברית', '🦀 🏳️‍🌈', '1 2 3 45 678 2024', 'ﬁne ＦＵＬＬ ②']

def texts():
    rng = random.Random(11)
    fixed = ['', ' ', '  ', '\n', ' \n\n \t', 'a', ' a', 'a ', '  a  b   c ', 'Hello, world!', "I'm sure they'LL  say \"it's\"…", '▁a▁▁b', '\u2581',
             'café cafe\u0301 CAFÉ', 'ﬁ ＡＢＣ ½ ②', '你好世界', 'こんにちは、世界。', '한국어 텍스트', 'हिन्दी क़', 'ไทย', 'עברית ערבית', 'مرحبا', '🦀🦀 🏳️‍🌈👩‍👩‍👧',
             'a\u0000b', '\u0001\u0007\u001b[0m', 'a\u200bb\ufeffc\u00add', 'x\ufffdy', '\u2028\u2029\u0085', '\u00a0a\u00a0', '\u3000全角', '12345 3.14 1,000,000', '0x1F',
             'fn main() {\n    let x = 1;\n\tprintln!("{}", x);\n}\n', '<s> </s> <unk> [CLS] [SEP] [MASK]', '<extra>hi<extra> there', 'a<mark>b <mark> c',
             'x' * 99, 'x' * 100, 'x' * 101, 'pneumonoultramicroscopicsilicovolcanoconiosis', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',
             ' ' * 50, '.' * 50, '\n' * 20, '🦀' * 20, '\U0010ffff\U000e0001', 'ǅ ß ẞ İ ı', 'e\u0301\u0323\u0302', 'IMPORTANT: READ  THIS', 'tab\tseparated\tvalues', 'a\x0bb\x0cc\x85d']
    words = ['the', 'Rust', "don't", 'value', 'naïve', 'мир', '你好', '12', '3.5', '--', '\n', '  ', '🦀', 'e\u0301', 'ownership', 'mut', '&str', 'ＦＵＬＬ']
    mixed = [' '.join(rng.choice(words) for _ in range(rng.randrange(1, 14))) for _ in range(25)]
    runs = [''.join(rng.choice([' ', '\n', 'a', '.', '0', 'é', '🦀', '=']) * rng.randrange(1, 20) for _ in range(4)) for _ in range(15)]
    return fixed + mixed + runs + [prose[1000:3000]]

TEXTS = texts()
IDS = {}

def keep(name, plain, framed=None, special=True):
    IDS[name] = {'special': special, 'plain': [plain(t) for t in TEXTS], 'framed': [framed(t) for t in TEXTS] if framed else None}

# A few of NFKC's replacements, and two rules where the longest match decides.
RULES = [('\ufb01', 'fi'), ('\u3000', ' '), ('\u00a0', ' '), ('\t', ' '), ('\n', ' '), ('e\u0301', 'é'), ('\u2460', '1'), ('\u2461', '2'), ('½', '1/2'),
         ('\u200b', ''), ('\u0001', ''), ('…', '...'), ('--', '—'), ('---', '*')] + [(chr(0xff21 + i), chr(0x41 + i)) for i in range(26)]

def sentencepiece(name, **options):
    folder = out / name
    folder.mkdir(exist_ok=True)
    rules = folder / 'rules.tsv'
    rules.write_text(''.join(' '.join(f'{ord(c):x}' for c in a) + '\t' + ' '.join(f'{ord(c):x}' for c in b) + '\n' for a, b in RULES))
    if not options.pop('table', True):
        options['normalization_rule_name'] = 'identity'
    else:
        options['normalization_rule_tsv'] = str(rules)
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=model, vocab_size=600, hard_vocab_limit=False, num_threads=1,
                                   minloglevel=2, character_coverage=0.9995, **options)
    rules.unlink()
    (folder / 'tokenizer.model').write_bytes(model.getvalue())
    sp = spm.SentencePieceProcessor(model_proto=model.getvalue())
    keep(name, lambda t: sp.encode(t), special=False)
    return model.getvalue(), sp

def library(name, tokenizer):
    folder = out / name
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / 'tokenizer.json'), pretty=False)
    known = lambda t: not (name in ('unigram-t5', 'unigram-t5-first', 'unigram-albert') and ('\u0323' in t or '--' in t))
    ids = lambda t, special: tokenizer.encode(t, add_special_tokens=special).ids if known(t) else None
    keep(name, lambda t: ids(t, False), lambda t: ids(t, True))

def proto_pieces(sp):
    return [(sp.id_to_piece(i), sp.get_score(i)) for i in range(sp.get_piece_size())]

model, sp = sentencepiece('unigram', model_type='unigram')
sentencepiece('unigram-bytes', model_type='unigram', byte_fallback=True, user_defined_symbols=['<extra>', '<mark>', '  '], remove_extra_whitespaces=False,
              add_dummy_prefix=False, table=False)
sentencepiece('unigram-spaces', model_type='unigram', remove_extra_whitespaces=False)
sentencepiece('spm-bpe', model_type='bpe', byte_fallback=True, remove_extra_whitespaces=False)

# The table of the first model, for the library's Precompiled.
from sentencepiece import sentencepiece_model_pb2 as pb
proto = pb.ModelProto()
proto.ParseFromString(model)
table = proto.normalizer_spec.precompiled_charsmap
pieces = proto_pieces(sp)

def t5(scheme):
    t = Tokenizer(models.Unigram(pieces, unk_id=0))
    t.normalizer = normalizers.Sequence([normalizers.Precompiled(table), normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(' {2,}'), '▁')])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    t.decoder = decoders.Metaspace(prepend_scheme=scheme)
    t.add_special_tokens(['</s>', '<unk>', AddedToken('<mark>', lstrip=True)])
    t.post_processor = processors.TemplateProcessing(single='$A </s>', pair='$A </s> $B </s>', special_tokens=[('</s>', t.token_to_id('</s>'))])
    return t

library('unigram-t5', t5('always'))
library('unigram-t5-first', t5('first'))

albert = Tokenizer(models.Unigram(pieces, unk_id=0))
albert.normalizer = normalizers.Sequence([normalizers.Replace('``', '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Precompiled(table)])
albert.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme='always')])
albert.decoder = decoders.Metaspace()
albert.add_special_tokens(['<s>', '</s>', '<unk>'])
library('unigram-albert', albert)

plain = Tokenizer(models.Unigram())
plain.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(' {2,}'), ' ')])
plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always')
plain.decoder = decoders.Metaspace()
plain.train_from_iterator(LINES, trainers.UnigramTrainer(vocab_size=600, special_tokens=['<unk>'], unk_token='<unk>', show_progress=False))
library('unigram-library', plain)

def wordpiece(name, **options):
    t = Tokenizer(models.WordPiece(unk_token='[UNK]'))
    t.normalizer = normalizers.BertNormalizer(**options)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.train_from_iterator(LINES, trainers.WordPieceTrainer(vocab_size=600, special_tokens=['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'], show_progress=False))
    ids = [(x, t.token_to_id(x)) for x in ('[CLS]', '[SEP]')]
    t.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1', special_tokens=ids)
    library(name, t)
    return t

bert = wordpiece('wordpiece', lowercase=True)
wordpiece('wordpiece-cased', lowercase=False, strip_accents=False)
wordpiece('wordpiece-accents', lowercase=True, strip_accents=False)
old = out / 'wordpiece-txt'
old.mkdir(exist_ok=True)
vocab = bert.get_vocab()
(old / 'vocab.txt').write_text('\n'.join(sorted(vocab, key=vocab.get)) + '\n')
(old / 'tokenizer_config.json').write_text('{"tokenizer_class":"BertTokenizer","do_lower_case":true}')
IDS['wordpiece-txt'] = IDS['wordpiece']

PATTERNS = {
    'QWenTokenizer': r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    'TiktokenTokenizerWrapper': r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    'TikTokenTokenizer': '|'.join([
        r"""[\p{Han}]+""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+"""]),
}
for kind, file in [('QWenTokenizer', 'qwen.tiktoken'), ('TiktokenTokenizerWrapper', 'tokenizer.model'), ('TikTokenTokenizer', 'tiktoken.model')]:
    # The educational trainer uses `regex`, which reads these expressions as tiktoken does where it matters for training.
    sample = prose[:12000] + '\n'.join(LINES[-6:]) * 3 + ' ' * 40 + '\n' * 9 + 'a' * 117
    trained = bpe_train(sample, 600, PATTERNS['QWenTokenizer'], visualise=None)
    ranks = trained
    folder = out / ('tiktoken-' + file.split('.')[0] if file != 'tiktoken.model' else 'tiktoken-kimi')
    folder.mkdir(exist_ok=True)
    name = 'tokenizer.model' if file == 'tiktoken.model' else file
    (folder / name).write_bytes(b''.join(base64.b64encode(t) + b' %d\n' % r for t, r in sorted(ranks.items(), key=lambda x: x[1])))
    specials = {'<mark>': len(ranks) + 3}
    (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': kind, 'added_tokens_decoder': {str(i): {'content': t, 'special': True} for t, i in specials.items()}}))
    encoding = tiktoken.Encoding(kind, pat_str=PATTERNS[kind], mergeable_ranks=ranks, special_tokens=specials)
    keep(folder.name, lambda t: encoding.encode(t, allowed_special='all'))

def gpt2(name, kind, split, nfc):
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC() if nfc else None
    t.pre_tokenizer = split
    t.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    folder = out / name
    folder.mkdir(exist_ok=True)
    t.model.save(str(folder))
    t.add_tokens([AddedToken('<mark>', single_word=True, rstrip=True)])
    (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': kind, 'added_tokens_decoder': {
        str(t.token_to_id('<mark>')): {'content': '<mark>', 'single_word': True, 'rstrip': True}}}))
    keep(name, lambda x: t.encode(x, add_special_tokens=False).ids)

gpt2('gpt2-files', 'GPT2Tokenizer', pre_tokenizers.ByteLevel(add_prefix_space=False), False)
gpt2('qwen2-files', 'Qwen2TokenizerFast', pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(PATTERNS['QWenTokenizer']), 'isolated'), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), True)

# RWKV: every byte, words of the prose, and parts of characters.
words = {bytes([b]) for b in range(256)} | {w.encode() for w in ' '.join(LINES).split()[:300]} | {b' ' + w.encode() for w in prose.split()[:300]}
words |= {b'\n\n', b'  ', b'    ', '你好'.encode(), '世'.encode(), '🦀'.encode(), b'\xe4\xbd', b'\xa0\xe5', b"it's", b'"\'', b'\\n', '\u2028'.encode()}
folder = out / 'rwkv'
folder.mkdir(exist_ok=True)
def line(i, word):
    try:
        return f'{i} {word.decode()!r} {len(word)}\n'
    except UnicodeDecodeError:
        return f'{i} {word!r} {len(word)}\n'
(folder / 'rwkv_vocab_v20230424.txt').write_text(''.join(line(i + 1, w) for i, w in enumerate(sorted(words, key=lambda w: (len(w), w)))), newline='\n')
rwkv = TRIE_TOKENIZER(str(folder / 'rwkv_vocab_v20230424.txt'))
keep('rwkv', lambda t: rwkv.encode(t), special=False)

json.dump({'texts': TEXTS, 'ids': IDS}, open(out / 'ids.json', 'w'), ensure_ascii=True, separators=(',', ':'))
