"""What begins with / in a chat: commands, and what Tab makes of a part of one.

A command does its work on the chat and speaks through chat.say; /retry also returns an answer to
show, and /quit ends the input, as Ctrl-D does.
"""

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import get_type_hints

from common.errors import ConfigError, UserError
from common.inference.config import GenerateConfig
from sample.chat.session import Chat
from sample.chat.transcript import load_conversation, save_conversation

Answer = Generator[str]

KEYS = """\
Alt-Enter, or a \\ at the end of a line, begins another line. Tab completes commands.
Ctrl-C stops an answer and clears a line; Ctrl-D on an empty line leaves.
// sends a text that begins with /."""


def is_command(line: str) -> bool:
    """Tell whether a line is a command rather than a text to send."""
    return line.startswith("/") and not line.startswith("//")


def obey(chat: Chat, line: str) -> Answer | None:
    """Do what a command says; return the answer to show if it makes one.

    Raises: EOFError on /quit. A command that is unknown, or cannot be done, is said in a sentence.
    """
    name, rest = [*line[1:].split(maxsplit=1), "", ""][:2]
    command = COMMANDS.get(name)
    if command is None:
        near = get_close_matches(name, COMMANDS, n=1)
        meant = f"do you mean /{near[0]}" if near else "/help lists them"
        chat.say(f"/{name}: no such command; {meant}. To send it as a text, begin with //.")
        return None
    before = chat.messages
    try:
        answer = command.run(chat, rest.strip())
    except UserError as error:
        chat.say(error.message)
        return None
    if chat.messages is not before and chat.transcript is not None:
        chat.transcript.note(line)
    return answer


def _help(chat: Chat, rest: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        chat.say(f"{command.usage:{width}}  {command.meaning}")
    chat.say(KEYS)


def _reset(chat: Chat, rest: str) -> None:
    system = chat.system
    chat.replace_messages([])
    chat.set_system(system)
    chat.file = None  # that of the old one, which /save must not replace
    chat.say("A new conversation; the system text and the settings stay.")


def _retry(chat: Chat, rest: str) -> Answer:
    if (prompt := chat.undo()) is None:
        raise ConfigError("There is nothing to answer again yet.")
    if chat.config.temperature == 0:
        chat.say("At temperature 0 the answer is the same again: /set temperature 0.8")
    return chat.ask(prompt)


def _undo(chat: Chat, rest: str) -> None:
    if (prompt := chat.undo()) is None:
        raise ConfigError("There is no turn to take back.")
    chat.say(f"Taken back: {_shortened(prompt)!r} and its answer.")


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _set(chat: Chat, rest: str) -> None:
    if not rest:
        for item in fields(GenerateConfig):
            value = getattr(chat.config, item.name)
            chat.say(f"{_option(item.name)} {value}: {item.metadata['help']}")
        return
    option, text = [*rest.split(maxsplit=1), ""][:2]
    name = option.replace("-", "_")
    kinds = get_type_hints(GenerateConfig)
    if name not in kinds:
        raise ConfigError(f"{option}: no such setting. There are {', '.join(setting_names())}.")
    try:
        value = kinds[name](text)
    except ValueError as error:
        wanted = {int: "a whole number", float: "a number"}[kinds[name]]
        given = f"/set {option} {text}".rstrip()
        raise ConfigError(f"{given}: {option} must be {wanted}.") from error
    chat.config = replace(chat.config, **{name: value})
    chat.say(f"{_option(name)} {value}")


def _option(name: str) -> str:
    return name.replace("_", "-")


def setting_names() -> list[str]:
    """Return the settings of /set."""
    return [_option(item.name) for item in fields(GenerateConfig)]


def _system(chat: Chat, rest: str) -> None:
    if rest:
        chat.set_system("" if rest == '""' else rest)
    if chat.system:
        chat.say(f'The conversation begins with {chat.system!r}; /system "" takes it away.')
    else:
        chat.say("The conversation begins with its first turn.")


def _save(chat: Chat, rest: str) -> None:
    path = _file(chat, rest, "save")
    if path != chat.file and os.path.lexists(path):
        raise ConfigError(f"{path} exists and is not this conversation's: name another file.")
    save_conversation(path, chat.messages, chat.run)
    chat.file = path
    chat.say(f"{path}: {len(chat.messages):,} messages saved.")


def _load(chat: Chat, rest: str) -> None:
    path = _file(chat, rest, "load")
    chat.replace_messages(load_conversation(path))
    chat.file = path
    chat.say(f"{path}: {len(chat.messages):,} messages; the conversation goes on from there.")


def _file(chat: Chat, rest: str, command: str) -> Path:
    if rest:
        return Path(os.path.expanduser(rest))
    if chat.file is None:
        raise ConfigError(f"/{command} needs the name of a file.")
    return chat.file


def _stats(chat: Chat, rest: str) -> None:
    if rest not in ("", "on", "off"):
        raise ConfigError(f"/stats {rest}: on or off is wanted, or nothing for the last answer.")
    if rest:
        chat.shows_stats = rest == "on"
        chat.say(f"Figures after each answer: {rest}.")
    else:
        chat.say(chat.stats())


def _quit(chat: Chat, rest: str) -> None:
    raise EOFError


@dataclass(frozen=True)
class Command:
    """One line of /help, and what it does."""

    usage: str
    meaning: str
    run: Callable[[Chat, str], Answer | None]


COMMANDS = {
    "help": Command("/help", "This list.", _help),
    "reset": Command("/reset", "Begin a new conversation.", _reset),
    "retry": Command("/retry", "Answer the last prompt again.", _retry),
    "undo": Command("/undo", "Take back the last turn.", _undo),
    "set": Command("/set [NAME VALUE]", "Change a setting; alone: list them.", _set),
    "system": Command("/system [TEXT]", "What the conversation begins with.", _system),
    "save": Command("/save [FILE]", "Save the conversation.", _save),
    "load": Command("/load FILE", "Go on with a saved one.", _load),
    "stats": Command("/stats [on|off]", "Speed and context, after each answer.", _stats),
    "quit": Command("/quit", "Leave, as Ctrl-D does.", _quit),
}


def completions(text: str) -> tuple[str, list[str]]:
    """Return the part of ``text`` that Tab is to replace, and by what it may be replaced.

    Example: "/set te" gives "te" and ["temperature "].
    """
    if not is_command(text) or "\n" in text:
        return "", []
    name, blank, rest = text[1:].partition(" ")
    if not blank:
        return text, [f"/{each} " for each in COMMANDS if each.startswith(name)]
    if name in ("save", "load"):
        return rest, _file_names(rest)
    words = {"set": [f"{name} " for name in setting_names()], "stats": ["on", "off"]}.get(name, [])
    return rest, [word for word in words if word.startswith(rest)]


def _file_names(begun: str) -> list[str]:
    folder, name = os.path.split(begun)
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder or ".")), key=lambda each: each.name)
    except (OSError, ValueError):  # no such folder: nothing to offer
        return []
    return [
        os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "")
        for entry in entries
        if entry.name.startswith(name) and (name or not entry.name.startswith("."))
    ]
