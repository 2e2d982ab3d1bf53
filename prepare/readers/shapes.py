"""A record of JSON, or a row of a table -> who says what in it, by the keys that it has.

    {"messages": [{"role": "user", "content": "..."}, ...]}         messages; content may be parts
    {"conversations": [{"from": "human", "value": "..."}, ...]}     ShareGPT
    {"instruction": "...", "input": "...", "output": "..."}         Alpaca
    {"prompt": "...", "completion": "..."}, {"question": "...", "answer": "..."} and the like
    {"prompt": "...", "chosen": "...", "rejected": "..."}           a preference pair

A prompt or an answer may also be a list of messages. Sources: huggingface.co/docs/trl, Dataset
formats and types; github.com/tatsu-lab/stanford_alpaca.
"""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

from prepare.conversation import ConversationError, Message, role_of, take_turns
from prepare.readers.jsonl import NOTHING, value_at

MESSAGE_LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns")
QUESTIONS = ("instruction", "prompt", "question", "query", "problem", "input")
CONTEXTS = ("input", "context")  # of an instruction
ANSWERS = ("output", "completion", "response", "answer", "solution")
SYSTEMS = ("system", "system_prompt")
PAIR = ("chosen", "rejected")
COLUMNS = frozenset([*MESSAGE_LISTS, *QUESTIONS, *CONTEXTS, *ANSWERS, *SYSTEMS, *PAIR])
MAX_KEYS = 10  # of a record, that are shown

Turns = list[Message]


def turns_of(record: Any, fields: str | None, where: str) -> tuple[str, Turns, Message | None]:
    """Return the shape's name, the turns, and of a pair the rejected answer.

    Raise ConversationError for what is none, or cannot be learned from.
    """
    if isinstance(record, list):
        record = {"messages": record}
    if not isinstance(record, dict):
        raise _not_one(record, where)
    keys = [key for key, value in record.items() if value is not None]
    if fields is not None:
        names: list[str | None] = [name.strip() for name in fields.split(",")]
    elif key := next((key for key in MESSAGE_LISTS if isinstance(record.get(key), list)), None):
        said = [*_system(record), *_messages(record[key], "user", where)]
        shape = "ShareGPT" if key == "conversations" else "messages"
        return shape, take_turns(said, where), None
    elif set(PAIR) <= set(keys):
        return "pairs", *_pair(record, where)
    else:
        names = [next((k for k in known if k in keys), None) for known in (QUESTIONS, ANSWERS)]
    if not any(names):
        raise _not_one(record, where)
    values = [value_at(record, name) if name else NOTHING for name in names]
    if NOTHING in values:
        i = values.index(NOTHING)
        what, known = (("question", QUESTIONS), ("answer", ANSWERS))[i]
        sought = names[i] or f"{what} under any of {', '.join(known)}"
        detail = f"no {sought}; found {_shown(keys)}. --fields names the two."
        raise ConversationError(where, "missing turn", detail)
    shape = fields or ("Alpaca" if names[0] == "instruction" else "/".join(filter(None, names)))
    return shape, _answered(record, values[0], values[1], where), None


def _not_one(record: Any, where: str) -> ConversationError:
    if isinstance(record, dict):
        is_message = len({"role", "content", "from", "value"} & record.keys()) > 1
        found = "a message by itself" if is_message else _shown(list(record))
    else:
        found = f"{type(record).__name__} {str(record)[:40]!r}"
    advice = "Of question and answer, --fields names the two keys."
    return ConversationError(where, "no conversation", f"found {found}. {advice}")


def _shown(keys: list[str]) -> str:
    names = ", ".join(map(repr, keys[:MAX_KEYS]))
    return f"the keys {names}" if keys else "no key with a value"


def _system(record: dict[str, Any]) -> Turns:
    texts = (record.get(key) for key in SYSTEMS)
    return [Message("system", text) for text in texts if isinstance(text, str) and text.strip()][:1]


def _answered(record: dict[str, Any], question: Any, answer: Any, where: str) -> Turns:
    """Return the turns of a question and its answer, each a text or a list of messages."""
    asked = list(_messages(question, "user", where))
    if "instruction" in record and isinstance(question, str):
        context = next((record[key] for key in CONTEXTS if record.get(key)), "")
        if isinstance(context, str) and context.strip():
            asked = [Message("user", f"{question.strip()}\n\n{context.strip()}")]
    said = [*_system(record), *asked, *_messages(answer, "assistant", where)]
    return take_turns(said, where)


def _pair(record: dict[str, Any], where: str) -> tuple[Turns, Message]:
    """Return the turns with the chosen answer, and the rejected one."""
    prompt = record.get("prompt")
    asked = [] if prompt is None else list(_messages(prompt, "user", where))
    both = []
    for key in PAIR:
        if isinstance(record[key], str) and not asked:
            detail = f"{key!r} answers no 'prompt', and is no list of messages that has one."
            raise ConversationError(where, "missing turn", detail)
        own = list(_messages(record[key], "assistant", where))
        own = own[len(asked) :] if own[: len(asked)] == asked else own  # the whole conversation
        both.append(take_turns([*_system(record), *asked, *own], where))
    chosen, rejected = both
    if chosen[:-1] != rejected[:-1]:
        detail = "the two differ before their last answer, and only that is compared."
        raise ConversationError(where, "two questions", detail)
    return chosen, rejected[-1]


def _messages(value: Any, role: str, where: str) -> Iterator[Message]:
    """Yield a text as a message of ``role``, or those of a list; texts in it take turns."""
    if isinstance(value, str):
        yield Message(role_of(role, where), value)
        return
    if not isinstance(value, list):
        detail = f"found {type(value).__name__} {str(value)[:40]!r} instead of a text or a list."
        raise ConversationError(where, "no message", detail)
    speakers = cycle(("user", "assistant") if role == "user" else ("assistant", "user"))
    for number, (item, speaker) in enumerate(zip(value, speakers, strict=False), start=1):
        if isinstance(item, str):
            yield Message(role_of(speaker, where), item)
            continue
        known = item if isinstance(item, dict) else {}
        names = [known[key] for key in ("role", "from") if key in known]
        texts = [known[key] for key in ("content", "value", "text") if key in known]
        if not names or not texts:
            found = _shown(list(known)) if known else repr(item)[:40]
            detail = f"message {number} needs 'role' and 'content'; found {found}."
            raise ConversationError(where, "no message", detail)
        yield Message(role_of(names[0], where), _text(texts[0], number, where))


def _text(content: Any, number: int, where: str) -> str:
    """Return the text of a message: a string, or the texts among its parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        bad = next(p for p, text in zip(parts, texts, strict=True) if not isinstance(text, str))
        what = bad.get("type") if isinstance(bad, dict) else type(bad).__name__
        detail = f"message {number} holds a part that is no text ({what})."
        raise ConversationError(where, "no message", detail)
    return "\n".join(text for text in texts if text is not None)
