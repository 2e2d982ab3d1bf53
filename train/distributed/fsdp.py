"""With --shard every process keeps only its shard of weights, gradients and optimizer state.

FSDP2: a block's weights are all-gathered before it is used and resharded after. Each rank writes
its shard of the optimizer's state, by torch.distributed.checkpoint, in safetensors and so without
pickle; any number of ranks, also one, reads it. The weights are gathered into the same
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


def is_sharded(model: GPT) -> bool:
    """Tell whether apply_fsdp was applied to ``model``: it makes it of a subclass."""
    return type(model) is not GPT


def apply_fsdp(model: GPT, device: Device) -> GPT:
    """Shard ``model``, whose weights must be the same on all ranks, in place; return it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.torch_device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if device.dtype == torch.bfloat16:  # gathered in half the bytes, reduced in float32
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in (*model.h, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    return model


def to_local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor as a view; all of it where it is not sharded."""
    return cast(Any, tensor).to_local() if _is_dtensor(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor, all-gathered where it is sharded: a collective."""
    return cast(Any, tensor).full_tensor() if _is_dtensor(tensor) else tensor


def gather_like(shard: Tensor, like: Tensor) -> Tensor:
    """Return the full tensor of which each rank has the ``shard`` that it has of ``like``."""
    from torch.distributed.tensor import DTensor

    mesh, placements = cast(Any, like).device_mesh, cast(Any, like).placements
    return DTensor.from_local(
        shard, mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
    ).full_tensor()


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return ``tensor`` sharded as ``like`` is, where it is not yet; each rank has all of it."""
    if not _is_dtensor(like) or _is_dtensor(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = cast(Any, like).device_mesh, cast(Any, like).placements
    # None: each has all of it, nothing needs to be sent
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)


def _is_dtensor(tensor: Tensor) -> bool:
    return type(tensor) not in (Tensor, nn.Parameter)  # DTensor's own import takes long


def full_state_dict(model: GPT, *, keep: bool) -> dict[str, Tensor]:
    """Return all weights by name, on the CPU, on those ranks that ``keep`` them: a collective."""
    weights = {}
    for name, tensor in model.state_dict().items():
        gathered = full_tensor(tensor)  # one at a time
        if keep:
            weights[name] = gathered.cpu()
    return weights


def save_sharded(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write each rank's shard: a collective; raise CheckpointError on all where one cannot."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # a BaseException
        causes = "; ".join(f"process {rank}: {why[0]}" for rank, why in error.failures.items())
        raise CheckpointError(f"{folder}: cannot be written ({causes}).") from None


def load_sharded(folder: Path, likes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return this rank's shards of the tensors in ``folder``, as of the parameters in ``likes``."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    tensors = {}
    for name, metadata in reader.read_metadata().state_dict_metadata.items():
        like, size = likes[name.rpartition(":")[0]], cast(Any, metadata).size
        # what is no shard: the count of AdamW's steps
        tensors[name] = torch.empty_like(like) if like.shape == size else torch.empty(size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors
