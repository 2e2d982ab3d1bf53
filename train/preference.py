"""Direct preference optimisation: the better of two answers becomes likelier, the worse one less.

    gain   = log p(answer) - log q(answer)       p: the network that learns, q: before it began to
    margin = beta (gain of the chosen answer - gain of the rejected one)
    loss   = -log sigmoid(margin), the mean over pairs

The two conversations of a pair begin at the same position of two rows, where both have their sums:

    chosen      a a a a b b c c c c c
    rejected    a a a . b b c c c c .

Source: Rafailov et al. 2023, equation 7 (arXiv:2305.18290).
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from common.checkpoint import MODEL_NAME, SkipInit
from common.dataset import DataFolder
from common.device import Device
from common.errors import CheckpointError, DataError
from common.files import atomic_write, fsync, sha256_of
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.models.loss import IGNORED
from train.config import TrainConfig
from train.optim.lora import without_lora

REFERENCE_NAME = "reference.safetensors"  # in a run's folder: the weights that it began with


class Preference:
    """An Objective (evaluate.py); without a ``reference`` q is the network without its adapters."""

    def __init__(self, reference: GPT | None, beta: float) -> None:
        self.reference, self.beta = reference, beta

    def __call__(
        self, model: GPT, forward: Callable[..., Tensor], rows: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of the pairs in rows (B, 2, 3, T), and sums over them."""
        pair = is_pair(rows)
        n = pair.sum()
        before = self.reference_logps(model, rows)[:, pair]
        logps = answer_logps(forward, rows)[:, pair]
        loss, margin = preference_loss(logps, before, self.beta)
        nats, margins = -logps[0].detach().sum(), margin.detach()
        sums = {"n": n, "nats": nats, "margin": margins.sum(), "accuracy": (margins > 0).sum()}
        return loss.sum() / n.clamp(min=1), sums

    @torch.no_grad()
    def reference_logps(self, model: GPT, rows: Tensor) -> Tensor:
        """Return what answer_logps is before anything is learned, without dropout."""
        if self.reference is not None:
            return answer_logps(self.reference, rows)
        is_training = model.training
        try:
            with without_lora(model):
                return answer_logps(model.eval(), rows)
        finally:
            model.train(is_training)


def preference_loss(logps: Tensor, before: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return loss and margin of each pair, (n,), by log-probabilities (2, n) of their answers."""
    chosen, rejected = (logps - before).unbind()
    margin = beta * (chosen - rejected)
    return -F.logsigmoid(margin), margin


def answer_logps(forward: Callable[..., Tensor], rows: Tensor) -> Tensor:
    """Return (2, B, T): where a conversation begins, the log-probability of its answer, in nats.

    ``rows`` (B, 2, 3, T) are ids, targets and starts of the chosen ones and the rejected.
    """
    idx, targets, starts = rows.transpose(0, 1).flatten(0, 1).unbind(1)  # (2 B, T), chosen first
    logits = forward(idx, None, starts).flatten(0, 1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nats = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="none")
    logps = -nats.view(starts.shape)
    return torch.zeros_like(logps).scatter_add_(1, starts, logps).view(2, len(rows), -1)


def is_pair(rows: Tensor) -> Tensor:
    """Return (B, T) bool: where a pair begins in rows (B, 2, 3, T)."""
    targets, starts = rows[:, 0, 1], rows[:, 0, 2]
    return torch.zeros_like(starts).scatter_add_(1, starts, (targets != IGNORED).long()) > 0


def keep_reference(reference: GPT | None, checkpoint: Path, run: Path) -> None:
    """Keep the checkpoint that ``reference`` is in a run: by a second name of it where that works.

    So that the run can go on though that checkpoint is deleted, as when better ones follow it.
    """
    if reference is None:
        return
    weights, kept = checkpoint / MODEL_NAME, run / REFERENCE_NAME
    try:
        os.link(weights, kept)
        fsync(run)
    except OSError:  # on another disk, or on one without links
        with weights.open("rb") as source, atomic_write(kept) as file:
            shutil.copyfileobj(source, file)


def reference_for(
    data: DataFolder,
    config: TrainConfig,
    shape: ModelConfig,
    weights: Path | None,
    device: Device,
    sha256: str | None = None,
) -> GPT | None:
    """Return the network of ``weights``, which learns nothing; None where ``data`` asks for none.

    With adapters it is the network that learns without them. Raise DataError without weights,
    CheckpointError where they cannot be read, or their ``sha256`` is another.
    """
    if not data.has_pairs:
        return None
    if weights is None:
        raise DataError(
            f"{data.path}: holds preference pairs, which are for a network that answers already: "
            f"python -m train preference --from RUN --data {data.path}"
        )
    if config.lora:
        return None
    with SkipInit():
        model = GPT(shape)
    try:
        if sha256 not in (None, sha256_of(weights)):
            raise RuntimeError("its content changed, by its SHA-256")
        model.load_state_dict(load_file(weights), assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{weights}: cannot be read ({error}). Without the weights that a run began with it "
            "cannot go on learning preferences: begin a new one, from this one's weights."
        ) from error
    return model.to(device.torch_device).eval().requires_grad_(requires_grad=False)
