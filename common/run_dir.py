"""A run's folder: its name, its checkpoints, the pointers to two of them, its lock.

runs/NAME/config.json      every effective setting (train writes it)
runs/NAME/metrics.jsonl    one JSON object a logged step
runs/NAME/step-00000500/   a checkpoint (checkpoint.py)
runs/NAME/latest, best     text files that hold a checkpoint's folder name
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from common.errors import CheckpointError
from common.files import fsync, lock, make_folder, write_text

FORMAT_VERSION = 1
RUN_VERSION = 2  # of a run's config.json; in 1 windows were drawn with replacement
CONFIG_NAME, METRICS_NAME, STATE_NAME = "config.json", "metrics.jsonl", "state.json"
SHARDS_NAME = "optimizer"  # a folder in a checkpoint, a file of each process in it
Pointer = Literal["latest", "best"]


def check_name(name: str) -> None:
    """Raise CheckpointError where a run cannot be called ``name``."""
    if not name or Path(name).name != name or name.startswith("."):
        raise CheckpointError(f"--run {name}: a plain name is needed; --runs-dir says where.")


def new_run(runs_dir: Path, name: str) -> Path:
    """Make the folder of a new run: NAME, or NAME-2, NAME-3 where that exists."""
    check_name(name)
    number = 1
    while True:
        run = runs_dir / (name if number == 1 else f"{name}-{number}")
        try:
            make_folder(runs_dir)
            run.mkdir()
            fsync(runs_dir)
            return run
        except OSError as error:
            if not (isinstance(error, FileExistsError) and runs_dir.is_dir()):
                raise CheckpointError(f"{run}: cannot be made ({error.strerror}).") from error
            number += 1


def find_run(runs_dir: Path, name: str | None, *, imported: bool = True) -> Path:
    """Return the folder of the run called ``name``, or of the one that was last saved to.

    A name may also be the folder itself, as messages print it: runs/NAME. Without ``imported``,
    none is the last that train import made and that has learned nothing here.
    """
    runs = list_runs(runs_dir)
    if name is not None:
        if Path(name).parent == runs_dir and not (runs_dir / name).exists():
            name = Path(name).name
        if not (runs_dir / name / CONFIG_NAME).is_file():
            there = ", ".join(sorted(run.name for run in runs)) or "none"
            raise CheckpointError(f"{runs_dir / name}: no such run. Runs in {runs_dir}: {there}.")
        return runs_dir / name
    newest = last_saved(run for run in runs if imported or not _is_as_imported(run))
    if newest is None:
        kind = "run" if imported else "run that was trained here,"
        raise CheckpointError(
            f"{runs_dir}: no {kind} with a checkpoint in it. Train one first: make train, or "
            "python -m train pretrain --data data"
        )
    return newest


def _is_as_imported(run: Path) -> bool:
    settings = (run / CONFIG_NAME).read_bytes()  # not parsed: another run's may be damaged
    return b'"imported_from"' in settings and b'"data"' not in settings


def last_saved(runs: Iterable[Path]) -> Path | None:
    """Return the run whose newest checkpoint was written last, None where none has any.

    By what the checkpoint says, which a copy of the run says too: of those the file that is there
    for the longest time.
    """

    def key(run: Path) -> tuple[float, int]:
        latest = (run / "latest").stat()
        try:
            state = read_json((read_pointer(run, "latest") or run) / STATE_NAME)
            return float(state["saved_at"]), -latest.st_ctime_ns
        except (CheckpointError, KeyError, TypeError, ValueError):  # an older version's, or damaged
            return latest.st_mtime, -latest.st_ctime_ns

    return max((run for run in runs if (run / "latest").is_file()), key=key, default=None)


def list_runs(runs_dir: Path) -> list[Path]:
    """Return the folders of all runs; what is just being imported has a hidden name."""
    return [config.parent for config in runs_dir.glob(f"[!.]*/{CONFIG_NAME}")]


def lock_run(run: Path) -> int:
    """Lock a run against other trainings until the descriptor that is returned is closed."""
    try:
        return lock(run)
    except BlockingIOError as error:
        raise CheckpointError(
            f"{run}: another process trains this run. Wait for it, or train a run of another name."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a run's JSON files; raise CheckpointError when it is damaged or missing."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}).") from error
    known = range(1, 1 + (RUN_VERSION if path.name == CONFIG_NAME else FORMAT_VERSION))
    found = value.get("format") if isinstance(value, dict) else None
    if found not in known:
        numbers = " and ".join(map(str, known))
        raise CheckpointError(f"{path}: of format {found}, where this version reads {numbers}.")
    return dict(value)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; a last line cut short by a crash is left out."""
    path = run / METRICS_NAME
    records: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    if lines and b"\0" in lines[-1]:  # of a file that grew, a power cut may leave zeros
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
            if not isinstance(records[-1]["step"], int):
                raise ValueError("its step is no number")
        except (LookupError, TypeError, ValueError) as error:
            message = f"{path}, line {number}: damaged ({error}). Delete that line."
            raise CheckpointError(message) from error
    return records


