"""The network of gpt.py for CPUs: its weights packed, a pass in one compiled call.

gpt.py says what is computed, and is what trains; forward.py computes the same from the weights as
they lie here. Which logits a token gets is a function of its text alone, to the last bit: neither
other texts nor how the text was computed, at once or token by token, change them. So what two texts
begin with alike is prefilled once.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import cast

import numpy as np
import torch

from common.inference.cpu import layout
from common.inference.cpu.forward import worker_loop
from common.inference.cpu.layout import PANEL, ROWS, Floats, Ints, ThreadGroup, Workspace, padded
from common.inference.cpu.threads import start_thread
from common.inference.row import Logits, Position
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.models.ngram import NgramTable, ngram_keys, row_of, tag_of
from common.thread_tuner import ThreadTuner

log = logging.getLogger(__name__)

MIN_SHARED = 16  # ids that two prompts begin with alike and that are better computed once
# Up to here one thread is as quick as several, which wait for each other more than they compute;
# and it is not slowed down by whatever else the machine does (tests/bench/GENERATION.md).
ONE_THREAD_WEIGHTS = 8_000_000
MAX_TOKENS = 128  # in a pass: more would gain little, and a signal waits for its end
ALONE, NO_PIPES = ThreadGroup(0, 1, np.zeros(1, np.int64)), np.empty(0, np.int64)
COMPILES_S = 1.5  # a first pass that takes so long is being compiled


class CpuBackend:
    """A GPT for generation on CPUs; it shares the embedding with the model and copies the rest."""

    def __init__(self, model: GPT, *, int8: bool = False, n_threads: int | None = None) -> None:
        """Pack ``model``, whose weights are float32; ``n_threads`` as suits its size by default."""
        self.config = model.config
        self.wte: Floats = model.wte.weight.detach().numpy()
        tables = cast("list[NgramTable]", model.wge)
        self.tables: list[Floats] = [t.weight.detach().numpy() for t in tables]
        tags = [t.tags.numpy() for t in tables if t.tags is not None]
        self.tags = np.stack(tags) if tags else None  # (tables, rows)
        self.ngram_map = None if model.wgp is None else model.wgp.weight.detach().numpy()
        added = model.added_positions
        self.added: Floats | None = None if added is None else added.detach().numpy()
        self.embed_scale = np.float32(model.embed_scale)
        self.weights = layout.pack(model, int8=int8)
        is_small = self.weights.panels.size < ONE_THREAD_WEIGHTS
        self.n_threads = n_threads or (1 if is_small else torch.get_num_threads())

    def make_cache(self, n_rows: int) -> "CpuKVCache":
        """Allocate a cache for ``n_rows`` texts."""
        return CpuKVCache(self, n_rows)

    def embed(self, recent: Ints, positions: Ints) -> Floats:
        """Return (B, C) for ids and those before them, (B, n_recent), at ``positions`` (B,)."""
        x = self.wte[recent[:, 0]]
        if self.tables:
            for each in self._embed_ngrams(np.array(ngram_keys([*recent.T]))):
                x += each
        if self.added is not None:
            x = x * self.embed_scale + self.added[positions]
        return x

    def _embed_ngrams(self, keys: Ints) -> list[Floats]:
        """Return what is added, (B, C) each, for n-grams (tables, B): few calls, all tables'."""
        rows = row_of(keys, self.config.ngram_rows)
        found = [table[of_table] for table, of_table in zip(self.tables, rows, strict=True)]
        if self.tags is not None:
            known = self.tags[np.arange(len(rows))[:, None], rows] == tag_of(keys)
            for each, of_table in zip(found, known, strict=True):
                each *= of_table[:, None]
        if self.ngram_map is None:
            return found
        # einsum, as BLAS sums a row otherwise where it is beside others
        return [np.einsum("bi,ci->bc", np.concatenate(found, axis=1), self.ngram_map)]


