"""The same records as metrics.jsonl, sent to Weights & Biases or TensorBoard where asked for.

Imported only then. What a tracker cannot do never stops training: it is said once.
"""

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from common.errors import ConfigError

log = logging.getLogger(__name__)

Send = Callable[[dict[str, Any]], None]
# The versions that were tested.
PACKAGES = {"tensorboard": "tensorboard==2.20.0", "wandb": "wandb==0.31.0"}
PROJECT = "quern"


class MetricsLogger:
    """Sends records until it fails once; with nothing to send to, it does nothing."""

    def __init__(self, name: str = "none", send: Send | None = None) -> None:
        self._name, self._send = name, send

    def log(self, record: dict[str, Any]) -> None:
        """Send the numbers of a record, by its step."""
        if self._send is None:
            return
        try:
            self._send(record)
        # whatever another's network or disk raises: training goes on without it
        except Exception as error:
            self._send = None
            log.warning("%s", _failed(self._name, error))


def make_logger(kind: str, run: Path, first_step: int, settings: dict[str, Any]) -> MetricsLogger:
    """Return the tracker of a run whose records begin at ``first_step``; ``settings`` go along.

    A resumed run goes on in the same place: its folder for TensorBoard, and for Weights & Biases
    the id in ``settings["tracker_id"]``.

    Raises: ConfigError when the package is not installed.
    """
    if kind == "none":
        return MetricsLogger()
    module = package(kind)
    begin = _tensorboard if kind == "tensorboard" else _wandb
    try:
        return MetricsLogger(kind, begin(module, run, first_step, settings))
    except Exception as error:  # as above: no network, no account, no room on its disk
        log.warning("%s", _failed(kind, error))
        return MetricsLogger()


def package(kind: str) -> Any:
    """Return the module of a tracker, None for ``none``.

    Raises: ConfigError that says how to install it.
    """
    if kind == "none":
        return None
    try:
        return import_module("torch.utils.tensorboard" if kind == "tensorboard" else kind)
    except ImportError as error:
        raise ConfigError(
            f"--tracker {kind}: its package is not installed: "
            f".venv/bin/pip install {PACKAGES[kind]}"
        ) from error


def _tensorboard(module: Any, run: Path, first_step: int, settings: dict[str, Any]) -> Send:
    # purge_step: what a killed run had sent after its last checkpoint is sent again
    writer = module.SummaryWriter(log_dir=str(run / "tensorboard"), purge_step=first_step)

    def send(record: dict[str, Any]) -> None:
        for name, value in _numbers(record).items():
            writer.add_scalar(name, value, global_step=record["step"])
        writer.flush()

    return send


def _wandb(module: Any, run: Path, first_step: int, settings: dict[str, Any]) -> Send:
    session = module.init(
        project=PROJECT, name=run.name, id=settings["tracker_id"], resume="allow",
        dir=str(run), config=settings,
    )  # fmt: skip
    # by our step, not by its own count: that refuses what a resumed run says again
    session.define_metric("*", step_metric="step")
    return lambda record: session.log(_numbers(record) | {"step": record["step"]})


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float)
    }


def _failed(kind: str, error: Exception) -> str:
    return (
        f"--tracker {kind} does not work ({type(error).__name__}: {error}). Training goes on "
        "without it; metrics.jsonl has everything."
    )
