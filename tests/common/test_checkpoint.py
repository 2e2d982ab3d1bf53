"""Checkpoints are whole or are not taken, whatever happened to them."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest_valid,
    verify_checkpoint,
)
from common.errors import CheckpointError
from common.files import drop_page_cache, write_json
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.run_dir import (
    checkpoints,
    new_run,
)
from tests.common.saved import ABC, TINY, cut_short, empty, flip_a_bit, names, remove, save
from tests.processes import REPOSITORY, environment, run_python
from tests.tiny import random_model

CPU = torch.device("cpu")
FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "vocab.json", "manifest.json"]


@pytest.mark.parametrize("changed", [{}, {"tied_head": False}, {"n_kv_head": 1}], ids=str)
def test_what_is_saved_comes_back(run: Path, changed: dict[str, Any]) -> None:
    model = random_model(ModelConfig(**TINY.__dict__ | changed), seed=5)
    folder = save(run, 30, model)
    loaded: Checkpoint = load_checkpoint(folder, CPU)
    assert loaded.model.config == model.config
    assert loaded.tokenizer == ABC
    assert loaded.state["step"] == 30
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert torch.equal(
        load_file(folder / "optimizer.safetensors")["wte.weight:exp_avg"], torch.full((3,), 30.0)
    )


def test_a_checkpoint_needs_nothing_outside_its_folder(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(run / "step-00000020", moved)
    shutil.rmtree(run)
    verify_checkpoint(moved)
    assert load_checkpoint(moved, CPU).tokenizer == ABC


def test_a_tied_head_is_stored_once(run: Path) -> None:
    tied = load_file(run / "step-00000020" / "model.safetensors")
    assert "lm_head.weight" not in tied
    assert sum(tensor.numel() for tensor in tied.values()) == GPT(TINY).n_parameters
    untied = load_file(
        save(run, 30, GPT(ModelConfig(**TINY.__dict__ | {"tied_head": False})))
        / "model.safetensors"
    )
    assert untied["lm_head.weight"].shape == tied["wte.weight"].shape


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, empty, remove])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_detected_and_the_checkpoint_before_is_taken(
    run: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(run / "step-00000020" / name)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        verify_checkpoint(run / "step-00000020")
    assert newest_valid(run, "latest") == run / "step-00000010"
    assert str(run / "step-00000020" / name) in caplog.text
    assert "Stepping back to the checkpoint before." in caplog.text
    assert f"Using {run / 'step-00000010'} instead." in caplog.text


@pytest.mark.parametrize(
    "files", [None, [], {}, {"model.safetensors": None}, {"model.safetensors": [1, 2]}], ids=str
)
def test_a_manifest_that_does_not_list_the_model_s_files_is_damaged(run: Path, files: Any) -> None:
    manifest = run / "step-00000020" / "manifest.json"
    manifest.write_text(json.dumps({"format": 1, "files": files}), encoding="utf-8")
    assert newest_valid(run, "latest") == run / "step-00000010"


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_detected(run: Path, name: str) -> None:
    folder = run / "step-00000020"
    whole = (folder / name).read_bytes()
    # of weights every 97th bit will do: a prime, so that each place in a byte has its turn
    # in place: where a file is cut to nothing and written anew, its disk is waited for
    with (folder / name).open("r+b", buffering=0) as file:
        for bit in range(0, 8 * len(whole), 1 if name == "manifest.json" else 97):
            byte = whole[bit // 8]
            for written, is_damaged in ((byte ^ 1 << bit % 8, True), (byte, False)):
                file.seek(bit // 8)
                file.write(bytes([written]))
                if is_damaged:
                    with pytest.raises(CheckpointError):
                        verify_checkpoint(folder)
    verify_checkpoint(folder)


def test_a_leftover_of_a_save_that_was_killed_is_not_taken_and_goes(run: Path) -> None:
    for step in (25, 30):
        shutil.copytree(run / "step-00000020", run / f"step-{step:08d}.tmp")
        (run / f"step-{step:08d}.tmp" / "manifest.json").unlink()
    assert newest_valid(run, "latest") == run / "step-00000020"
    save(run, 30)
    assert newest_valid(run, "latest") == run / "step-00000030"
    assert not list(run.glob("*.tmp"))


def test_a_sound_checkpoint_is_taken_without_a_word(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert newest_valid(run, "latest") == run / "step-00000020"
    assert caplog.text == ""


def test_when_none_verifies_it_is_an_error_that_says_what_to_do(run: Path) -> None:
    for folder in checkpoints(run):
        empty(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint that verifies\. Train it anew"):
        newest_valid(run, "latest")


def test_parts_that_do_not_fit_together_are_an_error(run: Path) -> None:
    other = save(new_run(run.parent, "other"), 20, GPT(ModelConfig(vocab_size=9, n_embd=12)))
    shutil.copy(other / "model.safetensors", run / "step-00000020")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: does not fit its state\.json"):
        load_checkpoint(run / "step-00000020", CPU)


def test_another_format_is_refused(run: Path) -> None:
    state = run / "step-00000020" / "state.json"
    write_json(state, json.loads(state.read_bytes()) | {"format": 2})
    with pytest.raises(CheckpointError, match=r"state\.json: of format 2, .* reads 1\."):
        load_checkpoint(run / "step-00000020", CPU)


def test_the_last_good_checkpoint_is_one_that_verifies(run: Path) -> None:
    save(run, 30)
    empty(run / "step-00000030" / "state.json")
    assert newest_valid(run, "latest", last_step=30) == run / "step-00000020"
    empty(run / "step-00000020" / "state.json")
    with pytest.raises(CheckpointError, match="holds no checkpoint that verifies"):
        newest_valid(run, "latest", last_step=30)


@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_gives_back_other_bytes_costs_no_earlier_checkpoint(
    run: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake: when what memory holds of a flushed file is dropped, a bit of it has flipped."""

    def forgetful(path: Path) -> None:
        if path.name == name:
            flip_a_bit(path)

    monkeypatch.setattr("common.checkpoint.drop_page_cache", forgetful)
    before = names(run)
    with pytest.raises(CheckpointError, match=rf"cannot be saved \(.*{name}.* other bytes than"):
        save(run, 30)
    assert names(run) == before
    assert newest_valid(run, "latest") == run / "step-00000020"
    assert not list(run.glob("*.tmp"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot be told to forget")
def test_what_is_read_back_comes_from_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb", buffering=0) as file:
        file.write(os.urandom(1 << 20))
        os.fdatasync(file)
    if pages_in_memory(path) == 0:
        pytest.skip("this file system keeps nothing in memory")
    drop_page_cache(path)
    assert pages_in_memory(path) == 0


def pages_in_memory(path: Path) -> int:
    """Return what Linux says of a file by mincore(2), through util-linux."""
    if shutil.which("fincore") is None:
        pytest.skip("fincore is not installed")
    command = ["fincore", "--noheadings", "--output", "PAGES", str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_no_pickle_is_written_or_read() -> None:
    stages = [REPOSITORY / name for name in ("common", "prepare", "train", "sample")]
    sources = {path for stage in stages for path in stage.rglob("*.py")}
    assert len(sources) > 30
    # others' files, in which tests/train/setup/test_import_file.py has code that does not run
    imports = REPOSITORY / "train" / "setup" / "import_folder.py"
    assert "weights_only=True" in imports.read_text(encoding="utf-8")
    for path in sources - {imports}:
        code = re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        # names of modules whose documentation is read are none of it
        assert not re.search(r"(import|from) +(pickle|marshal|shelve)\b", code), path
        assert not re.search(r"\b(pickle|marshal|shelve)\.\w|torch\.(load|save)\b", code), path


# Saves step 10 in peace; then for N = 1, 2, ... a child saves step 20 and is killed at the Nth call
# of one that makes something last: flush, rename, delete. A kill loses nothing that was written, so
# flushing itself is left out.
KILLED_WHILE_SAVING = """
import os, pathlib, shutil, signal, sys
from common.checkpoint import newest_valid
from common.errors import CheckpointError
from common.run_dir import new_run
from tests.common.saved import save

runs = pathlib.Path(sys.argv[1])
os.fsync = os.fstat
calls = {"fsync": os.fsync, "rename": os.rename, "replace": os.replace, "rmtree": shutil.rmtree}

def deadly(name, left):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return calls[name](*arguments, **options)
    return call

for n in range(1, 100):
    run = new_run(runs, f"killed-at-{n:02d}")
    for step in (1, 5, 10):
        save(run, step)
    child = os.fork()
    if child == 0:
        left = [n]
        for name in calls:
            setattr(shutil if name == "rmtree" else os, name, deadly(name, left))
        save(run, 20)
        os._exit(0)
    if os.WIFEXITED(os.waitpid(child, 0)[1]):
        break
print(n - 1)
"""


def test_a_save_killed_at_any_moment_leaves_a_checkpoint_and_can_be_made_again(
    tmp_path: Path,
) -> None:
    driver = run_python(["-c", KILLED_WHILE_SAVING, str(tmp_path)], tmp_path)
    assert driver.returncode == 0, driver.stderr
    assert int(driver.stdout) >= 12  # five files, five flushes and more
    found: list[int] = []
    for run in sorted(tmp_path.iterdir()):
        folder = newest_valid(run, "latest")
        loaded = load_checkpoint(folder, CPU)
        step = int(loaded.state["step"])
        expected = random_model(TINY, seed=step).wte.weight
        assert torch.equal(loaded.model.wte.weight, expected)
        found.append(step)
        save(run, 20)
        assert newest_valid(run, "latest") == run / "step-00000020"
        assert names(run) == ["step-00000010", "step-00000020"]
        assert not list(run.glob("*.tmp"))
    assert set(found) == {10, 20}
    assert found == sorted(found)  # once it lasts it lasts


LIMIT_BYTES = 1000  # less than the weights take, more than each of the other files


def test_a_disk_that_takes_no_more_leaves_earlier_checkpoints_as_they_were(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    script = (
        "import resource, sys, pathlib; from tests.common.saved import save\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT_BYTES}, {LIMIT_BYTES}))\n"
        "try:\n    save(pathlib.Path(sys.argv[1]), 30)\n"
        "except Exception as error:\n    print(type(error).__name__, error.message)\n"
    )
    ended = run_python(["-c", script, str(run)], run.parent)
    assert ended.stdout.startswith(f"CheckpointError {run / 'step-00000030'}: cannot be saved")
    assert "Earlier checkpoints are as they were." in ended.stdout
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# In namespaces of its own a process may mount a disk of 64 kB: it holds one checkpoint, not three.
ON_A_SMALL_DISK = """
import pathlib, subprocess, sys
disk = pathlib.Path(sys.argv[1])
mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)])
if mounted.returncode != 0:
    sys.exit("no mount")
from common.checkpoint import newest_valid
from common.errors import CheckpointError
from common.run_dir import new_run
from tests.common.saved import save
run = new_run(disk, "tiny")
for step in range(10, 100, 10):
    try:
        save(run, step)
    except CheckpointError as error:
        print(step, newest_valid(run, "latest").name, list(run.glob("*.tmp")), error.message)
        break
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="util-linux is not installed")
def test_a_disk_that_fills_up_is_a_sentence_and_the_checkpoint_before_is_whole(
    tmp_path: Path,
) -> None:
    command = ["unshare", "-Urm", sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)]
    ended = subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    if "no mount" in ended.stderr or "unshare failed" in ended.stderr:
        pytest.skip("this system lets nobody mount")
    assert ended.returncode == 0, ended.stderr
    step, latest, unfinished, message = ended.stdout.split(maxsplit=3)
    assert int(step) >= 20
    assert latest == f"step-{int(step) - 10:08d}"
    assert unfinished == "[]"
    assert "No space left on device" in message
    assert "Earlier checkpoints are as they were. Free some space, then go on: " in message


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_gives(run: Path, umask: int, mode: int) -> None:
    """Past bug: 0600 always, by safetensors: nobody else could read a shared run."""
    before = os.umask(umask)
    try:
        folder = save(run, 30)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        FILES, mode
    )
