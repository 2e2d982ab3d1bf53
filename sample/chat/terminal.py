"""Where a chat meets a person: a terminal with a line editor and commands, or lines from a pipe.

Text goes to stdout, all else to stderr. In a terminal Ctrl-C ends an answer, never the chat; in a
pipe each line is a prompt, whatever it begins with. Only a terminal imports prompt_toolkit.

A command's docstring is its line of /help; it may return an answer to show, as /retry does.
"""

import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError, UserError
from common.models.config import GenerateConfig
from sample.chat.session import Chat
from sample.chat.sources import describe_sources
from sample.chat.transcript import Transcript, load_conversation, save_conversation
from sample.text.prompt import Message
from sample.text.sources import NO_INDEX
from sample.text.terminal_text import write_stdout

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer

SETTINGS = {item.name.replace("_", "-"): item for item in fields(GenerateConfig)}
KEYS = """\
Alt-Enter, or a \\ at the end of a line, begins another line. Tab completes commands.
Ctrl-C stops an answer and clears a line; Ctrl-D on an empty line leaves.
// sends a text that begins with /."""


def run_chat(chat: Chat, history_file: Path, transcript: Transcript | None) -> None:
    """Chat until the input ends; what is typed in a terminal is kept in ``history_file``."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        for line in sys.stdin:
            if line.strip():
                _show(chat, chat.reply(line.rstrip("\r\n")), transcript)
        return
    read = line_editor(history_file, chat.notify)
    chat.notify("/help lists the commands, Ctrl-D leaves.")
    signal.signal(signal.SIGINT, lambda *_: chat.stop())
    while True:
        write_stdout("\n")
        try:
            answer = run_line(chat, read())
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


def run_line(chat: Chat, line: str) -> Generator[str] | None:
    """Do what a line says; return the answer to show, if any. Raise EOFError on /quit."""
    if not line.strip():
        raise ConfigError("Type something, or /help, or Ctrl-D to leave.")
    if not line.startswith("/") or line.startswith("//"):
        return chat.reply(line.removeprefix("/"))
    name, argument = [*line[1:].split(maxsplit=1), "", ""][:2]
    if name not in COMMANDS:
        raise ConfigError(f"/{name}: no such command; /help lists them. To send it, begin with //.")
    return COMMANDS[name](chat, argument.strip())


def _help(chat: Chat, argument: str) -> None:
    """/help: This list."""
    for run in COMMANDS.values():
        usage, _, meaning = str(run.__doc__).partition(": ")
        chat.notify(f"{usage:17}  {meaning}")
    chat.notify(KEYS)


def _reset(chat: Chat, argument: str) -> None:
    """/reset: Begin a new conversation."""
    chat.messages, chat.stats = chat.system, None
    chat.file = None  # /save must not replace that of the conversation before
    chat.notify("A new conversation; the system text and the settings stay.")


def _retry(chat: Chat, argument: str) -> Generator[str]:
    """/retry: Answer the last prompt again."""
    prompt = _last_prompt(chat)
    if chat.config.temperature == 0:
        chat.notify("At temperature 0 the answer is the same again: /set temperature 0.8")
    return chat.reply(prompt, chat.messages[:-2])


def _undo(chat: Chat, argument: str) -> None:
    """/undo: Take back the last turn."""
    prompt = _last_prompt(chat)
    chat.messages = chat.messages[:-2]
    shown = prompt if len(prompt) <= 40 else prompt[:37] + "..."
    chat.notify(f"Taken back: {shown!r} and its answer.")


def _last_prompt(chat: Chat) -> str:
    if len(chat.messages) < 2:
        raise ConfigError("There is no turn yet.")
    return chat.messages[-2].content


def _set(chat: Chat, argument: str) -> None:
    """/set [NAME VALUE]: Change a setting; alone: list them."""
    if not argument:
        for option, item in SETTINGS.items():
            chat.notify(f"{option} {getattr(chat.config, item.name)}: {item.metadata['help']}")
        return
    option, text = [*argument.replace("_", "-").split(maxsplit=1), ""][:2]
    if option not in SETTINGS:
        raise ConfigError(f"{option}: no such setting. There are {', '.join(SETTINGS)}.")
    item = SETTINGS[option]
    kind = type(getattr(GenerateConfig, item.name))  # of the default
    try:
        value = kind(text)
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigError(f"/set {argument}: {option} must be {wanted}.") from error
    chat.config = replace(chat.config, **{item.name: value})
    chat.notify(f"{option} {value}")


def _system(chat: Chat, argument: str) -> None:
    """/system [TEXT]: What the conversation begins with."""
    if argument:
        turns = chat.messages[len(chat.system) :]
        chat.messages = turns if argument == '""' else [Message("system", argument), *turns]
    for message in chat.system:
        chat.notify(f'The conversation begins with {message.content!r}; /system "" takes it away.')
    if not chat.system:
        chat.notify("The conversation begins with its first turn.")


def _save(chat: Chat, argument: str) -> None:
    """/save [FILE]: Save the conversation."""
    path = _file(chat, argument, "save")
    if path != chat.file and os.path.lexists(path):
        raise ConfigError(f"{path} exists and is not this conversation's: name another file.")
    save_conversation(path, chat.messages)
    chat.file = path
    chat.notify(f"{path}: {len(chat.messages):,} messages saved.")


def _load(chat: Chat, argument: str) -> None:
    """/load FILE: Go on with a saved one."""
    path = _file(chat, argument, "load")
    chat.messages, chat.stats, chat.file = load_conversation(path), None, path
    chat.notify(f"{path}: {len(chat.messages):,} messages; the conversation goes on from there.")


def _file(chat: Chat, argument: str, command: str) -> Path:
    if argument:
        return Path(os.path.expanduser(argument))
    if chat.file is None:
        raise ConfigError(f"/{command} needs the name of a file.")
    return chat.file


def _stats(chat: Chat, argument: str) -> None:
    """/stats: Speed of the last answer, and what of the context it took."""
    if chat.stats is None:
        raise ConfigError("No answer yet.")
    prompt, n_new, dt_s = chat.stats
    block_size = chat.decoder.block_size
    chat.notify(
        f"{n_new:,} tokens in {dt_s:.2f} s, {n_new / max(dt_s, 1e-9):,.0f} tokens/s. Context: "
        f"{min(len(prompt.ids) + n_new, block_size):,} of {block_size:,} tokens, "
        f"{prompt.n_turns - prompt.n_dropped:,} of {prompt.n_turns:,} turns."
    )


def _source(chat: Chat, argument: str) -> None:
    """/source: What of the last answer stands in the training text, and where."""
    _last_prompt(chat)
    text, training_text = chat.messages[-1].content, chat.training_text
    if not text:
        raise ConfigError("The last answer is empty.")
    sources = training_text and training_text.find(text)
    left_out = training_text.notices if training_text else ()
    if not sources:
        raise ConfigError("\n".join(left_out) or NO_INDEX)
    for notice in (*describe_sources(text, sources), *left_out):
        chat.notify(notice)


def _quit(chat: Chat, argument: str) -> None:
    """/quit: Leave, as Ctrl-D does."""
    raise EOFError


COMMANDS: dict[str, Callable[[Chat, str], Generator[str] | None]] = {
    run.__name__.removeprefix("_"): run
    for run in (_help, _reset, _retry, _undo, _set, _system, _save, _load, _stats, _source, _quit)
}


def line_editor(history_file: Path, notify: Callable[[str], None]) -> Callable[[], str]:
    """Return what reads a typed text; it raises KeyboardInterrupt on Ctrl-C, EOFError on Ctrl-D."""
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

    class HistoryOnDisk(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):  # a full disk: this line is not kept
                super().store_string(string)

    history: History = InMemoryHistory()
    try:
        history_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        history_file.touch(mode=0o600)
        history = HistoryOnDisk(history_file)
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
    after_command = completion.NestedCompleter({"/save": files, "/load": files})
    return completion.merge_completers(
        [completion.WordCompleter(lines, sentence=True), after_command]
    )
