"""Every case by the name of its folder."""

from cases import dense, gemma, llama, mamba, mixtral, qwen, rwkv

FAMILIES = [llama, mixtral, qwen, gemma, dense, mamba, rwkv]
CASES = {name: case for family in FAMILIES for name, case in family.CASES.items()}
