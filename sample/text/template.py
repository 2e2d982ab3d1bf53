"""How a conversation is written down as one text for a network that only continues text.

    [Message("user", "Hello")] --render, TURNS--> "User: Hello\\nAssistant:"

A template says what stands before and after the words of each speaker, nothing more. What a message
contains is never read as a part of the template, and all of it is encoded as ordinary text: no
special id can come from it.

raw     what was written and what followed, as one text. The default: a base model has read texts of
        any kind and seldom a conversation, and what it does best is to go on with a text (the true
        continuations of 504 held-out texts cost one of a million parameters 1 % fewer bits so)
turns   a script of two speakers, which ends an answer where the next one begins
FILE    as JSON, {"system": "{system} ", "user": "Q: {user} ", "assistant": "A: {assistant} "}
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from common.errors import ConfigError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Message:
    """What one speaker said; ``stopped`` marks an answer that the person cut short."""

    role: Role
    content: str
    stopped: bool = False


@dataclass(frozen=True)
class Template:
    """What stands before and after each role's words, and the texts at which an answer ends."""

    name: str
    around: Mapping[Role, tuple[str, str]]
    stops: tuple[str, ...] = ()

    @property
    def opening(self) -> str:
        """What the answer is to follow.

        Without its last blanks: vocabularies keep a blank with the word after it, so that a network
        seldom read a word after a blank of its own.
        """
        return self.around["assistant"][0].rstrip(" ")


def well_formed(text: str) -> str:
    """Return ``text`` with U+FFFD for halves of characters, which a file or terminal can bring."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def render_message(message: Message, template: Template) -> str:
    """Return one message as it stands in the text of a conversation."""
    before, after = template.around[message.role]
    return before + message.content + after


def render(messages: Iterable[Message], template: Template) -> str:
    """Return the text whose continuation is the answer to ``messages``."""
    return "".join(render_message(message, template) for message in messages) + template.opening


def trimmed(answer: str, template: Template) -> str:
    """Return an answer without the blanks around it, where the template sets it off from the rest.

    In a text that is merely continued they are part of it.
    """
    return answer.strip() if template.opening else answer


class Trimming:
    """What ``trimmed`` makes of an answer, as its pieces come: blanks wait for what follows."""

    def __init__(self, *, trim: bool) -> None:
        self._trim, self._begun, self._blanks = trim, False, ""

    def push(self, piece: str) -> str:
        """Take the next piece; return what may be shown now."""
        if not self._trim:
            return piece
        text = self._blanks + piece if self._begun else piece.lstrip()
        shown = text.rstrip()
        self._begun = self._begun or bool(shown)
        self._blanks = text[len(shown) :]
        return shown


def make_template(
    name: str, pieces: Mapping[Role, str], stops: tuple[str, ...] | None = None
) -> Template:
    """Return the template that writes each role as ``pieces`` says, its words at {role}.

    Without ``stops`` an answer ends at what stands after it and at a speaker who begins, where the
    template has such words.
    Example: "User: {user}\\n" and "Assistant: {assistant}\\n" stop at "\\nUser:", "\\nAssistant:".
    """
    around: dict[Role, tuple[str, str]] = {}
    for role in ROLES:
        before, _, after = pieces[role].partition(f"{{{role}}}")
        around[role] = (before, after)
    return Template(name, around, _stops_of(around) if stops is None else stops)


def _stops_of(around: Mapping[Role, tuple[str, str]]) -> tuple[str, ...]:
    closing = around["assistant"][1]
    line = "\n" if closing.endswith("\n") else ""
    speakers = (around[role][0].strip() for role in ("user", "assistant"))
    stops = [closing.strip(), *(line + speaker for speaker in speakers if speaker)]
    return tuple(dict.fromkeys(stop for stop in stops if stop))


RAW = make_template("raw", {"system": "{system}\n", "user": "{user}", "assistant": "{assistant}\n"})
TURNS = make_template(
    "turns",
    {
        "system": "{system}\n\n",
        "user": "User: {user}\n",
        "assistant": "Assistant: {assistant}\n",
    },
)
TEMPLATES = {template.name: template for template in (RAW, TURNS)}


def find_template(name: str) -> Template:
    """Return the template called ``name``, or the one in the file of that name.

    Raises: ConfigError that says what the file lacks.
    """
    return TEMPLATES[name] if name in TEMPLATES else read_template(Path(name))


def read_template(path: Path) -> Template:
    """Read a template from a JSON file: a text for each role, and ``stop``, a list, if wanted.

    Raises: ConfigError that says what the file lacks.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--template {path}: neither {' nor '.join(TEMPLATES)}, and as a file it cannot be "
            f"read ({error.strerror})."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a template in JSON ({error}).") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: found something else than a JSON object with {_wanted()}.")
    if unknown := set(found) - {*ROLES, "stop"}:
        raise ConfigError(
            f"{path}: unknown {', '.join(map(repr, sorted(unknown)))}; a template has {_wanted()}."
        )
    pieces: dict[Role, str] = {role: _piece(path, found, role) for role in ROLES}
    return make_template(str(path), pieces, _stops(path, found))


def _wanted() -> str:
    return ", ".join(f'"{role}"' for role in ROLES) + ' and, if wanted, "stop"'


def _piece(path: Path, found: dict[str, Any], role: Role) -> str:
    piece, slot = found.get(role), f"{{{role}}}"
    if not isinstance(piece, str) or piece.count(slot) != 1:
        there = "nothing" if piece is None else json.dumps(piece, ensure_ascii=False)
        raise ConfigError(
            f'{path}: "{role}" is {there}, but must be a text with {slot} in it once, where the '
            "words go."
        )
    return piece


def _stops(path: Path, found: dict[str, Any]) -> tuple[str, ...] | None:
    if "stop" not in found:
        return None
    stops = found["stop"]
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ConfigError(f'{path}: "stop" must be a list of texts, none of them empty.')
    return tuple(stops)
