"""The network of model.py for CPUs: its weights laid out in one block, a pass in one call.

gpt.py says what is computed, and is what trains; forward.py computes the same from the weights as
they lie here. Which scores a token gets is a function of its text alone, to the last bit: neither
other texts nor how the text was read, at once or token by token, change them. So what two texts
have in common at their beginning is read once.
"""

import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.inference.backend import Logits, Position
from common.inference.cpu import forward as kernels
from common.inference.cpu import gemm as products
from common.inference.cpu.forward import Floats, Ints, Net, Room, Team
from common.inference.cpu.gemm import PANEL, ROWS
from common.models.config import ModelConfig
from common.models.gpt import GPT, Block
from common.models.ngram import ngram_rows

log = logging.getLogger(__name__)

SHARED = 16  # ids that two texts begin with alike and that are better read once
MOST_TOKENS = 128  # in a pass: more would gain little, and a signal waits for its end
MLP_KINDS = {
    "gelu": products.GELU,
    "relu": products.RELU,
    "relu2": products.RELU2,
    "swiglu": products.SWIGLU,
}
compiled_for: set[np.dtype[Any]] = set()  # kinds of weights, in this process
SLOW_S = 1.5  # a first pass that takes so long is being compiled


def whole_panels(n: int) -> int:
    """Return ``n`` outputs rounded up to whole panels."""
    return -(-n // PANEL) * PANEL


# a matrix (out, in) -> its weights as int8, and what those of each output are to be multiplied with
ToBytes = Callable[[Tensor], tuple[Tensor, Tensor]]


class Weights:
    """Vectors one behind the other in one array, matrices in another."""

    def __init__(self, quantize_int8: ToBytes | None) -> None:
        self.quantize_int8 = quantize_int8
        self.vectors: list[Tensor] = []
        self.matrices: list[Tensor] = []
        self.n_numbers = self.n_rows = 0

    def vector(self, weight: Tensor | None) -> int:
        """Return where a vector (n,) will begin; -1 for none."""
        if weight is None:
            return -1
        at = self.n_numbers
        self.vectors.append(F.pad(weight.detach(), (0, -len(weight) % PANEL)))
        self.n_numbers += whole_panels(len(weight))
        return at

    def matrix(self, weight: Tensor, bias: Tensor | None) -> tuple[int, int, int]:
        """Return where a matrix (out, in) will begin, its bias and its scales."""
        at, weight = self.n_rows, weight.detach()
        scales = None
        if self.quantize_int8 is not None:
            weight, scales = self.quantize_int8(weight)
        self.matrices.append(weight)
        self.n_rows += whole_panels(len(weight)) // PANEL * weight.shape[1]
        return at, self.vector(bias), self.vector(scales)

    def linear(self, linear: nn.Module) -> tuple[int, int, int]:
        """Return the same of a Linear."""
        return self.matrix(linear.weight, linear.bias)  # type: ignore[arg-type]

    def norm(self, norm: nn.Module) -> tuple[int, int]:
        """Return where a norm's weight and bias will begin, as far as it has them."""
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        return self.vector(weight), self.vector(bias)

    def panels(self) -> npt.NDArray[np.float32] | npt.NDArray[np.int8]:
        """Return all matrices, PANEL outputs together: (panels, in, PANEL) of each."""
        dtype = torch.float32 if self.quantize_int8 is None else torch.int8
        block, at = torch.empty((self.n_rows, PANEL), dtype=dtype), 0
        for weight in self.matrices:
            n_out, n_in = weight.shape
            n_rows = whole_panels(n_out) // PANEL * n_in
            panels = block[at : at + n_rows].view(-1, n_in, PANEL)
            n_whole = n_out // PANEL
            whole = weight[: n_whole * PANEL].reshape(n_whole, PANEL, n_in)
            panels[:n_whole].copy_(whole.transpose(1, 2))
            if n_whole < len(panels):
                panels[-1] = 0
                panels[-1][:, : n_out % PANEL] = weight[n_whole * PANEL :].t()
            at += n_rows
        return block.numpy()


class CpuBackend:
    """A GPT for generation on CPUs; it shares the embedding with the model and copies the rest."""

    def __init__(self, model: GPT, quantize_int8: ToBytes | None = None) -> None:
        """Lay out ``model``, whose weights are float32; its matrices ``quantize_int8`` if given."""
        self.config = config = model.config
        self.wte: Floats = model.wte.weight.detach().numpy()
        self.tables: list[Floats] = [table.detach().numpy() for table in model.wge.parameters()]
        added = model.added_positions
        self.added: Floats | None = None if added is None else added.detach().numpy()
        self.embed_scale = np.float32(model.embed_scale)
        weights, V, bias = Weights(quantize_int8), config.vocab_size, model.head_bias  # noqa: N806
        layers = [_place_layer(weights, block) for block in model.h]  # type: ignore[arg-type]
        ends = [
            *weights.norm(model.ln_f),
            *weights.matrix(model.head_weight[:V], None if bias is None else bias[:V]),
        ]
        none = np.empty((0, 0), np.float32)
        self.net = Net(
            vectors=torch.cat([*weights.vectors, torch.zeros(1)]).numpy(),
            panels=weights.panels(),
            layers=np.array(layers, np.int64),
            ends=np.array(ends, np.int64),
            cos=model.cos.numpy() if added is None else none,
            sin=model.sin.numpy() if added is None else none,
            sizes=(
                config.n_embd, config.n_head, config.kv_heads, config.head_size, config.inner_size,
                V, int(config.norm_first), int(config.norm == "layernorm"), MLP_KINDS[config.mlp],
            ),
        )  # fmt: skip

    def make_cache(self, n_rows: int) -> "CpuKVCache":
        """Return room for ``n_rows`` texts."""
        return CpuKVCache(self, n_rows)

    def embed(self, recent: Ints, positions: Ints) -> Floats:
        """Return (B, C) for ids and those before them, (B, n_recent), at ``positions`` (B,)."""
        x = self.wte[recent[:, 0]]
        if self.tables:
            rows = ngram_rows(torch.from_numpy(recent).unbind(1), self.config.ngram_rows)
            for table, of_table in zip(self.tables, rows, strict=True):
                x += table[of_table.numpy()]
        if self.added is not None:
            x = x * self.embed_scale + self.added[positions]
        return x


def _place_layer(weights: Weights, block: Block) -> list[int]:
    """Position a block's weights in the order of the names LN_1 ... MLP_PROJ."""
    attn, mlp = block.attn, block.mlp
    return [
        *weights.norm(block.ln_1),
        *weights.norm(block.ln_2),
        weights.norm(attn.q_norm)[0],
        weights.norm(attn.k_norm)[0],
        *weights.linear(attn.c_attn),
        *weights.linear(attn.c_proj),
        *weights.linear(mlp.c_fc),
        *(weights.linear(mlp.c_gate) if mlp.kind == "swiglu" else (-1, -1, -1)),
        *weights.linear(mlp.c_proj),
    ]


class CpuKVCache:
    """The texts so far of several rows, and the threads that score what comes next.

    The threads are of the process that made it: not to be used in one that was forked.
    """

    max_batch_tokens = 16

    def __init__(self, network: CpuBackend, n_rows: int) -> None:
        """Make room for ``n_rows`` texts, and start as many threads as torch would use."""
        self.network = network
        self.cached_ids: list[list[int]] = [[] for _ in range(n_rows)]  # the ids in the cache
        n_threads = torch.get_num_threads()
        self._room = _make_room(network.config, n_rows, n_threads)
        self._team, self._pipes = Team(0, 1, np.zeros(1, np.int64)), np.empty(0, np.int64)
        if network.net.panels.dtype not in compiled_for:
            self._compile()
        pipes = [os.pipe() for _ in range(n_threads - 1)]
        self._team = self._team._replace(n_threads=n_threads)
        self._pipes = np.array([write_end for _, write_end in pipes], np.int64)
        for number, (read_end, write_end) in enumerate(pipes, start=1):
            team = self._team._replace(thread=number)
            work = partial(_work, network.net, self._room, team, read_end)
            thread = threading.Thread(target=work, name=f"kernels-{number}", daemon=True)
            thread.start()
            # not as the interpreter ends: a thread that wakes up then is ended by force, which
            # compiled code does not survive; asleep it ends with the process
            weakref.finalize(self, _end, write_end, thread).atexit = False

    def _compile(self) -> None:
        """Have the kernels compiled, or loaded: in this thread, as no other may fail at it."""
        timer = threading.Timer(SLOW_S, log.info, ["Compiling for this processor, this once ..."])
        timer.start()
        try:
            self.decode([Position(0, 0, [0] * self.network.config.n_recent)])
        except OSError as error:  # it is compiled, and cannot be kept
            log.warning("Compiled, but it could not be kept for the next time: %s", error)
        finally:
            timer.cancel()
            self.cached_ids[0] = []
        compiled_for.add(self.network.net.panels.dtype)

    def prefill(self, row: int, ids: Sequence[int], n_wanted: int = 1) -> Iterator[Logits]:
        """Put ``ids`` into a row; yield scores of what follows each of the last ``n_wanted``.

        What a row holds already of their beginning is taken from there.
        """
        places = self._unread(row, ids, n_wanted)
        first_wanted = len(places) - n_wanted
        for first in range(0, len(places), MOST_TOKENS):
            part = places[first : first + MOST_TOKENS]
            scored = self._pass(part, range(max(0, first_wanted - first), len(part)))
            if len(scored.logsumexp):
                yield scored

    def prefill_batch(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[Logits]:
        """Put ids into several rows, read together; return what follows each text."""
        found: dict[int, Logits] = {}
        waiting = [*texts]
        while waiting:
            texts_now: list[tuple[int, Sequence[int]]] = []
            for row, ids in waiting:
                # what two of them have in common is read once: the second waits for the first
                if all(_n_common(ids, other) < SHARED for _, other in texts_now):
                    texts_now.append((row, ids))
            waiting = [text for text in waiting if text not in texts_now]
            places = [place for row, ids in texts_now for place in self._unread(row, ids, 1)]
            lengths = {row: len(ids) for row, ids in texts_now}
            for first in range(0, len(places), MOST_TOKENS):
                part = places[first : first + MOST_TOKENS]
                last = [n for n, at in enumerate(part) if at.position == lengths[at.row] - 1]
                scored = self._pass(part, last)
                for i, n in enumerate(last):
                    found[part[n].row] = Logits(*(x[i : i + 1] for x in scored))
        return [found[row] for row, _ in texts]

    def _unread(self, row: int, ids: Sequence[int], n_wanted: int) -> list[Position]:
        """Return the places of ids from the first on that no row holds, or that is wanted."""
        source, n_held = max(
            ((other, _n_common(held, ids)) for other, held in enumerate(self.cached_ids)),
            key=lambda found: (found[1], found[0] == row),
        )
        first = min(n_held, len(ids) - n_wanted)
        self.cached_ids[row] = []  # until it is sure: a Ctrl-C may come in between
        if source != row:
            keys, values = self._room.keys, self._room.values
            n_panels = -(-first // PANEL)
            keys[:, row, :, :n_panels] = keys[:, source, :, :n_panels]
            values[:, row, :, :, :first] = values[:, source, :, :, :first]
        self.cached_ids[row] = list(ids[:first])
        n = self.network.config.n_recent
        padded = [0] * (n - 1) + list(ids)
        return [Position(row, at, padded[at : at + n][::-1]) for at in range(first, len(ids))]

    def decode(self, places: Sequence[Position]) -> Logits:
        """Put one more id into each of several places; return what follows each of them."""
        return self._pass(places, range(len(places)))

    def _pass(self, places: Sequence[Position], wanted: Sequence[int]) -> Logits:
        """Go through the network with the ids at ``places``; return what follows the wanted."""
        n, n_wanted, room = len(places), len(wanted), self._room
        config = self.network.config
        for place in places:
            del self.cached_ids[place.row][place.position :]
        rows = np.array([place.row for place in places])
        positions = np.array([place.position for place in places])
        recent = np.array([place.recent for place in places])
        blocks = [0]
        for i in range(1, n):
            goes_on = rows[i] == rows[i - 1] and positions[i] == positions[i - 1] + 1
            if not goes_on or i - blocks[-1] == ROWS:
                blocks.append(i)
        room.blocks[: len(blocks) + 1] = [*blocks, n]
        room.job[:] = n, n_wanted, len(blocks)
        room.rows[:n], room.positions[:n], room.wanted[:n_wanted] = rows, positions, wanted
        room.x[:n, : config.n_embd] = self.network.embed(recent, positions)
        kernels.run(self.network.net, room, self._team, self._pipes, _byte())
        for place in places:
            self.cached_ids[place.row].append(place.recent[0])
        return Logits(
            room.scores[:n_wanted, : config.vocab_size].copy(), room.totals[:n_wanted].copy()
        )


def _n_common(held: Sequence[int], ids: Sequence[int]) -> int:
    """Return how many ids two texts begin with alike."""
    n = min(len(held), len(ids))
    return next((i for i in range(n) if held[i] != ids[i]), n)


def _make_room(config: ModelConfig, n_rows: int, n_threads: int) -> Room:
    B, C = max(MOST_TOKENS, n_rows), whole_panels(config.n_embd)  # noqa: N806
    hs = config.head_size
    n_heads, inner = config.n_head + 2 * config.kv_heads, whole_panels(config.inner_size)
    positions = whole_panels(config.block_size)
    texts = config.n_layer, n_rows, config.kv_heads

    def floats(*shape: int) -> Floats:
        # as torch takes memory: in large pages where it can
        return torch.empty(shape, dtype=torch.float32).numpy()

    def ints(n: int) -> Ints:
        return np.zeros(n, np.int64)

    return Room(
        job=ints(3), rows=ints(B), positions=ints(B), blocks=ints(B + 1), wanted=ints(B),
        x=floats(B, C), normed=floats(B, C), read=floats(B, C), inner=floats(B, inner),
        heads=floats(B, whole_panels(n_heads * hs)),
        gate=floats(B if config.mlp == "swiglu" else 0, inner),
        queries=floats(n_threads, ROWS, hs), weighed=floats(n_threads, ROWS, positions),
        mixed=floats(n_threads, ROWS, PANEL),
        scores=floats(B, whole_panels(config.vocab_size)), totals=floats(B),
        keys=floats(*texts, positions // PANEL, hs, PANEL),
        values=floats(*texts, whole_panels(hs) // PANEL, config.block_size, PANEL),
    )  # fmt: skip


def _work(net: Net, room: Room, team: Team, read_end: int) -> None:
    """Be one of the other threads, until the pipe is closed."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the first one's
    kernels.run(net, room, team, np.array([read_end]), _byte())
    os.close(read_end)


def _end(write_end: int, thread: threading.Thread) -> None:
    """End one of the other threads, and be sure of it."""
    os.close(write_end)
    thread.join()


def _byte() -> npt.NDArray[np.uint8]:
    return np.zeros(1, np.uint8)
