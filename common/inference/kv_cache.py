"""Keys and values of the tokens so far, of every layer and row: room taken once."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from common.models.config import ModelConfig

# queries, keys and values of a layer, (B, T, nh + 2 n_kv, hs) -> what is read, (B, T, C)
Attend = Callable[[int, Tensor], Tensor]


class KVCache:
    """Keys and values, and attention over them."""

    def __init__(self, config: ModelConfig, n_rows: int, like: Tensor) -> None:
        """Make room for ``n_rows`` cache, of the dtype and on the device of ``like``."""
        self.nh, self.n_kv = config.n_head, config.kv_heads
        # (n_layer, n_rows, n_kv of keys and n_kv of values, block_size, hs)
        shape = (config.n_layer, n_rows, 2 * self.n_kv, config.block_size, config.head_size)
        self.buffer = torch.empty(shape, dtype=like.dtype, device=like.device)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Copy the first ``n_tokens`` of one row to another."""
        self.buffer[:, target, :, :n_tokens] = self.buffer[:, source, :, :n_tokens]

    def reading(self, row: int) -> Attend:
        """Return how the tokens (1, T) of one row attend that are read from position 0 on."""

        def attend(layer: int, heads: Tensor) -> Tensor:
            heads = heads.transpose(1, 2)  # (1, nh + 2 n_kv, T, hs)
            T = heads.shape[2]  # noqa: N806
            self.buffer[layer, row, :, :T] = heads[0, self.nh :]
            q, k, v = torch.split(heads, [self.nh, self.n_kv, self.n_kv], dim=1)
            y = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=self.nh != self.n_kv
            )  # (1, nh, T, hs)
            return y.transpose(1, 2).flatten(2)

        return attend

    def continuing(self, places: list[tuple[int, int]], n_more: int) -> Attend:
        """Return how the newest tokens (B, 1) of several rows attend, each alone.

        ``places`` are their rows and positions; the last ``n_more`` of the B are copies of the
        first.
        """
        # views of what each writes and reads, layer by layer: made once a step
        views = []
        for row, position in places:
            own = self.buffer[:, row]
            keys, values = torch.split(own[:, :, : position + 1], self.n_kv, dim=1)
            views.append((own[:, :, position].unbind(), keys.unbind(), values.unbind()))

        def attend(layer: int, heads: Tensor) -> Tensor:
            read = []
            for own, (newest, keys, values) in zip(heads[: len(views), 0], views, strict=True):
                newest[layer].copy_(own[self.nh :])
                # heads that share keys take the place of successive queries: one token sees all
                q = own[: self.nh].view(1, self.n_kv, -1, own.shape[1])
                y = F.scaled_dot_product_attention(q, keys[layer][None], values[layer][None])
                read.append(y.reshape(1, 1, -1))
            return torch.cat([*read, read[0].expand(n_more, -1, -1)])

        return attend