class CpuKVCache:
    """Keys and values of several rows, and the threads that compute them: not to be forked."""

    max_batch_tokens = 16

    def __init__(self, backend: CpuBackend, n_rows: int) -> None:
        self.backend = backend
        self.cached_ids: list[list[int]] = [[] for _ in range(n_rows)]
        self._ws = ws = _make_workspace(backend.config, n_rows, backend.n_threads)
        _compile(backend, ws)
        self._group = group = ThreadGroup(0, backend.n_threads, np.zeros(1, np.int64))

        def work(number: int, read_end: int) -> None:
            mine = group._replace(thread=number)
            worker_loop(backend.weights, ws, mine, np.array([read_end]), np.zeros(1, np.uint8))

        numbers = range(1, backend.n_threads)
        self._pipes = np.array([start_thread(n, work, owner=self) for n in numbers], np.int64)
        # all threads, or this one alone: beside a busy process they wait for each other
        self._tuner = ThreadTuner(sorted({1, backend.n_threads}))

    def prefill(
        self, prompts: Sequence[tuple[int, Sequence[int]]], n_wanted: int = 1
    ) -> Iterator[tuple[int, Logits]]:
        """Begin rows, each with its ids; yield rows and the logits after their last ``n_wanted``.

        What any row holds already of a beginning is copied from there. What two prompts begin with
        is computed once: the second waits for the first.
        """
        waiting = [*prompts]
        while waiting:
            batch: list[tuple[int, Sequence[int]]] = []
            for row, ids in waiting:
                if all(_n_common(ids, other) < MIN_SHARED for _, other in batch):
                    batch.append((row, ids))
            waiting = [prompt for prompt in waiting if prompt not in batch]
            positions = [at for row, ids in batch for at in self._uncached(row, ids, n_wanted)]
            first_wanted = {row: len(ids) - n_wanted for row, ids in batch}
            for first in range(0, len(positions), MAX_TOKENS):
                part = positions[first : first + MAX_TOKENS]
                wanted = [n for n, at in enumerate(part) if at.position >= first_wanted[at.row]]
                logits, n = self._forward(part, wanted), 0
                for row, own in groupby(part[i].row for i in wanted):
                    n, begin = n + len([*own]), n
                    yield row, Logits(*(x[begin:n] for x in logits))

    def decode(self, positions: Sequence[Position]) -> Logits:
        """Put one more id at each of several positions; return the logits after each."""
        return self._forward(positions, range(len(positions)))

    def _uncached(self, row: int, ids: Sequence[int], n_wanted: int) -> list[Position]:
        """Return the positions from the first that no row holds, or whose logits are wanted."""
        source, n_cached = max(
            ((other, _n_common(cached, ids)) for other, cached in enumerate(self.cached_ids)),
            key=lambda found: (found[1], found[0] == row),
        )
        first = min(n_cached, len(ids) - n_wanted)
        self.cached_ids[row] = []  # until it is sure: a Ctrl-C may come in between
        if source != row:
            keys, values = self._ws.keys, self._ws.values
            n_panels = -(-first // PANEL)
            keys[:, row, :, :n_panels] = keys[:, source, :, :n_panels]
            values[:, row, :, :, :first] = values[:, source, :, :, :first]
        self.cached_ids[row] = list(ids[:first])
        n = self.backend.config.n_recent
        filled = [0] * (n - 1) + list(ids)
        return [Position(row, at, filled[at : at + n][::-1]) for at in range(first, len(ids))]

    def _forward(self, positions: Sequence[Position], logits_indices: Sequence[int]) -> Logits:
        """Go through the network; return the logits after ids at some of the ``positions``."""
        n, n_logits, ws, backend = len(positions), len(logits_indices), self._ws, self.backend
        for at in positions:
            del self.cached_ids[at.row][at.position :]
        ws.rows[:n] = [at.row for at in positions]
        ws.positions[:n] = [at.position for at in positions]
        ws.logits_indices[:n_logits] = logits_indices
        blocks = [0]
        for i in range(1, n):
            before, at = positions[i - 1], positions[i]
            goes_on = at.row == before.row and at.position == before.position + 1
            if not goes_on or i - blocks[-1] == ROWS:
                blocks.append(i)
        ws.blocks[: len(blocks) + 1] = [*blocks, n]
        ws.counts[:] = n, n_logits, len(blocks)
        recent = np.array([at.recent for at in positions])
        ws.x[:n, : backend.config.n_embd] = backend.embed(recent, ws.positions[:n])
        group, pipes = (self._group, self._pipes) if self._tuner.n > 1 else (ALONE, NO_PIPES)
        start_s = time.perf_counter()
        worker_loop(backend.weights, ws, group, pipes, np.zeros(1, np.uint8))
        if n == 1:  # passes of one token take equally long
            self._tuner.add(time.perf_counter() - start_s)
        for at in positions:
            self.cached_ids[at.row].append(at.recent[0])
        return Logits(
            ws.logits[:n_logits, : backend.config.vocab_size].copy(), ws.logsumexp[:n_logits].copy()
        )


def _n_common(cached: Sequence[int], ids: Sequence[int]) -> int:
    """Return how many ids two texts begin with alike."""
    n = min(len(cached), len(ids))
    return next((i for i in range(n) if cached[i] != ids[i]), n)


def _compile(backend: CpuBackend, ws: Workspace) -> None:
    """Compile the kernels, or load them, by a pass of no tokens; here, as no thread may fail."""
    timer = threading.Timer(COMPILES_S, log.info, ["Compiling for this processor, this once ..."])
    timer.start()
    try:
        worker_loop(backend.weights, ws, ALONE, NO_PIPES, np.zeros(1, np.uint8))
    except OSError as error:  # they are compiled, and cannot be kept
        log.warning("Compiled, but it could not be kept for the next time: %s", error)
    finally:
        timer.cancel()


def _make_workspace(config: ModelConfig, n_rows: int, n_threads: int) -> Workspace:
    B, C = max(MAX_TOKENS, n_rows), padded(config.n_embd)  # noqa: N806
    hs, inner, n_positions = config.head_size, padded(config.inner_size), padded(config.block_size)
    cache = config.n_layer, n_rows, config.kv_heads

    def floats(*shape: int) -> Floats:
        # as torch allocates: in large pages where it can
        return torch.empty(shape, dtype=torch.float32).numpy()

    def ints(n: int) -> Ints:
        return np.zeros(n, np.int64)

    return Workspace(
        counts=ints(3), rows=ints(B), positions=ints(B), blocks=ints(B + 1),
        logits_indices=ints(B), x=floats(B, C), normed=floats(B, C),
        qkv=floats(B, padded((config.n_head + 2 * config.kv_heads) * hs)),
        attn_out=floats(B, padded(config.n_head * hs)),
        inner=floats(B, inner), gate=floats(B if config.mlp == "swiglu" else 0, inner),
        queries=floats(n_threads, ROWS, hs), attn_weights=floats(n_threads, ROWS, n_positions),
        attn_sums=floats(n_threads, ROWS, PANEL),
        logits=floats(B, padded(config.vocab_size)), logsumexp=floats(B),
        keys=floats(*cache, n_positions // PANEL, hs, PANEL),
        values=floats(*cache, padded(hs) // PANEL, config.block_size, PANEL),
    )  # fmt: skip
