"""A run in memory: the network, what updates it, how far it is, and its folder on disk."""

import logging
import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from common.checkpoint import MODEL_NAME, save_checkpoint
from common.dataset import DataFolder
from common.device import Device, set_matmul_precision
from common.errors import ConfigError
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.run_dir import shards_dir
from common.tokenizer import Tokenizer
from train.config import TrainConfig, TrainPlan
from train.data import Prefetcher, cut_windows, window_starts
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.distributed.fsdp import (
    apply_fsdp,
    full_state_dict,
    is_sharded,
    save_sharded,
    to_local,
)
from train.monitoring.loggers import MetricsLogger
from train.monitoring.metrics import append_metrics
from train.optim.grad_scaler import GradScaler
from train.setup.compiler import CompiledForward

if TYPE_CHECKING:
    from train.optim.group import OptimizerGroup

log = logging.getLogger(__name__)


class DivergedError(Exception):
    """The weights are no use any more: the loss, the gradient or they themselves are not finite."""


def initial_model(shape: ModelConfig, config: TrainConfig, init_from: Path | None) -> GPT:
    """Return the network before its first step: drawn from the seed, or another run's."""
    torch.manual_seed(config.seed)
    model = GPT(shape, zero_init=config.zero_init)
    if init_from is not None:
        model.load_state_dict(load_file(init_from / MODEL_NAME))
    return model


def shard_if_asked(model: GPT, config: TrainConfig, device: Device, group: ProcessGroup) -> GPT:
    """Return ``model`` in training mode, of which each rank keeps a shard if --shard says so."""
    if config.shard and not group.is_distributed:
        log.warning("--shard is for several processes: torchrun starts them. This one keeps all.")
    is_sharded = config.shard and group.is_distributed
    return apply_fsdp(model.train(), device) if is_sharded else model.train()


def micro_batch_rows(n_rows: int, most: int) -> int:
    """Return the largest number of rows, at most ``most``, that divides ``n_rows`` evenly."""
    return max(rows for rows in range(1, min(n_rows, max(most, 1)) + 1) if n_rows % rows == 0)


