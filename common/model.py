"""The GPT, whole: token ids in, scores for the next token out.

    idx -> wte (+ wpe) -> n_layer x [ attn, mlp ] -> ln_f -> lm_head -> logits

Two settings of ModelConfig's switches are networks that other software knows: ``modern`` is
Qwen3ForCausalLM, ``gpt2`` is GPT2LMHeadModel (ARCHITECTURES in config.py).

Sources: Radford et al. 2019 (GPT-2); RMSNorm, arXiv:1910.07467; rotary positions,
arXiv:2104.09864; SwiGLU, arXiv:2002.05202; grouped-query attention, arXiv:2305.13245;
normalised queries and keys, arXiv:2302.05442.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config import ModelConfig

ROPE_THETA = 10_000.0  # the published base: contexts here are short
INIT_STD = 0.02  # GPT-2's


class KVCache:
    """Keys and values of the tokens so far, of every layer: room for one context, taken once."""

    def __init__(self, config: ModelConfig, n_rows: int, like: Tensor) -> None:
        """Make room for ``n_rows`` rows, of the dtype and on the device of ``like``."""
        shape = (config.n_layer, 2, n_rows, config.kv_heads, config.block_size, config.head_size)
        self.buffer = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.length = 0  # tokens held, the same in every row

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values, (B, nh, T, hs); return all of that layer."""
        end = self.length + k.shape[2]
        keys, values = self.buffer[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """Return the normalisation that the config names, over ``size`` channels."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(size, eps=1e-6)
    return nn.LayerNorm(size, eps=1e-5, bias=config.bias)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel i and i + hs/2 of ``x`` (B, nh, T, hs) by the angles of (T, hs/2)."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention of several heads, with keys and values shared where asked."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        hs = config.head_size
        self.c_attn = nn.Linear(
            config.n_embd, (config.n_head + 2 * config.kv_heads) * hs, bias=config.bias
        )
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.q_norm = nn.RMSNorm(hs, eps=1e-6) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(hs, eps=1e-6) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor] | None, cache: KVCache | None
    ) -> Tensor:
        """Return (B, T, C): for each token a mix of what the tokens up to it hold."""
        B, T, C = x.shape  # noqa: N806
        nh, n_kv, hs = self.config.n_head, self.config.kv_heads, self.config.head_size
        q, k, v = self.c_attn(x).split((nh * hs, n_kv * hs, n_kv * hs), dim=-1)
        q = self.q_norm(q.view(B, T, nh, hs)).transpose(1, 2)  # (B, nh, T, hs)
        k = self.k_norm(k.view(B, T, n_kv, hs)).transpose(1, 2)  # (B, n_kv, T, hs)
        v = v.view(B, T, n_kv, hs).transpose(1, 2)  # (B, n_kv, T, hs)
        if angles is not None:
            q, k = rotate(q, *angles).to(v.dtype), rotate(k, *angles).to(v.dtype)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        attend = manual_attention if self.config.attention == "manual" else sdpa_attention
        y = attend(q, k, v, self.config.dropout if self.training else 0.0)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # type: ignore[no-any-return]


def _causal_mask(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """Return (n_queries, n_keys), True where a query may look: the last query sees every key."""
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_queries)


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Attend by PyTorch's fused kernel; q (B, nh, T, hs), k and v (B, n_kv, at least T, hs)."""
    T, n_keys = q.shape[2], k.shape[2]  # noqa: N806
    # is_causal would align the first query with the first key, which is wrong behind a cache;
    # a single query sees everything and needs no mask
    mask = _causal_mask(T, n_keys, q.device) if 1 < T < n_keys else None
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=T > 1 and n_keys == T,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def manual_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Attend as the formula says, softmax(q k^T / sqrt(hs)) v; the same result as the kernel.

    Source: Vaswani et al. 2017, section 3.2.1 (arXiv:1706.03762).
    """
    n_shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(n_shared, dim=1), v.repeat_interleave(n_shared, dim=1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, nh, T, n_keys)
    hidden = ~_causal_mask(q.shape[2], k.shape[2], q.device)
    weights = F.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
    return F.dropout(weights, dropout) @ v  # (B, nh, T, hs)


class MLP(nn.Module):
    """Two linear maps with a nonlinearity between; swiglu gates the first with a third."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.mlp
        self.c_fc = nn.Linear(config.n_embd, config.inner_size, bias=config.bias)
        if config.mlp == "swiglu":
            self.c_gate = nn.Linear(config.n_embd, config.inner_size, bias=config.bias)
        self.c_proj = nn.Linear(config.inner_size, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, C), each token by itself."""
        h = self.c_fc(x)  # (B, T, inner)
        if self.kind == "swiglu":
            h = F.silu(self.c_gate(x)) * h
        elif self.kind == "gelu":
            h = F.gelu(h, approximate="tanh")
        else:
            h = F.relu(h)
        return self.c_proj(h)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then MLP, each added to what came in."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.ln_1 = make_norm(config, config.n_embd)
        self.attn = Attention(config, layer)
        self.ln_2 = make_norm(config, config.n_embd)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor] | None, cache: KVCache | None
    ) -> Tensor:
        """Return (B, T, C): what came in, with what the two sublayers add."""
        if self.norm_first:
            x = x + self.dropout(self.attn(self.ln_1(x), angles, cache))
            return x + self.dropout(self.mlp(self.ln_2(x)))  # type: ignore[no-any-return]
        x = self.ln_1(x + self.dropout(self.attn(x, angles, cache)))
        return self.ln_2(x + self.dropout(self.mlp(x)))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A decoder-only transformer."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        else:
            hs = config.head_size
            frequencies = ROPE_THETA ** (-torch.arange(0, hs, 2, dtype=torch.float32) / hs)
            angles = torch.outer(torch.arange(config.block_size).float(), frequencies)
            self.register_buffer("cos", angles.cos(), persistent=False)  # (block_size, hs/2)
            self.register_buffer("sin", angles.sin(), persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        # post-norm blocks end in a norm of their own
        self.ln_f = make_norm(config, config.n_embd) if config.norm_first else nn.Identity()
        if not config.tied_head:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw weights as GPT-2 does: normal, residual projections narrower with depth.

        Source: Radford et al. 2019, section 2.3: 1/sqrt(number of residual layers).
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # norms begin as the identity, biases (below) at 0
            narrower = math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj.weight") else 1
            nn.init.normal_(parameter, std=INIT_STD / narrower)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the last layer's output, (B, T, C), for ids (B, T) that follow the cached ones.

        Raises: ValueError when the ids do not fit into the context.
        """
        start = cache.length if cache is not None else 0
        end = start + idx.shape[1]
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens, but the context holds {self.config.block_size}")
        x = self.wte(idx)  # (B, T, C)
        angles = None
        if self.config.positions == "learned":
            x = x + self.wpe.weight[start:end]
        else:
            angles = (self.cos[start:end], self.sin[start:end])
        x = self.dropout(x)
        for block in self.h:
            x = block(x, angles, cache)
        if cache is not None:
            cache.length = end
        return self.ln_f(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return scores (..., V) for the token after each hidden state (..., C)."""
        head = self.wte if self.config.tied_head else self.lm_head
        return F.linear(hidden, head.weight)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, T, V) for ids (B, T) and, given targets (B, T), the mean loss.

        The loss is the cross-entropy in nats a token.
        """
        logits = self.logits(self.hidden(idx))
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        return logits, loss

    @property
    def n_parameters(self) -> int:
        """Trainable numbers, a shared head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
