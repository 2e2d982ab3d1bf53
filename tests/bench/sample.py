"""Generation against transformers' generate: the 124 M gpt2 network, random weights, one row.

Floor: every weight is read once a token, so memory bandwidth over 4 bytes a weight, measured in the
same run.
"""

import time
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from common.config import ARCHITECTURES, GenerateConfig, ModelConfig
from common.generate import generate
from common.model import GPT
from common.tokenizer import CharTokenizer
from tests.bench.table import compare

V, N_NEW = 50_257, 64


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_layer": 12, "n_head": 12, "n_embd": 768}
    config = ModelConfig(**ARCHITECTURES["gpt2"], **sizes, vocab_size=V, block_size=1024)
    ours = GPT(config).eval()
    theirs = GPT2LMHeadModel(GPT2Config()).eval()
    # stands for any vocabulary of this size: generation only asks which ids stand for text
    tokenizer = CharTokenizer(tuple(chr(0x10000 + i) for i in range(V - 5)))
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    greedy = GenerateConfig(max_new_tokens=N_NEW, temperature=0)

    def our_tokens() -> float:
        start = time.perf_counter()
        n_tokens = sum(1 for _ in generate(ours, prompt, greedy, tokenizer))
        return n_tokens / (time.perf_counter() - start)

    def their_tokens() -> float:
        start = time.perf_counter()
        out = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=N_NEW, min_new_tokens=N_NEW, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        return float(out.shape[1] - len(prompt)) / (time.perf_counter() - start)

    block = torch.randn(64 << 20)  # 256 MB: beyond any cache

    def bandwidth() -> float:
        start = time.perf_counter()
        block.sum()
        return block.nbytes / (time.perf_counter() - start) / (4 * ours.n_parameters)

    our_tokens(), their_tokens(), bandwidth()  # warm up
    compare(
        f"Generation, gpt2 architecture, {ours.n_parameters:,} parameters, float32, greedy",
        "tokens/s",
        {
            "ours": our_tokens,
            "floor: reading the weights": bandwidth,
            "transformers generate": their_tokens,
        },
        repeats=3,
    )
