"""What make does again and what it leaves: the real Makefile, the stages replaced by a fake.

The fake Python notes the command it was given and makes the one file by which make knows it ran.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAKE_PYTHON = """#!/bin/sh
echo "$2 $3" >> commands
case "$2 $3" in
    "prepare corpus") mkdir -p corpus && echo text > corpus/a.txt && echo {} > "$6" ;;
    "prepare text") mkdir -p data && echo {} > data/meta.json && exit ${FAKE_PREPARE:-0} ;;
    "prepare index") echo {} > $4/train.sa.json ;;
    "prepare chats") mkdir -p chats && echo {} > chats/meta.json ;;
    "train pretrain") mkdir -p runs/quern && touch runs/quern/latest && exit ${FAKE_TRAIN:-0} ;;
    "train finetune") [ "$5" = quern ] && mkdir -p runs/$5-chat && touch runs/$5-chat/latest ;;
esac
"""
# Settings, and those of a make that runs these tests, would come through the environment.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name
    not in ("SRC", "DATASET", "TOKENIZER", "CHATS", "PRESET", "MINUTES", "CHAT_MINUTES", "RUN")
    and not name.startswith("MAKE")
}
Make = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that runs make and returns its exit code and the commands it started."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON, encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / ".venv" / "ready").touch()

    def run(*arguments: str, **environment: str) -> tuple[int, list[str]]:
        commands = tmp_path / "commands"
        commands.write_text("", encoding="utf-8")
        ended = subprocess.run(
            ["make", *arguments], cwd=tmp_path, env=ENVIRONMENT | environment, check=False,
            capture_output=True,
        )  # fmt: skip
        return ended.returncode, commands.read_text(encoding="utf-8").splitlines()

    return run


CORPUS, TEXT, INDEX, TRAIN = "prepare corpus", "prepare text", "prepare index", "train pretrain"
CHATS, TUNE, CHAT = "prepare chats", "train finetune", "sample chat"
ALL = [CORPUS, TEXT, INDEX, TRAIN, CHATS, INDEX, TUNE, CHAT]


def test_chat_does_everything_once(make: Make) -> None:
    assert make("chat") == (0, ALL)
    assert make("chat") == (0, [CHAT])
    for target in ("data", "train", "finetune"):
        assert make(target) == (0, [])


def test_runs_that_were_deleted_are_trained_again(make: Make, tmp_path: Path) -> None:
    make("chat")
    shutil.rmtree(tmp_path / "runs" / "quern-chat")
    assert make("chat") == (0, [TUNE, CHAT])
    shutil.rmtree(tmp_path / "runs")
    assert make("chat") == (0, [TRAIN, CHATS, INDEX, TUNE, CHAT])
    assert make("chat") == (0, [CHAT])


def test_a_changed_source_is_ground_and_trained_again(make: Make, tmp_path: Path) -> None:
    make("chat")
    (tmp_path / "corpus" / "b.txt").write_text("more", encoding="utf-8")
    assert make("chat") == (0, ALL[1:])
    (tmp_path / "questions.jsonl.zst").write_text("other questions", encoding="utf-8")
    assert make("chat") == (0, [CHATS, INDEX, TUNE, CHAT])


@pytest.mark.parametrize(
    ("setting", "done_again"),
    [
        ("MINUTES=4", [TRAIN, CHATS, INDEX, TUNE, CHAT]),
        ("PRESET=small", [TRAIN, CHATS, INDEX, TUNE, CHAT]),
        ("TOKENIZER=char", ALL[1:]),
        ("CHAT_MINUTES=1", [TUNE, CHAT]),
    ],
)
def test_a_changed_setting_makes_stale_what_depends_on_it(
    make: Make, setting: str, done_again: list[str]
) -> None:
    make("chat")
    assert make("chat", setting) == (0, done_again)
    assert make("chat", setting) == (0, [CHAT])


def test_a_training_that_was_stopped_is_taken_up_again(make: Make) -> None:
    code, commands = make("chat", FAKE_TRAIN="130")
    assert code != 0
    assert commands == [CORPUS, TEXT, INDEX, TRAIN]
    assert make("chat") == (0, [TRAIN, CHATS, INDEX, TUNE, CHAT])


def test_data_with_something_left_out_is_used_and_failed_data_is_not(make: Make) -> None:
    assert make("chat", FAKE_PREPARE="3") == (0, ALL)
    code, commands = make("chat", "TOKENIZER=char", FAKE_PREPARE="1")
    assert code != 0
    assert commands == [TEXT]


def test_other_texts_have_no_conversations_but_those_that_are_named(
    make: Make, tmp_path: Path
) -> None:
    assert make("chat", "DATASET=somebody/stories") == (0, [TEXT, INDEX, TRAIN, CHAT])
    (tmp_path / "notes.txt").write_text("notes", encoding="utf-8")
    assert make("chat", "SRC=notes.txt") == (0, [TEXT, INDEX, TRAIN, CHAT])
    (tmp_path / "my.jsonl").write_text("{}", encoding="utf-8")
    own = ("SRC=notes.txt", "CHATS=my.jsonl")
    assert make("chat", *own) == (0, [CHATS, INDEX, TUNE, CHAT])
    assert make("chat", *own) == (0, [CHAT])
    (tmp_path / "my.jsonl").write_text("{} {}", encoding="utf-8")
    assert make("chat", *own) == (0, [CHATS, INDEX, TUNE, CHAT])


def test_help_is_the_default_and_names_every_target_of_the_agreement() -> None:
    listed = subprocess.run(
        ["make"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout
    promised = "help setup data train chat test check bench clean"
    assert {line.split()[0] for line in listed.splitlines() if line} >= set(promised.split())