class Trainer:
    """A network and what makes its updates, as far as this machine's memory allows."""

    def __init__(
        self,
        model: GPT,
        optimizer: "OptimizerGroup",
        data: DataFolder,
        config: TrainConfig,
        device: Device,
        group: ProcessGroup = SINGLE_PROCESS,
        *,
        batch_size: int,
        compiled: bool = False,
    ) -> None:
        """Raise ConfigError when the processes cannot share the rows of an update evenly."""
        self.model, self.optimizer, self.config, self.device = model, optimizer, config, device
        self.group, self.is_sharded = group, is_sharded(model)
        model.activation_checkpointing = config.activation_checkpointing
        for table in model.wge:
            assert isinstance(table, torch.nn.Embedding)
            # a step meets some hundred rows of each; on GPUs a dense gradient costs little
            table.sparse = device.torch_device.type == "cpu" and not group.is_distributed
        wrapped = model if self.is_sharded else group.wrap_ddp(model, device.torch_device)
        self.forward = CompiledForward(wrapped, compiled=compiled)
        self.block_size = model.config.block_size
        n_rows = config.rows_per_step(self.block_size)
        self.tokens_per_step = n_rows * self.block_size
        self.n_rows = group.rows_per_rank(n_rows, self.block_size)  # of an update
        self.batch_size = micro_batch_rows(self.n_rows, batch_size)  # of a micro-step
        self.grad_scaler = GradScaler(device.dtype)
        self.busy_s = 0.0  # spent in forward, backward and optimizer; all else is overhead
        self._ids = data.tokens("train")
        # on a CPU cutting is 1/1000 of a step, and a thread would only take turns with it
        on_gpu = device.torch_device.type == "cuda"
        self.windows = Prefetcher(self._cut_windows, n_ahead=2 if on_gpu else 0)
        set_matmul_precision(device.torch_device)

    def _cut_windows(self, step: int) -> Tensor:
        """Return this rank's windows of a step, (n_rows, T + 1)."""
        n_all = self.n_rows * self.group.world_size
        starts = window_starts(self.config.seed, step, n_all, len(self._ids), self.block_size)
        own = starts[self.group.rank * self.n_rows :][: self.n_rows]
        windows = cut_windows(self._ids, own, self.block_size)
        return windows.pin_memory() if self.device.torch_device.type == "cuda" else windows

    def halve_batch_size(self, error: BaseException) -> None:
        """Go on with half the rows at a time, and say so.

        Raises: ConfigError when it is one already.
        """
        if self.batch_size == 1:
            raise ConfigError(
                f"out of memory with a single row of {self.block_size:,} tokens: the network of "
                f"{self.model.n_parameters:,} parameters does not fit here. Pass a shorter "
                "--block-size, fewer --n-layer or --n-embd, or free memory that others hold."
            ) from error
        self.batch_size = micro_batch_rows(self.n_rows, self.batch_size // 2)
        n = self.group.world_size
        log.warning(
            "out of memory: from now on %d x %d rows of %d%s, as many tokens a step as before",
            self.n_rows // self.batch_size,
            self.batch_size,
            self.block_size,
            f" in each of {n} processes" if n > 1 else "",
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it beside weights and optimizer, for JSON."""
        scaler = self.grad_scaler
        return {
            "batch_size": self.batch_size,
            "loss_scale": scaler.scale,
            "n_unscaled": scaler.growth_tracker,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what state_dict() returned, also of another number of processes."""
        self.batch_size = micro_batch_rows(self.n_rows, state["batch_size"])
        self.grad_scaler.load(state["loss_scale"], state["n_unscaled"])


@dataclass
class Progress:
    """How far a run is; saved in every checkpoint's state.json."""

    step: int = 0
    n_tokens: int = 0
    seconds: float = 0.0  # since the run began, evaluations and saves included, stops not
    update_s: float = 0.0  # of them spent in updates
    eval_s: float = 0.0  # the last evaluation took this long, and the last save
    save_s: float = 0.0
    best_val_loss: float | None = None
    record: dict[str, Any] = field(default_factory=dict)  # the last update, as it is logged
    n_skipped: int = 0  # updates whose loss or gradient was not finite
    n_bad: int = 0  # of them in a row, until now
    good_step: int = 0  # the last step whose weights gave a finite loss and gradient
    lr_scale: float = 1.0  # halved at each return to an earlier checkpoint
    n_returns: int = 0

    def add_update(
        self, loss: float, grad_norm: float, lr: float, n_tokens: int, dt_s: float
    ) -> None:
        """Count an update of ``n_tokens`` that took ``dt_s``, and make its record."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.good_step, self.n_bad = self.step, 0
        else:
            self.n_skipped += 1
            self.n_bad += 1
        self.step += 1
        self.n_tokens += n_tokens
        self.seconds += dt_s
        self.update_s += dt_s
        self.record = {
            "step": self.step,
            "tokens": self.n_tokens,
            "seconds": round(self.seconds, 3),
            "loss": loss if math.isfinite(loss) else None,  # JSON knows no nan
            "lr": lr,
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "tokens_per_second": round(n_tokens / dt_s, 1),
            "skipped_steps": self.n_skipped,
        }


@dataclass(frozen=True)
class Run:
    """A trainer with its plan and its folder, into which only rank 0 writes."""

    folder: Path
    trainer: Trainer
    plan: TrainPlan
    data: DataFolder
    tokenizer: Tokenizer
    logger: MetricsLogger

    def write_metrics(self, record: dict[str, Any]) -> None:
        """Add a record to metrics.jsonl, and send it where else it is asked for."""
        if self.trainer.group.is_rank0:
            append_metrics(self.folder, record)
            self.logger.log(record)

    def save(self, progress: Progress) -> None:
        """Write a checkpoint.

        Raises: DivergedError when weights are not finite, CheckpointError when the disk is full.
        """
        start = time.perf_counter()
        trainer, model, group = self.trainer, self.trainer.model, self.trainer.group
        finite = [to_local(weights).isfinite().all() for weights in model.parameters()]
        if group.all_reduce_max(not torch.stack(finite).all()):
            raise DivergedError("weights are no longer finite")
        state = {
            "progress": asdict(progress),
            "stepper": trainer.state_dict(),
            "data_sha256": self.data.sha256,
        }
        weights, optimizer = None, trainer.optimizer.state_dict(model)
        shards = None
        if trainer.is_sharded:
            shards = shards_dir(self.folder, progress.step)
            group.broadcast_from_rank0(lambda: shutil.rmtree(shards, ignore_errors=True))
            save_sharded(optimizer, shards)
            weights = full_state_dict(model, keep=group.is_rank0)

        def write() -> None:
            save_checkpoint(
                self.folder,
                progress.step,
                model,
                shards or optimizer,
                state,
                self.tokenizer,
                weights=weights,
                keep=trainer.config.keep,
                good_step=progress.good_step,
            )

        group.broadcast_from_rank0(write)
        progress.save_s = time.perf_counter() - start
        progress.seconds += progress.save_s
