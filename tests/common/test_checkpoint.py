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
    save_checkpoint,
    verify_checkpoint,
)
from common.errors import CheckpointError
from common.files import drop_page_cache, fsync_file, write_json
from common.metrics import read_metrics, stop_reason, val_loss_at
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.run_dir import (
    checkpoints,
    find_run,
    lock_run,
    new_run,
    read_pointer,
    rollback_to,
    write_pointer,
)
from common.tokenizer import CharTokenizer
from tests.processes import REPOSITORY, environment, run_python
from tests.tiny import random_model

ABC = CharTokenizer(tuple("abc\n"))
TINY = ModelConfig(vocab_size=ABC.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=8)
CPU = torch.device("cpu")
FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "vocab.json", "manifest.json"]


def save(run: Path, step: int, model: GPT | None = None, **kept: Any) -> Path:
    """Save a checkpoint whose weights are those of ``random_model`` at seed ``step``."""
    model = model or random_model(TINY, seed=step)
    optimizer = {"wte.weight:exp_avg": torch.full((3,), float(step))}
    return save_checkpoint(run, step, model, optimizer, {"progress": {"step": step}}, ABC, **kept)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run with the checkpoints of steps 10 and 20."""
    folder = new_run(tmp_path / "runs", "tiny")
    write_json(folder / "config.json", {"format": 1})
    save(folder, 10)
    save(folder, 20)
    return folder


def names(run: Path) -> list[str]:
    return [folder.name for folder in checkpoints(run)]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


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
    for bit in range(0, 8 * len(whole), 1 if name == "manifest.json" else 97):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError):
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


def test_what_a_person_put_beside_the_checkpoints_stays(run: Path) -> None:
    copy = run / "step-00000020-mine"
    shutil.copytree(run / "step-00000020", copy)
    beside = [copy, run / "step-99999999", run / "step-00000001.tmp", run / "step-mine.tmp"]
    for path in beside[1:3]:
        path.write_bytes(b"")
    beside[3].mkdir()
    for step in (30, 40, 50):
        save(run, step)
    assert all(path.exists() for path in beside)
    assert names(run) == ["step-00000040", "step-00000050"]
    verify_checkpoint(copy)


def test_a_run_is_held_by_one_process_at_a_time(run: Path) -> None:
    descriptor = lock_run(run)
    with pytest.raises(CheckpointError, match=f"^{run}: another process trains this run"):
        lock_run(run)
    os.close(descriptor)
    os.close(lock_run(run))


def test_when_none_verifies_it_is_an_error_that_says_what_to_do(run: Path) -> None:
    for folder in checkpoints(run):
        empty(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint that verifies\. Train it anew"):
        newest_valid(run, "latest")


@pytest.mark.parametrize("content", [b"", b"step-00000099\n", b"\xf3tep-00000020\n", b"\x00\n"])
def test_a_damaged_pointer_leads_to_the_newest_checkpoint(run: Path, content: bytes) -> None:
    (run / "latest").write_bytes(content)
    assert newest_valid(run, "latest") == run / "step-00000020"
    (run / "best").write_bytes(content)
    save(run, 30)
    assert newest_valid(run, "best") == run / "step-00000030"


def test_without_a_best_one_the_newest_is_taken(run: Path) -> None:
    assert newest_valid(run, "best") == run / "step-00000020"
    write_pointer(run, "best", run / "step-00000010")
    assert newest_valid(run, "best") == run / "step-00000010"


def test_parts_that_do_not_fit_together_are_an_error(run: Path) -> None:
    other = save(new_run(run.parent, "other"), 20, GPT(ModelConfig(vocab_size=9, n_embd=12)))
    shutil.copy(other / "model.safetensors", run / "step-00000020")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: does not fit its state\.json"):
        load_checkpoint(run / "step-00000020", CPU)


def test_another_format_is_refused(run: Path) -> None:
    state = run / "step-00000020" / "state.json"
    write_json(state, json.loads(state.read_bytes()) | {"format": 2})
    with pytest.raises(CheckpointError, match=r"state\.json: not of format 1"):
        load_checkpoint(run / "step-00000020", CPU)


def test_old_checkpoints_go_and_the_best_stays(run: Path) -> None:
    write_pointer(run, "best", run / "step-00000010")
    for step in (30, 40, 50):
        save(run, step)
    assert names(run) == ["step-00000010", "step-00000040", "step-00000050"]
    write_pointer(run, "best", run / "step-00000050")
    save(run, 60)
    assert names(run) == ["step-00000050", "step-00000060"]


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_so_many_of_the_last_are_kept_and_the_last_good_one(run: Path, keep: int) -> None:
    for step in range(30, 90, 10):
        save(run, step, keep=keep, good_step=20)
    last = [f"step-{step:08d}" for step in range(90 - 10 * keep, 90, 10)]
    assert names(run) == ["step-00000020", *last]
    save(run, 90, keep=keep, good_step=89)
    assert names(run) == [*last[1:], "step-00000090"]


def test_stepping_back_deletes_what_came_after(run: Path) -> None:
    save(run, 30)
    write_pointer(run, "best", run / "step-00000030")
    assert newest_valid(run, "latest", last_step=29) == run / "step-00000020"
    rollback_to(run, run / "step-00000020")
    assert names(run) == ["step-00000020"]
    assert newest_valid(run, "latest") == run / "step-00000020"
    assert read_pointer(run, "best") is None  # it was deleted
    assert checkpoints(run, last_step=19) == []
    rollback_to(run, None)
    assert names(run) == []
    assert read_pointer(run, "latest") is None


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
    path.write_bytes(os.urandom(1 << 20))
    fsync_file(path)
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


def test_a_checkpoint_saved_after_stepping_back_is_kept(run: Path) -> None:
    write_pointer(run, "best", run / "step-00000010")
    for step in (30, 40):
        save(run, step)
        empty(run / f"step-{step:08d}" / "state.json")
    assert newest_valid(run, "latest") == run / "step-00000010"
    save(run, 15)
    assert newest_valid(run, "latest") == run / "step-00000015"
    assert names(run) == ["step-00000010", "step-00000015"]


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    made = [new_run(tmp_path / "runs", "quern") for _ in range(3)]
    assert [folder.name for folder in made] == ["quern", "quern-2", "quern-3"]


def test_a_runs_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file", encoding="utf-8")
    with pytest.raises(CheckpointError, match="runs/quern: cannot be made"):
        new_run(tmp_path / "runs", "quern")


def test_the_run_that_was_last_saved_to_is_the_newest(run: Path) -> None:
    other = new_run(run.parent, "a-later-one")
    write_json(other / "config.json", {"format": 1})
    assert find_run(run.parent, None) == run  # the other has no checkpoint yet
    save(other, 10)
    assert find_run(run.parent, None) == other
    save(run, 30)
    assert find_run(run.parent, None) == run


def test_a_run_that_is_not_there_is_named_beside_those_that_are(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"runs/tinny: no such run. Runs in .*runs: tiny\."):
        find_run(run.parent, "tinny")
    with pytest.raises(CheckpointError, match=r"no run with a checkpoint in it\. Train one first"):
        find_run(run.parent / "nowhere", None)


def test_a_metrics_line_cut_short_is_left_out(run: Path) -> None:
    assert read_metrics(run) == []
    (run / "metrics.jsonl").write_text(
        '{"step": 10, "val_loss": 2.5}\n{"step": 20}\n{"ste', encoding="utf-8"
    )
    assert read_metrics(run) == [{"step": 10, "val_loss": 2.5}, {"step": 20}]
    assert val_loss_at(run, 10) == 2.5
    assert val_loss_at(run, 20) is None


def test_a_run_is_finished_where_its_last_line_says_so(run: Path) -> None:
    assert stop_reason(run) is None
    (run / "metrics.jsonl").write_text('{"step": 1, "ended": "why"}\n', encoding="utf-8")
    assert stop_reason(run) == stop_reason(run, 1) == "why"
    assert stop_reason(run, 2) is None  # it was made again from an earlier checkpoint
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2}\n')
    assert stop_reason(run) is None


def test_damaged_metrics_are_an_error_that_names_the_line(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 10}\n{"st\n{"step": 20}\n', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2"):
        read_metrics(run)


def test_no_pickle_is_written_or_read() -> None:
    stages = [REPOSITORY / name for name in ("common", "prepare", "train", "sample")]
    sources = [path for stage in stages for path in stage.rglob("*.py")]
    assert len(sources) > 30
    for path in sources:
        code = re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"\bpickle\b|torch\.(load|save)\b|\bmarshal\b|\bshelve\b", code), path


# Saves step 10 in peace; then for N = 1, 2, ... a child saves step 20 and is killed at the Nth call
# of one that makes something last: flush, rename, delete.
KILLED_WHILE_SAVING = """
import os, pathlib, shutil, signal, sys
from tests.common import test_checkpoint as t

runs = pathlib.Path(sys.argv[1])
calls = {"fsync": os.fsync, "rename": os.rename, "replace": os.replace, "rmtree": shutil.rmtree}

def deadly(name, left):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return calls[name](*arguments, **options)
    return call

for n in range(1, 100):
    run = t.new_run(runs, f"killed-at-{n:02d}")
    for step in (1, 5, 10):
        t.save(run, step)
    child = os.fork()
    if child == 0:
        left = [n]
        for name in calls:
            setattr(shutil if name == "rmtree" else os, name, deadly(name, left))
        t.save(run, 20)
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
        "import resource, sys, pathlib; from tests.common.test_checkpoint import save\n"
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
from tests.common import test_checkpoint as t
run = t.new_run(disk, "tiny")
for step in range(10, 100, 10):
    try:
        t.save(run, step)
    except t.CheckpointError as error:
        print(step, t.newest_valid(run, "latest").name, list(run.glob("*.tmp")), error.message)
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
