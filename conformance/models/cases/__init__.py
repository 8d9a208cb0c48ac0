"""Every case by the name of its folder."""

from cases import dense, gemma, llama, mixtral, qwen

CASES = llama.CASES | mixtral.CASES | qwen.CASES | gemma.CASES | dense.CASES
