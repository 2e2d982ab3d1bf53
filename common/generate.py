"""Generate: prompt -> logits -> filters -> one more id, again and again, with a KV cache.

When the context is full it is re-based: the newer half of the tokens stays and is read again from
position 0. Which tokens a prediction sees is thus a function of how many there are
(``window_start``), so that generation with and without the cache are the same computation.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from common.config import GenerateConfig
from common.errors import CheckpointError
from common.model import GPT, KVCache
from common.tokenizer import Tokenizer


def window_start(n_tokens: int, block_size: int) -> int:
    """Return the first of ``n_tokens`` tokens that the next prediction sees.

    Example: with a block_size of 8, tokens 0-7 are seen whole; the ninth token makes the context
    re-base to the 4 before it, so 9 tokens are seen from 4 on, and so up to 12; 13 from 8 on.
    """
    if n_tokens <= block_size:
        return 0
    half = block_size - block_size // 2
    return -(-(n_tokens - block_size) // half) * half


def filter_logits(logits: Tensor, config: GenerateConfig) -> Tensor:
    """Return probabilities (V,) from scores (V,): temperature, then top-k, then top-p.

    Top-p keeps the smallest set of likeliest tokens that reaches the probability, at least one.
    Source of top-p: Holtzman et al. 2020, section 3.1 (arXiv:1904.09751).
    """
    if config.temperature == 0:
        chosen = torch.zeros_like(logits)
        chosen[logits.argmax()] = 1.0
        return chosen
    # from the largest down: a temperature near 0 must not make infinities to subtract
    logits = (logits - logits.max()) / config.temperature
    if 0 < config.top_k < len(logits):
        kept = logits.topk(config.top_k).indices
        masked = torch.full_like(logits, float("-inf"))
        masked[kept] = logits[kept]
        logits = masked
    probabilities = logits.softmax(dim=-1)
    if config.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # what the likelier tokens already reach
        beyond = before >= config.top_p
        beyond[0] = False
        probabilities[order[beyond]] = 0.0
    return probabilities / probabilities.sum()


def generate(
    model: GPT, prompt: Sequence[int], config: GenerateConfig, tokenizer: Tokenizer
) -> Iterator[int]:
    """Yield new ids after ``prompt``, until end-of-text (not yielded) or max_new_tokens.

    Only ids that stand for text, and end-of-text, are ever chosen. An empty prompt is end-of-text:
    what precedes every document.

    Raises: CheckpointError when the network's scores are not finite numbers.
    """
    device = model.wte.weight.device
    stands_for_text = torch.tensor([bool(token) for token in tokenizer.token_bytes])  # (V,)
    stands_for_text[tokenizer.eot_id] = True
    banned = ~stands_for_text.to(device)
    generator = torch.Generator().manual_seed(config.seed)
    cache = KVCache(model.config, 1, like=model.wte.weight)
    ids = list(prompt) or [tokenizer.eot_id]
    start = 0
    for _ in range(config.max_new_tokens):
        new_start = window_start(len(ids), model.config.block_size)
        if new_start != start:
            start, cache.length = new_start, 0
        logits = _next_logits(model, ids[start + cache.length :], cache)
        # drawn on the CPU, so that a seed gives the same text whatever the device
        probabilities = filter_logits(logits.masked_fill(banned, float("-inf")), config).cpu()
        if not bool(probabilities.isfinite().all()):
            raise CheckpointError(
                "The network's scores are not finite numbers: its training has diverged. Use an "
                "earlier checkpoint, or train anew with a lower --learning-rate."
            )
        idx = int(torch.multinomial(probabilities, 1, generator=generator))
        if idx == tokenizer.eot_id:
            return
        ids.append(idx)
        yield idx


@torch.inference_mode()
def _next_logits(model: GPT, new_ids: Sequence[int], cache: KVCache) -> Tensor:
    """Return scores (V,) for the token after those in the cache and ``new_ids``."""
    idx = torch.tensor([new_ids], device=model.wte.weight.device)  # (1, T)
    return model.logits(model.hidden(idx, cache)[0, -1]).float()  # (V,)
