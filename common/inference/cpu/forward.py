"""One pass of a network over a few tokens on CPUs, compiled by Numba: what a token costs is here.

    x -> n_layer x [ norm, c_attn, rope, attention, c_proj, norm, c_fc, c_proj ] -> ln_f -> head

A group of threads goes through ``forward``: each takes a part of every product's outputs, of the
heads and of the norms, and waits at a ``barrier`` before it reads what others wrote.
Nothing is allocated, and no other code runs in between: memory delivers weights nearly always.

A token is computed by the same operations in the same order whatever else is in the pass, so that a
text does not depend on its neighbours. What was tried is in tests/bench/GENERATION.md.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, njit

from common.inference.cpu import layout
from common.inference.cpu.gemm import EXACT, K_BLOCK, LOOSE, alloca, exp, gemm, gemm_block
from common.inference.cpu.layout import ADD, NONE, PANEL, ROWS, SWIGLU
from common.inference.cpu.threads import barrier, read, write


@njit(fastmath=LOOSE, error_model="numpy")
def norm(weights, at, x, n, layernorm, eps, y):
    """Normalise x (n,) into y (n,): RMSNorm, or LayerNorm; ``at`` says where its vectors begin."""
    mean = np.float32(0)
    if layernorm:
        for i in range(n):
            mean += x[i]
        mean /= np.float32(n)
    square = np.float32(0)
    for i in range(n):
        square += (x[i] - mean) * (x[i] - mean)
    scale = np.float32(1) / math.sqrt(square / np.float32(n) + np.float32(eps))
    weight = weights.vectors[at[0] : at[0] + n]
    for i in range(n):
        y[i] = (x[i] - mean) * scale * weight[i]
    if at[1] >= 0:
        bias = weights.vectors[at[1] : at[1] + n]
        for i in range(n):
            y[i] += bias[i]


@njit(fastmath=EXACT)
def apply_rope(head, cos, sin):
    """Rotate channel i and i + hs/2 of a head (hs,) by the angles of its position."""
    half = len(cos)
    for i in range(half):
        x1, x2 = head[i], head[half + i]
        head[i] = x1 * cos[i] - x2 * sin[i]
        head[half + i] = x2 * cos[i] + x1 * sin[i]


@njit(fastmath=LOOSE | {"nnan"})
def max_value(x):
    """Return the largest of x; any number where one of them is none."""
    largest = np.float32(-np.inf)
    for i in range(len(x)):
        largest = x[i] if x[i] > largest else largest
    return largest


@njit(fastmath=LOOSE, error_model="numpy")
def attention(queries, n_rows, keys, values, position, weights, sums, y):
    """Attend with a head's queries (n_rows, hs), of tokens from ``position`` on, into y."""
    hs, n, zero = y.shape[1], position + n_rows, np.int64(0)
    totals = carray(alloca(ROWS), ROWS)
    for panel in range(-(-n // PANEL)):
        gemm_block(queries, n_rows, keys[panel], zero, hs, weights, panel * PANEL, n < 0)
    for row in range(n_rows):
        n_seen, own = position + row + 1, weights[row]
        largest, total = max_value(own[:n_seen]), np.float32(0)
        for i in range(n_seen):
            own[i] = exp(own[i] - largest)
            total += own[i]
        for i in range(n_seen, n):
            own[i] = 0  # later tokens, which those beside it see
        totals[row] = total
    for panel in range(len(values)):
        for first in range(0, n, K_BLOCK):
            last = min(first + K_BLOCK, n)
            gemm_block(weights, n_rows, values[panel], first, last, sums, zero, first > 0)
        begin = panel * PANEL
        for row in range(n_rows):
            for j in range(min(PANEL, hs - begin)):
                y[row, begin + j] = sums[row, j] / totals[row]


@njit
def _cache_heads(weights, ws, layer, group):
    """Normalise and rotate queries and keys; put keys and values into the cache."""
    nh, n_kv, hs = weights.dims.nh, weights.dims.n_kv, weights.dims.hs
    at, n_heads = weights.layers[layer], nh + 2 * n_kv
    keys, values = ws.keys[layer], ws.values[layer]
    for item in range(group.thread, ws.counts[0] * n_heads, group.n_threads):
        row, head = item // n_heads, item % n_heads
        position = ws.positions[row]
        own = ws.qkv[row, head * hs : (head + 1) * hs]
        if head < nh + n_kv:
            of_norm = at[layout.Q_NORM :] if head < nh else at[layout.K_NORM :]
            if of_norm[0] >= 0:
                norm(weights, of_norm, own, hs, 0, weights.dims.qk_eps, own)
            if len(weights.cos):
                apply_rope(own, weights.cos[position], weights.sin[position])
        if nh <= head < nh + n_kv:
            panel = keys[ws.rows[row], head - nh, position // PANEL]
            for j in range(hs):
                panel[j, position % PANEL] = own[j]
        elif head >= nh:
            panels = values[ws.rows[row], head - nh - n_kv]
            for j in range(hs):
                panels[j // PANEL, position, j % PANEL] = own[j]


@njit
def self_attention(weights, ws, layer, source, group):
    """Attend from source (B, C) into ws.attn_out, head by head of each block of tokens."""
    nh, n_kv, hs = weights.dims.nh, weights.dims.n_kv, weights.dims.hs
    c_attn = weights.layers[layer][layout.C_ATTN :]
    gemm(weights, c_attn, source, ws.counts[0], ws.qkv, ws.qkv, np.int64(NONE), group)
    barrier(group)
    _cache_heads(weights, ws, layer, group)
    barrier(group)
    keys, values = ws.keys[layer], ws.values[layer]
    scale = np.float32(1 / math.sqrt(hs))
    queries = ws.queries[group.thread]
    for item in range(group.thread, ws.counts[2] * nh, group.n_threads):
        block, head = item // nh, item % nh
        first, last = ws.blocks[block], ws.blocks[block + 1]
        begin, kv_head, row = head * hs, head * n_kv // nh, ws.rows[first]
        for i in range(last - first):
            for j in range(hs):
                queries[i, j] = ws.qkv[first + i, begin + j] * scale
        attention(
            queries, last - first, keys[row, kv_head], values[row, kv_head], ws.positions[first],
            ws.attn_weights[group.thread], ws.attn_sums[group.thread],
            ws.attn_out[first:last, begin : begin + hs],
        )  # fmt: skip
    barrier(group)


@njit
def _norms(weights, at, x, n_rows, y, group):
    """Normalise each row of x (n_rows, C) into y; this thread's rows."""
    dims = weights.dims
    for row in range(group.thread, n_rows, group.n_threads):
        norm(weights, at, x[row], dims.C, dims.layernorm, dims.eps, y[row])


@njit(fastmath=LOOSE, error_model="numpy")
def logsumexp(x):
    """Return the logarithm of the sum of exponentials; not finite where one of x is not."""
    largest, total, lost = max_value(x), np.float32(0), np.float32(0)
    for i in range(len(x)):
        total += exp(x[i] - largest)
        lost += x[i] * np.float32(0)
    return largest + np.float32(math.log(total)) + lost


@njit
def _mlp(weights, ws, layer, source, group):
    """Add the MLP's output, from source (B, C), to ws.x."""
    at, n_rows, op, hidden = weights.layers[layer], ws.counts[0], weights.dims.activation, ws.inner
    if op == SWIGLU:
        hidden = ws.gate
        gemm(weights, at[layout.C_FC :], source, n_rows, ws.inner, ws.inner, np.int64(NONE), group)
        gemm(weights, at[layout.C_GATE :], source, n_rows, hidden, ws.inner, op, group)
    else:
        gemm(weights, at[layout.C_FC :], source, n_rows, hidden, hidden, op, group)
    barrier(group)
    gemm(weights, at[layout.MLP_PROJ :], hidden, n_rows, ws.x, ws.x, np.int64(ADD), group)
    barrier(group)


@njit
def _head(weights, ws, group):
    """Compute the logits after the tokens of ws.logits_indices, and their logsumexp."""
    dims, n, ends = weights.dims, ws.counts[1], weights.ends
    for i in range(group.thread, n, group.n_threads):
        row = ws.normed[i]
        for j in range(dims.C):
            row[j] = ws.x[ws.logits_indices[i], j]
        if dims.norm_first:
            norm(weights, ends[layout.LN_F :], row, dims.C, dims.layernorm, dims.eps, row)
    barrier(group)
    gemm(weights, ends[layout.HEAD :], ws.normed, n, ws.logits, ws.logits, np.int64(NONE), group)
    barrier(group)
    for i in range(group.thread, n, group.n_threads):
        ws.logsumexp[i] = logsumexp(ws.logits[i, : dims.V])
    barrier(group)


@njit
def forward(weights, ws, group):
    """Go through the network once."""
    norm_first, n_rows = weights.dims.norm_first, ws.counts[0]
    source = ws.normed if norm_first else ws.x
    for layer in range(len(weights.layers)):
        at = weights.layers[layer]
        ln_1, ln_2, c_proj = at[layout.LN_1 :], at[layout.LN_2 :], at[layout.ATTN_PROJ :]
        if norm_first:
            _norms(weights, ln_1, ws.x, n_rows, source, group)
            barrier(group)
        self_attention(weights, ws, layer, source, group)
        gemm(weights, c_proj, ws.attn_out, n_rows, ws.x, ws.x, np.int64(ADD), group)
        barrier(group)
        _norms(weights, ln_2 if norm_first else ln_1, ws.x, n_rows, source, group)
        barrier(group)
        _mlp(weights, ws, layer, source, group)
        if not norm_first:
            _norms(weights, ln_2, ws.x, n_rows, source, group)
            barrier(group)
    _head(weights, ws, group)


def _worker_loop(weights, ws, group, pipes, byte):
    """Go through the network once, or, as another thread than 0, each time that thread 0 does.

    ``pipes`` are the ends at which thread 0 writes to each of the others, or the one at which that
    one reads, into ``byte`` (1,): it returns when the other end is closed. They are written to
    within compiled code, where no signal can come between the start of the others and their leader.
    """
    if group.thread == 0:
        for pipe in pipes:
            write(pipe, byte.ctypes, 1)
        forward(weights, ws, group)
        return
    while True:
        n_read = read(pipes[0], byte.ctypes, 1)
        if n_read == 0:
            return
        if n_read == 1:  # else a signal came
            forward(weights, ws, group)


def _compiled(function: Any) -> Any:
    # a cache file for each version of this folder: Numba looks at no other source than this one,
    # and a disk that is full could leave the old code under the new code's entry
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    function.__qualname__ = f"{function.__name__}_{digest[:12]}"
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither beside this file nor at home can anything be written
        return njit(nogil=True)(function)


worker_loop = _compiled(_worker_loop)
