"""One update: forward and backward over micro-batches, clipping, AdamW."""

import math

import numpy as np
import torch

from common.device import Device
from common.errors import UserError
from common.model import GPT
from common.tokenfile import DataFolder
from train.batches import read_rows, window_starts
from train.config import TrainConfig


def train_step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    data: DataFolder,
    config: TrainConfig,
    device: Device,
    *,
    step: int,
    lr: float,
) -> tuple[float, float]:
    """Make update ``step``; return its loss, in nats a token, and the norm of its gradient.

    Everything random in it is a function of (seed, step). The loss and the gradient are checked
    before the weights change.

    Raises: UserError when either is not finite.
    """
    block_size = model.config.block_size
    n_rows = rows_per_step(config, block_size)
    ids = data.tokens("train")
    starts = window_starts(config.seed, step, n_rows, len(ids), block_size)
    torch.manual_seed(dropout_seed(config.seed, step))
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=device.torch_device)
    grad_accum_steps = n_rows // config.batch_size
    for rows in starts.reshape(grad_accum_steps, config.batch_size):
        x, y = (t.to(device.torch_device) for t in read_rows(ids, rows, block_size))
        with device.autocast():
            _, loss = model(x, y)
        (loss / grad_accum_steps).backward()
        total += loss.detach() / grad_accum_steps
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
    loss_value, norm_value = float(total), float(norm)
    if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
        raise diverged(
            step, f"the loss is {loss_value} and the norm of the gradient {norm_value}", config
        )
    optimizer.step()
    return loss_value, norm_value


def diverged(step: int, what: str, config: TrainConfig) -> UserError:
    """Return the error of a run in which something stopped being a finite number."""
    return UserError(
        f"step {step}: {what}: the run has diverged. It stops here, and earlier checkpoints are as "
        f"they were. Train anew with a lower --learning-rate than {config.learning_rate:g}."
    )


def rows_per_step(config: TrainConfig, block_size: int) -> int:
    """Return the rows an update learns from: whole ones, so tokens_per_step is rounded down."""
    return max(1, config.tokens_per_step // block_size)


def dropout_seed(seed: int, step: int) -> int:
    """Return the seed of the random numbers inside update ``step``."""
    # counter word 2 set: apart from the numbers that place the windows
    return int(np.random.Philox(key=seed, counter=[0, 0, 1, step]).random_raw()) >> 1
