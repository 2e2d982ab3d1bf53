"""Conversations on disk: JSON lines, a message each, for /save, /load and --transcript.

{"role": "user", "content": "Hello"}
{"role": "assistant", "content": "Hel", "stopped": true}
{"kept": 0}             as after /undo: of the messages above only the first so many still count

A turn is flushed to disk when it ends. What a full disk or a power cut left of one does not count:
it is the end of the file, or {"kept": 0} follows.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from common.chat_format import ROLES
from common.errors import ConfigError, DataError
from common.files import flush_to_disk, fsync, write_all, write_text
from sample.text.prompt import Message

BEGIN = b'{"kept": 0}\n'


def as_lines(messages: Sequence[Message]) -> str:
    """Return messages as JSON lines; only an answer that was cut short says so."""
    records = ({k: v for k, v in vars(each).items() if v is not False} for each in messages)
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def save_conversation(path: Path, messages: Sequence[Message]) -> None:
    """Write a conversation, whole or not at all; raise DataError when it cannot be written."""
    try:
        if os.path.lexists(unfinished := f"{path}.tmp"):
            raise OSError(None, f"{unfinished} is in the way: move it, or name another file")
        write_text(path, as_lines(messages))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DataError(
            f"{path}: cannot be written ({getattr(error, 'strerror', error)})."
        ) from error


def load_conversation(path: Path) -> list[Message]:
    """Read what save_conversation or a Transcript wrote; raise DataError where it is damaged."""
    try:
        if path.exists() and not path.is_file():  # /dev/zero has no end
            raise OSError(None, "it is no file")
        lines = path.read_bytes().splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}).") from error
    messages: list[Message] = []
    begins = [0, *(number for number, line in enumerate(lines) if line + b"\n" == BEGIN)][-1]
    for number, line in enumerate(lines[begins:], start=begins + 1):
        if messages and b"\0" in line:  # a power cut leaves zeros of what was not flushed
            break
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        match record:
            case {"kept": int(n_kept)}:
                del messages[n_kept:]
            case {"role": "system" | "user" | "assistant" as role, "content": str(content)}:
                messages.append(Message(role, content, record.get("stopped") is True))
            case None if messages and number == len(lines):
                pass  # cut short
            case _:
                raise DataError(
                    f"{path}, line {number}: must be a JSON object with a role, one of "
                    f"{', '.join(ROLES)}, and a content that is a text."
                )
    if len(messages) > 1 and messages[-1].role == "user":  # its answer was cut off
        messages.pop()
    roles = [message.role for message in messages]
    turns = roles[roles[:1] == ["system"] :]
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise DataError(
            f"{path}: its messages must be a system text, if there is one, and then by turns of "
            "user and assistant."
        )
    return messages


class Transcript:
    """A file to which a conversation is added while it goes on."""

    def __init__(self, path: Path, notify: Callable[[str], None]) -> None:
        """Open it; raise ConfigError when it cannot be. What fails later goes to ``notify``."""
        self._path, self._notify = path, notify
        self._written: Sequence[Message] | None = []  # those of them that count; None: not known
        try:
            self._file = path.open("a+b", buffering=0)  # nothing that a kill could lose
            self._begin()
            fsync(path.parent)
        except OSError as error:
            raise ConfigError(
                f"--transcript {path}: cannot be written ({error.strerror})."
            ) from error

    def _begin(self) -> None:
        """Begin another conversation, on a line of its own also where one was cut off."""
        if self._file.seekable() and self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")
            self._file.write(BEGIN)

    def update(self, messages: Sequence[Message]) -> None:
        """Add what is new in a conversation, and how much of what is there stays."""
        try:
            if self._written is None:
                self._begin()
            written = self._written or []
            same = [old == new for old, new in zip(written, messages, strict=False)]
            n_kept = [*same, False].index(False)
            lines = "" if n_kept == len(written) else f'{{"kept": {n_kept}}}\n'
            write_all(self._file, (lines + as_lines(messages[n_kept:])).encode("utf-8"))
            if self._path.is_file():  # neither a pipe nor a device can be flushed
                flush_to_disk(self._file)
        except OSError as error:
            self._written = None
            self._notify(f"{self._path}: this turn cannot be added to it ({error.strerror}).")
        else:
            self._written = list(messages)
