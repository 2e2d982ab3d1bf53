"""How weights, the KV cache and a pass's workspace lie in arrays: what the kernels work on.

A matrix (out, in) lies in panels: PANEL outputs' weights for one input, then those for the next.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import binding

# Outputs and tokens that are summed at once, in registers: of the 32 long ones of AVX-512 16 are
# sums, 4 weights. Others have half as many, or of a quarter the length.
PANEL, ROWS = (64, 4) if binding.get_host_cpu_features().get("avx512f") else (32, 2)

# Where a layer's weights begin: vectors', and of each matrix its own, its bias's, its scales'.
LN_1, LN_1_BIAS, LN_2, LN_2_BIAS, Q_NORM, K_NORM = range(6)
C_ATTN, ATTN_PROJ, C_FC, C_GATE, MLP_PROJ = range(6, 21, 3)
LN_F, LN_F_BIAS, HEAD = range(3)  # and at the end

# What a product ends with, beside its bias: nothing, a sum with what was there, an activation.
NONE, ADD, GELU, RELU, RELU2, SWIGLU = range(6)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def padded(n: int) -> int:
    """Return ``n`` outputs rounded up to whole panels."""
    return -(-n // PANEL) * PANEL


class Dims(NamedTuple):
    """The shape of the network."""

    C: int
    nh: int
    n_kv: int
    hs: int
    inner: int
    V: int
    norm_first: int  # 1: before each sublayer
    layernorm: int  # 1: LayerNorm, 0: RMSNorm
    activation: int  # GELU, RELU, RELU2 or SWIGLU


class PackedWeights(NamedTuple):
    """Weights, and where in them each begins; -1 stands for none."""

    vectors: Floats  # (n,)
    panels: Any  # (n, PANEL) float32, or int8 that scales belong to: an input's weights each
    layers: Ints  # (n_layer, 21), indexed by LN_1 ... MLP_PROJ
    ends: Ints  # (5,), by LN_F, LN_F_BIAS, HEAD
    cos: Floats  # (block_size, hs / 2); empty without rotary positions
    sin: Floats
    dims: Dims


class ThreadGroup(NamedTuple):
    """One of several threads that go through a pass together."""

    thread: int
    n_threads: int
    n_arrived: Ints  # (1,) how often one of them came to a barrier


class Workspace(NamedTuple):
    """What a pass reads, makes and leaves, B tokens at most; channels padded to whole panels."""

    counts: Ints  # numbers of tokens, of logits_indices, and of blocks
    rows: Ints  # (B,) of the cache
    positions: Ints  # (B,)
    blocks: Ints  # (B + 1,) where each begins: up to ROWS tokens of a text, one behind the other
    logits_indices: Ints  # (B,) the tokens whose logits are computed
    x: Floats  # (B, C)
    normed: Floats  # (B, C)
    qkv: Floats  # (B, (nh + 2 n_kv) hs)
    attn_out: Floats  # (B, C)
    inner: Floats  # (B, inner)
    gate: Floats  # (B, inner) for swiglu
    queries: Floats  # (threads, ROWS, hs)
    attn_weights: Floats  # (threads, ROWS, block_size)
    attn_sums: Floats  # (threads, ROWS, PANEL)
    logits: Floats  # (B, V)
    logsumexp: Floats  # (B,)
    # both as weights lie: PANEL positions of a channel together, PANEL channels of a position
    keys: Floats  # (n_layer, n_rows, n_kv, panels, hs, PANEL)
    values: Floats  # (n_layer, n_rows, n_kv, panels, block_size, PANEL)
