"""What is done to a folder, what opens in it afterwards, and how a person would go on.

The oracle of every job: what opens is the newest state, or an earlier one where the newer was not
yet promised: the command had not ended, or not yet named it the latest.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import common.run_dir
import train.setup.autotune
from common.checkpoint import load_checkpoint, newest_valid
from common.dataset import open_data, verify_data
from common.device import choose_device
from common.errors import CheckpointError, DataError
from prepare.config import PrepareConfig
from prepare.pipeline import work_folder
from sample.chat.transcript import Transcript, load_conversation, save_conversation
from sample.text.prompt import Message
from tests.prepare.making import prepare, snapshot
from tests.tiny import words
from tests.train.runs import final_bytes, pretrain
from train.pretrain import resume_run
from train.signals import StopRequest

CPU = choose_device("cpu").torch_device
NOTHING = "nothing"  # was there, and a sentence says so


Promise = Callable[[Any], None]  # called with what may be lost from then on no more
Write = Callable[[list[Message]], None]  # a conversation, of which some may be there already


@dataclass(frozen=True)
class Job:
    """Something that changes a folder: ``make`` it, see what ``opens``, and go on with it."""

    name: str
    labels: list[Any]  # what may open, the oldest first
    make: Callable[[Path, Promise], object]
    opens: Callable[[Path], Any]
    goes_on: Callable[[Path], bool]  # whether it then ends as if nothing had happened
    before: Callable[[Path], object] = Path.exists  # makes what is there


def quiet() -> None:
    """Leave out what the stages log, and trial steps that measure: not what is tested."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)  # as tests/conftest.py has it
    train.setup.autotune.MEASURE_S = 0.0


def sources(place: Path) -> tuple[Path, Path]:
    """Return two texts of equal size, so that files of the one fit the meta.json of the other."""
    old, new = place / "old.txt", place / "new.txt"
    if not old.exists():
        text = words(300)
        old.write_text(text, encoding="utf-8")
        new.write_text(text[::-1], encoding="utf-8")
    return old, new


def prepare_job(place: Path, *, over_old: bool) -> Job:
    """Return the job that makes disk/data, in place of another data set or anew."""
    old_source, new_source = sources(place)
    old = prepare([old_source], place / f"expected-old-{over_old}").sha256
    learned = PrepareConfig(tokenizer="bpe", vocab_size="300", dedup="exact")
    config = None if over_old else learned
    expected = prepare([new_source], place / f"expected-new-{over_old}", config=config)
    labels = {old: "old", expected.sha256: "new"}
    whole = snapshot(expected.path)

    def make(root: Path, promise: Promise) -> None:
        prepare([new_source], root / "data", config=config)
        promise("new")

    def label(root: Path) -> str:
        data = open_data(root / "data")
        verify_data(data)
        return labels[data.sha256]

    def opens(root: Path) -> Any:
        try:
            return label(root)
        except DataError as error:
            said = error.message
        if "prepare" not in said.lower():
            raise ValueError(f"does not say what to do: {said}")
        with suppress(KeyboardInterrupt), work_folder(root / "data"):
            raise KeyboardInterrupt  # any next prepare, even one that is stopped at once
        try:
            return label(root)
        except DataError:
            return NOTHING

    def goes_on(root: Path) -> bool:
        prepare([new_source], root / "data", config=config)
        return snapshot(root / "data") == whole

    if not over_old:
        return Job("prepare", [NOTHING, "new"], make, opens, goes_on)
    return Job(
        "prepare over a data set", ["old", "new"], make, opens, goes_on,
        lambda root: prepare([old_source], root / "data"),
    )  # fmt: skip


def train_job(place: Path) -> Job:
    """Return the job that trains for six saves, of which two are kept."""
    data = prepare([sources(place)[0]], place / "train-data").path
    unstopped: list[tuple[bytes, bytes, bytes]] = []

    def make(root: Path, promise: Promise) -> None:
        write_pointer = common.run_dir.write_pointer

        def promising(run: Path, pointer: Any, folder: Path) -> None:
            write_pointer(run, pointer, folder)
            if pointer == "latest":
                promise(int(folder.name.removeprefix("step-")))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(common.run_dir, "write_pointer", promising)
            unstopped.append(final_bytes(pretrain(data, root, save_interval=2)))

    def opens(root: Path) -> Any:
        run = root / "runs" / "tiny"
        try:
            folders = [newest_valid(run, pointer) for pointer in ("best", "latest")]
            assert all(load_checkpoint(folder, CPU).state for folder in folders)
        except CheckpointError:
            return NOTHING
        common.run_dir.read_json(run / "config.json")
        common.run_dir.read_metrics(run)
        return int(folders[1].name.removeprefix("step-"))

    def goes_on(root: Path) -> bool:
        run = root / "runs" / "tiny"
        with suppress(CheckpointError):
            newest_valid(run, "latest")
            assert resume_run(run, "cpu", StopRequest()) is None
            return bool(final_bytes(run) == unstopped[0])
        return True  # nothing was saved yet

    return Job("train", [NOTHING, 2, 4, 6, 8, 10, 12], make, opens, goes_on)


def messages(n: int) -> list[Message]:
    """Return a conversation of ``n`` turns."""
    turns = ((Message("user", f"Frage {i}?"), Message("assistant", "\u00fc" * i)) for i in range(n))
    return [message for turn in turns for message in turn]


def add_turns(path: Path, said: Callable[[str], None]) -> Write:
    """Return what adds turns to a transcript."""
    return Transcript(path, said).update


def save(path: Path, said: Callable[[str], None]) -> Write:
    """Return what saves a conversation."""
    return partial(save_conversation, path)


def chat_job(name: str, begin: Callable[[Path, Callable[[str], None]], Write]) -> Job:
    """Return the job that writes a conversation again and again, as it goes on and back."""
    states = [messages(n) for n in (0, 1, 2, 3, 2)]
    states.append([*messages(2), Message("user", "Also?"), Message("assistant", "So")])

    def make(root: Path, promise: Promise) -> None:
        write = begin(root / "talk.jsonl", pytest.fail)
        for i, state in enumerate(states[1:], 1):
            write(state)
            promise(i)

    def opens(root: Path) -> Any:
        try:
            found = load_conversation(root / "talk.jsonl")
        except DataError:
            return NOTHING
        return [i for i, state in enumerate(states) if state == found][-1]

    def goes_on(root: Path) -> bool:
        for left in root.glob("*.tmp"):  # as the sentence asks
            left.unlink()
        begin(root / "talk.jsonl", pytest.fail)(messages(7))
        return load_conversation(root / "talk.jsonl") == messages(7)

    return Job(name, [NOTHING, *range(len(states))], make, opens, goes_on)
