"""Matrix products of tokens with packed weights, and the epilogue in the same pass over them.

The sums of a panel's outputs for up to ROWS tokens stay in registers while its weights stream by.
Each token's are summed in the same order, however many there are.

Source: blocks in registers, Goto and van de Geijn 2008, section 4 (Anatomy of High-Performance
Matrix Multiplication). What was tried is in tests/bench/GENERATION.md.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from common.inference.cpu.layout import ADD, GELU, GELU_ERF, PANEL, RELU, RELU2, ROWS, SWIGLU

K_BLOCK = 512  # inputs summed at a time: a panel's are 128 KB, which stay in the cache meanwhile
SQRT_HALF = np.float32(math.sqrt(0.5))
LINE_BYTES = 64  # that memory delivers together
# Sums may be made of several, as vectors do: only where that is the same for every token.
EXACT, LOOSE = {"contract", "nsz"}, {"contract", "nsz", "reassoc"}


@intrinsic
def alloca(typing: Any, n: Any) -> Any:
    """Return memory for ``n`` float32, n a constant, that the compiler can keep in registers."""
    if not isinstance(n, types.IntegerLiteral):
        return None

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(ir.FloatType(), n.literal_value))
            memory.align = 64
        return builder.bitcast(memory, ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(n), generate


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Fetch what is at ``index`` of an array, or near its end behind it, into the second cache."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        i8, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [i8, i32, i32, i32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [i8], kind)
        at = builder.bitcast(builder.gep(array.data, [args[1]]), i8)
        builder.call(prefetch, [at, i32(0), i32(2), i32(1)])  # to read
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def exp2(typing: Any, n: Any) -> Any:
    """Return 2 to the power of a float that is whole: n + 127 are the bits of its exponent."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        whole = builder.fptosi(args[0], i32)
        bits = builder.shl(builder.add(whole, i32(127)), i32(23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.float32), generate


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
    return (y * r * r + r + np.float32(1)) * exp2(n)


@njit(fastmath=EXACT, error_model="numpy")
def erf(x):
    """Return the error function of x, within 5e-7 of it.

    Source: Abramowitz and Stegun 1964, formula 7.1.26.
    """
    a = abs(x)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * a)
    y = np.float32(1.061405429)
    y = y * t - np.float32(1.453152027)
    y = y * t + np.float32(1.421413741)
    y = y * t - np.float32(0.284496736)
    y = y * t + np.float32(0.254829592)
    y = np.float32(1) - y * t * exp(-a * a)
    return y if x >= 0 else -y


def _gemm_panel(n_rows: int) -> Any:
    """Return what multiplies ``n_rows`` tokens with one panel's weights."""
    n = n_rows * PANEL

    @njit(fastmath=EXACT)
    def gemm_panel(x, row, w, scales, first, last, y, column, adds, ahead, stride):
        """Add x[row + r, first:last] @ w[first:last] to y, or set it; several tokens prefetch."""
        sums = carray(alloca(n), n)
        for j in range(n):
            sums[j] = 0
        for k in range(first, last):
            if n_rows > 1:
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

    return gemm_panel


_gemm_panel_1, _gemm_panel_n = _gemm_panel(1), _gemm_panel(ROWS)


@njit(fastmath=EXACT, error_model="numpy")
def _epilogue(y, other, n_rows, column, bias, op):
    """Add the bias to one panel of a product, if there is one, and apply the activation."""
    for row in range(n_rows):
        panel = y[row, column : column + PANEL]
        if len(bias):
            for j in range(PANEL):
                panel[j] += bias[column + j]
        if op == GELU:  # the form with tanh: x (1 + tanh u) / 2 = x / (1 + exp(-2 u))
            for j in range(PANEL):
                v = panel[j]
                u = np.float32(math.sqrt(2 / math.pi)) * (v + np.float32(0.044715) * v * v * v)
                panel[j] = v / (np.float32(1) + exp(np.float32(-2) * u))
        elif op == GELU_ERF:
            for j in range(PANEL):
                v = panel[j]
                panel[j] = v * (np.float32(0.5) + np.float32(0.5) * erf(v * SQRT_HALF))
        elif op == SWIGLU:
            up = other[row, column : column + PANEL]
            for j in range(PANEL):
                panel[j] = panel[j] / (np.float32(1) + exp(-panel[j])) * up[j]
        elif op in (RELU, RELU2):
            for j in range(PANEL):
                v = max(panel[j], np.float32(0))
                panel[j] = v * v if op == RELU2 else v


@njit
def gemm(weights, matrix, x, n_rows, y, other, op, group):
    """Multiply x (n_rows, in) with a matrix, into y (n_rows, out); this thread's panels.

    ``matrix`` says where it, its bias and its scales begin. ``op`` is no constant: else each call
    compiles anew.
    """
    at, n_out, n_in = matrix[0], matrix[3], matrix[4]
    bias = scales = weights.vectors[:0]
    n_panels = -(-n_out // PANEL)
    if matrix[1] >= 0:
        bias = weights.vectors[matrix[1] : matrix[1] + n_panels * PANEL]
    if matrix[2] >= 0:
        scales = weights.vectors[matrix[2] : matrix[2] + n_panels * PANEL]
    n_blocks = -(-n_in // K_BLOCK)
    length = -(-n_in // n_blocks)
    line = LINE_BYTES // weights.panels.itemsize
    begin = n_panels * group.thread // group.n_threads
    end = n_panels * (group.thread + 1) // group.n_threads
    for panel in range(begin, end):
        start, column = at + panel * n_in, panel * PANEL
        w, scale = weights.panels[start : start + n_in], scales[column : column + PANEL]
        for first in range(0, n_in, length):
            last = min(first + length, n_in)
            adds = first > 0 or op == ADD
            row = 0
            while row + ROWS <= n_rows:
                # each block of tokens fetches a part of the weights that come next
                ahead = last * PANEL + (row // ROWS * length - first) * line
                stride = line if row < PANEL // line * ROWS else 0
                _gemm_panel_n(x, row, w, scale, first, last, y, column, adds, ahead, stride)
                row += ROWS
            while row < n_rows:
                _gemm_panel_1(x, row, w, scale, first, last, y, column, adds, 0, 0)
                row += 1
        _epilogue(y, other, n_rows, column, bias, op)


@njit
def gemm_block(x, n_rows, w, first, last, y, column, adds):
    """Add x[:n_rows, first:last] @ w[first:last] to y, or set it, for up to ROWS tokens."""
    if n_rows == ROWS:
        line = LINE_BYTES // w.itemsize
        _gemm_panel_n(x, 0, w, y[0, :0], first, last, y, column, adds, last * PANEL, line)
        return
    for row in range(n_rows):
        _gemm_panel_1(x, row, w, y[0, :0], first, last, y, column, adds, 0, 0)
