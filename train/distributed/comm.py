"""The processes of a run: how they find each other, what they exchange, how they end.

torchrun starts them and sets in each one's environment its rank and where they rendezvous; they
communicate by NCCL on GPUs, by gloo on CPUs. Each has the whole network and its share of an
update's rows; DistributedDataParallel all-reduces the gradients while the last backward pass is
still running. With --shard each also keeps only its shard of the weights (fsdp.py). Numbers go
through all-reduce; what takes long or is no number, such as a folder's name, goes through the
store, where the other ranks wait without a timeout.

Source: Li et al. 2020, "PyTorch Distributed" (arXiv:2006.15704).
"""

import gc
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from common.errors import ConfigError, UserError

Json = TypeVar("Json")

POLL_S = 0.02  # between looks at the store
# A rank that does not answer within this time ends the job: less than a minute is promised. One
# that is dead does so at once, by its connection and by torchrun.
TIMEOUT_S = 50


class ProcessGroup:
    """All processes of a run, seen from one of them; without a store it is the only one."""

    def __init__(self, rank: int = 0, world_size: int = 1, store: Store | None = None) -> None:
        self.rank, self.world_size = rank, world_size
        self.is_rank0 = rank == 0  # it alone writes files and logs
        self.is_distributed = store is not None  # torch.distributed, be it for one process
        # the key of each use of the store: ranks make the same calls in the same order
        self._store, self._keys = store, map(str, count())
        self._ddp: nn.parallel.DistributedDataParallel | None = None

    def broadcast_from_rank0(self, make: Callable[[], Json]) -> Json:
        """Return what ``make`` returns on rank 0, which alone calls it; sent as JSON.

        Where it raises, rank 0 says why and the others exit.
        """
        if self._store is None:
            return make()
        store, key = self._store, next(self._keys)
        message: dict[str, Json] = {}
        if not self.is_rank0:
            while not store.check([key]):
                time.sleep(POLL_S)
            message = json.loads(store.get(key))
            if "value" not in message:
                time.sleep(1.0)  # the first that ends has torchrun end all: rank 0 is to print
                raise SystemExit(1)
            return message["value"]
        try:
            message["value"] = make()
        finally:
            store.set(key, json.dumps(message, default=str))
        return message["value"]

    def barrier(self) -> None:
        """Wait for every rank, however long one of them takes."""
        if self._store is None:
            return
        store, key = self._store, next(self._keys)
        n_arrived = store.add(key, 1)
        while n_arrived < self.world_size:
            time.sleep(POLL_S)
            n_arrived = store.add(key, 0)

    def all_reduce_max(self, value: float) -> float:
        """Return the maximum over the ranks."""
        return self.all_reduce(value, op=dist.ReduceOp.MAX)[0]

    def all_reduce(self, *values: float, op: Any = dist.ReduceOp.SUM) -> list[float]:
        """Return the sums over the ranks, in double precision."""
        if not self.is_distributed:
            return list(values)
        # on the CPU, through gloo: on a GPU it would wait for the kernels in flight
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op)
        return cast(list[float], tensor.tolist())

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
        """Return how many of an update's rows are this rank's; raise ConfigError where uneven."""
        n, rest = divmod(n_rows, self.world_size)
        if rest:
            raise ConfigError(
                f"{self.world_size} processes cannot share the {n_rows:,} rows of an update "
                f"evenly: start a number of processes that divides {n_rows:,}, or a run with "
                f"--tokens-per-step {(n + 1) * self.world_size * block_size}."
            )
        return n

    def destroy(self) -> None:
        """Destroy the process group: threads that outlive Python would abort the process."""
        self._ddp = None
        gc.collect()  # what else references the group
        dist.destroy_process_group()


SINGLE_PROCESS = ProcessGroup()


@dataclass(frozen=True)
class RankInfo:
    """This process's rank among all, its rank on this machine, and the address of rank 0."""

    rank: int
    world_size: int
    local_rank: int
    master: str  # host:port

    def __str__(self) -> str:
        return f"process {self.rank} of {self.world_size}"


