"""Go on with a run: as it was, for longer, or on data that changed."""

import logging
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import checkpoint, run_dir
from common.dataset import DataFolder, open_data
from common.device import choose_device
from common.errors import ConfigError, DataError
from common.files import write_json
from common.metrics import stop_reason
from common.run_dir import CONFIG_NAME
from common.settings import from_dict
from train.config import TrainConfig
from train.distributed.comm import SINGLE_PROCESS, ProcessGroup
from train.loop import Progress, first_said
from train.monitoring.loggers import make_logger
from train.session import drive, held, restore
from train.signals import StopRequest

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
    changes = changes or Changes()
    settings = group.broadcast_from_rank0(lambda: run_dir.read_json(folder / CONFIG_NAME))
    with held(folder, group):
        return _resume_held(folder, settings, device_name, stop, changes, group)


def _resume_held(
    folder: Path,
    settings: dict[str, Any],
    device_name: str,
    stop: StopRequest,
    changes: Changes,
    group: ProcessGroup,
) -> int | None:
    config = from_dict(TrainConfig, settings["train"], str(folder / CONFIG_NAME))
    if changes.shard is not None:
        config = replace(config, shard=changes.shard)
    newest = Path(
        group.broadcast_from_rank0(lambda: str(checkpoint.newest_valid(folder, "latest")))
    )
    device = choose_device(device_name)
    loaded = checkpoint.load_checkpoint(newest, device.torch_device)
    longer = _length(folder, config, Progress(**loaded.state["progress"]), changes)
    step = int(loaded.state["step"])
    ended = group.broadcast_from_rank0(lambda: stop_reason(folder, step))
    if longer is None and ended is not None:
        log.info("%s is finished: %s.", folder, ended)
        return None
    data = open_data(changes.data_path or Path(settings["data"]["path"]))
    changed = _check_data(data, newest, loaded.state, may_differ=changes.data_may_differ)

    stop.wait_for_steps()
    if longer is not None or changed or changes.data_path or changes.shard is not None:
        config = replace(config, max_steps=longer or config.max_steps)
        group.broadcast_from_rank0(lambda: _rewrite_settings(folder, settings, config, data, step))
    kind = config.tracker if group.is_rank0 else "none"
    tracker = make_logger(kind, folder, first_said(step, config), settings)
    run, progress = restore(newest, loaded, data, config, device, tracker, group)
    log.info("resuming    %s after step %s", newest, f"{step:,}")
    return drive(run, progress, stop)


def _length(folder: Path, config: TrainConfig, progress: Progress, changes: Changes) -> int | None:
    """Return the new number of steps where it changes, and say what that does."""
    n_steps = changes.max_steps
    if changes.minutes is not None:
        if n_steps is not None:
            raise ConfigError("--max-steps and --minutes are both given: one decides the length.")
        step_s = progress.seconds / max(1, progress.step)
        n_steps = progress.step + max(1, int(60 * changes.minutes / max(step_s, 1e-9)))
    if n_steps is None or n_steps == config.max_steps:
        return None
    if n_steps <= progress.step:
        raise ConfigError(
            f"--max-steps {n_steps:,}: {folder} has made {progress.step:,} steps already: pass "
            "more."
        )
    log.info(
        "length      %s steps in place of %s: from here on the learning rate is that of a %s "
        "schedule over all of them",
        f"{n_steps:,}", f"{config.max_steps:,}", config.schedule,
    )  # fmt: skip
    return n_steps


def _check_data(data: DataFolder, newest: Path, state: dict[str, Any], *, may_differ: bool) -> bool:
    """Hold that the data is the checkpoint's; tell whether it changed and that is allowed.

    Raises: DataError when it changed and is not allowed to, or its ids mean other text.
    """
    manifest = run_dir.read_json(newest / checkpoint.MANIFEST_NAME)
    vocabulary = manifest["files"][state["tokenizer"]["file"]]["sha256"]
    if vocabulary != data.vocabulary_sha256:
        raise DataError(
            f"{data.path}: its vocabulary is not the one of {newest}: the same ids stand for other "
            "text. Prepare the data as it was, or train a new run."
        )
    if state["data_sha256"] == data.sha256:
        return False
    was = f"SHA-256 {data.sha256[:12]}, but {newest} was trained on {state['data_sha256'][:12]}"
    if not may_differ:
        raise DataError(
            f"{data.path}: {was}: the data changed since. Prepare it as it was, or train "
            "a new run. --allow-data-change goes on with the data as it is."
        )
    log.warning("%s: %s: going on with other data, as allowed", data.path, was)
    return True


def _rewrite_settings(
    folder: Path, settings: dict[str, Any], config: TrainConfig, data: DataFolder, step: int
) -> None:
    """Put what changed at ``step`` into config.json, and what was before into its ``changes``."""
    before = {"step": step, "max_steps": settings["train"]["max_steps"], "data": settings["data"]}
    settings["changes"] = [*settings.get("changes", []), before]
    settings["train"] = asdict(config)
    settings["data"] = {"path": str(data.path.resolve()), "sha256": data.sha256}
    write_json(folder / CONFIG_NAME, settings)


def unfinished_run(runs_dir: Path, name: str, data_path: Path) -> Path | None:
    """Return the newest run called NAME or NAME-2 ... if it can go on with this data."""
    runs = [
        run
        for run in run_dir.list_runs(runs_dir)
        if re.fullmatch(re.escape(name) + r"(-\d+)?", run.name)
    ]
    saved = [run for run in runs if run_dir.read_pointer(run, "latest") is not None]
    if not saved:
        return None
    newest = max(saved, key=lambda run: (run / "latest").stat().st_mtime_ns)
    same_data = (
        run_dir.read_json(newest / CONFIG_NAME)["data"]["sha256"] == open_data(data_path).sha256
    )
    return newest if same_data and stop_reason(newest) is None else None
