"""Makes rendered.json: what `transformers` renders with the chat templates of the oracle folder.

usage: python make_rendered.py ORACLES OUT
"""
import json, sys
from pathlib import Path
from transformers.utils.chat_template_utils import _compile_jinja_template

oracles, out = Path(sys.argv[1]), sys.argv[2]
tool = {'type': 'function', 'function': {'name': 'weather', 'description': 'Tells the "weather".', 'parameters': {'type': 'object', 'properties': {
    'city': {'type': 'string', 'description': "A city's name"}, 'days': {'type': 'integer', 'default': 1}}, 'required': ['city']}}}
cases = [
    {'messages': [{'role': 'user', 'content': 'Hi <b>you</b> & "me"'}, {'role': 'assistant', 'content': "  It's 5 > 3.\n"}, {'role': 'user', 'content': 'Ünïcode {{ 7*7 }} {% raw %}?'}],
     'add_generation_prompt': True, 'extra': {}},
    {'messages': [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Weather?'}], 'add_generation_prompt': False, 'extra': {'tools': [tool]}},
]
result = {'cases': cases, 'rendered': {}}
for path in sorted((oracles / 'templates').glob('*.jinja')):
    source = path.read_text()
    if 'strftime_now' in source:
        continue
    try:
        template = _compile_jinja_template(source)
    except Exception as error:
        result['rendered'][path.stem] = [{'error': f'{error}'[:80]}] * len(cases)
        continue
    rendered = []
    for case in cases:
        try:
            text = template.render(messages=case['messages'], add_generation_prompt=case['add_generation_prompt'], bos_token='<BOS>', eos_token='<EOS>', **case['extra'])
            rendered.append({'text': text})
        except Exception as error:
            rendered.append({'error': f'{type(error).__name__}: {error}'[:80]})
    result['rendered'][path.stem] = rendered
json.dump(result, open(out, 'w'), ensure_ascii=False, indent=0)
