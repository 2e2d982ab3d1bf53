"""How a conversation is written down as one text for a network that only continues text.

    [Message("user", "Hello")] --render, TURNS--> "User: Hello\\nAssistant:"

A template says what stands before and after the words of each speaker, nothing more. What a message
contains is never a part of the template, and is encoded as ordinary text: without special ids.

raw     what was written and what followed, as one text. The default: a base model has read texts of
        any kind and seldom a conversation, and what it does best is to go on with a text (the true
        continuations of 504 held-out texts cost one of a million parameters 1 % fewer bits so)
turns   a script of two speakers, which ends an answer where the next one begins
FILE    as JSON, {"system": "{system} ", "user": "Q: {user} ", "assistant": "A: {assistant} "}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

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
    affixes: Mapping[Role, tuple[str, str]]
    stops: tuple[str, ...] = ()

    @property
    def generation_prompt(self) -> str:
        """What the answer is to follow."""
        # vocabularies keep a blank with the word after it: seldom was one read after a lone blank
        return self.affixes["assistant"][0].rstrip(" ")

    @property
    def strips_answers(self) -> bool:
        """Whether blanks around an answer are none of it: in a text that is continued they are."""
        return bool(self.generation_prompt)


def replace_surrogates(text: str) -> str:
    """Return ``text`` with U+FFFD for halves of characters, which a file or terminal can bring."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def render_message(message: Message, template: Template) -> str:
    """Return one message as it stands in the text of a conversation."""
    prefix, suffix = template.affixes[message.role]
    return prefix + _content(message, template) + suffix


def _content(message: Message, template: Template) -> str:
    strips = message.role == "assistant" and template.strips_answers
    return message.content.strip() if strips else message.content


def render(messages: Sequence[Message], template: Template) -> str:
    """Return the text whose continuation is the answer, or the rest of one that is last."""
    end = template.generation_prompt
    if messages and messages[-1].role == "assistant":
        if content := _content(messages[-1], template):
            end = template.affixes["assistant"][0] + content
        messages = messages[:-1]
    return "".join(render_message(message, template) for message in messages) + end


def make_template(
    name: str, pieces: Mapping[Role, str], stops: Sequence[str] | None = None
) -> Template:
    """Return the template that writes each role as ``pieces`` says, its words at {role}.

    Without ``stops`` an answer ends at what stands after it and at a speaker who begins: with
    "User: {user}\\n" and "Assistant: {assistant}\\n" at "\\nUser:" and "\\nAssistant:".
    """
    affixes: dict[Role, tuple[str, str]] = {}
    for role in ROLES:
        prefix, _, suffix = pieces[role].partition(f"{{{role}}}")
        affixes[role] = prefix, suffix
    if stops is None:
        suffix = affixes["assistant"][1]
        line = "\n" if suffix.endswith("\n") else ""
        speakers = [affixes[role][0].strip() for role in ("user", "assistant")]
        found = [suffix.strip(), *(line + speaker for speaker in speakers if speaker)]
        stops = list(dict.fromkeys(stop for stop in found if stop))
    return Template(name, affixes, tuple(stops))


RAW = make_template("raw", {"system": "{system}\n", "user": "{user}", "assistant": "{assistant}\n"})
TURNS = make_template(
    "turns",
    {"system": "{system}\n\n", "user": "User: {user}\n", "assistant": "Assistant: {assistant}\n"},
)
TEMPLATES = {template.name: template for template in (RAW, TURNS)}


def find_template(name: str) -> Template:
    """Return the template of that name, or in that JSON file; raise ConfigError if it is none."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--template {name}: neither {' nor '.join(TEMPLATES)}, and as a file it cannot be "
            f"read ({error.strerror})."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not a template in JSON ({error}).") from error
    pieces = found if isinstance(found, dict) else {}
    stops = pieces.pop("stop", None)
    if (
        pieces.keys() != set(ROLES)
        or not all(isinstance(text, str) for text in pieces.values())
        or not all(text.count(f"{{{role}}}") == 1 for role, text in pieces.items())
        or not isinstance(stops, list | None)
        or not all(isinstance(stop, str) and stop for stop in stops or ())
    ):
        raise ConfigError(
            f"{name}: a template is a JSON object with a text for each of {', '.join(ROLES)}, in "
            "which the role in braces, such as {user}, stands once, where the words go, and, if "
            'wanted, "stop": a list of texts, none of them empty.'
        )
    return make_template(name, pieces, stops)
