"""Makes transformers.json: what the `tokenizers` library gives for the tokenizers of the oracle folder.

usage: python make_transformers.py ORACLES OUT
"""
import json, random, sys
from pathlib import Path
from tokenizers import Tokenizer

oracles, out = Path(sys.argv[1]), sys.argv[2]
rng = random.Random(7)
BLOCKS = [(0x20, 0x7e), (0x20, 0x7e), (0x09, 0x0d), (0xa0, 0x24f), (0x300, 0x36f), (0x370, 0x52f), (0x5d0, 0x6ff), (0x900, 0xdff),
          (0xe00, 0xe7f), (0x1000, 0x109f), (0x1780, 0x17ff), (0x2000, 0x206f), (0x20a0, 0x2bff), (0x3000, 0x30ff), (0x4e00, 0x9fff),
          (0xac00, 0xd7a3), (0xfe00, 0xfe0f), (0xff00, 0xffef), (0x1d400, 0x1d7ff), (0x1f300, 0x1faff), (0x20000, 0x2a6df)]

def random_text(kind):
    n = rng.randrange(1, 40)
    if kind == 'runs':
        return ''.join(rng.choice([' ', '\n', 'a', '.', '0', '\t', '\u3000', 'é', "'s", '🦀', '=']) * rng.randrange(1, 40) for _ in range(rng.randrange(1, 6)))
    if kind == 'ascii':
        return ''.join(rng.choice(" \n\tabcdeABC019.,!?'\"-_=+()[]{}<>/\\|`~@#$%^&*;:") for _ in range(n))
    if kind == 'words':
        words = ['Hello', "I'm", "we'LL", 'x=1;', '12345', '3.14', 'naïve', 'Ελλάδα', 'мир', '你好世界', 'こんにちは', '한국어', 'हिन्दी', 'ไทย', '🏳️‍🌈', '---', '\n', '\r\n', '  ', '</s>', '<b>', 'e\u0301']
        return ' '.join(rng.choice(words) for _ in range(rng.randrange(1, 12)))
    block = rng.choice(BLOCKS)
    chars = [chr(rng.randint(*(rng.choice(BLOCKS) if kind == 'mixed' else block))) for _ in range(n)]
    return ''.join(chars)

texts = [''] + [random_text(k) for k in ['runs'] * 40 + ['ascii'] * 40 + ['words'] * 40 + ['block'] * 60 + ['mixed'] * 60]
texts += ['<|im_start|>user\nhi<|im_end|>\n', '<start_of_turn>user\nhi<end_of_turn>\n', '<|eot_id|><|begin_of_text|>', 'a<|endoftext|>b', '<bos><eos><unk><pad>',
          '<|fim_prefix|> x', '<unused7><unused77>', 'a\u0000b']
result = {'texts': texts, 'ids': {}}
for name in ['gemma3', 'gpt2', 'llama3', 'qwen2_5']:
    t = Tokenizer.from_file(str(oracles / 'tokenizers' / name / 'tokenizer.json'))
    result['ids'][name] = [t.encode(x, add_special_tokens=False).ids for x in texts]
json.dump(result, open(out, 'w'), ensure_ascii=True, separators=(',', ':'))
