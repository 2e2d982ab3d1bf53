"""A run in memory: the network, what updates it, how far it is, and its folder on disk."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from common.checkpoint import save_checkpoint
from common.dataset import DataFolder, Split
from common.device import Device, is_out_of_memory, set_matmul_precision
from common.errors import ConfigError
from common.files import wait_for_space
from common.models.gpt import GPT
from common.run_dir import shards_dir
from common.thread_tuner import ThreadTuner, halved
from common.tokenizer import Tokenizer
from train.batches.prefetcher import Prefetcher
from train.config import TimeLimit, TrainConfig, TrainPlan, saved_settings
from train.data import Batch
from train.distributed import fsdp
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup, is_peer_failure
from train.monitoring.loggers import MetricsLogger
from train.monitoring.metrics import Progress, append_metrics, flops_per_token
from train.optim.gradients import GradScaler
from train.setup.memory import free_memory

log = logging.getLogger(__name__)

LEAST_FLOPS = 1e10  # operations a second: a tenth of what two cores of 2022 reach, or less


class _Optimizer(Protocol):
    """What updates the parameters: OptimizerGroup, of optim/optimizers.py."""

    def set_lr(self, lr: float) -> None: ...
    def step(self) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None: ...


class _Source(Protocol):
    """What it learns from: sources.py."""

    objective: Callable[..., tuple[Tensor, dict[str, Tensor]]]  # Objective, of evaluate.py
    tokens_per_epoch: float

    def batch(self, step: int) -> Batch: ...
    def eval_batches(
        self, split: Split, max_tokens: int, n_rows: int
    ) -> list[Callable[[], Tensor]]: ...


class DivergedError(Exception):
    """The weights are no use any more: the loss, the gradient or they themselves are not finite."""


def micro_batch_rows(n_rows: int, max_rows: int) -> int:
    """Return the rows of each micro-batch but the last, which may be smaller; ``max_rows`` at most.

    They divide ``n_rows`` evenly where that takes at most half as many micro-batches more.
    """
    n_least = -(-n_rows // max(max_rows, 1))
    even = (n_rows // n for n in range(n_least, n_least * 3 // 2 + 1) if n_rows % n == 0)
    return next(even, -(-n_rows // n_least))


class Trainer:
    """A network and what makes its updates, as far as this machine's memory allows."""

    def __init__(
        self,
        model: GPT,
        optimizer: _Optimizer,
        source: _Source,
        config: TrainConfig,
        device: Device,
        group: ProcessGroup = SINGLE_PROCESS,
        *,
        batch_size: int,
        compiled: bool = False,
    ) -> None:
        """Raise ConfigError where the processes cannot share the rows of an update evenly."""
        self.model, self.optimizer, self.config, self.device = model, optimizer, config, device
        self.group, self.is_sharded = group, fsdp.is_sharded(model)
        model.activation_checkpointing = config.activation_checkpointing
        for table in model.wge:
            assert isinstance(table, torch.nn.Embedding)
            # a step meets some hundred rows of each; on GPUs a dense gradient costs little
            table.sparse = device.torch_device.type == "cpu" and not group.is_distributed
        self.eager = model if self.is_sharded else group.wrap_ddp(model, device.torch_device)
        self.forward: Callable[..., Tensor] = self.eager  # of model_inputs: their mean loss
        self.block_size = model.config.block_size
        n_rows = config.rows_per_step(self.block_size)
        self.tokens_per_step = n_rows * self.block_size
        self.threads: ThreadTuner | None = None
        if device.torch_device.type == "cpu" and not group.is_distributed:
            step_s = self.tokens_per_step * flops_per_token(model) / LEAST_FLOPS
            choices = halved(device.n_threads)
            self.threads = ThreadTuner(choices, torch.get_num_threads(), step_s)
        if compiled:
            self.compile()
        self.n_rows = group.rows_per_rank(n_rows, self.block_size)  # of an update
        self.batch_size = micro_batch_rows(self.n_rows, batch_size)  # of a micro-step
        self.grad_scaler = GradScaler(device.dtype)
        self.source = source
        # on a CPU cutting is 1/1000 of a step, and a thread would only take turns with it
        on_gpu = device.torch_device.type == "cuda"
        self.batches = Prefetcher(self._make_batch, n_ahead=2 if on_gpu else 0)
        set_matmul_precision(device.torch_device)

    def _make_batch(self, step: int) -> Batch:
        rows, n_learned = self.source.batch(step)
        on_gpu = self.device.torch_device.type == "cuda"
        return Batch(rows.pin_memory() if on_gpu else rows, n_learned)

    def batch(self, step: int) -> Batch:
        """Return this rank's batch of a step, on its device."""
        rows, n_learned = self.batches.get(step)
        return Batch(rows.to(self.device.torch_device, non_blocking=True), n_learned)

    @property
    def compiled(self) -> bool:
        """Whether the forward pass is compiled code."""
        return self.forward is not self.eager

    def compile(self) -> None:
        """Compile the forward pass, at its next call; where that fails the network runs eagerly."""
        if self.threads:
            self.threads.set(self.threads.n)  # its next step does not count
        try:
            if any(table.sparse for table in self.model.wge):
                # Inductor knows no sparse gradients: the embeddings are left to PyTorch
                self.model.embed = torch.compiler.disable(self.model.embed)  # type: ignore[no-untyped-call, method-assign]
            # fallback_random: quicker on CPUs; dynamic=False: one shape, until memory runs out
            options: Any = {"fallback_random": self.device.torch_device.type == "cpu"}
            self.forward = torch.compile(self.eager, dynamic=False, options=options)
        except Exception as error:
            self.use_eager(error)

    def use_eager(self, error: Exception) -> None:
        """Run the network itself from now on, and log why."""
        self.forward, kind = self.eager, type(error).__name__
        reason = (str(error).strip() or kind).splitlines()[0]
        message = "compiling failed (%s: %s): going on without it. --compile off does not try."
        log.warning(message, kind, reason)

    def retry(self, attempt: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        """Return the loss and the norm of the gradient that ``attempt`` returns, at last.

        It changes no weights, and is made anew with half the rows at a time where memory ran out,
        uncompiled where compiled code failed, at half the loss scale where float16 overflowed.
        """
        while True:
            try:
                result = attempt()
                if not self.grad_scaler.overflowed(*result):
                    return result
            except Exception as error:
                self.recover(error)
            # only here, outside of except, has the traceback let go of the activations
            free_memory(self.device)

    def recover(self, error: Exception) -> None:
        """Change what makes another attempt worth while; raise the error where nothing does."""
        if is_peer_failure(error):
            raise error
        if is_out_of_memory(error):
            if self.group.world_size > 1:
                raise ConfigError(
                    f"out of memory with {self.batch_size} rows at a time, while others wait for "
                    "its gradients. Free memory that others hold and go on: train resume. Or train "
                    f"a new run with --batch-size {max(1, self.batch_size // 2)}: it changes no "
                    "result."
                ) from error
            self.halve_batch_size(error)
        elif self.compiled:
            self.use_eager(error)
        else:
            raise error

    def halve_batch_size(self, error: BaseException) -> None:
        """Go on with half the rows at a time, and say so; raise ConfigError when it is one."""
        if self.batch_size == 1:
            raise ConfigError(
                f"out of memory with a single row of {self.block_size:,} tokens: the network of "
                f"{self.model.n_parameters:,} parameters does not fit here. Pass a shorter "
                "--block-size, fewer --n-layer or --n-embd, or free memory that others hold."
            ) from error
        self.batch_size = micro_batch_rows(self.n_rows, self.batch_size // 2)
        rows = f"{-(-self.n_rows // self.batch_size)} x {self.batch_size} rows of {self.block_size}"
        where = " in each process" if self.group.world_size > 1 else ""
        log.warning("out of memory: from now on %s%s, as many tokens a step as before", rows, where)

    def warmup(self, step: int, backward: "Callable[[Trainer, Tensor, float], Tensor]") -> None:
        """Have what may fail in several processes fail before any of them waits for another.

        None may leave a backward pass in which others wait for its gradients. So each first makes
        two passes by itself, the second with memory as the first left it, and all recover together.
        """
        n_passed = 0
        # sharded, not even a forward pass is without collectives
        while self.group.world_size > 1 and not self.is_sharded and n_passed < 2:
            failure: Exception | None = None  # of this process
            try:
                batch = self.batch(step)
                for rows in torch.split(batch.rows, self.batch_size)[:2]:  # 2: it adds to grad
                    with self.group.gradient_sync(self.model, enabled=False):
                        backward(self, rows, batch.n_learned)
            except Exception as error:
                if not (is_out_of_memory(error) or self.compiled):
                    raise
                failure = error.with_traceback(None)  # it would hold the activations
            self.model.zero_grad()
            severity = 0  # all do what the worst failure of any asks for
            if failure is not None:
                free_memory(self.device)
                severity = 1 + is_out_of_memory(failure)
            self.group.barrier()  # compiling takes one longer than another
            worst = self.group.all_reduce_max(severity)
            cause = failure or RuntimeError("in another process")
            if worst == 2:
                self.halve_batch_size(cause)
            elif worst == 1:
                self.use_eager(cause)
            n_passed = 0 if worst else n_passed + 1

    def note_time(self, dt_s: float) -> None:
        """Choose the threads of the next update by how long this one took.

        Their number changes no bit of what the modern networks learn.
        """
        if self.threads:
            self.threads.add(dt_s, changes_cost=self.compiled)  # it is compiled for each number
            torch.set_num_threads(self.threads.n)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it beside weights and optimizer, for JSON."""
        n_threads = {"n_threads": self.threads.n} if self.threads else {}
        return {"batch_size": self.batch_size, **n_threads, **self.grad_scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what state_dict() returned, also of another number of processes."""
        self.batch_size = micro_batch_rows(self.n_rows, state["batch_size"])
        if self.threads and "n_threads" in state:
            self.threads.set(state["n_threads"])
            torch.set_num_threads(self.threads.n)
        self.grad_scaler.load_state_dict(state)


@dataclass(frozen=True)
class Run:
    """A trainer with its plan and its folder, into which only rank 0 writes."""

    folder: Path
    trainer: Trainer
    plan: TrainPlan
    data: DataFolder
    tokenizer: Tokenizer
    logger: MetricsLogger
    limit: TimeLimit | None = None  # of --minutes

    def write_metrics(self, record: dict[str, Any]) -> None:
        """Add a record to metrics.jsonl, and send it where else it is asked for."""
        if self.trainer.group.is_rank0:
            wait_for_space(self.folder, lambda: append_metrics(self.folder, record))
            self.logger.log(record)

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; raise DivergedError where weights are not finite."""
        trainer, model, group = self.trainer, self.trainer.model, self.trainer.group
        finite = [fsdp.to_local(weights).isfinite().all() for weights in model.parameters()]
        if group.all_reduce_max(not torch.stack(finite).all()):
            raise DivergedError("weights are no longer finite")
        state = {
            "progress": asdict(progress),
            "train": saved_settings(trainer.config, self.plan),
            "stepper": trainer.state_dict(),
            "data_sha256": self.data.sha256,
        }
        optimizer, weights, shards = trainer.optimizer.state_dict(), None, None
        if trainer.is_sharded:
            shards = shards_dir(self.folder, progress.step)
            group.broadcast_from_rank0(lambda: shutil.rmtree(shards, ignore_errors=True))
            fsdp.save_sharded(optimizer, shards)
            weights = fsdp.full_state_dict(model, keep=group.is_rank0)

        def save() -> None:
            save_checkpoint(
                self.folder, progress.step, model, shards or optimizer, state, self.tokenizer,
                weights=weights, chat_template=self.data.chat_template, keep=trainer.config.keep,
                good_step=progress.good_step,
            )  # fmt: skip

        # shards are moved, not written, and cannot be moved again
        group.broadcast_from_rank0(lambda: save() if shards else wait_for_space(self.folder, save))
