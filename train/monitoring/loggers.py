"""The records of metrics.jsonl, sent to Weights & Biases or TensorBoard as well: --tracker.

Their packages are imported only then, and their failures never stop training: each is one warning.
"""

import logging
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from common.errors import ConfigError

log = logging.getLogger(__name__)

Send = Callable[[int, dict[str, float]], None]  # of a step its values by name
# The versions that were tested.
PACKAGES = {"tensorboard": "tensorboard==2.20.0", "wandb": "wandb==0.31.0"}
PROJECT = "quern"


class MetricsLogger:
    """Sends records until that fails once; without a backend it does nothing."""

    def __init__(self, kind: str = "none", send: Send | None = None) -> None:
        self._kind, self._send = kind, send

    def log(self, record: dict[str, Any]) -> None:
        """Send the numbers of a record, by its step."""
        if self._send is None:
            return
        numbers = {k: v for k, v in record.items() if k != "step" and isinstance(v, int | float)}
        try:
            self._send(record["step"], numbers)
        # whatever another's network or disk raises: training goes on without it
        except Exception as error:
            self._send = None
            _warn(self._kind, error)


def make_logger(kind: str, run: Path, first_step: int, settings: dict[str, Any]) -> MetricsLogger:
    """Return the logger of a run whose records begin at ``first_step``; ``settings`` go along.

    A resumed run goes on in the same place: its folder for TensorBoard, and for Weights & Biases
    the id in ``settings["tracker_id"]``.
    """
    module = import_package(kind)
    try:
        if kind == "tensorboard":
            # purge_step: what a killed run had sent after its last checkpoint is sent again
            writer = module.SummaryWriter(log_dir=str(run / kind), purge_step=first_step)
            return MetricsLogger(kind, partial(_send_to_tensorboard, writer))
        if kind == "wandb":
            wandb_run = module.init(
                project=PROJECT, name=run.name, id=settings["tracker_id"], resume="allow",
                dir=str(run), config=settings,
            )  # fmt: skip
            # by our step, not by its own count: that refuses what a resumed run sends again
            wandb_run.define_metric("*", step_metric="step")
            return MetricsLogger(kind, lambda step, values: wandb_run.log(values | {"step": step}))
    except Exception as error:  # as above: no network, no account, no room on its disk
        _warn(kind, error)
    return MetricsLogger()


def import_package(kind: str) -> Any:
    """Return the module that --tracker names; raise ConfigError where it is not installed."""
    if kind == "none":
        return None
    try:
        return import_module("torch.utils.tensorboard" if kind == "tensorboard" else kind)
    except ImportError as error:
        raise ConfigError(
            f"--tracker {kind}: its package is not installed: "
            f".venv/bin/pip install {PACKAGES[kind]}"
        ) from error


def _send_to_tensorboard(writer: Any, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
        writer.add_scalar(name, value, global_step=step)
    writer.flush()


def _warn(kind: str, error: Exception) -> None:
    log.warning(
        "--tracker %s does not work (%s: %s). Training goes on without it; metrics.jsonl has "
        "everything.",
        kind, type(error).__name__, error,
    )  # fmt: skip
