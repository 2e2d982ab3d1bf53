"""Keys and values of the tokens so far, of every layer and row: room taken once."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from common.config import ModelConfig

# queries, keys and values of a layer, (B, T, nh + 2 n_kv, hs) -> what is read, (B, T, C)
Attend = Callable[[int, Tensor], Tensor]


class KVCache:
    """Keys and values, and attention over them."""

    def __init__(self, config: ModelConfig, n_rows: int, like: Tensor) -> None:
        """Make room for ``n_rows`` contexts, of the dtype and on the device of ``like``."""
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

    def continuing(
        self, places: list[tuple[int, int]], n_more: int = 0, *, alone: bool = False
    ) -> Attend:
        """Return how the newest tokens (B, 1) of several rows attend.

        ``places`` says of each its row, in order, and its position. The last ``n_more`` of the B
        are copies of the first. Neighbours of equal length attend in one call, which computes each
        as if alone; a mask over unequal lengths would not (measured). On GPUs not even that is
        sure: there each row is to attend ``alone``.
        """
        edges = [0]
        for i, ((row, position), here) in enumerate(pairwise(places), start=1):
            if alone or here != (row + 1, position):
                edges.append(i)
        runs = [self._run(places, *edge) for edge in pairwise([*edges, len(places)])]

        def attend(layer: int, heads: Tensor) -> Tensor:
            read = []
            for first, last, newest, keys, values in runs:
                own = heads[first:last, 0]  # (rows, nh + 2 n_kv, hs)
                newest[layer].copy_(own[:, self.nh :])
                # heads that share keys take the place of successive queries: one token sees all
                q = own[:, : self.nh].view(last - first, self.n_kv, -1, own.shape[2])
                y = F.scaled_dot_product_attention(q, keys[layer], values[layer])
                read.append(y.reshape(last - first, 1, -1))
            if n_more:
                read.append(read[0][:1].expand(n_more, -1, -1))
            return read[0] if len(read) == 1 else torch.cat(read)

        return attend

    def _run(
        self, places: list[tuple[int, int]], first: int, last: int
    ) -> tuple[int, int, tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return what neighbours write and read, layer by layer: views, made once a step."""
        row, position = places[first]
        rows = self.buffer[:, row : row + last - first]
        keys, values = torch.split(rows[:, :, :, : position + 1], self.n_kv, dim=2)
        return first, last, rows[:, :, :, position].unbind(), keys.unbind(), values.unbind()
