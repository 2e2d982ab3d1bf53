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
from numba import njit

from common.inference.cpu.attention import (
    LAYERNORM_EPS,
    RMSNORM_EPS,
    max_value,
    norm,
    self_attention,
)
from common.inference.cpu.gemm import LOOSE, exp, gemm
from common.inference.cpu.layout import (
    ADD,
    ATTN_PROJ,
    C_FC,
    C_GATE,
    HEAD,
    LN_1,
    LN_1_BIAS,
    LN_2,
    LN_2_BIAS,
    LN_F,
    LN_F_BIAS,
    MLP_PROJ,
    NONE,
    SWIGLU,
    Ints,
    PackedWeights,
    ThreadGroup,
    Workspace,
)
from common.inference.cpu.threads import barrier, read, write


@njit
def _norms(weights, at, bias_at, x, n_rows, y, group):
    """Normalise each row of x (n_rows, C) into y; this thread's rows."""
    C, layernorm = weights.dims.C, weights.dims.layernorm  # noqa: N806
    eps = LAYERNORM_EPS if layernorm else RMSNORM_EPS
    for row in range(group.thread, n_rows, group.n_threads):
        norm(x[row], weights.vectors, at, bias_at, C, eps, layernorm, y[row])


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
    C, inner, activation = weights.dims.C, weights.dims.inner, weights.dims.activation  # noqa: N806
    at, n_rows, hidden = weights.layers[layer], ws.counts[0], ws.inner
    gemm(
        weights, at[C_FC:], inner, source, C, n_rows, hidden, hidden,
        np.int64(NONE) if activation == SWIGLU else activation, group,
    )  # fmt: skip
    if activation == SWIGLU:
        hidden = ws.gate
        gemm(
            weights, at[C_GATE:], inner, source, C, n_rows, hidden, ws.inner,
            np.int64(SWIGLU), group,
        )  # fmt: skip
    barrier(group)
    gemm(weights, at[MLP_PROJ:], C, hidden, inner, n_rows, ws.x, ws.x, np.int64(ADD), group)
    barrier(group)


@njit
def _head(weights, ws, group):
    """Compute the logits after the tokens of ws.logits_indices, and their logsumexp."""
    C, V, layernorm = weights.dims.C, weights.dims.V, weights.dims.layernorm  # noqa: N806
    n, ends = ws.counts[1], weights.ends
    for i in range(group.thread, n, group.n_threads):
        row = ws.normed[i]
        for j in range(C):
            row[j] = ws.x[ws.logits_indices[i], j]
        if weights.dims.norm_first:
            eps = LAYERNORM_EPS if layernorm else RMSNORM_EPS
            norm(row, weights.vectors, ends[LN_F], ends[LN_F_BIAS], C, eps, layernorm, row)
    barrier(group)
    gemm(
        weights, ends[HEAD:], V, ws.normed, C, n, ws.logits, ws.logits, np.int64(NONE), group
    )  # fmt: skip
    barrier(group)
    for i in range(group.thread, n, group.n_threads):
        ws.logsumexp[i] = logsumexp(ws.logits[i, :V])
    barrier(group)


@njit
def forward(weights, ws, group):
    """Go through the network once."""
    C, norm_first, n_rows = weights.dims.C, weights.dims.norm_first, ws.counts[0]  # noqa: N806
    source = ws.normed if norm_first else ws.x
    for layer in range(len(weights.layers)):
        at = weights.layers[layer]
        if norm_first:
            _norms(weights, at[LN_1], at[LN_1_BIAS], ws.x, n_rows, source, group)
            barrier(group)
        self_attention(weights, ws, layer, source, group)
        gemm(
            weights, at[ATTN_PROJ:], C, ws.attn_out, C, n_rows, ws.x, ws.x, np.int64(ADD), group
        )  # fmt: skip
        barrier(group)
        ln, ln_bias = (at[LN_2], at[LN_2_BIAS]) if norm_first else (at[LN_1], at[LN_1_BIAS])
        _norms(weights, ln, ln_bias, ws.x, n_rows, source, group)
        barrier(group)
        _mlp(weights, ws, layer, source, group)
        if not norm_first:
            _norms(weights, at[LN_2], at[LN_2_BIAS], ws.x, n_rows, source, group)
            barrier(group)
    _head(weights, ws, group)


def _worker_loop(
    weights: PackedWeights, ws: Workspace, group: ThreadGroup, pipes: Ints, byte: Any
) -> None:
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
