"""Several texts after one prompt, decoded together: what `sample generate` writes.

Sample i is drawn with seed + i, and is the same however many there are.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from common.models.config import GenerateConfig
from common.settings import SEEDS_END
from sample.loaded_model import LoadedModel
from sample.text.detokenizer import Detokenizer, TextDelta, token_json

MAX_ROWS = 16  # decoded at once: more gain little, and each has a cache of its own


@dataclass(frozen=True)
class GenerateRequest:
    """Texts after a prompt, each ending where a stop text comes."""

    prompt: str
    config: GenerateConfig
    n_samples: int = 1
    stops: tuple[str, ...] = ()
    top_logprobs: int = 0  # likeliest tokens to name beside each


def generate_samples(
    model: LoadedModel, request: GenerateRequest
) -> Iterator[tuple[int, TextDelta]]:
    """Yield (sample, part of its text) as they come; where one ends, the next begins."""
    tokenizer, config = model.tokenizer, request.config
    prompt = tokenizer.encode(request.prompt)
    decoder = model.decoder(min(request.n_samples, MAX_ROWS))
    waiting = iter(range(request.n_samples))
    busy: dict[int, tuple[int, Detokenizer]] = {}
    while True:
        for row in range(len(decoder.rows)):
            if row not in busy and (number := next(waiting, None)) is not None:
                own = replace(config, seed=(config.seed + number) % SEEDS_END)
                decoder.admit(row, prompt, own, request.top_logprobs)
                busy[row] = number, Detokenizer(tokenizer, config.max_new_tokens, request.stops)
        if not busy:
            return
        for row, token in decoder.step().items():
            number, detokenizer = busy[row]
            delta = detokenizer.push(token)
            yield number, delta
            if delta.is_last:
                decoder.release(row)
                del busy[row]


def write_text(model: LoadedModel, request: GenerateRequest) -> Iterator[str]:
    """Yield prompt and text of each sample: the first as it comes, later ones when it ended."""
    waiting = [request.prompt] + ["\n---\n" + request.prompt] * (request.n_samples - 1)
    ended = [False] * request.n_samples
    shown = 0
    for number, delta in generate_samples(model, request):
        waiting[number] += delta.text
        ended[number] = delta.is_last
        while shown < request.n_samples:
            if waiting[shown]:
                yield waiting[shown]
                waiting[shown] = ""
            if not ended[shown]:
                break
            shown += 1
    yield "\n"


def write_json(model: LoadedModel, request: GenerateRequest) -> Iterator[str]:
    """Yield a line of JSON a sample, in the order in which they end."""
    parts: list[list[TextDelta]] = [[] for _ in range(request.n_samples)]
    for number, delta in generate_samples(model, request):
        parts[number].append(delta)
        if delta.is_last:
            tokens = [token for part in parts[number] for token in part.tokens]
            described = {
                "sample": number,
                "seed": (request.config.seed + number) % SEEDS_END,
                "prompt": request.prompt,
                "text": "".join(part.text for part in parts[number]),
                "finish": delta.finish_reason,
                "tokens": [token_json(token, model.tokenizer) for token in tokens],
            }
            yield json.dumps(described, ensure_ascii=False) + "\n"
