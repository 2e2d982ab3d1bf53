"""A run's folder: found, locked, never overwritten, and which of its checkpoints stay."""

import os
import shutil
from pathlib import Path

import pytest

from common.checkpoint import newest_valid, verify_checkpoint
from common.errors import CheckpointError
from common.files import write_json
from common.run_dir import (
    checkpoints,
    find_run,
    lock_run,
    new_run,
    read_metrics,
    read_pointer,
    rollback_to,
    stop_reason,
    write_pointer,
)
from tests.common.saved import empty, names, save


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


def test_a_run_is_locked_by_one_process_at_a_time(run: Path) -> None:
    descriptor = lock_run(run)
    with pytest.raises(CheckpointError, match=f"^{run}: another process trains this run"):
        lock_run(run)
    os.close(descriptor)
    os.close(lock_run(run))


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


def test_rolling_back_deletes_what_came_after(run: Path) -> None:
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


def test_a_checkpoint_saved_after_rolling_back_is_kept(run: Path) -> None:
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
    write_json(run / "config.json", {"format": 1, "imported_from": "elsewhere"})
    assert find_run(run.parent, None, imported=False) == other
    write_json(run / "config.json", {"format": 1, "imported_from": "elsewhere", "data": {}})
    assert find_run(run.parent, None, imported=False) == run  # it has learned since


def test_a_copy_is_not_newer_than_the_run_that_it_was_made_of(run: Path) -> None:
    other = new_run(run.parent, "later")
    write_json(other / "config.json", {"format": 1})
    save(other, 10)
    copies = [
        Path(shutil.copytree(of, run.parent / f"{of.name}-backup", copy_function=shutil.copyfile))
        for of in (run, other)
    ]
    assert find_run(run.parent, None) == other  # a second copy of the first is no newer either
    save(copies[0], 30)  # it is trained on
    assert find_run(run.parent, None) == copies[0]
    # what an older version saved says nothing of when
    state = copies[1] / "step-00000010" / "state.json"
    write_json(state, {"format": 1})
    (copies[1] / "latest").touch()
    assert find_run(run.parent, None) == copies[1]


def test_a_run_that_is_not_there_is_named_beside_those_that_are(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"runs/tinny: no such run. Runs in .*runs: tiny\."):
        find_run(run.parent, "tinny")


def test_a_run_is_found_by_its_folder_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(run / "config.json", {"format": 1})
    monkeypatch.chdir(run.parent.parent)
    for name in ("tiny", "runs/tiny", "runs/tiny/"):
        assert find_run(Path("runs"), name) == Path("runs/tiny")
    with pytest.raises(CheckpointError, match=r"runs/tinny: no such run"):
        find_run(Path("runs"), "runs/tinny")
    with pytest.raises(CheckpointError, match=r"no run with a checkpoint in it\. Train one first"):
        find_run(run.parent / "nowhere", None)


def test_without_a_best_one_the_newest_is_taken(run: Path) -> None:
    assert newest_valid(run, "best") == run / "step-00000020"
    write_pointer(run, "best", run / "step-00000010")
    assert newest_valid(run, "best") == run / "step-00000010"


@pytest.mark.parametrize("content", [b"", b"step-00000099\n", b"\xf3tep-00000020\n", b"\x00\n"])
def test_a_damaged_pointer_leads_to_the_newest_checkpoint(run: Path, content: bytes) -> None:
    (run / "latest").write_bytes(content)
    assert newest_valid(run, "latest") == run / "step-00000020"
    (run / "best").write_bytes(content)
    save(run, 30)
    assert newest_valid(run, "best") == run / "step-00000030"


def test_what_is_left_of_a_killed_save_of_the_same_step_stops_no_pruning(run: Path) -> None:
    shutil.copytree(run / "step-00000010", run / "step-00000010.tmp")
    for step in (30, 40):
        save(run, step)
    assert names(run) == ["step-00000030", "step-00000040"]
    assert not list(run.glob("*.tmp"))


def test_a_metrics_line_cut_short_is_left_out(run: Path) -> None:
    assert read_metrics(run) == []
    (run / "metrics.jsonl").write_text(
        '{"step": 10, "val_loss": 2.5}\n{"step": 20}\n{"ste', encoding="utf-8"
    )
    assert read_metrics(run) == [{"step": 10, "val_loss": 2.5}, {"step": 20}]


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
