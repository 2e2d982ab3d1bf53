"""An update made again where memory, the compiler or float16 failed, and what it then changes.

Nothing changes the weights before loss and gradient are known to be finite. Until then an update
can be redone from its beginning, and it is: with half the rows at a time where memory ran out,
uncompiled where compiled code failed, at half the loss scale where float16 overflowed.

Of several processes, none may leave a backward pass in which others wait for its gradients. What
can fail is therefore tried first by each for itself, and all recover together.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.device import Device, is_out_of_memory
from common.errors import ConfigError
from train.distributed.comm import is_peer_failure

if TYPE_CHECKING:
    from train.trainer import Trainer

# Passes that several processes warm up with: the second one finds memory as the first left it.
N_WARMUP = 2


def retry(trainer: "Trainer", attempt: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Return the loss and the norm of the gradient that ``attempt`` returns, at last.

    Raises: ConfigError when memory does not suffice for a single row.
    """
    while True:
        try:
            loss, grad_norm = attempt()
        except Exception as error:
            recover(trainer, error)
        else:
            if not trainer.grad_scaler.overflowed(loss, grad_norm):
                return loss, grad_norm
            continue
        # only here, outside of except, has the traceback let go of the activations
        _free_memory(trainer.device)


def recover(trainer: "Trainer", error: Exception) -> None:
    """Change what makes it possible to redo the update, or raise the error again."""
    if is_peer_failure(error):
        raise error
    if is_out_of_memory(error):
        if trainer.group.world_size > 1:
            raise ConfigError(
                f"out of memory with {trainer.batch_size} rows at a time, while others wait "
                "for its gradients. Free memory that others hold and go on: train resume. Or train "
                f"a new run with --batch-size {max(1, trainer.batch_size // 2)}: it changes no "
                "result."
            ) from error
        trainer.halve_batch_size(error)
    elif trainer.forward.compiled:
        trainer.forward.fall_back(error)
    else:
        raise error


def warmup(
    trainer: "Trainer", windows: Tensor, backward: "Callable[[Trainer, Tensor], Tensor]"
) -> None:
    """Have what may fail in several processes fail before any of them waits for another."""
    n_passed = 0
    # sharded, not even a forward pass is without collectives
    while trainer.group.world_size > 1 and not trainer.is_sharded and n_passed < N_WARMUP:
        failure: Exception | None = None
        try:
            for rows in torch.split(windows, trainer.batch_size)[:2]:  # the second adds to grad
                with trainer.group.gradient_sync(trainer.model, enabled=False):
                    backward(trainer, rows)
        except Exception as error:
            if not (is_out_of_memory(error) or trainer.forward.compiled):
                raise
            failure = error.with_traceback(None)  # it would hold the activations
        trainer.optimizer.zero_grad()
        if failure is not None:
            _free_memory(trainer.device)
        n_passed = n_passed + 1 if _all_passed(trainer, failure) else 0


def _all_passed(trainer: "Trainer", failure: Exception | None) -> bool:
    """Tell whether no process failed; else all of them recover from the worst failure."""
    trainer.group.barrier()  # compiling takes one longer than another
    own = failure if failure is not None and is_out_of_memory(failure) else None
    if trainer.group.all_reduce_max(own is not None):
        trainer.halve_batch_size(own or MemoryError("in another process"))
    elif trainer.group.all_reduce_max(failure is not None):
        recover(trainer, failure or RuntimeError("in another process"))
    else:
        return True
    return False


def _free_memory(device: Device) -> None:
    gc.collect()
    if device.torch_device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def explain_out_of_memory(where: str, remedy: str = "") -> Iterator[None]:
    """Say what to do where memory ran out in what cannot be retried."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"out of memory in {where}. Free memory that others hold{remedy}. Or train a new run "
            "with a shorter --block-size, fewer --n-layer or --n-embd, or a smaller --preset."
        ) from error
