"""The network of model.py for generation by PyTorch's operators: with a cache, in few calls.

model.py says what is computed, and is what trains; this computes the same from the same weights.
It is for GPUs, and for the few tokens that training shows; on CPUs cpu/ generates.

The tokens that are computed together, (B, T), are a prompt's, (1, T), or the newest of several
texts, (B, 1). Only attention, which the caller gives, has to know which.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.inference.backend import Logits, Position
from common.inference.kv_cache import Attend, KVCache
from common.models.gpt import GPT, Block
from common.models.ngram import ngram_rows, shifted_ids

LOGITS_BYTES = 1 << 26  # scores of a text are computed in parts of this size


class Layer:
    """One block: what its modules do, without the modules."""

    def __init__(self, block: Block) -> None:
        attn = block.attn
        self.norm_first = block.norm_first
        # forward, not the module: its call looks for hooks first, a microsecond each
        self.ln_1, self.ln_2 = block.ln_1.forward, block.ln_2.forward
        self.c_attn, self.c_proj = attn.c_attn.forward, attn.c_proj.forward
        self.mlp = block.mlp.forward
        self.qk_norm: Tensor | None = None  # (nh + n_kv, hs)
        if isinstance(attn.q_norm, nn.RMSNorm) and isinstance(attn.k_norm, nn.RMSNorm):
            nh, n_kv = attn.config.n_head, attn.config.kv_heads
            q, k = (norm.weight.detach() for norm in (attn.q_norm, attn.k_norm))  # (hs,)
            self.qk_norm = torch.cat((q.expand(nh, -1), k.expand(n_kv, -1)))
            self.eps = attn.q_norm.eps


class TorchBackend:
    """A GPT for generation; it shares all weights with the model."""

    def __init__(self, model: GPT) -> None:
        self.config = model.config
        self.wte = model.wte.weight.detach()
        self.tables = [table.detach() for table in model.wge.parameters()]
        self.layers = [Layer(block) for block in model.h]  # type: ignore[arg-type]
        self.ln_f: Callable[[Tensor], Tensor] = model.ln_f.forward
        V, bias = model.config.vocab_size, model.head_bias  # noqa: N806
        self.head_weight = model.head_weight.detach()[:V]
        self.head_bias = None if bias is None else bias.detach()[:V]
        if model.config.positions == "rope":
            self.cos = torch.cat((model.cos, model.cos), dim=-1)[:, None]  # (block_size, 1, hs)
            self.sin = torch.cat((-model.sin, model.sin), dim=-1)[:, None]
        elif (added := model.added_positions) is not None:
            self.added, self.embed_scale = added.detach(), model.embed_scale

    def make_cache(self, n_rows: int) -> "TorchKVCache":
        """Return room for ``n_rows`` texts."""
        return TorchKVCache(self, n_rows)

    def hidden(self, recent: Sequence[Tensor], positions: Tensor, attend: Attend) -> Tensor:
        """Return (B, T, C) for tokens at ``positions`` (B, T) of their cache.

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
                x = x + layer.c_proj(attend(number, heads))
                x = x + layer.mlp(layer.ln_2(x))
            else:
                heads = self._turned(layer, layer.c_attn(x), angles)
                x = layer.ln_1(x + layer.c_proj(attend(number, heads)))
                x = layer.ln_2(x + layer.mlp(x))
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return scores (B, T, V) in float32 for the token after each hidden state (B, T, C)."""
        return F.linear(hidden, self.head_weight, self.head_bias).float()

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


class TorchKVCache:
    """The texts so far of several rows, on the network's device.

    Libraries choose a way to add up by the number of rows: here it is always the same, and each row
    attends alone, so that a text does not depend on others.
    """

    max_batch_tokens = 1

    def __init__(self, network: TorchBackend, n_rows: int) -> None:
        """Make room for ``n_rows`` texts."""
        self.network, self.n_rows = network, n_rows
        self.cache = KVCache(network.config, n_rows, like=network.wte)
        self.prompts: list[tuple[list[int], Logits] | None] = [None] * n_rows  # as they were read

    @torch.inference_mode()
    def prefill(self, row: int, ids: Sequence[int], n_wanted: int = 1) -> Iterator[Logits]:
        """Put ``ids`` into a row; yield scores of what follows each of the last ``n_wanted``."""
        for other, prompt in enumerate(self.prompts):
            # as for several samples of one prompt; behind it a row may hold more
            if n_wanted == 1 and prompt is not None and prompt[0] == ids:
                self.prompts[row] = None  # until it is sure: a Ctrl-C may come in between
                self.cache.copy(other, row, len(ids))
                self.prompts[row] = prompt
                yield prompt[1]
                return
        self.prompts[row] = None
        idx = torch.tensor([ids], device=self.network.wte.device)  # (1, T)
        positions = torch.arange(len(ids), device=idx.device)[None]
        recent = shifted_ids(idx, self.network.config.n_recent)
        hidden = self.network.hidden(recent, positions, self.cache.reading(row))
        n_tokens = max(1, LOGITS_BYTES // (4 * self.network.config.vocab_size))
        for first in range(len(ids) - n_wanted, len(ids), n_tokens):
            scored = _to_numpy(self.network.logits(hidden[0, first : first + n_tokens]))
            if n_wanted == 1:
                self.prompts[row] = list(ids), scored
            yield scored

    def prefill_batch(self, texts: Sequence[tuple[int, Sequence[int]]]) -> list[Logits]:
        """Put ids into several rows; return what follows each text."""
        return [scored for row, ids in texts for scored in self.prefill(row, ids)]

    @torch.inference_mode()
    def decode(self, places: Sequence[Position]) -> Logits:
        """Put one more id into each of several places; return what follows each of them."""
        device, n_more = self.network.wte.device, self.n_rows - len(places)
        same = [*places] + [places[0]] * n_more
        recent = torch.tensor([place.recent for place in same], device=device)[:, None].unbind(2)
        positions = torch.tensor([[place.position] for place in same], device=device)
        where = [(place.row, place.position) for place in places]
        attend = self.cache.continuing(where, n_more)
        hidden = self.network.hidden(recent, positions, attend)
        return _to_numpy(self.network.logits(hidden)[: len(places), 0])


def _to_numpy(logits: Tensor) -> Logits:
    """Return scores (n, V) as numpy's arrays."""
    return Logits(logits.cpu().numpy(), logits.logsumexp(dim=1).cpu().numpy())
