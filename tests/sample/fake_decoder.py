"""A decoder without a network: what a row says is a hash of its own request and nothing else."""

import hashlib
import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from common.inference.decoder import Token
from common.inference.row import Logits
from common.models.config import GenerateConfig


class FakeDecoder:
    """The methods of Decoder; notes how it was used, and fails where told to."""

    def __init__(self, n_rows: int, texts_end_at: int = 9) -> None:
        self.n_rows = n_rows
        self.eot_id = texts_end_at  # ids are below it
        self.rows: dict[int, tuple[bytes, int, int]] = {}  # key, n_top, tokens so far
        self.n_steps = 0
        self.most_rows = 0
        self.fails_at_step: int | None = None
        self.go = threading.Event()  # cleared: step waits
        self.go.set()
        self.cache = self

    def prefill(
        self, prompts: Sequence[tuple[int, Sequence[int]]], n_wanted: int = 1
    ) -> Iterator[tuple[int, Logits]]:
        """Yield the logits of one who guesses blindly."""
        n_ids = 2 * self.eot_id
        logsumexp = np.full(n_wanted, math.log(n_ids), np.float32)
        yield prompts[0][0], Logits(np.zeros((n_wanted, n_ids), np.float32), logsumexp)

    def admit(
        self, row: int, prompt: Sequence[int], config: GenerateConfig, top_logprobs: int = 0
    ) -> None:
        assert 0 <= row < self.n_rows
        assert row not in self.rows, "the row is not free"
        self.rows[row] = (f"{list(prompt)} {config}".encode(), top_logprobs, 0)
        self.most_rows = max(self.most_rows, len(self.rows))

    def step(self) -> dict[int, Token]:
        assert self.go.wait(timeout=30)
        self.n_steps += 1
        if self.n_steps == self.fails_at_step:
            raise ZeroDivisionError("made to fail")
        tokens = {}
        for row, (key, n_top, n) in self.rows.items():
            tokens[row] = self.token(key, n, n_top)
            self.rows[row] = (key, n_top, n + 1)
        return tokens

    def release(self, row: int) -> None:
        self.rows.pop(row, None)  # it has none while its prompt is scored

    def token(self, key: bytes, n: int, n_top: int) -> Token:
        idx = hashlib.sha256(key + str(n).encode()).digest()[0] % self.eot_id
        return Token(idx, -float(n), tuple((i, -float(i)) for i in range(n_top)))

    def alone(self, prompt: Sequence[int], config: GenerateConfig) -> list[int]:
        """Return the ids that a request gets when it is alone."""
        key = f"{list(prompt)} {config}".encode()
        return [self.token(key, n, 0).idx for n in range(config.max_new_tokens)]
