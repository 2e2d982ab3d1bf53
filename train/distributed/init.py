"""How several processes become one job, and how it ends when one of them is lost.

torchrun says to each in its environment which it is and where they meet: on GPUs by nccl, on CPUs
by gloo.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import numpy  # noqa: F401  # imported within torch, it would lose a Ctrl-C and stay half done
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from common.errors import ConfigError, UserError
from train.distributed.comm import ALONE, FirstFailedError, Place, Ranks, first_line, lost_another

# A rank that does not answer within this time ends the job: less than a minute is promised. One
# that is dead does so at once, by its connection and by torchrun.
TIMEOUT_S = 50


def place_in(environment: Mapping[str, str]) -> Place | None:
    """Return the place that torchrun gave to this process, None without torchrun.

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
    try:
        rank, n_ranks, local_rank = (int(environment[name]) for name in names[:3])
    except ValueError:
        rank, n_ranks, local_rank = -1, 0, -1
    if not 0 <= rank < n_ranks or local_rank < 0:
        raise ConfigError(
            f"RANK is {environment['RANK']}, WORLD_SIZE {environment['WORLD_SIZE']} and LOCAL_RANK "
            f"{environment['LOCAL_RANK']}: ranks are numbered from 0 up to WORLD_SIZE - 1. "
            "torchrun sets them."
        )
    leader = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    return Place(rank=rank, n_ranks=n_ranks, local_rank=local_rank, leader=leader)


def device_of(place: Place | None, name: str) -> str:
    """Return the name of this process's device: with GPUs each has its own.

    Raises: ConfigError when there are not enough of them, or they cannot be used together.
    """
    if place is None:
        return name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        n_gpus = torch.cuda.device_count()
        if place.local_rank >= n_gpus:
            raise ConfigError(
                f"{place} is number {place.local_rank + 1} on its machine, which has {n_gpus} "
                f"GPUs: start --nproc-per-node {n_gpus}, or pass --device cpu."
            )
        return f"cuda:{place.local_rank}"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: several processes work on cpu or cuda only.")
    return name


@contextmanager
def joined(place: Place | None, device: str) -> Iterator[Ranks]:
    """Meet the other processes; within it they are one job.

    Raises: UserError when they do not meet, or when one of them is lost.
    """
    if place is None:
        yield ALONE
        return
    ranks = _join(place, device)
    if not ranks.is_first:
        logging.getLogger().setLevel(logging.ERROR)  # what all have to say, the first says
    try:
        yield ranks
    except FirstFailedError:
        time.sleep(1.0)  # were this the first to end, torchrun would cut short what is being said
        raise SystemExit(1) from None
    except UserError as error:
        if ranks.fails(error.message):
            raise SystemExit(1) from None
        if not ranks.is_first:
            raise UserError(f"{place}: {error.message}") from error
        raise
    except RuntimeError as error:
        if not lost_another(error):
            raise
        raise UserError(
            f"{place}: another process has ended, or did not answer within {TIMEOUT_S} s "
            f"({first_line(error)}). What it said last, or torchrun below, tells why. Go on from "
            "the last checkpoint: torchrun ... -m train resume"
        ) from error
    else:
        # once one ends torchrun ends the others, and with the first goes the store of the others
        ranks.meet()
        ranks.most(0)
        ranks.leave()


def _join(place: Place, device: str) -> Ranks:
    limit = timedelta(seconds=TIMEOUT_S)
    backend = "gloo"
    if device.startswith("cuda"):
        torch.cuda.set_device(torch.device(device))
        backend = "cpu:gloo,cuda:nccl"  # what is agreed on is on the CPU
    try:
        store, rank, n_ranks = next(rendezvous("env://", place.rank, place.n_ranks, timeout=limit))
        dist.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=rank,
            world_size=n_ranks,
            timeout=limit,
        )
    except (RuntimeError, ValueError) as error:  # torch's own are RuntimeErrors
        raise ConfigError(
            f"{place}: the {place.n_ranks} processes did not meet at {place.leader} within "
            f"{TIMEOUT_S} s ({first_line(error)}). Start as many as WORLD_SIZE says, with a "
            "MASTER_ADDR and MASTER_PORT, or --rdzv-endpoint, that each of them reaches."
        ) from error
    return Ranks(place, PrefixStore("quern", store))
