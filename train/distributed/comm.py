"""One process or many: what they agree on, and what only the first of them does.

torchrun starts the processes, called ranks (joining.py is how they meet). Each has the whole
network and its share of an update's rows; DistributedDataParallel adds up the gradients while the
last backward pass is still at work. With --shard each also keeps only its share of the weights
(sharding.py). Numbers are agreed on by all-reduce; what takes long or is no number, such as a
folder's name, goes through the store, where others wait without a limit.

Source: Li et al. 2020, "PyTorch Distributed" (arXiv:2006.15704).
"""

import gc
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store

from common.errors import ConfigError
from train.signals import StopRequest

Json = TypeVar("Json")

POLL_S = 0.02  # between looks at the store
SAME_WORDS_S = 2.0  # for the first process to fail in the same words


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of how many processes this is, on all machines and on this one, and who leads them."""

    rank: int
    n_ranks: int
    local_rank: int
    leader: str  # host:port

    def __str__(self) -> str:
        return f"process {self.rank} of {self.n_ranks}"


class FirstFailedError(Exception):
    """The first process ended, and said why."""


class Ranks:
    """All processes of a run, as one of them sees them; without a place it is the only one."""

    def __init__(self, place: Place | None = None, store: Store | None = None) -> None:
        self.rank = place.rank if place else 0
        self.n = place.n_ranks if place else 1
        self.sharded = False
        self._store = store
        self._n_heard = 0
        self._parallel: nn.parallel.DistributedDataParallel | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @property
    def joined(self) -> bool:
        """Whether there is a process group, be it of one."""
        return self._store is not None

    def first(self, make: Callable[[], Json]) -> Json:
        """Return what ``make`` returns in the first process, the only one that calls it, as JSON.

        Raises: in the first process what ``make`` raises, in the others FirstFailedError.
        """
        if self._store is None:
            return make()
        key = f"said/{self._n_heard}"
        self._n_heard += 1
        if not self.is_first:
            self._wait_until(lambda: self._there(key))
            said = json.loads(self._store.get(key))
            if "value" not in said:
                raise FirstFailedError
            return cast(Json, said["value"])
        said = {}
        try:
            said["value"] = value = make()
        finally:
            self._store.set(key, json.dumps(said, default=str))
        return value

    def meet(self) -> None:
        """Wait until every process is here, however long one of them works on something."""
        if self._store is None:
            return
        key = f"met/{self._n_heard}"
        self._n_heard += 1
        self._store.add(key, 1)
        self._wait_until(lambda: cast(Store, self._store).add(key, 0) >= self.n)

    def most(self, value: float) -> float:
        """Return the largest of what the processes pass."""
        return self._reduced([value], dist.ReduceOp.MAX)[0]

    def total(self, *values: float) -> list[float]:
        """Return the sums over the processes, of numbers in double precision."""
        return self._reduced(list(values), dist.ReduceOp.SUM)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the processes, in place, without waiting for a GPU."""
        if self.joined:
            dist.all_reduce(tensor)
        return tensor

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return what is called in place of ``model`` so that gradients are those of all ranks."""
        if not self.joined or self.sharded:
            return model
        if self._parallel is None or self._parallel.module is not model:
            # before there is another: it hangs on to the parameters
            self._parallel = None
            with warnings.catch_warnings():
                # torch 2.13 has a new name for it, which 2.11 does not know
                warnings.filterwarnings("ignore", "`broadcast_buffers` is dep", FutureWarning)
                self._parallel = nn.parallel.DistributedDataParallel(
                    model,
                    device_ids=[device] if device.type == "cuda" else None,
                    broadcast_buffers=False,  # tables of positions: they never change
                    gradient_as_bucket_view=True,
                )
        return self._parallel

    @contextmanager
    def micro_step(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        """Within it backward adds up gradients over the ranks in the ``last`` micro-step only."""
        if self.sharded:
            cast(Any, model).set_requires_gradient_sync(last)
        if self._parallel is None or self.sharded or last:
            yield
        else:
            with self._parallel.no_sync():
                yield

    def share(self, n_rows: int, block_size: int) -> int:
        """Return how many of an update's rows are this process's.

        Raises: ConfigError when they cannot be shared out evenly.
        """
        if n_rows % self.n:
            even = -(-n_rows // self.n) * self.n * block_size
            raise ConfigError(
                f"{self.n} processes cannot share the {n_rows:,} rows of an update evenly: start "
                f"a number of processes that divides {n_rows:,}, or a run with --tokens-per-step "
                f"{even}."
            )
        return n_rows // self.n

    def leave(self) -> None:
        """End the process group, and its threads with it.

        One that still lets go of a tensor while Python ends would abort the process.
        """
        self._parallel = None
        gc.collect()  # what else holds on to the group
        dist.destroy_process_group()

    def fails(self, message: str) -> bool:
        """Tell whether the first process fails in the same words, and so need not say them."""
        if self._store is None:
            return False
        store, deadline = self._store, time.monotonic() + SAME_WORDS_S

        def wait_for(there: Callable[[], bool]) -> bool:
            while not (done := there()) and time.monotonic() < deadline:
                time.sleep(POLL_S)
            return done

        try:
            if self.is_first:
                store.set("failed", message)
                wait_for(lambda: store.add("heard", 0) >= self.n - 1)  # its end may be the store's
                return False
            same = wait_for(lambda: self._there("failed")) and store.get("failed") == (
                message.encode()
            )
            store.add("heard", 1)
        except RuntimeError:  # the store has gone with another process
            return False
        return same

    def _there(self, key: str) -> bool:
        return bool(cast(Store, self._store).check([key]))

    def _wait_until(self, there: Callable[[], bool]) -> None:
        while not there():
            time.sleep(POLL_S)

    def _reduced(self, values: list[float], how: Any) -> list[float]:
        if not self.joined:
            return values
        # on the CPU, through gloo: a GPU would have to finish what it is at
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, how)
        return cast(list[float], tensor.tolist())


ALONE = Ranks()


class AgreedStop(StopRequest):
    """A request to stop that reached any of the processes, for all of them at the same step."""

    def __init__(self, stop: StopRequest, ranks: Ranks) -> None:
        super().__init__()
        self._stop, self._ranks = stop, ranks

    def requested(self) -> int | None:
        """Return the signal that any process got; each has to ask equally often."""
        return int(self._ranks.most(self._stop.requested() or 0)) or None


def lost_another(error: BaseException) -> bool:
    """Tell whether an error says that another process is gone or silent."""
    # gloo's own are plain RuntimeErrors, which name its source files
    words = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "nccl")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def first_line(error: BaseException) -> str:
    """Return the first sentence of an error, or its name."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.split(". ")[0].encode("ascii", "replace").decode()
