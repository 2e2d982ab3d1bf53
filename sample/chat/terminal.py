"""Where a chat meets a person: a terminal with a line editor, or lines from a pipe.

Text goes to stdout, all else to stderr. In a terminal Ctrl-C ends an answer, never the chat.
"""

import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from common.errors import UserError
from sample.chat.commands import is_command, obey
from sample.chat.session import Chat

# A terminal obeys these, and a network that read such bytes may write them.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    r"""Return ``text`` with what a terminal would obey spelled out, such as \x1b."""
    return CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def say(notice: str) -> None:
    """Write a notice to stderr, after all text so far."""
    sys.stdout.flush()
    notice = visible(notice)
    if sys.stderr.isatty():
        columns = shutil.get_terminal_size().columns
        notice = "\n".join(
            textwrap.fill(line, columns, break_on_hyphens=False) for line in notice.split("\n")
        )
    sys.stderr.write(notice + "\n")
    sys.stderr.flush()


def talk(chat: Chat, history: Path) -> None:
    """Chat until the input ends; what is typed in a terminal is remembered in ``history``."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        _converse(chat, _next_line)
        return
    from sample.chat.line_editor import line_editor  # slow to import, and of no use to a pipe

    read = line_editor(history, chat.say)
    with _ctrl_c_stops(chat):
        _converse_in_terminal(chat, read)


def _next_line() -> str:
    sys.stderr.write("\n> ")
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        sys.stderr.write("\n")
        raise EOFError
    return line.rstrip("\r\n")


def _converse(chat: Chat, read: Callable[[], str]) -> None:
    try:
        while True:
            _respond(chat, read(), show=str)
    except EOFError:
        return


def _converse_in_terminal(chat: Chat, read: Callable[[], str]) -> None:
    while True:
        try:
            sys.stdout.write("\n")
            sys.stdout.flush()
            _respond(chat, read(), show=visible)
        except KeyboardInterrupt:  # Ctrl-C while typing: another line
            pass
        except UserError as error:  # this prompt cannot be answered; perhaps another can
            chat.say(f"Error: {error.message}")
        except EOFError:
            return


def _respond(chat: Chat, line: str, show: Callable[[str], str]) -> None:
    if not line.strip():
        chat.say("Type something, or /help, or Ctrl-D to leave.")
        return
    answer = obey(chat, line) if is_command(line) else chat.ask(line.removeprefix("/"))
    if answer is None:
        return
    with closing(answer):  # so that what was written is kept whatever ends it
        for piece in answer:
            sys.stdout.write(show(piece))
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if chat.messages[-1].stopped:
        chat.say("Stopped. What was written stays in the conversation; /undo takes it back.")
    if chat.shows_stats:
        chat.say(chat.stats())


@contextmanager
def _ctrl_c_stops(chat: Chat) -> Iterator[None]:
    previous = signal.signal(signal.SIGINT, lambda *_: chat.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
