"""One pass of a network over a few tokens on CPUs, compiled by Numba: what a token costs is here.

    x -> n_layer x [ norm, c_attn, turn, attend, c_proj, norm, c_fc, c_proj ] -> ln_f -> head

A team of threads goes through ``run``: each takes a part of every product's outputs, of the heads
and of the norms, and waits at ``_meet`` for the others before what they made is read. Nothing is
allocated, and no other code runs in between: memory delivers weights nearly all the time.

A token is computed by the same operations in the same order whatever else is in the pass, so that a
text does not depend on its neighbours. What was tried is in tests/bench/GENERATION.md.
"""

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import carray, njit, types

from common.inference.cpu import gemm as products
from common.inference.cpu import intrinsics as instructions
from common.inference.cpu.gemm import (
    ADD,
    EXACT,
    LINE,
    LONGEST,
    LOOSE,
    NONE,
    PANEL,
    ROWS,
    SWIGLU,
    exp,
    multiply,
    product,
)
from common.inference.cpu.intrinsics import count, counted, on_stack, prefetch

# A thread that has waited some tenths of a millisecond sleeps: other processes want the processors.
SPINS, SLEEP_US = 200_000, 20
LAYERNORM_EPS, RMSNORM_EPS = 1e-5, 1e-6

# Where a layer's weights begin: vectors', and of each matrix its own, its bias's, its scales'.
LN_1, LN_1_BIAS, LN_2, LN_2_BIAS, Q_NORM, K_NORM = range(6)
C_ATTN, ATTN_PROJ, C_FC, C_GATE, MLP_PROJ = range(6, 21, 3)
LN_F, LN_F_BIAS, HEAD = range(3)  # and at the end

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Net(NamedTuple):
    """Weights, and where in them each begins; -1 stands for none."""

    vectors: Floats  # (n,)
    panels: Any  # (n, PANEL) float32, or int8 that scales belong to: an input's weights each
    layers: Ints  # (n_layer, 21), at the places of the names LN_1 ... MLP_PROJ
    ends: Ints  # (5,)
    cos: Floats  # (block_size, hs / 2); empty without rotary positions
    sin: Floats
    sizes: tuple[int, ...]  # C, nh, n_kv, hs, inner, V, norm_first, centred, kind of MLP


class Team(NamedTuple):
    """One of several threads."""

    thread: int
    n_threads: int
    n_met: Ints  # (1,) how often one of them came to a meeting


class Room(NamedTuple):
    """What a pass reads, makes and leaves; B tokens at most."""

    job: Ints  # numbers of tokens, of those that are wanted, and of blocks
    rows: Ints  # (B,) of the cache
    positions: Ints  # (B,)
    blocks: Ints  # (B + 1,) where each begins: up to ROWS tokens of a text, one behind the other
    wanted: Ints  # (B,) the tokens whose scores are made
    x: Floats  # (B, C), as all below with room behind it up to whole panels
    normed: Floats  # (B, C)
    heads: Floats  # (B, (nh + 2 n_kv) hs)
    read: Floats  # (B, C)
    inner: Floats  # (B, inner)
    gate: Floats  # (B, inner) for swiglu
    queries: Floats  # (threads, ROWS, hs)
    weighed: Floats  # (threads, ROWS, block_size)
    mixed: Floats  # (threads, ROWS, PANEL)
    scores: Floats  # (B, V)
    totals: Floats  # (B,) logarithms of the sums of the scores' exponentials
    # both as weights lie: PANEL positions of a channel together, PANEL channels of a position
    keys: Floats  # (n_layer, n_rows, n_kv, panels, hs, PANEL)
    values: Floats  # (n_layer, n_rows, n_kv, panels, block_size, PANEL)


_usleep = types.ExternalFunction("usleep", types.intc(types.uintc))
_read = types.ExternalFunction("read", types.intp(types.intc, types.voidptr, types.uintp))
_write = types.ExternalFunction("write", types.intp(types.intc, types.voidptr, types.uintp))


