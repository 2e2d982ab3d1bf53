"""Generate: prompt -> prefill -> logits -> sample -> append -> decode -> logits ...

A Decoder holds several texts, one a row, and gives each one more token a step. Which tokens a row
gets is a function of its own prompt, config and seed, whatever the other rows do.

When the context is full it is re-based: the newer half of the tokens stays and is prefilled again
from position 0. Which tokens a prediction sees is thus a function of how many there are
(row.window_start), so that generation with and without the cache are the same computation.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.errors import CheckpointError
from common.inference.backend import Backend, Position
from common.inference.config import GenerateConfig
from common.inference.row import Row, window_start
from common.inference.sampling import filter_logits, sample
from common.tokenizer import Tokenizer


@dataclass(frozen=True)
class Token:
    """One sampled id, with what the network itself, before any filter, gave it.

    ``logprob`` is the natural logarithm of its probability among all ids of the vocabulary;
    ``top_logprobs`` are the likeliest ids with theirs, as many as were asked for.
    """

    idx: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Decoder:
    """Rows of one network, each a text of its own, decoded together."""

    def __init__(self, backend: Backend, tokenizer: Tokenizer, n_rows: int = 1) -> None:
        """Allocate the cache of ``n_rows`` texts."""
        self.cache = backend.make_cache(n_rows)
        self.tokenizer = tokenizer
        self.block_size, self.n_recent = backend.config.block_size, backend.config.n_recent
        self.rows: list[Row | None] = [None] * n_rows
        # only ids that stand for text, and end-of-text, are ever sampled
        vocab_size = backend.config.vocab_size
        is_text = [bool(token) for token in tokenizer.token_bytes[:vocab_size]]
        is_text += [False] * (vocab_size - len(is_text))
        is_text[tokenizer.eot_id] = True
        self.banned = np.flatnonzero(~np.array(is_text))
        self._filtered = np.empty(vocab_size, np.float32)

    def admit(
        self, row: int, prompt: Sequence[int], config: GenerateConfig, top_logprobs: int = 0
    ) -> None:
        """Begin a text in a free row; it is prefilled by the next step.

        An empty prompt is end-of-text: what precedes every document. Each Token names the
        ``top_logprobs`` likeliest ids.
        """
        if self.rows[row] is not None:
            raise ValueError(f"row {row} is busy")
        ids = list(prompt) or [self.tokenizer.eot_id]
        self.rows[row] = Row(ids, config, top_logprobs, len(self._filtered))

    def step(self) -> dict[int, Token]:
        """Return one more token for every busy row.

        End-of-text and max_new_tokens are the caller's to heed, who releases the row.

        Raises: CheckpointError when the network's logits are not finite numbers.
        """
        busy = [(number, row) for number, row in enumerate(self.rows) if row is not None]
        self._forward([(number, row) for number, row in busy if row.logits is None])
        tokens = {}
        for number, row in busy:
            tokens[number] = self._sample(row)
            row.append(tokens[number].idx)
        return tokens

    def release(self, row: int) -> None:
        """Forget a row's text; the row is free again."""
        self.rows[row] = None

    def _forward(self, rows: Sequence[tuple[int, Row]]) -> None:
        """Compute the logits of rows: prefill the new and the re-based, decode the others."""
        prefill, decode = [], []
        for number, row in rows:
            start = window_start(len(row.ids), self.block_size)
            if row.n_cached and start == row.start:
                decode.append((number, row))
            else:
                prefill.append((number, row))
                row.start, row.n_cached = start, 0
        if prefill:
            prompts = [(number, row.ids[row.start :]) for number, row in prefill]
            found = self.cache.prefill_batch(prompts)
            for (_, row), logits in zip(prefill, found, strict=True):
                row.logits, row.n_cached = next(logits.each()), len(row.ids) - row.start
                row.lookup.index(row.ids, row.start)
        if decode:
            self._decode(decode)

    def _decode(self, rows: Sequence[tuple[int, Row]]) -> None:
        """Compute the logits after each row's newest id, and after those of its draft."""
        limit = self.cache.max_batch_tokens // len(rows) - 1
        drafts: list[list[int]] = []
        positions: list[Position] = []
        for number, row in rows:
            n_free = row.start + self.block_size - len(row.ids)
            drafts.append(row.lookup.draft(row.ids, min(limit, n_free)))
            positions += row.positions(number, drafts[-1], self.n_recent)
        logits = self.cache.decode(positions).each()
        for (_, row), draft in zip(rows, drafts, strict=True):
            row.logits = next(logits)
            row.n_cached += 1
            row.lookup.decoded(draft, [next(logits) for _ in draft])

    def _sample(self, row: Row) -> Token:
        assert row.logits is not None
        logits, logsumexp = row.logits
        if not math.isfinite(logsumexp):
            raise CheckpointError(
                "The network's logits are not finite numbers: its training has diverged. Use an "
                "earlier checkpoint, or train anew with a lower --learning-rate."
            )
        np.copyto(self._filtered, logits)
        self._filtered[self.banned] = -np.inf
        idx = sample(*filter_logits(self._filtered, row.config, row.seen), row.rng.random())
        top: tuple[tuple[int, float], ...] = ()
        if row.top_logprobs:
            n = min(row.top_logprobs, len(logits))
            likeliest = torch.from_numpy(logits).topk(n).indices.tolist()
            top = tuple((i, float(logits[i]) - logsumexp) for i in likeliest)
        return Token(idx, float(logits[idx]) - logsumexp, top)


def generate(
    decoder: Decoder, prompt: Sequence[int], config: GenerateConfig, top_logprobs: int = 0
) -> Generator[Token]:
    """Yield the tokens after ``prompt``, up to end-of-text (the last then) or max_new_tokens.

    It is the loop for a decoder's only text: row 0, which is free again however this ends, also
    where it is closed early.

    Raises: CheckpointError when the network's logits are not finite numbers.
    """
    decoder.admit(0, prompt, config, top_logprobs)
    try:
        for _ in range(config.max_new_tokens):
            token = decoder.step()[0]
            yield token
            if token.idx == decoder.tokenizer.eot_id:
                return
    finally:
        decoder.release(0)
