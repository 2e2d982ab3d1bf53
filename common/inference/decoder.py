"""Generate: prompt -> prefill -> logits -> sample -> append -> decode -> logits ...

A Decoder holds several texts, one a row, and gives each one more token a step. Which tokens a row
gets is a function of its own prompt, config and seed, whatever the other rows do.

When the context is full it is re-based: the newer half of the tokens stays and is prefilled again
from position 0. Which tokens a prediction sees is thus a function of how many there are
(row.window_start), so that generation with and without the cache are the same computation.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from common.inference.backend import Backend
from common.inference.row import Row, top_logprobs
from common.inference.sampling import filter_logits, sample
from common.models.config import GenerateConfig
from common.tokenizer import Tokenizer


@dataclass(frozen=True)
class Token:
    """One sampled id, with what the network itself gave it before any filter: natural logarithms.

    ``top_logprobs`` are the likeliest ids with theirs, as many as were asked for.
    """

    idx: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Decoder:
    """Rows of one network, decoded together, each a text up to end-of-text or one of ``ends``."""

    def __init__(
        self, backend: Backend, tokenizer: Tokenizer, n_rows: int = 1, ends: Sequence[int] = ()
    ) -> None:
        self.model, self.tokenizer, self.ends = backend.config, tokenizer, ends
        self.block_size, vocab_size = self.model.block_size, self.model.vocab_size
        self.cache = backend.make_cache(n_rows)
        self.rows: list[Row | None] = [None] * n_rows
        # only ids that stand for text, and those that end one, are ever sampled
        texts = dict(enumerate(tokenizer.token_bytes))
        texts |= dict.fromkeys((tokenizer.eot_id, *ends), b"end")
        self.banned = np.array([idx for idx in range(vocab_size) if not texts.get(idx)], np.int64)
        self._filtered = np.empty(vocab_size, np.float32)

    def admit(
        self, row: int, prompt: Sequence[int], config: GenerateConfig, top_logprobs: int = 0
    ) -> None:
        """Begin a text in a free row; it is prefilled by the next step.

        An empty prompt is end-of-text: what precedes every document.
        """
        if self.rows[row] is not None:
            raise ValueError(f"row {row} is busy")
        ids = list(prompt) or [self.tokenizer.eot_id]
        self.rows[row] = Row(ids, config, top_logprobs, self.model, self.ends)

    def step(self) -> dict[int, Token]:
        """Return one more token for every busy row; raise CheckpointError for logits not finite.

        What ends a text, and max_new_tokens, are the caller's to heed, who releases the row.
        """
        busy = {number: row for number, row in enumerate(self.rows) if row is not None}
        self._forward({number: row for number, row in busy.items() if row.logits is None})
        tokens = {}
        for number, row in busy.items():
            tokens[number] = self._sample(row)
            row.append(tokens[number].idx)
        return tokens

    def release(self, row: int) -> None:
        """Forget a row's text; the row is free again."""
        self.rows[row] = None

    def _forward(self, rows: dict[int, Row]) -> None:
        """Compute the logits of rows: prefill the new and the re-based, decode the others."""
        prompts = {number: prompt for number, row in rows.items() if (prompt := row.prompt())}
        for number, logits in self.cache.prefill([*prompts.items()]):
            rows[number].prefilled(next(logits.each()))
        others = [(number, row) for number, row in rows.items() if number not in prompts]
        if others:
            limit = self.cache.max_batch_tokens // len(others) - 1
            positions = [row.positions(number, limit) for number, row in others]
            each = self.cache.decode([at for own in positions for at in own]).each()
            for (_, row), own in zip(others, positions, strict=True):
                row.decoded(own, [next(each) for _ in own])

    def _sample(self, row: Row) -> Token:
        """Sample one id of those that stand for text."""
        assert row.logits is not None
        logits, logsumexp = row.logits
        np.copyto(self._filtered, logits)
        self._filtered[self.banned] = -np.inf
        filtered = filter_logits(self._filtered, row.config, row.seen, row.counts)
        idx = sample(*filtered, row.rng.random())
        top = top_logprobs(logits, logsumexp, row.top_logprobs)
        return Token(idx, float(logits[idx]) - logsumexp, top)


def generate(
    decoder: Decoder, prompt: Sequence[int], config: GenerateConfig, top_logprobs: int = 0
) -> Generator[Token]:
    """Yield the tokens after ``prompt``, up to one that ends it (the last) or max_new_tokens.

    They are row 0's, which is free again however this ends, also where it is closed early.
    """
    decoder.admit(0, prompt, config, top_logprobs)
    try:
        for _ in range(config.max_new_tokens):
            token = decoder.step()[0]
            yield token
            if not decoder.tokenizer.token_bytes[token.idx]:
                return
    finally:
        decoder.release(0)
