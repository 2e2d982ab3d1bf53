"""Where a chat meets a person: a terminal with a line editor and commands, or lines from a pipe.

Text goes to stdout, all else to stderr. In a terminal Ctrl-C ends an answer, never the chat; in a
pipe each line is a prompt, whatever it begins with. Only a terminal imports prompt_toolkit.
"""

import signal
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from sample.chat.commands import COMMANDS, SETTINGS, Repl, run_line
from sample.chat.session import Chat
from sample.chat.transcript import Transcript
from sample.text.terminal_text import write_stdout

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer


def run_chat(chat: Chat, history_file: Path, transcript: Transcript | None) -> None:
    """Chat until the input ends; what is typed in a terminal is kept in ``history_file``."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        for line in sys.stdin:
            if line.strip():
                _show(chat, chat.reply(line.rstrip("\r\n")), transcript)
        return
    repl, read = Repl(chat), line_editor(history_file, chat.notify)
    chat.notify("/help lists the commands, Ctrl-D leaves.")
    signal.signal(signal.SIGINT, lambda *_: chat.stop())
    while True:
        write_stdout("\n")
        try:
            answer = run_line(repl, read())
            _show(chat, answer, transcript)
            if answer is not None and chat.messages[-1].stopped:
                chat.notify(
                    "Stopped. What was written stays in the conversation; /undo takes it back."
                )
        except KeyboardInterrupt:  # Ctrl-C while typing: another line
            pass
        except UserError as error:  # this cannot be answered or done; perhaps another can
            chat.notify(error.message)
        except EOFError:
            return


def _show(chat: Chat, answer: Generator[str] | None, transcript: Transcript | None) -> None:
    """Write an answer as it comes; whatever ends it, what was written is kept."""
    try:
        if answer is not None:
            with closing(answer):
                for text in answer:
                    write_stdout(text)
            write_stdout("\n")
    finally:
        if transcript is not None:
            transcript.update(chat.messages)


def line_editor(history_file: Path, notify: Callable[[str], None]) -> Callable[[], str]:
    """Return a function that reads what is typed, which may be several lines.

    That function raises KeyboardInterrupt on Ctrl-C and EOFError on Ctrl-D.
    """
    from prompt_toolkit import PromptSession, enums, filters, key_binding, shortcuts
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    keys = key_binding.KeyBindings()
    typing = filters.has_focus(enums.DEFAULT_BUFFER)  # not in the search through the history

    @keys.add("enter", filter=typing)
    def send(event: key_binding.KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)
    def begin_line(event: key_binding.KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    history: History = InMemoryHistory()
    try:
        history_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        history_file.touch(mode=0o600)
        history = FileHistory(history_file)
    except OSError as error:
        notify(f"{history_file}: {error.strerror}, so what you type is not kept for later.")
    return PromptSession[str](
        "> ",
        prompt_continuation="  ",
        key_bindings=keys,
        completer=completer(),
        complete_while_typing=False,
        # a menu would keep lines of the screen free
        complete_style=shortcuts.CompleteStyle.READLINE_LIKE,
        history=history,
        enable_suspend=True,
    ).prompt


def completer() -> "Completer":
    """Return what Tab completes: commands, and behind /save and /load names of files."""
    from prompt_toolkit import completion

    lines = [f"/{each} " for each in (*COMMANDS, *(f"set {option}" for option in SETTINGS))]
    files = completion.PathCompleter(expanduser=True)
    return completion.merge_completers(
        [
            completion.WordCompleter(lines, sentence=True),
            completion.NestedCompleter({"/save": files, "/load": files}),
        ]
    )
