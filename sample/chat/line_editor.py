"""The line editor of a terminal: keys, completion, and a history that outlives the program.

The only file that imports prompt_toolkit, and imported only where there is a terminal.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from sample.chat.commands import completions


def line_editor(history: Path, say: Callable[[str], None]) -> Callable[[], str]:
    """Return a function that reads what is typed, which may be several lines.

    That function raises KeyboardInterrupt on Ctrl-C and EOFError on Ctrl-D.
    """
    session: PromptSession[str] = PromptSession(
        "> ",
        prompt_continuation="  ",
        key_bindings=_keys(),
        completer=_Tab(),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,  # a menu would keep lines of the screen free
        history=_open_history(history, say),
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


class _Tab(Completer):
    """What Tab offers."""

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        part, words = completions(document.text_before_cursor)
        return [Completion(word, start_position=-len(part)) for word in words]


class _PrivateHistory(FileHistory):
    """A history that does without its file once that cannot be written, and says so."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        super().__init__(path)
        self.say = say
        self.works = True

    def store_string(self, string: str) -> None:
        if not self.works:
            return
        try:
            super().store_string(string)
        except OSError as error:
            self.works = False
            self.say(_not_kept(self.filename, error))


def _open_history(path: Path, say: Callable[[str], None]) -> History:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # also where it was there before
        finally:
            os.close(descriptor)
    except OSError as error:
        say(_not_kept(path, error))
        return InMemoryHistory()
    return _PrivateHistory(path, say)


def _not_kept(path: object, error: OSError) -> str:
    return f"{path}: cannot be written ({error.strerror}), so what you type is not kept for later."
