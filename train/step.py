"""One update: forward and backward over micro-batches, clipping, the optimizer.

Nothing changes the weights before the loss and the gradient are known to be finite. Until then
the update can be redone from its beginning, and it is: with half the rows at a time where memory
ran out, uncompiled where compiled code failed, at half the loss scale where float16 overflowed.

Of several processes, none may leave a backward pass in which others wait for its gradients. What
can fail is therefore tried first by each for itself, and all give way together.
"""

import gc
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.dataset import DataFolder
from common.device import Device, is_out_of_memory, set_matmul_precision
from common.errors import ConfigError
from common.models.gpt import GPT
from train.config import TrainConfig
from train.data import Ahead, cut_windows, micro_batch_rows, window_starts
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup, is_peer_failure
from train.distributed.fsdp import is_sharded, to_local
from train.lr_schedule import learning_rate_at
from train.optim.group import OptimizerGroup
from train.setup.compiler import CompiledForward

log = logging.getLogger(__name__)

# float16 reaches down to 6e-8: small gradients survive only if the loss is multiplied. A power of
# two, so that nothing is rounded; doubled after so many updates without overflow.
# Source: Micikevicius et al. 2018, section 3.2 (arXiv:1710.03740); the values are torch.amp's.
LOSS_SCALE, GROWTH_STEPS = 2.0**16, 2_000
# Updates that several processes rehearse: the second one finds the optimizer's state in memory.
N_REHEARSED = 2


@dataclass(frozen=True)
class Update:
    """What one update did: loss in nats a token, norm of the gradient before clipping.

    ``finite`` is False where either was no number: the update was then skipped, and weights and
    optimizer are as they were.
    """

    loss: float
    grad_norm: float
    finite: bool