def stop_reason(run: Path, step: int | None = None) -> str | None:
    """Return why a run is finished, in words, or None: it is not, or not after ``step``."""
    last: dict[str, Any] = next(reversed(read_metrics(run)), {})
    return last.get("ended") if step in (None, last.get("step")) else None


def checkpoint_dir(run: Path, step: int) -> Path:
    """Return where the checkpoint after ``step`` updates is."""
    return run / f"step-{step:08d}"


def shards_dir(run: Path, step: int) -> Path:
    """Return where processes write their shards of the optimizer; left by a kill, it is pruned."""
    return run / f"{checkpoint_dir(run, step).name}.{SHARDS_NAME}.tmp"


def checkpoints(run: Path, *, last_step: int | None = None) -> list[Path]:
    """Return a run's checkpoint folders, the oldest first; of those up to ``last_step``."""
    last = None if last_step is None else checkpoint_dir(run, last_step)
    folders = sorted(folder for folder in run.glob("step-*") if _is_ours(folder))
    return [folder for folder in folders if last is None or folder <= last]


def _is_ours(folder: Path, suffix: str = "") -> bool:
    """Tell whether a folder was named here, and not by someone who made a copy."""
    return re.fullmatch(rf"step-\d{{8,}}{suffix}", folder.name) is not None and folder.is_dir()


def read_pointer(run: Path, pointer: Pointer) -> Path | None:
    """Return the checkpoint that ``latest`` or ``best`` names, or None where it names none."""
    try:
        return run / (run / pointer).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def write_pointer(run: Path, pointer: Pointer, folder: Path) -> None:
    """Make ``latest`` or ``best`` name a checkpoint."""
    write_text(run / pointer, folder.name + "\n")


def prune(run: Path, newest: Path, keep: int, good_step: int) -> None:
    """Delete all but the last ``keep`` up to ``newest``, the best, and the last up to a good step.

    Those after the newest are damaged: the run went back behind them.
    """
    kept = {*checkpoints(run, last_step=good_step)[-1:], read_pointer(run, "best")}
    kept |= set([folder for folder in checkpoints(run) if folder <= newest][-keep:])
    _delete(run, set(checkpoints(run)) - kept)


def rollback_to(run: Path, folder: Path | None) -> None:
    """Make ``folder`` the latest checkpoint, or none; delete those after it, ``best`` too."""
    if folder is None:
        (run / "latest").unlink(missing_ok=True)
    else:
        write_pointer(run, "latest", folder)
    later = [each for each in checkpoints(run) if folder is None or each > folder]
    if read_pointer(run, "best") in later:
        (run / "best").unlink()
    _delete(run, later)


def _delete(run: Path, folders: Iterable[Path]) -> None:
    """Delete checkpoints, and what killed runs left unfinished."""
    for folder in folders:
        doomed = folder.with_name(folder.name + ".tmp")  # half deleted must not look damaged
        shutil.rmtree(doomed, ignore_errors=True)  # a save of the same step was killed
        os.rename(folder, doomed)
    for unfinished in run.glob("step-*.tmp"):
        if _is_ours(unfinished, rf"(\.{SHARDS_NAME})?\.tmp"):
            shutil.rmtree(unfinished)
