"""A conversation on disk: a file that holds one whole, and one to which each turn is added.

/save        JSON: {"format": 1, "run": ..., "messages": [{"role": "user", "content": ...}, ...]}
--transcript JSON lines: a message each, added when its turn is over, and what was taken back
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import ConfigError, DataError
from common.files import write_all, write_json
from sample.text.template import ROLES, Message, well_formed

FORMAT_VERSION = 1
MOST_BYTES = 1 << 26  # months of typing


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as JSON; only an answer that was cut short says so."""
    stopped = {"stopped": True} if message.stopped else {}
    return {"role": message.role, "content": message.content} | stopped


def save_conversation(path: Path, messages: list[Message], run: str) -> None:
    """Write a conversation, whole or not at all.

    Raises: DataError when it cannot be written.
    """
    value = {
        "format": FORMAT_VERSION, "run": run, "messages": [as_json(each) for each in messages]
    }  # fmt: skip
    try:
        if os.path.lexists(unfinished := f"{path}.tmp"):
            raise OSError(None, f"{unfinished} is in the way: move it, or name another file")
        write_json(path, value)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(f"{path}: cannot be written ({_reason(error)}).") from error


def load_conversation(path: Path) -> list[Message]:
    """Read what save_conversation wrote.

    Raises: DataError that says what is wrong with the file.
    """
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= MOST_BYTES):
            raise OSError(None, "it is no file, or too large to be a conversation")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}).") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT_VERSION:
        raise DataError(f"{path}: not a conversation that /save wrote, of format {FORMAT_VERSION}.")
    found = value.get("messages")
    if not isinstance(found, list):
        raise DataError(f'{path}: lacks "messages", a list.')
    messages = [_message(path, number, each) for number, each in enumerate(found, start=1)]
    _check_order(path, messages)
    return messages


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _message(path: Path, number: int, value: Any) -> Message:
    if (
        isinstance(value, dict)
        and value.get("role") in ROLES
        and isinstance(value.get("content"), str)
    ):
        content = well_formed(value["content"])
        return Message(value["role"], content, value.get("stopped") is True)
    raise DataError(
        f"{path}, message {number}: must be an object with a role, one of {', '.join(ROLES)}, and "
        "a content that is a text."
    )


def _check_order(path: Path, messages: list[Message]) -> None:
    roles = [message.role for message in messages]
    n_system = int(roles[:1] == ["system"])
    turns = roles[n_system:]
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise DataError(
            f"{path}: its messages must be a system text, if there is one, and then by turns of "
            "user and assistant."
        )


class Transcript:
    """A file to which a conversation is added while it goes on."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        """Open it; raise ConfigError when it cannot be. What fails later goes to ``say``."""
        self.path = path
        self.say = say
        try:
            self._file = path.open("a+b", buffering=0)  # nothing that a kill could lose
            self._end_line()
        except OSError as error:
            raise ConfigError(
                f"--transcript {path}: cannot be written ({error.strerror})."
            ) from error

    def _end_line(self) -> None:
        if self._file.seekable() and self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":  # cut off: what is added gets a line of its own
                self._file.write(b"\n")

    def add(self, turn: list[Message]) -> None:
        """Add the messages of a turn."""
        self._write([as_json(message) for message in turn])

    def note(self, command: str) -> None:
        """Add a command that changed the conversation, as {"command": ...}."""
        self._write([{"command": well_formed(command)}])

    def _write(self, records: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records)
        try:
            write_all(self._file, lines.encode("utf-8"))
        except OSError as error:
            self.say(f"{self.path}: this turn cannot be added to it ({error.strerror}).")
