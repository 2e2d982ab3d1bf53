"""A terminal with a program in it: keys go in, and what a person would see can be asked for."""

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte

from tests.processes import environment

WAIT_S = 60  # for what takes at most two seconds where the machine is not busy

CTRL_C, CTRL_D, CTRL_R, TAB, ENTER, UP, ALT_ENTER, BACKSPACE = (
    "\x03", "\x04", "\x12", "\t", "\r", "\x1b[A", "\x1b\r", "\x7f",
)  # fmt: skip


class AnsweringScreen(pyte.HistoryScreen):
    """A screen that, like a terminal, tells the program where its cursor is when asked."""

    answer: Callable[[str], None]

    def write_process_input(self, data: str) -> None:
        self.answer(data)


class Terminal:
    """A program that believes to be in a terminal; a context manager that ends it."""

    def __init__(
        self, arguments: Sequence[str], folder: Path, *, width: int = 80, **variables: str
    ) -> None:
        self.screen = AnsweringScreen(width, 40, history=1000)
        self.screen.answer = self.keys
        self._stream = pyte.ByteStream(self.screen)
        self._ours, theirs = os.openpty()
        self._tell_size(width, signalled=False)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment() | {"TERM": "xterm-256color"} | variables,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
        )
        os.close(theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        self.hang_up()

    def hang_up(self) -> None:
        """Close the terminal, as a lost ssh connection does."""
        if self._ours >= 0:
            os.close(self._ours)
        self._ours = -1

    def keys(self, text: str) -> None:
        """Press keys. While the program does not wait for any, only text: Ctrl-D would be lost."""
        os.write(self._ours, text.encode("utf-8", "surrogateescape"))

    def resize(self, width: int) -> None:
        """Make the window as wide as this."""
        self.screen.resize(40, width)
        self._tell_size(width, signalled=True)

    def _tell_size(self, width: int, *, signalled: bool) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        if signalled:
            self.process.send_signal(signal.SIGWINCH)

    @property
    def text(self) -> str:
        """What is on the screen, and above it, without blanks at the ends of lines."""
        above = [
            "".join(line[x].data for x in range(self.screen.columns))
            for line in self.screen.history.top
        ]
        lines = [line.rstrip() for line in (*above, *self.screen.display)]
        return "\n".join(lines).rstrip()

    @property
    def last_line(self) -> str:
        """The line of the cursor, up to it."""
        return self.screen.display[self.screen.cursor.y][: self.screen.cursor.x]

    def see(self, *words: str) -> None:
        """Wait until all of ``words`` are there, whether or not a line ends among them, or fail."""

        def seen() -> bool:
            text = self.text
            on_one_line = " ".join(text.split())
            return all(word in text or word in on_one_line for word in words)

        self._wait(seen, words)

    def see_prompt(self, typed: str = "") -> None:
        """Wait until the program waits for keys, with ``typed`` in the line of the cursor."""
        self._wait(lambda: self.last_line == "> " + typed, ("the prompt", typed))

    def enter(self, text: str, end: str = ENTER) -> None:
        """Type a line and wait for the next prompt: what this one made of it is then all there."""
        n_prompts = self.text.count("\n>")
        self.keys(text + end)
        self._wait(
            lambda: self.text.count("\n>") > n_prompts and self.last_line == "> ", ("new prompt",)
        )

    def recall(self) -> None:
        """Bring back the line before: again until it comes, as the history is read meanwhile."""
        for _ in range(WAIT_S):
            self.keys(UP)
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                if self.last_line != "> ":
                    return
                self._read(0.05)

    def wait(self) -> int:
        """Return how the program ended."""
        self._wait(lambda: self.process.poll() is not None, ("the end",))
        self._read(0.0)
        return self.process.wait()

    def _wait(self, come: Callable[[], bool], what: Sequence[str]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not come():
            assert time.monotonic() < deadline, f"no {what} on the screen:\n{self.text}"
            self._read(0.05)

    def _read(self, timeout_s: float) -> None:
        while select.select([self._ours], [], [], timeout_s)[0]:
            try:
                self._stream.feed(os.read(self._ours, 65536))
            except OSError:  # nobody is at the other end any more
                return
            timeout_s = 0.0
