"""The GPT, whole: token ids in, logits of the next token out.

    idx -> wte (+ wge) (+ wpe) -> n_layer x [ attn, mlp ] -> ln_f -> lm_head -> logits

Two settings of ModelConfig's switches are networks that other software knows: ``modern`` is
Qwen3ForCausalLM, ``gpt2`` is GPT2LMHeadModel (ARCHITECTURES in config.py).

Sources: Radford et al. 2019 (GPT-2); RMSNorm, arXiv:1910.07467; rotary positions,
arXiv:2104.09864; sinusoidal ones, arXiv:1706.03762; SwiGLU, arXiv:2002.05202; grouped-query
attention, arXiv:2305.13245; normalised queries and keys, arXiv:2302.05442.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from common.models.config import ModelConfig
from common.models.loss import next_token_loss
from common.models.ngram import embed_ngrams, make_tables, shifted_ids
from common.models.norm import RMSNorm, make_norm
from common.models.packing import packed_mask, packed_positions, packed_recent
from common.models.positions import Angles, make_angles, rotate

INIT_STD = 0.02  # GPT-2's
# Up to this many tokens attention written out is faster on CPUs than the fused kernel, whose many
# small products gain nothing from oneDNN: tests/bench/RECIPE.md.
MANUAL_TOKENS = 256


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kind: str, dropout: float
) -> Tensor:
    """Return softmax(q k^T / sqrt(hs)) v, causal, for q (B, nh, T, hs), k and v (B, n_kv, T, hs).

    By PyTorch's fused kernel (sdpa), written out (manual), or by the faster of them (auto).
    ``mask`` (B, 1, T, T), added to the scores, is causal and more (packing.py).
    Source: Vaswani et al. 2017, section 3.2.1 (arXiv:1706.03762).
    """
    B, nh, T, hs = q.shape  # noqa: N806
    n_shared = nh // k.shape[1]
    is_short = q.device.type == "cpu" and T <= MANUAL_TOKENS
    if kind == "sdpa" or (kind == "auto" and not is_short):
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout, is_causal=mask is None, enable_gqa=n_shared > 1
        )
    if n_shared > 1:
        k, v = k.repeat_interleave(n_shared, dim=1), v.repeat_interleave(n_shared, dim=1)
    q, k, v = (x.reshape(B * nh, T, hs) for x in (q, k, v))
    if mask is None:
        mask = torch.full((T, T), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    else:
        mask = mask.to(q.dtype).expand(B, nh, T, T).reshape(B * nh, T, T)
    scores = torch.baddbmm(mask, q, k.mT, alpha=1 / math.sqrt(hs))  # (B * nh, T, T)
    weights = F.dropout(F.softmax(scores, dim=-1), dropout)
    return torch.bmm(weights, v).view(B, nh, T, hs)


class Attention(nn.Module):
    """Causal self-attention of several heads, with keys and values shared where asked."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        C, hs, n_heads = config.n_embd, config.head_size, config.n_head + 2 * config.kv_heads  # noqa: N806
        self.c_attn = nn.Linear(C, n_heads * hs, bias=config.bias)
        self.c_proj = nn.Linear(config.n_head * hs, C, bias=config.bias)
        self.q_norm = RMSNorm(hs, eps=config.qk_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(hs, eps=config.qk_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, angles: Angles, mask: Tensor | None = None) -> Tensor:
        """Return (B, T, C): each token attends to those up to it."""
        B, T, _ = x.shape  # noqa: N806
        nh, n_kv, hs = self.config.n_head, self.config.kv_heads, self.config.head_size
        q, k, v = self.c_attn(x).split((nh * hs, n_kv * hs, n_kv * hs), dim=-1)
        q = self.q_norm(q.view(B, T, nh, hs)).transpose(1, 2)  # (B, nh, T, hs)
        k = self.k_norm(k.view(B, T, n_kv, hs)).transpose(1, 2)  # (B, n_kv, T, hs)
        v = v.view(B, T, n_kv, hs).transpose(1, 2)  # (B, n_kv, T, hs)
        if angles is not None:
            q, k = rotate(q, *angles).to(v.dtype), rotate(k, *angles).to(v.dtype)
        dropout = self.config.attention_dropout if self.training else 0.0
        y = attention(q, k, v, mask, self.config.attention, dropout)
        return self.c_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


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
        elif self.kind in ("gelu", "gelu_erf"):
            h = F.gelu(h, approximate="tanh" if self.kind == "gelu" else "none")
        else:
            h = F.relu(h)
            if self.kind == "relu2":  # So et al. 2021, section 4.1 (arXiv:2109.08668)
                h = h * h
        return self.c_proj(h)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.ln_1 = make_norm(config, config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = make_norm(config, config.n_embd)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, angles: Angles, mask: Tensor | None = None) -> Tensor:
        """Return (B, T, C): the residual stream with the two sublayers' outputs added."""
        if self.norm_first:
            x = x + self.dropout(self.attn(self.ln_1(x), angles, mask))
            return x + self.dropout(self.mlp(self.ln_2(x)))  # type: ignore[no-any-return]
        x = self.ln_1(x + self.dropout(self.attn(x, angles, mask)))
        return self.ln_2(x + self.dropout(self.mlp(x)))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A decoder-only transformer."""

    cos: Tensor
    sin: Tensor
    waves: Tensor
    wgp: nn.Linear | None
    head_bias: nn.Parameter | None

    def __init__(self, config: ModelConfig, *, zero_init: bool = False) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # redo each block in backward instead of keeping it
        # beside sines and cosines fresh embeddings would be lost: arXiv:1706.03762, section 3.4
        self.embed_scale = math.sqrt(config.n_embd) if config.positions == "sinusoidal" else 1.0
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wge, self.wgp = make_tables(config)
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        elif config.positions == "rope":
            angles = make_angles(config.block_size, config.head_size, config.rope_theta)
            self.register_buffer("cos", angles.cos(), persistent=False)  # (block_size, hs/2)
            self.register_buffer("sin", angles.sin(), persistent=False)
        else:  # (block_size, C), sine and cosine in turns
            angles = make_angles(config.block_size, config.n_embd)
            waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
            self.register_buffer("waves", waves, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # post-norm blocks end in a norm of their own
        self.ln_f = make_norm(config, config.n_embd) if config.norm_first else nn.Identity()
        if not config.tied_head:
            self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        bias = nn.Parameter(torch.zeros(config.padded_vocab_size)) if config.head_bias else None
        self.register_parameter("head_bias", bias)
        self.init_weights(zero_init=zero_init)

    def init_weights(self, *, zero_init: bool = False) -> None:
        """Draw weights as GPT-2 does: normal, residual projections narrower with depth.

        With ``zero_init`` those projections are zero: each block begins as the identity.
        Sources: Radford et al. 2019, section 2.3: 1/sqrt(number of residual layers); zeroed ones:
        Goyal et al. 2017, section 5.1 (arXiv:1706.02677), and Yang et al. 2022, appendix D.2
        (arXiv:2203.03466).
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            # norms begin as the identity, n-gram tables at 0: noise in rows met seldom would stay
            elif parameter.dim() == 2 and not name.startswith("wge."):
                is_residual = name.endswith("c_proj.weight")
                narrower = math.sqrt(2 * self.config.n_layer) if is_residual else 1
                # so that what a row learns is about as large behind the map
                std = self.config.ngram_dim**-0.5 if name.startswith("wgp.") else INIT_STD
                nn.init.normal_(parameter, std=std / narrower)
                if zero_init and is_residual:
                    nn.init.zeros_(parameter)

    def set_dropout(self, **shares: Any) -> None:
        """Change shares that are zeroed in training, on which the weights do not depend."""
        self.config = replace(self.config, **shares)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = self.config.dropout
            elif isinstance(module, Attention):
                module.config = self.config

    @property
    def added_positions(self) -> Tensor | None:
        """What is added to the embeddings at each position, (block_size, C); rotary: nothing."""
        if self.config.positions == "rope":
            return None
        return self.wpe.weight if self.config.positions == "learned" else self.waves

    def embed(self, idx: Tensor, starts: Tensor | None = None) -> Tensor:
        """Return (B, T, C) for ids (B, T): the embeddings of each, and of the n-grams it ends."""
        x = self.wte(idx)
        recent = shifted_ids(idx, self.config.n_recent)
        recent = recent if starts is None else packed_recent(recent, starts)
        kept = F.dropout(x.new_ones(*idx.shape, 1), self.config.ngram_dropout, self.training)
        for each in embed_ngrams(recent, self.wge, self.wgp):
            x = x + kept * each
        return x  # type: ignore[no-any-return]

    def hidden(self, idx: Tensor, starts: Tensor | None = None) -> Tensor:
        """Return the last layer's output, (B, T, C), for ids (B, T), T up to the block_size."""
        T = idx.shape[1]  # noqa: N806
        if T > self.config.block_size:  # noqa: SIM300
            raise ValueError(f"{T} tokens, but the context holds {self.config.block_size}")
        x = self.embed(idx, starts)  # (B, T, C)
        at = slice(T) if starts is None else packed_positions(starts)
        mask = None if starts is None else packed_mask(starts, x.dtype)
        angles = None
        if (added := self.added_positions) is None:
            angles = (self.cos[at].unsqueeze(-3), self.sin[at].unsqueeze(-3))
        else:
            x = x * self.embed_scale + added[at]
        x = self.dropout(x)
        for block in self.h:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, angles, mask, use_reentrant=False)
            else:
                x = block(x, angles, mask)
        return self.ln_f(x)  # type: ignore[no-any-return]

    @property
    def head_weight(self) -> Tensor:
        """The output head's weights, (padded V, C)."""
        return self.wte.weight if self.config.tied_head else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of the token after each hidden state (..., C)."""
        logits = F.linear(hidden, self.head_weight, self.head_bias)
        return logits[..., : self.config.vocab_size]

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, T, V) for ids (B, T) or, given targets (B, T), the loss, mean nats.

        Where ``starts`` (B, T) says at which position of its row the text of each token begins,
        nothing is seen of what is before it (packing.py). Targets of -100 are not learned.
        """
        hidden = self.hidden(idx, starts)
        if targets is None:
            return self.logits(hidden)
        V, weight, bias = self.config.vocab_size, self.head_weight, self.head_bias  # noqa: N806
        return next_token_loss(hidden.flatten(0, 1), weight, bias, targets.flatten(), vocab_size=V)

    @property
    def n_parameters(self) -> int:
        """Trainable numbers, a shared head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
