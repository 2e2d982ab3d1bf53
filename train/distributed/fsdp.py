"""With --shard every process keeps its share of weights, gradients and optimizer state.

A network is gathered block by block as it is needed, and let go again: FSDP2. Each process writes
its share of the optimizer's state, by torch.distributed.checkpoint, in safetensors and so without
pickle; any number of processes, also one, reads it. The weights are gathered into the same
model.safetensors that a single process writes, so that whoever reads checkpoints needs to know
nothing of this.

    step-00000500/model.safetensors
                  optimizer/shard-00001-model-00001-of-00001.safetensors, shard-00002-...

Source: Zhao et al. 2023, "PyTorch FSDP" (arXiv:2304.11277).
"""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from common.device import Device
from common.errors import CheckpointError
from common.models.gpt import GPT


def local(tensor: Tensor) -> Tensor:
    """Return this process's share of a tensor as a view: all of it where it is not sharded."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    return cast(Tensor, cast(Any, tensor).to_local())


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, gathered where it is sharded: every process has to ask."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    return cast(Tensor, cast(Any, tensor).full_tensor())


def gathered_as(share: Tensor, like: Tensor) -> Tensor:
    """Return the whole of which each process has the ``share`` that it has of ``like``."""
    from torch.distributed.tensor import DTensor

    sharded = cast(Any, like)
    return DTensor.from_local(
        share,
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=sharded.shape,
        stride=sharded.stride(),
    ).full_tensor()


def shared_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` sharded as ``like`` is, where it is not so yet; each has all of it."""
    if type(like) in (Tensor, nn.Parameter) or type(tensor) is type(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    sharded = cast(Any, like)
    # None: each has all of it, nothing needs to be sent
    return distribute_tensor(
        tensor.to(like.device), sharded.device_mesh, sharded.placements, src_data_rank=None
    )


def shard(model: GPT, device: Device, n_ranks: int) -> None:
    """Leave in each process its share of ``model``, whose weights must be the same in all."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.torch_device.type, (n_ranks,))
    policy = MixedPrecisionPolicy()
    if device.dtype == torch.bfloat16:  # gathered in half the bytes, added up in float32
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.h:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def whole_weights(model: GPT, *, keep: bool) -> dict[str, Tensor]:
    """Return all weights by name, on the CPU, in those processes that ``keep`` them."""
    weights = {}
    for name, tensor in model.state_dict().items():
        gathered = whole(tensor)  # one at a time
        if keep:
            weights[name] = gathered.cpu()
    return weights


def save_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write every process's share of ``tensors`` into ``folder``; each process has to call it.

    Raises: CheckpointError in all processes when one cannot write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(tensors, storage_writer=writer)
    except CheckpointException as error:  # a BaseException
        raise CheckpointError(f"{folder}: cannot be written ({_causes(error)}).") from None


def load_shards(folder: Path, likes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in ``folder``, each sharded as the parameter of its name in ``likes``.

    Only what this process keeps is read.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    known = reader.read_metadata().state_dict_metadata
    tensors = {}
    for name, described in known.items():
        like = likes.get(name.rpartition(":")[0])
        size = cast(Any, described).size
        if like is not None and like.shape == size:
            tensors[name] = torch.empty_like(like, requires_grad=False)
        else:
            tensors[name] = torch.empty(size, dtype=cast(Any, described).properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _causes(error: Any) -> str:
    """Return what went wrong in which process."""
    return "; ".join(
        f"process {rank}: {cause[0] if isinstance(cause, tuple) else cause}"
        for rank, cause in error.failures.items()
    )
