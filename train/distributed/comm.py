"""The collectives of a run: one process or many, and what only rank 0 does.

torchrun starts the processes (init.py: how they rendezvous). Each has the whole network and its
share of an update's rows; DistributedDataParallel all-reduces the gradients while the last
backward pass is still running. With --shard each also keeps only its shard of the weights
(fsdp.py). Numbers go through all-reduce; what takes long or is no number, such as a folder's name,
goes through the store, where the other ranks wait without a timeout.

Source: Li et al. 2020, "PyTorch Distributed" (arXiv:2006.15704).
"""

import gc
import json
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store

from common.errors import ConfigError

Json = TypeVar("Json")

POLL_S = 0.02  # between looks at the store
DUPLICATE_ERROR_S = 2.0  # for rank 0 to fail with the same message


class Rank0FailedError(Exception):
    """Rank 0 ended, and printed the reason."""


class ProcessGroup:
    """All processes of a run, seen from one of them; without a store it is the only one."""

    def __init__(self, rank: int = 0, world_size: int = 1, store: Store | None = None) -> None:
        self.rank, self.world_size = rank, world_size
        self.is_rank0 = rank == 0  # it alone writes files and logs
        self.is_distributed = store is not None  # torch.distributed, be it for one process
        self._store, self._n_store_calls = store, 0
        self._ddp: nn.parallel.DistributedDataParallel | None = None

    def broadcast_from_rank0(self, make: Callable[[], Json]) -> Json:
        """Return what ``make`` returns on rank 0, which alone calls it; sent as JSON.

        Raises: on rank 0 what ``make`` raises, on the others Rank0FailedError.
        """
        if self._store is None:
            return make()
        store, key = self._store, self._next_key("broadcast")
        if not self.is_rank0:
            _wait_until(lambda: store.check([key]))
            message = json.loads(store.get(key))
            if "value" not in message:
                raise Rank0FailedError
            return cast(Json, message["value"])
        message = {}
        try:
            message["value"] = value = make()
        finally:
            store.set(key, json.dumps(message, default=str))
        return value

    def barrier(self) -> None:
        """Wait for every rank, however long one of them takes."""
        if self._store is None:
            return
        store, key = self._store, self._next_key("barrier")
        store.add(key, 1)
        _wait_until(lambda: store.add(key, 0) >= self.world_size)

    def all_reduce_max(self, value: float) -> float:
        """Return the maximum over the ranks."""
        return self._all_reduce([value], dist.ReduceOp.MAX)[0]

    def all_reduce_sum(self, *values: float) -> list[float]:
        """Return the sums over the ranks, in double precision."""
        return self._all_reduce(list(values), dist.ReduceOp.SUM)

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place, without a synchronization of the GPU."""
        if self.is_distributed:
            dist.all_reduce(tensor)
        return tensor

    def wrap_ddp(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the module to call in place of ``model``: its gradients are means over ranks."""
        if not self.is_distributed:
            return model
        if self._ddp is not None and self._ddp.module is model:
            return self._ddp
        self._ddp = None  # before there is another: it holds references to the parameters
        with warnings.catch_warnings():
            # torch 2.13 has a new name for it, which 2.11 does not know
            warnings.filterwarnings("ignore", "`broadcast_buffers` is dep", FutureWarning)
            self._ddp = nn.parallel.DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,  # position tables: they never change
                gradient_as_bucket_view=True,
            )
        return self._ddp

    def gradient_sync(self, model: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
        """Return the context for a backward pass that reduces gradients over ranks, or not."""
        if self._ddp is not None:
            return nullcontext() if enabled else self._ddp.no_sync()
        if self.is_distributed:  # by FSDP2
            cast(Any, model).set_requires_gradient_sync(enabled)
        return nullcontext()

    def rows_per_rank(self, n_rows: int, block_size: int) -> int:
        """Return how many of an update's rows are this rank's.

        Raises: ConfigError when the world size does not divide them.
        """
        n, rest = divmod(n_rows, self.world_size)
        if rest:
            raise ConfigError(
                f"{self.world_size} processes cannot share the {n_rows:,} rows of an update "
                f"evenly: start a number of processes that divides {n_rows:,}, or a run with "
                f"--tokens-per-step {(n + 1) * self.world_size * block_size}."
            )
        return n

    def destroy(self) -> None:
        """Destroy the process group, and its threads with it.

        One that still frees a tensor while Python ends would abort the process.
        """
        self._ddp = None
        gc.collect()  # what else references the group
        dist.destroy_process_group()

    def rank0_raises_too(self, message: str) -> bool:
        """Tell whether rank 0 raises the same message, so that this rank need not print it."""
        if self._store is None:
            return False
        store, deadline, is_same = self._store, time.monotonic() + DUPLICATE_ERROR_S, False
        try:
            if self.is_rank0:
                store.set("error", message)
                # the store may end with this process
                _wait_until(lambda: store.add("error read", 0) >= self.world_size - 1, deadline)
            else:
                if _wait_until(lambda: store.check(["error"]), deadline):
                    is_same = store.get("error") == message.encode()
                store.add("error read", 1)
        except RuntimeError:  # the store has gone with another process
            return False
        return is_same

    def _next_key(self, operation: str) -> str:
        """Return the key of a collective: ranks make the same calls in the same order."""
        self._n_store_calls += 1
        return f"{operation}/{self._n_store_calls}"

    def _all_reduce(self, values: list[float], op: Any) -> list[float]:
        if not self.is_distributed:
            return values
        # on the CPU, through gloo: on a GPU it would wait for the kernels in flight
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op)
        return cast(list[float], tensor.tolist())


SINGLE_PROCESS = ProcessGroup()


def is_peer_failure(error: BaseException) -> bool:
    """Tell whether an error means that another process has ended or does not answer."""
    # gloo's own are plain RuntimeErrors, which name its source files
    words = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "nccl")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def _wait_until(condition: Callable[[], bool], deadline: float = float("inf")) -> bool:
    """Poll until the condition holds or time.monotonic() passes the deadline; tell which."""
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return holds
