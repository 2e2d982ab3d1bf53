"""The line editor of a terminal: keys, completion, and a history that outlives the program.

The only file that imports prompt_toolkit, and imported only where there is a terminal.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import (
    Completer,
    NestedCompleter,
    PathCompleter,
    WordCompleter,
    merge_completers,
)
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle


def line_editor(
    lines: list[str], history: Path, notify: Callable[[str], None]
) -> Callable[[], str]:
    """Return a function that reads what is typed, which may be several lines; Tab offers ``lines``.

    That function raises KeyboardInterrupt on Ctrl-C and EOFError on Ctrl-D.
    """
    session: PromptSession[str] = PromptSession(
        "> ",
        prompt_continuation="  ",
        key_bindings=_keys(),
        completer=completer(lines),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,  # a menu would keep lines of the screen free
        history=_open_history(history, notify),
        enable_suspend=True,
    )
    return session.prompt


def _keys() -> KeyBindings:
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # not in the search through the history

    @keys.add("enter", filter=typing)
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


def completer(lines: list[str]) -> Completer:
    """Return what Tab completes: to ``lines``, and behind /save and /load to names of files."""
    files = PathCompleter(expanduser=True)
    commands = WordCompleter(lines, sentence=True)
    return merge_completers([commands, NestedCompleter({"/save": files, "/load": files})])


class _History(FileHistory):
    def store_string(self, string: str) -> None:
        with suppress(OSError):  # a full disk: this line is not kept
            super().store_string(string)


def _open_history(path: Path, notify: Callable[[str], None]) -> History:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        notify(
            f"{path}: cannot be written ({error.strerror}), so what you type is not kept for later."
        )
        return InMemoryHistory()
    return _History(path)
