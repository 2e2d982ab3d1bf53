"""How several processes become one job, and how it ends when one of them is lost.

torchrun sets in each one's environment its rank and where they rendezvous; they communicate by
NCCL on GPUs, by gloo on CPUs.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy  # noqa: F401  # imported within torch, it would lose a Ctrl-C and stay half done
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from common.errors import ConfigError, UserError
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup, Rank0FailedError, is_peer_failure

# A rank that does not answer within this time ends the job: less than a minute is promised. One
# that is dead does so at once, by its connection and by torchrun.
TIMEOUT_S = 50


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
    """Return the rank that torchrun gave to this process, None without torchrun.

    Raises: ConfigError when the variables do not make sense together.
    """
    if "RANK" not in environment and environment.get("WORLD_SIZE", "1") == "1":
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in environment]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {environment.get('WORLD_SIZE', 'not set')}, but {', '.join(missing)} "
            "not set: start several processes with torchrun --nproc-per-node N -m train, or "
            "one without these variables."
        )
    numbers = [environment[name] for name in names[:3]]
    rank, world_size, local_rank = (int(n) if n.isdecimal() else -1 for n in numbers)
    if not 0 <= rank < world_size or local_rank < 0:
        raise ConfigError(
            "RANK is {}, WORLD_SIZE {} and LOCAL_RANK {}: ranks are numbered from 0 up to "
            "WORLD_SIZE - 1. torchrun sets them.".format(*numbers)
        )
    master = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    return RankInfo(rank, world_size, local_rank, master)


def rank_device(info: RankInfo | None, name: str) -> str:
    """Return the name of this rank's device: with GPUs each has its own.

    Raises: ConfigError when there are too few, or they cannot communicate.
    """
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

    Raises: UserError when the rendezvous fails, or when a process is lost.
    """
    if info is None:
        yield SINGLE_PROCESS
        return
    group = _rendezvous(info, device)
    if not group.is_rank0:
        logging.getLogger().setLevel(logging.ERROR)  # rank 0 logs what all would log
    try:
        yield group
    except Rank0FailedError:
        time.sleep(1.0)  # were this the first to end, torchrun would kill rank 0 as it prints
        raise SystemExit(1) from None
    except UserError as error:
        if group.rank0_raises_too(error.message):
            raise SystemExit(1) from None
        if not group.is_rank0:
            raise UserError(f"{info}: {error.message}") from error
        raise
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        raise UserError(
            f"{info}: another process has ended, or did not answer within {TIMEOUT_S} s "
            f"({_first_sentence(error)}). Its last lines, or torchrun's below, give the reason. Go "
            "on from the last checkpoint: torchrun ... -m train resume"
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
