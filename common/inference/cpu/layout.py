"""How weights, the KV cache and a pass's workspace lie in arrays, and what packs a model's weights.

A matrix (out, in) lies in panels: PANEL outputs' weights for one input, then those for the next. It
may be stored as int8, a quarter of the memory to read, so more tokens a second: whole numbers from
-127 to 127 and a scale for each row; what is multiplied with them stays in float32. The embedding,
of which a token reads one row, stays as it is; the head, also a shared one, is quantized. What it
costs is measured by `sample score --quantize int8`.

Source: Jacob et al. 2018, section 2 (arXiv:1712.05877), with zero points of 0.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import binding
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.gpt import GPT, Block

# Outputs and tokens that are summed at once, in registers: of the 32 long ones of AVX-512 16 are
# sums, 4 weights. Others have half as many, or of a quarter the length.
PANEL, ROWS = (64, 4) if binding.get_host_cpu_features().get("avx512f") else (32, 2)

# Where a layer's weights begin: of each norm its own and its bias's; of each matrix its own, its
# bias's, its scales', and its shape (out, in).
LN_1, LN_2, Q_NORM, K_NORM = range(0, 8, 2)
C_ATTN, ATTN_PROJ, C_FC, C_GATE, MLP_PROJ = range(8, 33, 5)
LN_F, HEAD = 0, 2  # and at the end

# What a product ends with, beside its bias: nothing, a sum with what was there, an activation.
NONE, ADD, GELU, RELU, RELU2, SWIGLU, GELU_ERF = range(7)

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
    V: int
    norm_first: int  # 1: before each sublayer
    layernorm: int  # 1: LayerNorm, 0: RMSNorm
    activation: int  # GELU, GELU_ERF, RELU, RELU2 or SWIGLU
    eps: float  # of norms, and of those of queries and keys
    qk_eps: float


class PackedWeights(NamedTuple):
    """Weights, and where in them each begins; -1 stands for none."""

    vectors: Floats  # (n,)
    panels: Any  # (n, PANEL) float32, or int8 that scales belong to: an input's weights each
    layers: Ints  # (n_layer, 33), indexed by LN_1 ... MLP_PROJ
    ends: Ints  # (7,), by LN_F and HEAD
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
    attn_out: Floats  # (B, nh hs)
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


ACTIVATIONS = {"gelu": GELU, "gelu_erf": GELU_ERF, "relu": RELU, "relu2": RELU2, "swiglu": SWIGLU}

INT8_MAX = 127  # -128 would have no opposite
MIN_SCALE = 1e-30  # keeps weights of zeros from dividing by 0


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix (out, in) as int8, and the scale (out,) of each of its rows."""
    scales = weight.abs().amax(dim=1).clamp_(min=MIN_SCALE) / INT8_MAX
    return (weight / scales[:, None]).round_().to(torch.int8), scales


class _Packer:
    """Places vectors one behind the other in one array, matrices in another."""

    def __init__(self, *, int8: bool) -> None:
        self.int8 = int8
        self.vectors: list[Tensor] = []
        self.matrices: list[Tensor] = []
        self.n_numbers = self.n_rows = 0

    def vector(self, weight: Tensor | None) -> int:
        """Return where a vector (n,) will begin; -1 for none."""
        if weight is None:
            return -1
        at = self.n_numbers
        self.vectors.append(F.pad(weight.detach(), (0, -len(weight) % PANEL)))
        self.n_numbers += padded(len(weight))
        return at

    def matrix(self, weight: Tensor, bias: Tensor | None) -> tuple[int, ...]:
        """Return where a matrix (out, in) will begin, its bias and its scales; its shape."""
        at, weight, scales = self.n_rows, weight.detach(), None
        if self.int8:
            weight, scales = quantize_int8(weight)
        self.matrices.append(weight)
        self.n_rows += padded(len(weight)) // PANEL * weight.shape[1]
        return at, self.vector(bias), self.vector(scales), *weight.shape

    def norm(self, norm: nn.Module) -> tuple[int, int]:
        """Return where a norm's weight and bias will begin, as far as it has them."""
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        return self.vector(weight), self.vector(bias)

    def layer(self, block: Block) -> list[int]:
        """Return where a block's weights will begin: LN_1 ... MLP_PROJ, in this order."""
        attn, mlp = block.attn, block.mlp
        norms = [block.ln_1, block.ln_2, attn.q_norm, attn.k_norm]
        gate = mlp.c_gate if mlp.kind == "swiglu" else None
        linears = [attn.c_attn, attn.c_proj, mlp.c_fc, gate, mlp.c_proj]
        begins = [at for norm in norms for at in self.norm(norm)]
        for linear in linears:
            begins += self.matrix(linear.weight, linear.bias) if linear else [-1] * 5
        return begins

    def panels(self) -> npt.NDArray[np.float32] | npt.NDArray[np.int8]:
        """Return all matrices, PANEL outputs together: (panels, in, PANEL) of each."""
        dtype = torch.int8 if self.int8 else torch.float32
        block, at = torch.empty((self.n_rows, PANEL), dtype=dtype), 0
        for weight in self.matrices:
            if len(weight) % PANEL:
                weight = F.pad(weight, (0, 0, 0, -len(weight) % PANEL))
            panels = weight.reshape(-1, PANEL, weight.shape[1]).transpose(1, 2)
            n_rows = weight.numel() // PANEL
            block[at : at + n_rows].view(panels.shape).copy_(panels)
            at += n_rows
        return block.numpy()


def pack(model: GPT, *, int8: bool) -> PackedWeights:
    """Copy a model's float32 weights, but the embedding's; the matrices as ``int8`` if asked."""
    config, packer, bias = model.config, _Packer(int8=int8), model.head_bias
    V, has_rope = config.vocab_size, config.positions == "rope"  # noqa: N806
    layers = [packer.layer(block) for block in model.h]  # type: ignore[arg-type]
    head = packer.matrix(model.head_weight[:V], None if bias is None else bias[:V])
    ends = [*packer.norm(model.ln_f), *head]
    none = np.empty((0, 0), np.float32)
    return PackedWeights(
        vectors=torch.cat([*packer.vectors, torch.zeros(1)]).numpy(),
        panels=packer.panels(),
        layers=np.array(layers, np.int64),
        ends=np.array(ends, np.int64),
        cos=model.cos.numpy() if has_rope else none,
        sin=model.sin.numpy() if has_rope else none,
        dims=Dims(
            C=config.n_embd, nh=config.n_head, n_kv=config.kv_heads, hs=config.head_size, V=V,
            norm_first=int(config.norm_first), layernorm=int(config.norm == "layernorm"),
            activation=ACTIVATIONS[config.mlp], eps=config.eps, qk_eps=config.qk_eps,
        ),
    )  # fmt: skip
