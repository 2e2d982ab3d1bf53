"""Generate: prompt -> scores -> filters -> one more id, again and again, with a KV cache.

A Decoder holds several texts, one a row, and gives each one more token a step. Which tokens a row
gets is a function of its own prompt, config and seed, whatever the other rows do.

When the context is full it is re-based: the newer half of the tokens stays and is read again from
position 0. Which tokens a prediction sees is thus a function of how many there are
(``window_start``), so that generation with and without the cache are the same computation.

Where the last few ids stood before, what followed them then is guessed to follow again, and scored
in the same pass. A guess decides nothing: ids are drawn as ever, and one that was guessed right is
scored already. Source: prompt lookup decoding, Saxena 2023 (github.com/apoorvumang), a case of
speculative decoding, Leviathan et al. 2022 (arXiv:2211.17192).
"""

import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.errors import CheckpointError
from common.inference.backend import Floats, Place, Scored, ScoringNetwork
from common.inference.config import GenerateConfig
from common.inference.sampling import choices, draw
from common.models.gpt import GPT
from common.tokenizer import Tokenizer

GUESS_AFTER = 3  # ids that must have stood before, in this order
MOST_GUESSED = 8  # for one text; from 1 on, twice as many each time that all were right


def window_start(n_tokens: int, block_size: int) -> int:
    """Return the first of ``n_tokens`` tokens that the next prediction sees.

    Example: with a block_size of 8, tokens 0-7 are seen whole; the ninth token makes the context
    re-base to the 4 before it, so 9 tokens are seen from 4 on, and so up to 12; 13 from 8 on.
    """
    if n_tokens <= block_size:
        return 0
    half = block_size - block_size // 2
    return -(-(n_tokens - block_size) // half) * half


@dataclass(frozen=True)
class Token:
    """One id chosen, and what the network itself, before any filter, thought of it.

    ``logprob`` is the natural logarithm of its probability among all ids of the vocabulary;
    ``top`` are the likeliest ids with theirs, as many as were asked for.
    """

    idx: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Row:
    """A text that grows: its ids, how they are chosen, and how many of them the cache holds."""

    def __init__(self, ids: list[int], config: GenerateConfig, n_top: int, vocab_size: int) -> None:
        self.ids, self.config, self.n_top = ids, config, n_top
        # drawn on the CPU by Python, whose numbers are the same on every machine
        self.random = random.Random(config.seed)
        self.start = self.n_cached = 0
        # (V,) for the next token, and their total, where they are known already
        self.scored: tuple[Floats, float] | None = None
        # of ids that are guessed to come: the id, and what is scored for what follows it
        self.guessed: deque[tuple[int, tuple[Floats, float]]] = deque()
        self.n_guess = 1
        self.following: dict[tuple[int, ...], int] = {}  # GUESS_AFTER ids -> where the next one is
        self.seen: np.ndarray[tuple[int], np.dtype[np.bool_]] | None = None
        if config.repetition_penalty != 1:
            self.seen = np.zeros(vocab_size, np.bool_)
            self.seen[ids] = True

    def newest(self, n: int, guess: Sequence[int]) -> list[int]:
        """Return the last ``n`` ids that are seen, the last first; zeros where there are fewer.

        As if ``guess`` stood behind the text.
        """
        ids = [*self.ids[max(self.start, len(self.ids) - n) :], *guess][: -n - 1 : -1]
        return ids + [0] * (n - len(ids))

    def append(self, idx: int) -> None:
        """Add one id to the text."""
        self.following[tuple(self.ids[-GUESS_AFTER:])] = len(self.ids)
        self.ids.append(idx)
        self.scored = None
        if self.guessed and self.guessed[0][0] == idx:
            _, self.scored = self.guessed.popleft()
            self.n_cached += 1
            if not self.guessed:
                self.n_guess = min(2 * self.n_guess, MOST_GUESSED)
        elif self.guessed:
            self.guessed.clear()
            self.n_guess = 1
        if self.seen is not None:
            self.seen[idx] = True

    def guess(self, at_most: int) -> list[int]:
        """Return ids that may come next, none where the last ones did not stand before."""
        at = self.following.get(tuple(self.ids[-GUESS_AFTER:]))
        if at is None:
            return []
        period = len(self.ids) - at  # at its end it is guessed to begin again
        return [self.ids[at + i % period] for i in range(min(self.n_guess, at_most))]

    def look_back(self) -> None:
        """Note what follows what in the ids that are seen, and in those alone."""
        n = GUESS_AFTER
        places = range(self.start + n, len(self.ids))
        self.following = {tuple(self.ids[at - n : at]): at for at in places}


class Decoder:
    """Rows of one network, each a text of its own, decoded together."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        n_rows: int,
        network: ScoringNetwork | None = None,
    ) -> None:
        """Make room for ``n_rows`` texts at most; ``network`` where it is laid out already."""
        self.contexts = (network or lay_out(model)).contexts(n_rows)
        self.n_recent = model.config.n_recent
        self.tokenizer = tokenizer
        self.block_size = model.config.block_size
        self.rows: list[Row | None] = [None] * n_rows
        # only ids that stand for text, and end-of-text, are ever chosen
        banned = [not token for token in tokenizer.token_bytes[: model.config.vocab_size]]
        banned += [True] * (model.config.vocab_size - len(banned))
        banned[tokenizer.eot_id] = False
        self.banned = np.flatnonzero(banned)
        self._room = np.empty(len(banned), np.float32)  # for what is made of a row's scores

    def admit(
        self, row: int, prompt: Sequence[int], config: GenerateConfig, n_top: int = 0
    ) -> None:
        """Begin a text in a free row: at the next step its prompt is read, with others that wait.

        An empty prompt is end-of-text: what precedes every document. With ``n_top`` each Token
        says which ids were the likeliest.
        """
        if self.rows[row] is not None:
            raise ValueError(f"row {row} is busy")
        ids = list(prompt) or [self.tokenizer.eot_id]
        self.rows[row] = Row(ids, config, n_top, len(self._room))

    def step(self) -> dict[int, Token]:
        """Return one more token for every busy row.

        End-of-text and max_new_tokens are the caller's to heed, who releases the row.

        Raises: CheckpointError when the network's scores are not finite numbers.
        """
        self._score()
        tokens = {}
        for number, row in enumerate(self.rows):
            if row is not None:
                tokens[number] = self._choose(row)
                row.append(tokens[number].idx)
        return tokens

    def release(self, row: int) -> None:
        """Forget a row's text; the row is free again."""
        self.rows[row] = None

    def _score(self) -> None:
        """Score the next token of every row that is not scored: read what is new, go on elsewhere.

        Rows go on in one pass, with their guesses.
        """
        waiting: list[tuple[int, Row]] = []
        unread: list[tuple[int, Row]] = []
        for number, row in enumerate(self.rows):
            if row is None or row.scored is not None:
                continue
            is_new = not row.n_cached or window_start(len(row.ids), self.block_size) != row.start
            (unread if is_new else waiting).append((number, row))
        if unread:
            self._read(unread)
        if not waiting:
            return
        most_guessed = self.contexts.most_places // len(waiting) - 1
        guesses = [self._guess(row, most_guessed) for _, row in waiting]
        places = [
            Place(number, row.n_cached + n, row.newest(self.n_recent, guess[:n]))
            for (number, row), guess in zip(waiting, guesses, strict=True)
            for n in range(len(guess) + 1)
        ]
        found = each(self.contexts.score(places))
        for (_, row), guess in zip(waiting, guesses, strict=True):
            row.scored = next(found)
            row.n_cached += 1
            row.guessed.extend((idx, next(found)) for idx in guess)

    def _read(self, unread: Sequence[tuple[int, Row]]) -> None:
        """Read the tokens that the next prediction of each row sees, and score it."""
        starts = [window_start(len(row.ids), self.block_size) for _, row in unread]
        texts = [
            (number, row.ids[start:]) for (number, row), start in zip(unread, starts, strict=True)
        ]
        found = self.contexts.read_all(texts)
        for (_, row), start, scored in zip(unread, starts, found, strict=True):
            row.scored = next(each(scored))
            row.start, row.n_cached = start, len(row.ids) - start
            row.look_back()

    def _guess(self, row: Row, at_most: int) -> list[int]:
        """Return ids that may come next, as many as there is room for in the context."""
        return row.guess(min(at_most, row.start + self.block_size - len(row.ids)))

    def _choose(self, row: Row) -> Token:
        assert row.scored is not None
        scores, log_total = row.scored
        if not math.isfinite(log_total):
            raise CheckpointError(
                "The network's scores are not finite numbers: its training has diverged. Use an "
                "earlier checkpoint, or train anew with a lower --learning-rate."
            )
        room = self._room
        np.copyto(room, scores)
        room[self.banned] = -np.inf
        idx = draw(*choices(room, row.config, row.seen), row.random.random())
        top: tuple[tuple[int, float], ...] = ()
        if row.n_top:
            likeliest = torch.from_numpy(scores).topk(min(row.n_top, len(scores))).indices.tolist()
            top = tuple((i, float(scores[i]) - log_total) for i in likeliest)
        return Token(idx, float(scores[idx]) - log_total, top)


def each(scored: Scored) -> Iterator[tuple[Floats, float]]:
    """Yield of each token its scores (V,) and their total."""
    return zip(scored.scores, scored.totals.tolist(), strict=True)


def lay_out(model: GPT) -> ScoringNetwork:
    """Return a model's network for generation, in the form that suits its device."""
    weight = model.wte.weight
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        from common.inference.cpu.backend import (
            CompiledNetwork,  # and with it Numba, which GPUs do not need
        )

        return CompiledNetwork(model)
    from common.inference.torch_backend import Network

    return Network(model)


def generate(
    model: GPT,
    prompt: Sequence[int],
    config: GenerateConfig,
    tokenizer: Tokenizer,
    network: ScoringNetwork | None = None,
) -> Iterator[int]:
    """Yield new ids after ``prompt``, until end-of-text (not yielded) or max_new_tokens.

    Only ids that stand for text, and end-of-text, are ever chosen. An empty prompt is end-of-text:
    what precedes every document.

    Raises: CheckpointError when the network's scores are not finite numbers.
    """
    decoder = Decoder(model, tokenizer, 1, network)
    decoder.admit(0, prompt, config)
    for _ in range(config.max_new_tokens):
        idx = decoder.step()[0].idx
        if idx == tokenizer.eot_id:
            return
        yield idx
