"""Calls that change what is on disk, seen from outside the code that makes them.

Within ``watched`` each such call below a folder goes through a Watch, which may record it, refuse
it, or end the process. What native code writes (the weights, by safetensors) is one call.
"""

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

import common.checkpoint

Action = Callable[[], Any]
# of os
OF_ONE_PATH = ("mkdir", "rmdir", "unlink", "remove", "truncate")
OF_TWO_PATHS = ("symlink", "rename", "replace")  # the second is what is changed
OF_DESCRIPTORS = ("fsync", "ftruncate")
TAKE_SPACE = {"open", "write", "mkdir", "save_file"}


@dataclass(frozen=True)
class Row:
    """A line of the table: cases of one kind, and a sentence for each that went wrong."""

    what: str
    n_cases: int
    detail: str
    wrong: list[str]


class Watch:
    """What happens at each call: here, only the call itself."""

    def call(self, name: str, path: str, action: Action) -> Any:
        """Make the call ``name`` that changes ``path``; return what it returns."""
        return action()

    def write(self, path: str, action: Callable[[int], Any], n_bytes: int) -> Any:
        """Make a call that writes ``n_bytes``, or, given another number, fewer."""
        return self.call("write", path, lambda: action(n_bytes))


class Failing(Watch):
    """Refuses the call at ``at``, counted from 0, and for ENOSPC all later ones that take space.

    With ``n_refused`` only so many: then there is room again.
    """

    def __init__(self, at: int, number: int, n_refused: int | None = None) -> None:
        self.at, self.errno, self.n_calls, self.path = at, number, 0, ""
        self.n_left = n_refused or (1 if number == errno.EIO else 1 << 30)

    def _refuses(self, name: str, path: str) -> bool:
        number, self.n_calls = self.n_calls, self.n_calls + 1
        if number < self.at or self.n_left == 0 or (number > self.at and name not in TAKE_SPACE):
            return False
        self.n_left -= 1
        self.path = self.path or f"{name} {path}"
        return True

    def call(self, name: str, path: str, action: Action) -> Any:
        """Make the call, or raise OSError."""
        if self._refuses(name, path):
            raise OSError(self.errno, os.strerror(self.errno), path)
        return action()

    def write(self, path: str, action: Callable[[int], Any], n_bytes: int) -> Any:
        """Write half of it where the call is refused: what is left meets a full disk."""
        if self._refuses("write", path):
            if n_bytes > 1 and self.errno == errno.ENOSPC:
                action(n_bytes // 2)
            raise OSError(self.errno, os.strerror(self.errno))
        return action(n_bytes)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


@contextmanager
def watched(root: Path, watch: Watch) -> Iterator[None]:
    """Let ``watch`` see all calls that change what is below ``root``."""
    below = str(root.resolve())

    def is_below(path: str) -> bool:
        return path == below or path.startswith(below + os.sep)

    def absolute(path: Any, folder: int | None = None) -> str:
        parent = os.getcwd() if folder is None else _path_of(folder)
        return os.path.join(parent, os.fsdecode(path))

    def seen(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **options: Any) -> Any:
            changed = values[name in OF_TWO_PATHS]
            is_open = name in OF_DESCRIPTORS
            path = _path_of(changed) if is_open else absolute(changed, options.get("dir_fd"))
            if not is_below(path):
                return real(*values, **options)
            return watch.call(name, path, lambda: real(*values, **options))

        return call

    class WatchedFile(io.FileIO):
        def write(self, content: Any) -> int:
            whole = memoryview(content).cast("B")
            path = _path_of(self.fileno())
            return int(watch.write(path, lambda n: super(WatchedFile, self).write(whole[:n]),
                                   len(whole)))  # fmt: skip

        def truncate(self, size: int | None = None) -> int:
            call = super().truncate
            path = _path_of(self.fileno())
            return int(watch.call("ftruncate", path, lambda: call(size)))

    real_open, real_save = io.open, safetensors.torch.save_file

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+") or isinstance(file, int) or not is_below(absolute(file)):
            return real_open(file, mode, buffering, *rest, **options)
        plain = mode.replace("b", "").replace("t", "")
        raw = watch.call("open", absolute(file), lambda: WatchedFile(os.fspath(file), plain))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **options)

    def save_file(tensors: Any, path: Path) -> None:
        try:
            watch.call("save_file", str(path), lambda: real_save(tensors, path))
        except OSError as error:
            with io.FileIO(path, "w") as file:
                file.write(b"as far as it came")
            said = f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
            raise SafetensorError(said) from None

    names = (*OF_ONE_PATH, *OF_TWO_PATHS, *OF_DESCRIPTORS)
    new = {name: seen(name, getattr(os, name)) for name in names}
    with ExitStack() as stack:
        for owner, name, value in [
            *((os, name, value) for name, value in new.items()),
            (io, "open", opened), (common.checkpoint, "save_file", save_file),
        ]:  # fmt: skip
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield
