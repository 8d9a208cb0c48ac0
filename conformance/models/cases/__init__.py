"""Every case by the name of its folder."""

from cases import deepseek, dense, gemma, gpt, gpt_oss, llama, mamba, mixtral, packed, phi, qwen, rwkv

FAMILIES = [llama, mixtral, qwen, gemma, dense, mamba, rwkv, phi, gpt, gpt_oss, deepseek, packed]
CASES = {name: case for family in FAMILIES for name, case in family.CASES.items()}