class Stepper:
    """Makes updates: everything random in update ``step`` is a function of (seed, step, rank)."""

    def __init__(
        self,
        model: GPT,
        optimizer: OptimizerGroup,
        data: DataFolder,
        config: TrainConfig,
        device: Device,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """Take a config whose batch_size is filled in.

        Raises: ConfigError when the processes cannot share the rows of an update evenly.
        """
        self.model, self.optimizer, self.config, self.device = model, optimizer, config, device
        self.group, self.is_sharded = group, is_sharded(model)
        model.activation_checkpointing = config.activation_checkpointing
        for table in model.wge:
            assert isinstance(table, torch.nn.Embedding)
            # a step meets some hundred rows of each; on GPUs a dense gradient costs little
            table.sparse = device.torch_device.type == "cpu" and not group.is_distributed
        wrapped = model if self.is_sharded else group.wrap_ddp(model, device.torch_device)
        self.forward = CompiledForward(wrapped, compiled=config.compile == "on")
        block_size = model.config.block_size
        # of an update, in this process
        self.n_rows = group.rows_per_rank(rows_per_step(config, block_size), block_size)
        self.batch_size = micro_batch_rows(self.n_rows, config.batch_size)
        self._n_rehearsed = 0
        self.busy_s = 0.0  # spent in forward, backward and update; all else is overhead
        self._loss_scale = LOSS_SCALE if device.dtype == torch.float16 else 1.0
        self._n_unscaled = 0  # updates since the scale last changed
        self._ids = data.tokens("train")
        # on a CPU cutting is 1/1000 of a step, and a thread would only take turns with it
        on_gpu = device.torch_device.type == "cuda"
        self._windows = Ahead(self._cut, n_ahead=2 if on_gpu else 0)
        set_matmul_precision(device.torch_device)

    def step(self, step: int, lr_scale: float = 1.0) -> Update:
        """Make update ``step``, counted from 0, at the schedule's learning rate times a factor.

        Raises: ConfigError when memory does not suffice for a single row.
        """
        max_steps = self.config.max_steps or 1
        self.optimizer.set_lr(lr_scale * learning_rate_at(step, max_steps, self.config))
        windows = self._windows.get(step).to(self.device.torch_device, non_blocking=True)
        start = time.perf_counter()
        loss, norm = self._gradient(step, windows)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            self._apply()
        self.busy_s += time.perf_counter() - start
        return Update(loss, norm, finite)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it, for JSON."""
        return {
            "batch_size": self.batch_size,
            "loss_scale": self._loss_scale,
            "n_unscaled": self._n_unscaled,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what state() returned."""
        # other processes than there were may share the rows
        self.batch_size = micro_batch_rows(self.n_rows, state["batch_size"])
        if self.device.dtype == torch.float16 and state["loss_scale"] > 0:
            self._loss_scale, self._n_unscaled = state["loss_scale"], state["n_unscaled"]

    def close(self) -> None:
        """End what works in the background."""
        self._windows.close()

    def _cut(self, step: int) -> Tensor:
        """Return this process's windows of a step, (n_rows, T + 1)."""
        block_size, n_all = self.model.config.block_size, self.n_rows * self.group.world_size
        starts = window_starts(self.config.seed, step, n_all, len(self._ids), block_size)
        own = starts[self.group.rank * self.n_rows :][: self.n_rows]
        windows = cut_windows(self._ids, own, block_size)
        return windows.pin_memory() if self.device.torch_device.type == "cuda" else windows

    def _gradient(self, step: int, windows: Tensor) -> tuple[float, float]:
        """Leave the clipped gradient in the parameters; return the loss and the norm before."""
        while True:
            self._rehearse(windows)
            torch.manual_seed(dropout_seed(self.config.seed, step, self.group.rank))
            self.optimizer.zero_grad()
            try:
                loss, norm = self._accumulate(windows)
            except Exception as error:
                self._give_way(error)
            else:
                if not self._overflowed(loss, norm):
                    return loss, norm
                continue
            # only here, outside of except, has the traceback let go of the activations
            self._free()

    def _free(self) -> None:
        gc.collect()
        if self.device.torch_device.type == "cuda":
            torch.cuda.empty_cache()

    def _rehearse(self, windows: Tensor) -> None:
        """Before the first updates of several processes, have what may fail fail in private."""
        # sharded, not even a forward pass is private
        while self.group.world_size > 1 and not self.is_sharded and self._n_rehearsed < N_REHEARSED:
            trouble: Exception | None = None
            try:
                for rows in torch.split(windows, self.batch_size)[:2]:  # the second adds to grad
                    with self.group.gradient_sync(self.model, enabled=False):
                        self._backward(rows)
            except Exception as error:
                if not (is_out_of_memory(error) or self.forward.compiled):
                    raise
                trouble = error.with_traceback(None)  # it would hold the activations
            self.optimizer.zero_grad()
            if trouble is not None:
                self._free()
            self._agree(trouble)

    def _agree(self, trouble: Exception | None) -> None:
        """Give way to the worst trouble of any process, in each of them."""
        self.group.barrier()  # compiling takes one longer than another
        memory = trouble is not None and is_out_of_memory(trouble)
        if self.group.all_reduce_max(memory):
            self._halve(trouble if memory and trouble else MemoryError("in another process"))
        elif self.group.all_reduce_max(trouble is not None):
            self._give_way(trouble or RuntimeError("in another process"))
        else:
            self._n_rehearsed += 1
            return
        self._n_rehearsed = 0

    def _backward(self, rows: Tensor) -> Tensor:
        """Add the gradient of a micro-batch; return its share of the loss."""
        with self.device.autocast():
            loss = self.forward(rows[:, :-1], rows[:, 1:])
        loss = loss * (self.batch_size / self.n_rows)
        (loss * self._loss_scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _accumulate(self, windows: Tensor) -> tuple[float, float]:
        total = torch.zeros((), device=self.device.torch_device)
        micro_batches = torch.split(windows, self.batch_size)
        for number, rows in enumerate(micro_batches, 1):
            with self.group.gradient_sync(self.model, enabled=number == len(micro_batches)):
                total += self._backward(rows)
        self.group.all_reduce_(total).div_(
            self.group.world_size
        )  # gradients are means over the processes too
        norm = self._clip()
        # both at once: the only time in a step that the CPU waits for a GPU
        loss_value, norm_value = torch.stack((total, norm)).tolist()
        return loss_value, norm_value

    def _clip(self) -> Tensor:
        """Undo the loss scale and clip, without waiting; return the norm before clipping."""
        gradients = [_numbers(p) for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.is_sharded:
            norm = self.group.all_reduce_(norm.square()).sqrt()
        norm = norm / self._loss_scale
        factor = torch.full_like(norm, 1 / self._loss_scale)
        if self.config.grad_clip:
            # 1e-6: as torch.nn.utils.clip_grad_norm_, for a gradient of 0
            factor *= (self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0)
        if self.config.grad_clip or self._loss_scale != 1:
            torch._foreach_mul_(gradients, factor)
        return norm

    def _give_way(self, error: Exception) -> None:
        """Make it possible to redo the update, or raise the error again."""
        if is_peer_failure(error):
            raise error
        if is_out_of_memory(error):
            if self.group.world_size > 1 and self._n_rehearsed in (0, N_REHEARSED):
                self._end(error)
            self._halve(error)
        elif self.forward.compiled:
            self.forward.fall_back(error)
        else:
            raise error

    def _end(self, error: Exception) -> None:
        raise ConfigError(
            f"out of memory with {self.batch_size} rows at a time, while others wait "
            "for its gradients. Free memory that others hold and go on: train resume. Or train a "
            f"new run with --batch-size {max(1, self.batch_size // 2)}: it changes no result."
        ) from error

    def _halve(self, error: Exception) -> None:
        block_size = self.model.config.block_size
        if self.batch_size == 1:
            raise ConfigError(
                f"out of memory with a single row of {block_size:,} tokens: the network of "
                f"{self.model.n_parameters:,} parameters does not fit here. Pass a shorter "
                "--block-size, fewer --n-layer or --n-embd, or free memory that others hold."
            ) from error
        self.batch_size = micro_batch_rows(self.n_rows, self.batch_size // 2)
        log.warning(
            "out of memory: from now on %d x %d rows of %d%s, as many tokens a step as before",
            self.n_rows // self.batch_size,
            self.batch_size,
            block_size,
            f" in each of {self.group.world_size} processes" if self.group.world_size > 1 else "",
        )

    def _overflowed(self, loss: float, norm: float) -> bool:
        """Tell whether the loss scale was too large; it is then halved, else raised in time."""
        if self._loss_scale > 1 and math.isfinite(loss) and not math.isfinite(norm):
            self._loss_scale, self._n_unscaled = self._loss_scale / 2, 0
            return True
        if self.device.dtype == torch.float16:
            self._n_unscaled += 1
            if self._n_unscaled == GROWTH_STEPS:
                self._loss_scale, self._n_unscaled = self._loss_scale * 2, 0
        return False

    def _apply(self) -> None:
        try:
            self.optimizer.step()
        except Exception as error:
            if is_out_of_memory(error):  # some weights may have changed: this cannot be redone
                raise ConfigError(
                    f"out of memory in the optimizer: {self.model.n_parameters:,} parameters with "
                    "their state do not fit here. Pass fewer --n-layer or --n-embd, or free "
                    "memory that others hold."
                ) from error
            raise


def _numbers(parameter: Tensor) -> Tensor:
    """Return a parameter's gradient; of a sparse one the numbers that are there, as a view."""
    gradient = parameter.grad
    assert gradient is not None
    gradient = to_local(gradient)
    if not gradient.is_sparse:
        return gradient
    parameter.grad = gradient.coalesce()
    return parameter.grad._values()


def rows_per_step(config: TrainConfig, block_size: int) -> int:
    """Return the rows an update learns from: whole ones, so tokens_per_step is rounded down."""
    return max(1, config.tokens_per_step // block_size)


def dropout_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of the random numbers inside update ``step``, in the process ``rank``."""
    # counter word 2 set: apart from the numbers that place the windows
    return int(np.random.Philox(key=seed, counter=[0, rank, 1, step]).random_raw()) >> 1
