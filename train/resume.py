"""Go on with a run: as it was, for longer, or on data that changed."""

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import run_dir
from common.checkpoint import load_checkpoint, newest_valid
from common.dataset import open_data
from common.device import choose_device
from common.errors import ConfigError
from common.files import write_json
from common.run_dir import stop_reason
from train.config import TrainConfig, TrainPlan, load_settings, saved_settings
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.monitoring.loggers import make_logger
from train.monitoring.metrics import Progress
from train.optim.optimizers import make_optimizer
from train.recovery import restore, run_lock, train_with_rollback
from train.signals import StopRequest
from train.trainer import Run, Trainer, parallelize
from train.validation import check_same_data, check_sizes, check_vocabulary

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be other than in the run so far."""

    max_steps: int | None = None
    minutes: float | None = None  # more
    data_path: Path | None = None
    data_may_differ: bool = False
    shard: bool | None = None


def resume_run(
    folder: Path,
    device_name: str,
    stop: StopRequest,
    changes: Changes | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> int | None:
    """Go on with the run in ``folder``; return the signal that stopped it early, or None.

    Raises: UserError when it has no sound checkpoint, or its data is no longer the same.
    """
    config_path = folder / run_dir.CONFIG_NAME
    settings = group.broadcast_from_rank0(lambda: run_dir.read_json(config_path))
    with run_lock(folder, group):
        resumed = load_run(folder, settings, device_name, stop, changes or Changes(), group)
        return None if resumed is None else train_with_rollback(*resumed, stop)


def load_run(
    folder: Path,
    settings: dict[str, Any],
    device_name: str,
    stop: StopRequest,
    changes: Changes,
    group: ProcessGroup,
) -> tuple[Run, Progress] | None:
    """Return a run as its newest checkpoint has it, with the changes; None if it is finished."""
    config_path = folder / run_dir.CONFIG_NAME
    config, plan = load_settings(settings["train"], str(config_path))
    if changes.shard is not None:
        config = replace(config, shard=changes.shard)
    saved = Path(group.broadcast_from_rank0(lambda: str(newest_valid(folder, "latest"))))
    device = choose_device(device_name)
    loaded = load_checkpoint(saved, device.torch_device)
    state, step = loaded.state, int(loaded.state["step"])
    max_steps = new_max_steps(folder, config, plan, Progress(**state["progress"]), changes)
    ended = group.broadcast_from_rank0(lambda: stop_reason(folder, step))
    if max_steps == plan.max_steps and ended is not None:
        log.info("%s is finished: %s.", folder, ended)
        return None
    data = open_data(changes.data_path or Path(settings["data"]["path"]))
    check_vocabulary(data, saved, state)
    check_same_data(data, saved, state["data_sha256"], may_differ=changes.data_may_differ)
    check_sizes(data, loaded.model.config.block_size)

    stop.wait_for_steps()
    is_changed = max_steps != plan.max_steps or data.sha256 != state["data_sha256"]
    if is_changed or changes.data_path or changes.shard is not None:
        before = {"step": step, "max_steps": plan.max_steps, "data": settings["data"]}
        plan = replace(plan, max_steps=max_steps)
        settings |= {
            "changes": [*settings.get("changes", []), before],
            "train": saved_settings(config, plan),
            "data": {"path": str(data.path.resolve()), "sha256": data.sha256},
        }
        group.broadcast_from_rank0(lambda: write_json(config_path, settings))
    model = parallelize(loaded.model, config, device, group)
    trainer = Trainer(
        model, make_optimizer(model, config), data, config, device, group,
        batch_size=plan.batch_size, compiled=plan.compile == "on",
    )  # fmt: skip
    kind = config.tracker if group.is_rank0 else "none"
    logger = make_logger(kind, folder, plan.first_logged_step(step), settings)
    run = Run(folder, trainer, plan, data, loaded.tokenizer, logger)
    progress = restore(run, saved, state)
    log.info("resuming    %s after step %s", saved, f"{step:,}")
    return run, progress


def new_max_steps(
    folder: Path, config: TrainConfig, plan: TrainPlan, progress: Progress, changes: Changes
) -> int:
    """Return the number of steps; say what it does where it changes.

    Raises: ConfigError when it is no more than were made.
    """
    n_steps = changes.max_steps
    if changes.minutes is not None:
        if n_steps is not None:
            raise ConfigError("--max-steps and --minutes are both given: one decides the length.")
        step_s = progress.seconds / max(1, progress.step)
        n_steps = progress.step + max(1, int(60 * changes.minutes / max(step_s, 1e-9)))
    if n_steps is None or n_steps == plan.max_steps:
        return plan.max_steps
    if n_steps <= progress.step:
        raise ConfigError(
            f"--max-steps {n_steps:,}: {folder} has made {progress.step:,} steps already: pass "
            "more."
        )
    log.info(
        "length      %s steps in place of %s: from here on the learning rate is that of a %s "
        "schedule over all of them",
        f"{n_steps:,}", f"{plan.max_steps:,}", config.schedule,
    )  # fmt: skip
    return n_steps


def unfinished_run(runs_dir: Path, name: str, data_path: Path) -> Path | None:
    """Return the newest run called NAME, or NAME-2 to NAME-99, if it can go on with this data."""
    # more digits are rather a person's own: exp-2024 is no second exp
    pattern = re.compile(re.escape(name) + r"(-[2-9]|-[1-9]\d)?")
    saved = [
        run
        for run in run_dir.list_runs(runs_dir)
        if pattern.fullmatch(run.name) and run_dir.read_pointer(run, "latest") is not None
    ]
    if not saved:
        return None
    newest = max(saved, key=lambda run: (run / "latest").stat().st_mtime_ns)
    trained_on = run_dir.read_json(newest / run_dir.CONFIG_NAME)["data"]["sha256"]
    is_same = trained_on == open_data(data_path).sha256
    return newest if is_same and stop_reason(newest) is None else None
