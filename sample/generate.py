"""Several texts after one prompt, decoded together: what `sample generate` writes.

Sample i is drawn with seed + i, and is the same however many there are.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from common.inference.config import GenerateConfig
from common.inference.decoder import Token
from common.settings import SEEDS_END
from common.tokenizer import Tokenizer
from sample.loaded_model import Ready
from sample.text.detokenizer import Piece, Reading

MOST_ROWS = 16  # decoded at once: more gain little, and each has a cache of its own


@dataclass(frozen=True)
class Wanted:
    """What is to be written: texts after a prompt, ending where a stop text comes."""

    prompt: str
    config: GenerateConfig
    n_samples: int = 1
    stops: tuple[str, ...] = ()
    n_top: int = 0  # likeliest tokens to name beside each

    def seed(self, number: int) -> int:
        """Return the seed of one of the texts, counted from 0."""
        return (self.config.seed + number) % SEEDS_END

    def notices(self, ready: Ready) -> list[str]:
        """Return what a person should know before: that of a long prompt only the end is seen."""
        n_tokens = len(ready.loaded.tokenizer.encode(self.prompt))
        block_size = ready.loaded.model.config.block_size
        if n_tokens <= block_size:
            return []
        return [
            f"The prompt has {n_tokens:,} tokens and the context {block_size:,}: only its end is "
            "seen."
        ]


def write_samples(ready: Ready, wanted: Wanted) -> Iterator[tuple[int, Piece]]:
    """Yield pieces of the texts, each with the number of its text, as they come.

    MOST_ROWS are decoded at once; the next begins where one ended.
    """
    tokenizer, config = ready.loaded.tokenizer, wanted.config
    prompt = tokenizer.encode(wanted.prompt)
    decoder = ready.decoder(min(wanted.n_samples, MOST_ROWS))
    waiting = iter(range(wanted.n_samples))
    busy: dict[int, tuple[int, Reading]] = {}
    free = list(range(len(decoder.rows) - 1, -1, -1))  # the lowest row last: taken first
    while True:
        while free and (number := next(waiting, None)) is not None:
            row = free.pop()
            own = replace(config, seed=wanted.seed(number))
            decoder.admit(row, prompt, own, wanted.n_top)
            busy[row] = number, Reading(tokenizer, config.max_new_tokens, wanted.stops)
        if not busy:
            return
        for row, token in decoder.step().items():
            number, reading = busy[row]
            piece = reading.take(token)
            yield number, piece
            if piece.is_last:
                decoder.release(row)
                del busy[row]
                free.append(row)


def write_text(ready: Ready, wanted: Wanted) -> Iterator[str]:
    """Yield prompt and text of each sample: the first as it comes, later ones when it ended."""
    waiting = [wanted.prompt] + ["\n---\n" + wanted.prompt] * (wanted.n_samples - 1)
    ended = [False] * wanted.n_samples
    shown = 0
    for number, piece in write_samples(ready, wanted):
        waiting[number] += piece.text
        ended[number] = piece.is_last
        while shown < wanted.n_samples:
            if waiting[shown]:
                yield waiting[shown]
                waiting[shown] = ""
            if not ended[shown]:
                break
            shown += 1
    yield "\n"


def write_json(ready: Ready, wanted: Wanted) -> Iterator[str]:
    """Yield a line of JSON a sample, in the order in which they end.

    Logprobs are the network's own, before the filters; a token's text may be part of a character.
    """
    texts = [""] * wanted.n_samples
    tokens: list[list[Any]] = [[] for _ in texts]
    for number, piece in write_samples(ready, wanted):
        texts[number] += piece.text
        tokens[number] += [_as_json(token, ready.loaded.tokenizer) for token in piece.tokens]
        if piece.is_last:
            described = {
                "sample": number, "seed": wanted.seed(number), "prompt": wanted.prompt,
                "text": texts[number], "finish": piece.finish, "tokens": tokens[number],
            }  # fmt: skip
            yield json.dumps(described, ensure_ascii=False) + "\n"


def _as_json(token: Token, tokenizer: Tokenizer) -> dict[str, Any]:
    described = _logprob_as_json(token.idx, token.logprob, tokenizer)
    if token.top_logprobs:
        described["top"] = [_logprob_as_json(idx, p, tokenizer) for idx, p in token.top_logprobs]
    return described


def _logprob_as_json(idx: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    text = tokenizer.decode_bytes([idx]).decode("utf-8", "replace")
    return {"id": idx, "text": text, "logprob": round(logprob, 6)}
