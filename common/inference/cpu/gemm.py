"""Products of tokens with a matrix, and what is done with them in the same pass over them.

A matrix lies in panels: PANEL outputs' weights for one input, then those for the next. The sums of
a panel's outputs for up to ROWS tokens stay in registers while its weights stream by. Each token's
are added up in the same order, however many there are.

Source: blocks in registers, Goto and van de Geijn 2008, section 4 (Anatomy of High-Performance
Matrix Multiplication). What was tried is in tests/bench/GENERATION.md.
"""

import math
from typing import Any

import numpy as np
from llvmlite import binding
from numba import carray, njit

from common.inference.cpu.intrinsics import on_stack, prefetch, two_to

# Outputs and tokens that are added up at once, in registers: of the 32 long ones of AVX-512 16 are
# sums, 4 weights. Others have half as many, or of a quarter the length.
PANEL, ROWS = (64, 4) if binding.get_host_cpu_features().get("avx512f") else (32, 2)
LONGEST = 512  # inputs added up at a time: a panel's are 128 KB, which stay in the cache meanwhile
AHEAD = 32  # inputs whose weights are fetched before those of the next, for a single token
LINE_BYTES = 64  # that memory delivers together
LINE = LINE_BYTES // 4  # numbers of 32 bits
NONE, ADD, GELU, RELU, RELU2, SWIGLU = range(6)
# Sums may be made of several, as vectors do: only where that is the same for every token.
EXACT, LOOSE = {"contract", "nsz"}, {"contract", "nsz", "reassoc"}


@njit(fastmath=EXACT, error_model="numpy")
def exp(x):
    """Return e to the power of x, in float32, within some 1e-7 of it; x is cut off at -87 and 88.

    Source: the reduction and polynomial of Cephes' expf (Moshier 1989).
    """
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.float32(math.floor(x * np.float32(1.44269504088896341) + np.float32(0.5)))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # ln 2 in two parts
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    return (y * r * r + r + np.float32(1)) * two_to(n)


def _sums_of(n_rows: int) -> Any:
    """Return what multiplies ``n_rows`` tokens with one panel's weights."""
    n = n_rows * PANEL

    @njit(fastmath=EXACT)
    def add_up(x, row, w, scales, first, last, y, column, adds, ahead, stride):
        """Add x[row + r, first:last] @ w[first:last] to y, or set it; meanwhile fetch ahead."""
        sums = carray(on_stack(n), n)
        for j in range(n):
            sums[j] = 0
        for k in range(first, last):
            prefetch(w, ahead + k * stride)
            for r in range(n_rows):
                xk = x[row + r, k]
                for j in range(PANEL):
                    sums[r * PANEL + j] += xk * np.float32(w[k, j])
        for r in range(n_rows):
            if len(scales):
                for j in range(PANEL):
                    sums[r * PANEL + j] *= scales[j]
            for j in range(PANEL):
                if adds:
                    y[row + r, column + j] += sums[r * PANEL + j]
                else:
                    y[row + r, column + j] = sums[r * PANEL + j]

    return add_up


_one, _several = _sums_of(1), _sums_of(ROWS)


@njit(fastmath=EXACT, error_model="numpy")
def _finish(y, other, n_rows, column, bias, then):
    """Add the bias to one panel of a product, if there is one, and do what comes next."""
    for row in range(n_rows):
        panel = y[row, column : column + PANEL]
        if len(bias):
            for j in range(PANEL):
                panel[j] += bias[column + j]
        if then == GELU:  # the form with tanh: x (1 + tanh u) / 2 = x / (1 + exp(-2 u))
            for j in range(PANEL):
                v = panel[j]
                u = np.float32(math.sqrt(2 / math.pi)) * (v + np.float32(0.044715) * v * v * v)
                panel[j] = v / (np.float32(1) + exp(np.float32(-2) * u))
        elif then == SWIGLU:
            up = other[row, column : column + PANEL]
            for j in range(PANEL):
                panel[j] = panel[j] / (np.float32(1) + exp(-panel[j])) * up[j]
        elif then in (RELU, RELU2):
            for j in range(PANEL):
                panel[j] = max(panel[j], np.float32(0))
            if then == RELU2:
                for j in range(PANEL):
                    panel[j] *= panel[j]


@njit
def product(net, matrix, n_out, x, n_in, n_rows, y, other, then, team):
    """Multiply x (n_rows, n_in) with a matrix, into y (n_rows, n_out); this thread's panels.

    ``matrix`` says where its weights, its bias and its scales begin.
    """
    n_panels = -(-n_out // PANEL)
    at, bias, scales = matrix[0], net.vectors[:0], net.vectors[:0]
    if matrix[1] >= 0:
        bias = net.vectors[matrix[1] : matrix[1] + n_panels * PANEL]
    if matrix[2] >= 0:
        scales = net.vectors[matrix[2] : matrix[2] + n_panels * PANEL]
    n_chunks = -(-n_in // LONGEST)
    length = -(-n_in // n_chunks)
    line = LINE_BYTES // net.panels.itemsize
    own = n_panels * team.thread // team.n_threads, n_panels * (team.thread + 1) // team.n_threads
    for panel in range(own[0], own[1]):
        begin, column = at + panel * n_in, panel * PANEL
        w, scale = net.panels[begin : begin + n_in], scales[column : column + PANEL]
        for first in range(0, n_in, length):
            last = min(first + length, n_in)
            adds = first > 0 or then == ADD
            row = 0
            while row + ROWS <= n_rows:
                # each block of tokens fetches a part of the weights that come next
                ahead = last * PANEL + (row // ROWS * length - first) * line
                stride = line if row < PANEL // line * ROWS else 0
                _several(x, row, w, scale, first, last, y, column, adds, ahead, stride)
                row += ROWS
            while row < n_rows:
                _one(x, row, w, scale, first, last, y, column, adds, AHEAD * PANEL, PANEL)
                row += 1
        _finish(y, other, n_rows, column, bias, then)


@njit
def multiply(x, n_rows, w, first, last, y, column, adds):
    """Add x[:n_rows, first:last] @ w[first:last] to y, or set it, for up to ROWS tokens."""
    if n_rows == ROWS:
        _several(x, 0, w, y[0, :0], first, last, y, column, adds, last * PANEL, LINE)
        return
    for row in range(n_rows):
        _one(x, row, w, y[0, :0], first, last, y, column, adds, AHEAD * PANEL, PANEL)
