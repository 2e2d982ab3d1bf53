"""A full disk, or one that fails, at each call in turn that changes what is on it.

The command ends with 1 and a sentence, nothing half made is under a final name, and the same
command ends as it would have once there is room.
"""

import errno
import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common import files
from common.checkpoint import newest_valid, verify_checkpoint
from common.dataset import open_data, verify_data
from common.errors import UserError
from sample.chat.transcript import load_conversation
from tests.faults.calls import Failing, Row, watched
from tests.faults.commands import Ended, prepare_command, run, train_command, trained_bytes
from tests.faults.jobs import add_turns, messages, save, sources
from tests.prepare.making import prepare, snapshot

# the error, and how many calls meet it; then there is room
FAULTS = {
    "ENOSPC": (errno.ENOSPC, None),
    "ENOSPC, then room": (errno.ENOSPC, 2),
    "EIO": (errno.EIO, None),
}


def complaints(ended: Ended) -> Iterator[str]:
    """Yield what is wrong with how a command ended whose disk failed."""
    if ended.code != 1:
        yield f"exit code {ended.code}"
    *others, last = ended.stderr.splitlines() or [""]
    if not last.startswith("Error: ") or any("Error" in line for line in others):
        yield f"not one sentence: {ended.stderr}"
    if "data" not in last and "runs" not in last:
        yield f"does not say where: {last}"


def at_each_call(
    what: str,
    command: list[str],
    make: Callable[[Path], None],
    is_whole: Callable[[Path], bool],
    outcome: Callable[[Path], object],
    place: Path,
    every: int,
) -> Iterator[Row]:
    """Run a command with a fault at each call, or each ``every``th, and then without."""
    root = place / "disk"
    root.mkdir()
    make(root)
    ended = run(root, command)
    assert ended.code == 0, ended.stderr
    expected = outcome(root)
    for name, (number, n_refused) in FAULTS.items():
        wrong: list[str] = []
        n, at, n_well = 0, 0, 0
        while True:
            shutil.rmtree(root)
            root.mkdir()
            make(root)
            ended = run(root, command, Failing(at, number, n_refused), shorten_waits)
            if not ended.met:
                break
            n += 1
            found = [] if is_whole(root) else ["what is there is not whole"]
            if ended.code == 0:
                n_well += 1
                found += [] if "trying again" in ended.stderr else ["nothing is said"]
            else:
                found += complaints(ended)
                again = run(root, command)
                found += [] if again.code == 0 else [f"does not go on: {again.stderr[-900:]}"]
            found += [] if outcome(root) == expected else ["ends otherwise"]
            wrong += [f"{name} at {at}, {ended.met}: {each}" for each in found]
            at += every
        yield Row(f"{name}: {what}", n, f"{n_well} went on by themselves", wrong)
    shutil.rmtree(root)


def shorten_waits() -> None:
    """Try again at once where a full disk is met."""
    files.WAITS_S = (0.0, 0.0, 0.0)


def of_prepare(place: Path, every: int) -> Iterator[Row]:
    """Fail while a data set is replaced."""
    old = sources(place)[0]

    def is_whole(root: Path) -> bool:
        verify_data(open_data(root / "data"))
        return True

    return at_each_call(
        "prepare", prepare_command(place), lambda root: void(prepare([old], root / "data")),
        is_whole, lambda root: snapshot(root / "data"), place, every,
    )  # fmt: skip


def void(value: object) -> None:
    """Throw a value away."""


def of_train(place: Path, every: int) -> Iterator[Row]:
    """Fail while a run is trained."""
    data = prepare([sources(place)[0]], place / "data-to-train").path

    def is_whole(root: Path) -> bool:
        for pointer in root.glob("runs/*/latest"):
            newest_valid(pointer.parent, "latest")
        for folder in root.glob("runs/*/step-????????"):
            verify_checkpoint(folder)
        return True

    return at_each_call(
        "train", train_command(data), void, is_whole,
        lambda root: trained_bytes(root / "runs"), place, every,
    )  # fmt: skip


def of_chat(place: Path, every: int) -> Iterator[Row]:
    """Fail while turns are added to a transcript, or a conversation is saved."""
    for (name, (number, n_refused)), begin in itertools.product(FAULTS.items(), (add_turns, save)):
        wrong: list[str] = []
        for at in itertools.count(0, every):
            path = place / f"{name}-{begin.__name__}-{at}" / "talk.jsonl"
            path.parent.mkdir()
            said: list[str] = []
            watch = Failing(at, number, n_refused)
            with watched(path.parent, watch):
                write = None
                for n in (1, 2, 3):
                    if n == 3:
                        watch.n_left = 0  # there is room again
                    with told(said.append):
                        write = write or begin(path, said.append)
                        write(messages(n))
            if not watch.path:
                break
            if load_conversation(path) != messages(3):
                wrong.append(f"{watch.path}: does not go on")
            if not said or any(str(path) not in each for each in said):
                wrong.append(f"{watch.path}: said {said}")
        yield Row(f"{name}: {begin.__name__}", at // every, "each call", wrong)


@contextmanager
def told(say: Callable[[str], None]) -> Iterator[None]:
    """Have errors said, as a chat does."""
    try:
        yield
    except UserError as error:
        say(error.message)
