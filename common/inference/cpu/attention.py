"""Attention over the KV cache, and the norms and rotations before it.

Keys and values lie in the cache as weights do, so that both products of attention are gemm's.
"""

import math

import numpy as np
from numba import carray, njit

from common.inference.cpu.gemm import EXACT, K_BLOCK, LOOSE, exp, gemm, gemm_block
from common.inference.cpu.intrinsics import alloca
from common.inference.cpu.layout import C_ATTN, K_NORM, NONE, PANEL, Q_NORM, ROWS
from common.inference.cpu.threads import barrier

LAYERNORM_EPS, RMSNORM_EPS = 1e-5, 1e-6


@njit(fastmath=LOOSE, error_model="numpy")
def norm(x, vectors, at, bias_at, n, eps, layernorm, y):
    """Normalise x (n,) into y (n,): RMSNorm, or LayerNorm."""
    mean = np.float32(0)
    if layernorm:
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
            norm_at = at[Q_NORM] if head < nh else at[K_NORM]
            if norm_at >= 0:
                norm(own, weights.vectors, norm_at, -1, hs, RMSNORM_EPS, 0, own)
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
    gemm(
        weights, weights.layers[layer][C_ATTN:], (nh + 2 * n_kv) * hs, source, weights.dims.C,
        ws.counts[0], ws.qkv, ws.qkv, np.int64(NONE), group,
    )  # fmt: skip
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
