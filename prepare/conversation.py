"""A conversation on its way from a reader to its ids: messages that take turns, packed in bytes.

    f8 system text, f9 question, fa answer, f9 question, fa answer [, fb rejected answer]

Each message begins with a byte that occurs in no UTF-8: so none of its text is taken for a mark.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from common.chat_format import ROLES, Role
from common.errors import DataError
from prepare.chunks import Stats
from prepare.config import PrepareConfig

ROLE_OF_NAME: dict[str, Role] = {  # as data sets name those who speak, in lower case
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "question", "q"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "ai", "model"), "assistant"),
    **dict.fromkeys(("bing", "bard", "answer", "a"), "assistant"),  # ShareGPT names some so
}
TOOLS = (
    "tool",
    "function",
    "function_call",
    "tool_call",
    "tool_response",
    "observation",
    "ipython",
)
MARKS = {role: bytes([0xF8 + i]) for i, role in enumerate(ROLES)}
REJECTED_MARK = b"\xfb"
ANY_MARK = re.compile(b"([\xf8-\xfb])")


class Message(NamedTuple):
    """What one of them says, at a time."""

    role: Role
    text: str


Found = tuple[str, str, list[Message], Message | None]  # where, shape, turns, rejected answer


class ConversationError(DataError):
    """A conversation that cannot be learned from; ``reason`` is one of few."""

    def __init__(self, where: str, reason: str, detail: str) -> None:
        super().__init__(f"{where}: {reason}: {detail}")
        self.reason = reason


def skip_or_raise(
    where: str, error: DataError, reason: str, config: PrepareConfig, stats: Stats
) -> None:
    """Raise the error of a conversation, or list it, as --on-error says."""
    if config.on_error == "fail":
        raise error
    stats.skip(where, reason, error.message)


def role_of(name: object, where: str) -> Role:
    """Return the role of one who speaks, by any of its names; raise ConversationError."""
    role = ROLE_OF_NAME.get(name.lower()) if isinstance(name, str) else None
    if role is not None:
        return role
    if name in TOOLS:
        detail = "what tools were asked and gave has no place in a conversation of two. "
        detail += "Leave it out, or pass --on-error skip."
    else:
        detail = f"known are {', '.join(ROLE_OF_NAME)}. Rename it."
    raise ConversationError(where, "unknown role", f"{name!r}; {detail}")


def take_turns(messages: Iterable[Message], where: str) -> list[Message]:
    """Return the messages stripped, those of one who speaks twice joined by a line end.

    Raise ConversationError where they are not: a system text or none, then questions and answers
    in turn, the last an answer.
    """
    turns: list[Message] = []
    for number, (role, text) in enumerate(messages, start=1):
        text = text.strip()
        before = turns[-1].role if turns else None
        if role == "system":
            if before == "system":
                raise ConversationError(where, "two system texts", "join them to one.")
            if turns:
                reason = "two system texts" if turns[0].role == "system" else "late system text"
                detail = f"message {number} is one, but only the first may be."
                raise ConversationError(where, reason, detail)
        elif not text:
            reason = "empty answer" if role == "assistant" else "empty question"
            detail = f"message {number} holds no text. Fill it, or leave the conversation out."
            raise ConversationError(where, reason, detail)
        if role == "assistant" and before in (None, "system"):
            detail = f"message {number}, the first, is its answer: a question must come before it."
            raise ConversationError(where, "assistant first", detail)
        if role == before:
            turns[-1] = Message(role, f"{turns[-1].text}\n{text}")
        else:
            turns.append(Message(role, text))
    if not turns or turns[-1].role != "assistant":
        detail = (
            "there is no message." if not turns else "the last question has no answer. Drop it."
        )
        raise ConversationError(where, "missing turn", detail)
    return turns if turns[0].text else turns[1:]  # an empty system text is none


def pack(turns: Iterable[tuple[Role, bytes]], rejected: bytes | None = None) -> bytes:
    """Return the bytes of turns in UTF-8; of a pair also the answer that was rejected."""
    parts = [MARKS[role] + text for role, text in turns]
    return b"".join(parts if rejected is None else [*parts, REJECTED_MARK + rejected])


def unpack(packed: bytes) -> tuple[list[tuple[Role, bytes]], bytes | None]:
    """Return what ``pack`` was given."""
    _, *parts = ANY_MARK.split(packed)
    found = list(zip(parts[::2], parts[1::2], strict=True))
    rejected = found.pop()[1] if found[-1][0] == REJECTED_MARK else None
    return [(ROLES[mark[0] - 0xF8], text) for mark, text in found], rejected
