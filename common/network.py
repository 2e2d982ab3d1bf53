"""The network of model.py laid out for generation: flat, its weights packed, few calls.

model.py says what is computed, and is what trains; this computes the same from the same weights.
The tokens that are computed together, (B, T), are a prompt's, (1, T), or the newest of several
texts, (B, 1). Only attention, which the caller gives, has to know which.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.model import GPT, Block
from common.ngrams import ngram_rows
from common.packed import Pack, Then, pack

# queries, keys and values of a layer, (B, T, nh + 2 n_kv, hs) -> what is read, (B, T, C)
Attend = Callable[[int, Tensor], Tensor]


class Layer:
    """One block: what its modules hold, without the modules."""

    def __init__(self, block: Block, pack: Pack) -> None:
        attn, mlp = block.attn, block.mlp
        self.norm_first = block.norm_first
        # forward, not the module: its call looks for hooks first, a microsecond each
        self.ln_1, self.ln_2 = block.ln_1.forward, block.ln_2.forward
        self.c_attn = pack(attn.c_attn.weight, attn.c_attn.bias)
        self.attn_proj = pack(attn.c_proj.weight, attn.c_proj.bias)
        self.c_fc = pack(mlp.c_fc.weight, mlp.c_fc.bias)
        self.mlp_proj = pack(mlp.c_proj.weight, mlp.c_proj.bias)
        self.squared = mlp.kind == "relu2"
        kinds: dict[str, Then] = {"swiglu": "silu", "gelu": "gelu", "relu": "relu", "relu2": "relu"}
        self.mlp_kind = kinds[mlp.kind]
        self.c_gate = pack(mlp.c_gate.weight, mlp.c_gate.bias) if mlp.kind == "swiglu" else None
        self.qk_norm: Tensor | None = None  # (nh + n_kv, hs)
        if isinstance(attn.q_norm, nn.RMSNorm) and isinstance(attn.k_norm, nn.RMSNorm):
            nh, n_kv = attn.config.n_head, attn.config.kv_heads
            q, k = (norm.weight.detach() for norm in (attn.q_norm, attn.k_norm))  # (hs,)
            self.qk_norm = torch.cat((q.expand(nh, -1), k.expand(n_kv, -1)))
            self.eps = attn.q_norm.eps

    def inner(self, x: Tensor) -> Tensor:
        """Return the MLP's channels (B, T, inner) before its second map."""
        if self.c_gate is not None:
            return self.c_fc(x, "mul", self.c_gate(x, self.mlp_kind))
        h = self.c_fc(x, self.mlp_kind)
        return h * h if self.squared else h


class Network:
    """A GPT for generation; it shares the embedding with the model and copies the rest."""

    def __init__(self, model: GPT, pack: Pack = pack) -> None:
        """Lay out ``model``, each of its matrices by ``pack``."""
        self.config = model.config
        self.wte = model.wte.weight.detach()
        self.tables = [table.detach() for table in model.wge.parameters()]
        self.layers = [Layer(block, pack) for block in model.h]  # type: ignore[arg-type]
        self.ln_f: Callable[[Tensor], Tensor] = model.ln_f.forward
        V, bias = model.config.vocab_size, model.head_bias  # noqa: N806
        self.head = pack(model.head_weight[:V], None if bias is None else bias[:V])
        if model.config.positions == "rope":
            self.cos = torch.cat((model.cos, model.cos), dim=-1)[:, None]  # (block_size, 1, hs)
            self.sin = torch.cat((-model.sin, model.sin), dim=-1)[:, None]
        elif (added := model.added_positions) is not None:
            self.added, self.embed_scale = added.detach(), model.embed_scale

    def hidden(self, recent: Sequence[Tensor], positions: Tensor, attend: Attend) -> Tensor:
        """Return (B, T, C) for tokens at ``positions`` (B, T) of their contexts.

        ``recent`` are their ids (B, T), those one place before them, and so on, as many as
        config.n_recent says.
        """
        x = F.embedding(recent[0], self.wte)  # (B, T, C)
        if self.tables:
            rows = ngram_rows(recent, self.config.ngram_rows)
            for table, of_table in zip(self.tables, rows, strict=True):
                x = x + F.embedding(of_table, table)
        angles = None
        if self.config.positions == "rope":
            angles = (self.cos[positions], self.sin[positions])  # (B, T, 1, hs)
        else:
            x = x * self.embed_scale + self.added[positions]
        for number, layer in enumerate(self.layers):
            if layer.norm_first:
                heads = self._turned(layer, layer.c_attn(layer.ln_1(x)), angles)
                x = layer.attn_proj(attend(number, heads), "add", x)
                x = layer.mlp_proj(layer.inner(layer.ln_2(x)), "add", x)
            else:
                heads = self._turned(layer, layer.c_attn(x), angles)
                x = layer.ln_1(layer.attn_proj(attend(number, heads), "add", x))
                x = layer.ln_2(layer.mlp_proj(layer.inner(x), "add", x))
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return scores (B, T, V) in float32 for the token after each hidden state (B, T, C)."""
        return self.head(hidden).float()

    def _turned(self, layer: Layer, qkv: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return heads (B, T, nh + 2 n_kv, hs), queries and keys normalised and turned."""
        nh, n_kv, hs = self.config.n_head, self.config.kv_heads, self.config.head_size
        heads = qkv.view(*qkv.shape[:2], nh + 2 * n_kv, hs)
        if layer.qk_norm is None and angles is None:
            return heads
        place = heads[:, :, : nh + n_kv]
        qk = place
        if layer.qk_norm is not None:
            qk = F.rms_norm(qk, (hs,), None, layer.eps) * layer.qk_norm
        if angles is not None:
            # channel i and i + hs/2 are turned against each other; sin has the signs
            cos, sin = angles
            qk = (qk * cos).add_(qk.roll(hs // 2, -1).mul_(sin))
        place.copy_(qk)
        return heads
