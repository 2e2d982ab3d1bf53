"""The network of gpt.py for generation by PyTorch's operators: with a KV cache, in few calls.

gpt.py says what is computed, and is what trains; this computes the same from the same weights. It
is for GPUs, and for the few tokens that training shows; on CPUs cpu/ generates.

The tokens that are computed together, (B, T), are a prompt's, (1, T), or the newest of several
texts, (B, 1). Only attention, which the cache gives, has to know which.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.inference.row import Logits, Position
from common.models.gpt import GPT, Block
from common.models.ngram import embed_ngrams, shifted_ids

# of a layer: queries, keys and values, (B, T, nh + 2 n_kv, hs) -> attention's output, (B, T, nh hs)
Attend = Callable[[int, Tensor], Tensor]

LOGITS_BYTES = 1 << 26  # logits of a text are computed in parts of this size


class Layer:
    """One block: what its modules do, without the modules."""

    def __init__(self, block: Block) -> None:
        attn = block.attn
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
        self.embed_ngrams = partial(embed_ngrams, tables=model.wge, narrow=model.wgp)
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
        """Allocate a cache for ``n_rows`` texts."""
        return TorchKVCache(self, n_rows)

    def hidden(self, recent: Sequence[Tensor], positions: Tensor, attend: Attend) -> Tensor:
        """Return the last layer's output (B, T, C) for tokens at ``positions`` (B, T).

        ``recent`` are their ids (B, T), those one position before them, and so on, as many as
        config.n_recent says.
        """
        x = F.embedding(recent[0], self.wte)  # (B, T, C)
        for each in self.embed_ngrams(recent):
            x = x + each
        angles = None
        if self.config.positions == "rope":
            angles = (self.cos[positions], self.sin[positions])  # (B, T, 1, hs)
        else:
            x = x * self.embed_scale + self.added[positions]
        for number, layer in enumerate(self.layers):
            if self.config.norm_first:
                heads = self._heads(layer, layer.c_attn(layer.ln_1(x)), angles)
                x = x + layer.c_proj(attend(number, heads))
                x = x + layer.mlp(layer.ln_2(x))
            else:
                heads = self._heads(layer, layer.c_attn(x), angles)
                x = layer.ln_1(x + layer.c_proj(attend(number, heads)))
                x = layer.ln_2(x + layer.mlp(x))
        return self.ln_f(x)

    def logits(self, hidden: Tensor, n: int) -> Logits:
        """Return the logits (n, V), in float32, after the first ``n`` hidden states (B, C)."""
        logits = F.linear(hidden, self.head_weight, self.head_bias)[:n].float()
        return Logits(logits.cpu().numpy(), logits.logsumexp(dim=1).cpu().numpy())

    def _heads(self, layer: Layer, qkv: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return heads (B, T, nh + 2 n_kv, hs), queries and keys normalised and rotated."""
        nh, n_kv, hs = self.config.n_head, self.config.kv_heads, self.config.head_size
        heads = qkv.view(*qkv.shape[:2], nh + 2 * n_kv, hs)
        if layer.qk_norm is None and angles is None:
            return heads
        qk = heads[:, :, : nh + n_kv]
        if layer.qk_norm is not None:
            qk = F.rms_norm(qk, (hs,), None, layer.eps) * layer.qk_norm
        if angles is not None:
            # channel i and i + hs/2 are rotated against each other; sin has the signs
            cos, sin = angles
            qk = (qk * cos).add_(qk.roll(hs // 2, -1).mul_(sin))
        return torch.cat((qk, heads[:, :, nh + n_kv :]), dim=2)


class TorchKVCache:
    """Keys and values of several rows, on the backend's device.

    Libraries choose an order of sums by the number of rows: here it is always the same, and each
    row attends alone, so that a text does not depend on others.
    """

    max_batch_tokens = 1

    def __init__(self, backend: TorchBackend, n_rows: int) -> None:
        self.backend, self.n_rows, config = backend, n_rows, backend.config
        self.nh, self.n_kv = config.n_head, config.kv_heads
        # (n_layer, n_rows, n_kv of keys and n_kv of values, block_size, hs)
        shape = (config.n_layer, n_rows, 2 * self.n_kv, config.block_size, config.head_size)
        self.buffer = backend.wte.new_empty(shape)
        self.prompts: list[tuple[list[int], Logits] | None] = [None] * n_rows  # and what followed

    @torch.inference_mode()
    def prefill(
        self, prompts: Sequence[tuple[int, Sequence[int]]], n_wanted: int = 1
    ) -> Iterator[tuple[int, Logits]]:
        """Begin rows, each with its ids; yield rows and the logits after their last ``n_wanted``.

        A prompt that another row began with is copied, as for several samples of one prompt.
        """
        for row, ids in prompts:
            same = [
                (other, prompt[1])
                for other, prompt in enumerate(self.prompts)
                if n_wanted == 1 and prompt is not None and prompt[0] == ids
            ]
            self.prompts[row] = None  # until it is sure: a Ctrl-C may come in between
            if same:
                self.buffer[:, row, :, : len(ids)] = self.buffer[:, same[0][0], :, : len(ids)]
            found = iter([same[0][1]]) if same else self._prefill(row, ids, n_wanted)
            for logits in found:
                if n_wanted == 1:
                    self.prompts[row] = list(ids), logits
                yield row, logits

    def _prefill(self, row: int, ids: Sequence[int], n_wanted: int) -> Iterator[Logits]:
        config = self.backend.config
        idx = torch.tensor([ids], device=self.buffer.device)  # (1, T)
        positions = torch.arange(len(ids), device=idx.device)[None]
        attend = partial(self._attend_prompt, row)
        hidden = self.backend.hidden(shifted_ids(idx, config.n_recent), positions, attend)
        n_tokens = max(1, LOGITS_BYTES // (4 * config.vocab_size))
        for first in range(len(ids) - n_wanted, len(ids), n_tokens):
            yield self.backend.logits(hidden[0, first : first + n_tokens], n_tokens)

    @torch.inference_mode()
    def decode(self, positions: Sequence[Position]) -> Logits:
        """Put one more id at each of several positions; return the logits after each."""
        # copies of the first, so that there are always as many
        batch = [*positions] + [positions[0]] * (self.n_rows - len(positions))
        device = self.buffer.device
        recent = torch.tensor([at.recent for at in batch], device=device)[:, None].unbind(2)
        where = torch.tensor([[at.position] for at in batch], device=device)
        hidden = self.backend.hidden(recent, where, self._attend_newest(positions))
        return self.backend.logits(hidden[:, 0], len(positions))

    def _attend_prompt(self, row: int, layer: int, heads: Tensor) -> Tensor:
        """Attend from the tokens (1, T) of one row, which begins at position 0."""
        heads = heads.transpose(1, 2)  # (1, nh + 2 n_kv, T, hs)
        self.buffer[layer, row, :, : heads.shape[2]] = heads[0, self.nh :]
        q, k, v = torch.split(heads, [self.nh, self.n_kv, self.n_kv], dim=1)
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=self.nh != self.n_kv
        )  # (1, nh, T, hs)
        return y.transpose(1, 2).flatten(2)

    def _attend_newest(self, positions: Sequence[Position]) -> Attend:
        """Return how the newest tokens (B, 1) of several rows attend, each alone."""
        # views of what each writes and reads, layer by layer, once a step
        views = []
        for row, position, _ in positions:
            own = self.buffer[:, row]
            keys, values = torch.split(own[:, :, : position + 1], self.n_kv, dim=1)
            views.append((own[:, :, position].unbind(), keys.unbind(), values.unbind()))

        def attend(layer: int, heads: Tensor) -> Tensor:
            out = []
            for own, (newest, keys, values) in zip(heads[: len(views), 0], views, strict=True):
                newest[layer].copy_(own[self.nh :])
                # heads that share keys pass as successive queries: one token sees all
                q = own[: self.nh].view(1, self.n_kv, -1, own.shape[1])
                y = F.scaled_dot_product_attention(q, keys[layer][None], values[layer][None])
                out.append(y.reshape(1, 1, -1))
            return torch.cat([*out, out[0].expand(len(heads) - len(out), -1, -1)])

        return attend