def rank_info_from(environment: Mapping[str, str]) -> RankInfo | None:
    """Return the rank that torchrun gave to this process, None without torchrun."""
    if "RANK" not in environment and environment.get("WORLD_SIZE", "1") == "1":
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    found = {name: environment.get(name, "not set") for name in names}
    *numbers, host, port = found.values()
    rank, world_size, local_rank = (int(n) if n.isdecimal() else -1 for n in numbers)
    if not 0 <= rank < world_size or local_rank < 0 or "not set" in (host, port):
        raise ConfigError(
            f"{', '.join(f'{name} is {value}' for name, value in found.items())}: several "
            "processes need all five, ranks from 0 up to WORLD_SIZE - 1. torchrun sets them: "
            "torchrun --nproc-per-node N -m train ..."
        )
    return RankInfo(rank, world_size, local_rank, f"{host}:{port}")


def rank_device(info: RankInfo | None, name: str) -> str:
    """Return the name of this rank's device: with GPUs each has its own."""
    if info is None:
        return name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: several processes work on cpu or cuda only.")
    if name != "cuda":
        return name
    if info.local_rank >= (n_gpus := torch.cuda.device_count()):
        raise ConfigError(
            f"{info} is number {info.local_rank + 1} on its machine, which has {n_gpus} GPUs: "
            f"start --nproc-per-node {n_gpus}, or pass --device cpu."
        )
    return f"cuda:{info.local_rank}"


@contextmanager
def init_distributed(info: RankInfo | None, device: str) -> Iterator[ProcessGroup]:
    """Initialize torch.distributed where there are ranks; destroy it at the end.

    Raise UserError where the rendezvous fails, or a process is lost.
    """
    if info is None:
        yield SINGLE_PROCESS
        return
    group = _rendezvous(info, device)
    if not group.is_rank0:
        logging.getLogger().setLevel(logging.ERROR)  # rank 0 logs what all would log
    try:
        yield group
    except UserError as error:
        # with the rank: what has failed may have failed in this one alone
        raise UserError(f"{info}: {error.message}") from error
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        raise UserError(
            f"{info}: another process has ended, or did not answer within {TIMEOUT_S} s "
            f"({_first_sentence(error)}). The last lines of that process, or torchrun's report "
            "below, give the reason. Go on from the last checkpoint: torchrun ... -m train resume"
        ) from error
    else:
        # once one ends torchrun ends the others, and with rank 0 goes the store of the others
        group.barrier()
        group.all_reduce_max(0)
        group.destroy()


def _rendezvous(info: RankInfo, device: str) -> ProcessGroup:
    timeout, backend = timedelta(seconds=TIMEOUT_S), "gloo"
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))
        backend = "cpu:gloo,cuda:nccl"  # scalars are reduced on the CPU
    try:
        store = next(rendezvous("env://", info.rank, info.world_size, timeout=timeout))[0]
        dist.init_process_group(
            backend, timeout=timeout, rank=info.rank, world_size=info.world_size,
            store=PrefixStore("group", store),
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:  # torch's own are RuntimeErrors
        raise ConfigError(
            f"{info}: the {info.world_size} processes did not connect at {info.master} within "
            f"{TIMEOUT_S} s ({_first_sentence(error)}). Start as many as WORLD_SIZE says, with a "
            "MASTER_ADDR and MASTER_PORT, or --rdzv-endpoint, that each of them reaches."
        ) from error
    return ProcessGroup(info.rank, info.world_size, PrefixStore("quern", store))


def _first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error, or its name."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.split(". ")[0].encode("ascii", "replace").decode()


def is_peer_failure(error: BaseException) -> bool:
    """Tell whether an error means that another process has ended or does not answer."""
    # gloo's own are plain RuntimeErrors, which name its source files
    words = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "nccl")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )
