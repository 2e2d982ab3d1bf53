"""Where a chat meets a person: a terminal with a line editor and commands, or lines from a pipe.

Text goes to stdout, all else to stderr. In a terminal Ctrl-C ends an answer, never the chat; in a
pipe each line is a prompt, whatever it begins with.
"""

import signal
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from common.errors import UserError
from sample.chat.commands import Repl, completions, is_command, run_command, stats_line
from sample.chat.session import Chat
from sample.chat.transcript import Transcript
from sample.text.terminal_text import write_stdout


def run_chat(chat: Chat, history: Path, transcript: Transcript | None) -> None:
    """Chat until the input ends; what is typed in a terminal is remembered in ``history``."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        for line in sys.stdin:
            if line.strip():
                _show(chat, chat.reply(line.rstrip("\r\n")), transcript)
        return
    from sample.chat.line_editor import line_editor  # slow to import, and of no use to a pipe

    read = line_editor(completions(), history, chat.notify)
    chat.notify("/help lists the commands, Ctrl-D leaves.")
    previous = signal.signal(signal.SIGINT, lambda *_: chat.stop())
    try:
        _read_eval_print(Repl(chat), read, transcript)
    except EOFError:
        pass
    finally:
        signal.signal(signal.SIGINT, previous)


def _read_eval_print(repl: Repl, read: Callable[[], str], transcript: Transcript | None) -> None:
    chat = repl.chat
    while True:
        try:
            write_stdout("\n")
            line = read()
            if not line.strip():
                chat.notify("Type something, or /help, or Ctrl-D to leave.")
                continue
            if is_command(line):
                answer = run_command(repl, line)
            else:
                answer = chat.reply(line.removeprefix("/"))
            _show(chat, answer, transcript)
            if answer is not None and chat.messages[-1].stopped:
                chat.notify(
                    "Stopped. What was written stays in the conversation; /undo takes it back."
                )
            if answer is not None and repl.shows_stats:
                chat.notify(stats_line(chat))
        except KeyboardInterrupt:  # Ctrl-C while typing: another line
            pass
        except UserError as error:  # this prompt cannot be answered; perhaps another can
            chat.notify(f"Error: {error.message}")


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
