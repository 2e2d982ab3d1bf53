"""Runs so small that they take a second or two, and what of them must not depend on stops."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.dataset import DataFolder, Ids
from common.device import Device
from common.models.config import ModelConfig
from common.models.gpt import GPT
from train.batches.sources import make_source
from train.config import TrainConfig
from train.evaluate import Score, evaluate, rows_at_once, window_batches
from train.optim.optimizers import make_optimizer
from train.pretrain import new_run
from train.signals import StopRequest
from train.trainer import Trainer

TINY: dict[str, Any] = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 16,
    "ngram_rows": 64,
    "dropout": 0.1,
    "tokens_per_step": 64,
    "batch_size": 2,  # of 4 rows: two micro-steps
    "learning_rate": 1e-2,
    "warmup_steps": 5,
    "eval_tokens": 256,
    "max_steps": 12,
    "eval_interval": 6,
    "save_interval": 4,
    "log_interval": 2,
}


def options(**changed: Any) -> list[str]:
    """Return the settings of a tiny run as command-line options; on the CPU, whose bits repeat."""
    settings = TINY | {"device": "cpu"} | changed
    return [
        part
        for name, value in settings.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]


def make_trainer(
    model: GPT, data: DataFolder, config: TrainConfig, device: Device, *, batch_size: int
) -> Trainer:
    """Return what makes the updates of a network, as train.pretrain puts it together."""
    source = make_source(data, config, model.config.block_size)
    return Trainer(
        model, make_optimizer(model, config), source, config, device, batch_size=batch_size
    )


def killed_at_flush(work: Callable[[], object], n: int) -> bool:
    """Do ``work`` in a child that is killed at its nth flush to disk; tell whether it came there.

    A kill loses nothing that was written, so flushing itself, most of the time, is left out.
    """
    left = n

    def deadly(fd: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        os.fsync = deadly
        work()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def pretrain(
    data: Path,
    folder: Path,
    name: str = "tiny",
    stop: StopRequest | None = None,
    init_from: Path | None = None,
    **changed: Any,
) -> Path:
    """Train a tiny run in this process, to its end or until ``stop`` asks; return its folder."""
    settings = TINY | changed
    of_model = {item.name for item in fields(ModelConfig)}
    stopped_by = new_run(
        data,
        folder / "runs",
        name,
        "tiny",
        "cpu",
        stop or StopRequest(),
        model_options={key: value for key, value in settings.items() if key in of_model},
        train_options={key: value for key, value in settings.items() if key not in of_model},
        init_from=init_from,
    )
    assert stopped_by is None or stop is not None
    return folder / "runs" / name


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def numbers(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without what depends on the clock."""
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in metrics(run)]


def final_bytes(run: Path) -> tuple[bytes, bytes, bytes]:
    """Return weights and optimizer state after the last step, and which checkpoint is the best."""
    last = run / (run / "latest").read_text(encoding="utf-8").strip()
    weights, moments = last / "model.safetensors", last / "optimizer.safetensors"
    return weights.read_bytes(), moments.read_bytes(), (run / "best").read_bytes()


def assert_same_outcome(run: Path, other: Path) -> None:
    """Hold that two runs logged the same losses and ended in the same bits."""
    assert numbers(run) == numbers(other)
    assert final_bytes(run) == final_bytes(other)
    steps = [line["step"] for line in metrics(run)]
    assert steps == sorted(set(steps))


def evaluate_text(
    model: GPT, ids: Ids, lengths: npt.NDArray[np.int64], device: Device, max_tokens: int
) -> Score:
    """Return the loss over fixed windows of ``ids``, as a run is evaluated."""
    block_size = model.config.block_size
    n_rows = rows_at_once(device, block_size)
    return evaluate(model, window_batches(ids, block_size, max_tokens, n_rows), lengths, device)