@njit
def _meet(team):
    """Wait until all threads are here."""
    if team.n_threads == 1:
        return
    n = count(team.n_met)
    all_here = -(-n // team.n_threads) * team.n_threads
    n_spins = 0
    while counted(team.n_met) < all_here:
        n_spins += 1
        if n_spins > SPINS:
            _usleep(SLEEP_US)


@njit(fastmath=LOOSE, error_model="numpy")
def _norm(x, vectors, at, bias_at, n, eps, centred, y):
    """Normalise x (n,) into y (n,): RMSNorm, or LayerNorm where ``centred``."""
    mean = np.float32(0)
    if centred:
        for i in range(n):
            mean += x[i]
        mean /= np.float32(n)
    square = np.float32(0)
    for i in range(n):
        square += (x[i] - mean) * (x[i] - mean)
    scale = np.float32(1) / math.sqrt(square / np.float32(n) + np.float32(eps))
    weight = vectors[at : at + n]
    for i in range(n):
        y[i] = (x[i] - mean) * scale * weight[i]
    if bias_at >= 0:
        bias = vectors[bias_at : bias_at + n]
        for i in range(n):
            y[i] += bias[i]


@njit
def _norms(net, at, bias_at, x, n_rows, y, team):
    """Normalise each row of x (n_rows, C) into y; this thread's rows."""
    C, centred = net.sizes[0], net.sizes[7]  # noqa: N806
    eps = LAYERNORM_EPS if centred else RMSNORM_EPS
    for row in range(team.thread, n_rows, team.n_threads):
        _norm(x[row], net.vectors, at, bias_at, C, eps, centred, y[row])


@njit(fastmath=EXACT)
def _turn(head, cos, sin):
    """Turn channel i and i + hs/2 of a head (hs,) by the angles of its position."""
    half = len(cos)
    for i in range(half):
        x1, x2 = head[i], head[half + i]
        head[i] = x1 * cos[i] - x2 * sin[i]
        head[half + i] = x2 * cos[i] + x1 * sin[i]


@njit(fastmath=LOOSE | {"nnan"})
def _most(scores):
    """Return the largest of scores; any number where one of them is none."""
    most = np.float32(-np.inf)
    for i in range(len(scores)):
        most = scores[i] if scores[i] > most else most
    return most


@njit(fastmath=LOOSE, error_model="numpy")
def _attend(queries, n_rows, keys, values, position, weighed, mixed, y):
    """Mix values into y (n_rows, hs) as keys match the queries of tokens from ``position`` on."""
    hs, n, zero = y.shape[1], position + n_rows, np.int64(0)
    totals = carray(on_stack(ROWS), ROWS)
    for panel in range(-(-n // PANEL)):
        for i in range(panel * PANEL, min((panel + 1) * PANEL, n)):
            for j in range(0, hs, LINE):
                prefetch(values[j // PANEL], i * PANEL + j % PANEL)
        multiply(queries, n_rows, keys[panel], zero, hs, weighed, panel * PANEL, n < 0)
    for row in range(n_rows):
        n_seen, own = position + row + 1, weighed[row]
        most, total = _most(own[:n_seen]), np.float32(0)
        for i in range(n_seen):
            own[i] = exp(own[i] - most)
            total += own[i]
        for i in range(n_seen, n):
            own[i] = 0  # what comes behind it, and is there for the tokens beside it
        totals[row] = total
    for panel in range(len(values)):
        for first in range(0, n, LONGEST):
            last = min(first + LONGEST, n)
            multiply(weighed, n_rows, values[panel], first, last, mixed, zero, first > 0)
        begin = panel * PANEL
        for row in range(n_rows):
            for j in range(min(PANEL, hs - begin)):
                y[row, begin + j] = mixed[row, j] / totals[row]


@njit(fastmath=LOOSE, error_model="numpy")
def _log_total(scores):
    """Return the logarithm of the sum of exponentials; no number where a score is none."""
    most, total, lost = _most(scores), np.float32(0), np.float32(0)
    for i in range(len(scores)):
        total += exp(scores[i] - most)
        lost += scores[i] * np.float32(0)
    return most + np.float32(math.log(total)) + lost


@njit
def _attention(net, room, number, source, team):
    """Read what the tokens up to each hold, from source (B, C) into room.read."""
    C, nh, n_kv, hs = net.sizes[:4]  # noqa: N806
    at, n_rows, n_heads = net.layers[number], room.job[0], nh + 2 * n_kv
    keys, values = room.keys[number], room.values[number]
    product(
        net, at[C_ATTN:], n_heads * hs, source, C, n_rows, room.heads, room.heads,
        np.int64(NONE), team,
    )  # fmt: skip
    _meet(team)
    for item in range(team.thread, n_rows * n_heads, team.n_threads):
        row, head = item // n_heads, item % n_heads
        position = room.positions[row]
        own = room.heads[row, head * hs : (head + 1) * hs]
        if head < nh + n_kv:
            norm = at[Q_NORM] if head < nh else at[K_NORM]
            if norm >= 0:
                _norm(own, net.vectors, norm, -1, hs, RMSNORM_EPS, 0, own)
            if len(net.cos):
                _turn(own, net.cos[position], net.sin[position])
        if nh <= head < nh + n_kv:
            kept = keys[room.rows[row], head - nh, position // PANEL]
            for j in range(hs):
                kept[j, position % PANEL] = own[j]
        elif head >= nh:
            panels = values[room.rows[row], head - nh - n_kv]
            for j in range(hs):
                panels[j // PANEL, position, j % PANEL] = own[j]
    _meet(team)
    scale = np.float32(1 / math.sqrt(hs))
    queries = room.queries[team.thread]
    for item in range(team.thread, room.job[2] * nh, team.n_threads):
        block, head = item // nh, item % nh
        first, last = room.blocks[block], room.blocks[block + 1]
        begin, k = head * hs, head * n_kv // nh
        for i in range(last - first):
            for j in range(hs):
                queries[i, j] = room.heads[first + i, begin + j] * scale
        _attend(
            queries, last - first, keys[room.rows[first], k], values[room.rows[first], k],
            room.positions[first], room.weighed[team.thread], room.mixed[team.thread],
            room.read[first:last, begin : begin + hs],
        )  # fmt: skip
    _meet(team)


@njit
def _mlp(net, room, number, source, team):
    """Make the MLP's channels, from source (B, C), and add what its second map makes to room.x."""
    C, inner, kind, n_rows = net.sizes[0], net.sizes[4], net.sizes[8], room.job[0]  # noqa: N806
    at, made = net.layers[number], room.inner
    product(
        net, at[C_FC:], inner, source, C, n_rows, made, made,
        np.int64(NONE) if kind == SWIGLU else kind, team,
    )  # fmt: skip
    if kind == SWIGLU:
        made = room.gate
        product(
            net, at[C_GATE:], inner, source, C, n_rows, made, room.inner,
            np.int64(SWIGLU), team,
        )  # fmt: skip
    _meet(team)
    product(
        net, at[MLP_PROJ:], C, made, inner, n_rows, room.x, room.x,
        np.int64(ADD), team,
    )  # fmt: skip
    _meet(team)


@njit
def _head(net, room, team):
    """Score what follows the tokens that are wanted."""
    C, V, norm_first, centred = net.sizes[0], net.sizes[5], net.sizes[6], net.sizes[7]  # noqa: N806
    n_wanted = room.job[1]
    for i in range(team.thread, n_wanted, team.n_threads):
        row = room.normed[i]
        for j in range(C):
            row[j] = room.x[room.wanted[i], j]
        if norm_first:
            eps = LAYERNORM_EPS if centred else RMSNORM_EPS
            _norm(row, net.vectors, net.ends[LN_F], net.ends[LN_F_BIAS], C, eps, centred, row)
    _meet(team)
    product(
        net, net.ends[HEAD:], V, room.normed, C, n_wanted, room.scores, room.scores,
        np.int64(NONE), team,
    )  # fmt: skip
    _meet(team)
    for i in range(team.thread, n_wanted, team.n_threads):
        room.totals[i] = _log_total(room.scores[i, :V])
    _meet(team)


@njit
def _step(net, room, team):
    """Go through the network once. Products' last words are no constants: else each compiles."""
    C, norm_first, n_rows = net.sizes[0], net.sizes[6], room.job[0]  # noqa: N806
    source = room.normed if norm_first else room.x
    for number in range(len(net.layers)):
        at = net.layers[number]
        if norm_first:
            _norms(net, at[LN_1], at[LN_1_BIAS], room.x, n_rows, source, team)
            _meet(team)
        _attention(net, room, number, source, team)
        product(
            net, at[ATTN_PROJ:], C, room.read, C, n_rows, room.x, room.x,
            np.int64(ADD), team,
        )  # fmt: skip
        _meet(team)
        ln, ln_bias = (at[LN_2], at[LN_2_BIAS]) if norm_first else (at[LN_1], at[LN_1_BIAS])
        _norms(net, ln, ln_bias, room.x, n_rows, source, team)
        _meet(team)
        _mlp(net, room, number, source, team)
        if not norm_first:
            _norms(net, at[LN_2], at[LN_2_BIAS], room.x, n_rows, source, team)
            _meet(team)
    _head(net, room, team)


def _run(net: Net, room: Room, team: Team, pipes: Ints, byte: Any) -> None:
    """Go through the network once, or, as another thread than 0, each time that thread 0 does.

    ``pipes`` are the ends at which thread 0 writes to each of the others, or the one at which that
    one reads, into ``byte`` (1,): it returns when the other end is closed. They are written to
    within compiled code, where no signal can come between the start of the others and their leader.
    """
    if team.thread == 0:
        for pipe in pipes:
            _write(pipe, byte.ctypes, 1)
        _step(net, room, team)
        return
    while True:
        n_read = _read(pipes[0], byte.ctypes, 1)
        if n_read == 0:
            return
        if n_read == 1:  # else a signal came
            _step(net, room, team)


def _compiled(function: Any) -> Any:
    # a file of its own for each version: Numba looks at no other source than this one, and a disk
    # that is full could leave the old code under the new code's entry
    sources = (__file__, instructions.__file__, products.__file__)
    digest = hashlib.sha256(b"".join(Path(source).read_bytes() for source in sources)).hexdigest()
    function.__qualname__ = f"{function.__name__}_{digest[:12]}"
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither beside this file nor at home can anything be written
        return njit(nogil=True)(function)


run = _compiled(_run)
