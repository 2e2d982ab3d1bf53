"""What each kind of request asks for: /v1/completions a prompt, /v1/chat/completions messages.

    body (bytes) --read_json--> JSON --check_object--> values --> prompts in ids, or Messages

Nothing a body may hold ends in anything but a value or a RequestError.
"""

import json
from collections.abc import Sequence
from typing import Any

from common.tokenizer import Tokenizer
from sample.server.errors import RequestError, shown, wrong
from sample.server.parameters import (
    MAX_TOP,
    Parameter,
    Schema,
    check_text,
    common_parameters,
    finite,
    flag,
    integer,
)
from sample.text.template import Message, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
}
MESSAGE_KEYS = {"role", "content", "name"}

Prompt = str | list[int]


def read_json(body: bytes) -> Any:
    """Return the JSON value of a request's body.

    Raises: RequestError where it is none: also for NaN, for numbers beyond a float, for a key that
    comes twice, and for what is nested too deep.
    """
    try:
        return json.loads(
            body.decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=finite,
            object_pairs_hook=_no_duplicates,
        )
    except RecursionError as error:
        raise RequestError("The body is nested too deep.") from error
    except ValueError as error:  # also UnicodeDecodeError, and integers of too many digits
        raise RequestError(f"The body is not JSON in UTF-8: {error}.") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON has")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} comes twice")
    return values


def check_prompt(name: str, value: Any) -> list[Prompt]:
    """Return the prompts of a completion: texts, or lists of ids."""
    if isinstance(value, str):
        return [check_text(name, value)]
    if not isinstance(value, list) or not value:
        raise wrong(name, value, "a text, a list of texts, a list of ids, or a list of such")
    if all(_is_id(each) for each in value):
        return [value]
    return [each if _is_ids(each) else check_text(f"{name}[{i}]", each)
            for i, each in enumerate(value)]  # fmt: skip


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_id, value))


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a prompt; raise RequestError for an id that stands for no text."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    for idx in prompt:
        if not 0 <= idx < tokenizer.vocab_size or not tokenizer.token_bytes[idx]:
            raise wrong(
                "prompt", idx, f"made of ids below {tokenizer.vocab_size:,} that stand for text"
            )
    return prompt


def check_messages(name: str, value: Any) -> list[Message]:
    """Return the messages of a chat, which end with one of the user or a part of the answer."""
    if not isinstance(value, list) or not value:
        raise wrong(name, value, 'a list of objects such as {"role": "user", "content": "Hello"}')
    return [_check_message(f"{name}[{i}]", each) for i, each in enumerate(value)]


def _check_message(name: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise wrong(name, value, 'an object such as {"role": "user", "content": "Hello"}')
    if unknown := [key for key, each in value.items() if key not in MESSAGE_KEYS and each]:
        raise RequestError(
            f"{name} has {shown(unknown[0])}, which is not supported here: only role and content.",
            param=name, code="unsupported_parameter",
        )  # fmt: skip
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise wrong(f"{name}.role", role, f"one of {', '.join(ROLES)}")
    return Message(ROLES[role], _check_content(f"{name}.content", value.get("content")))


def _check_content(name: str, value: Any) -> str:
    if not isinstance(value, list):
        return check_text(name, value)
    texts = []
    for i, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise wrong(f"{name}[{i}]", part, 'an object such as {"type": "text", "text": "Hello"}')
        texts.append(check_text(f"{name}[{i}].text", part.get("text")))
    return "".join(texts)


_TEXT: Schema = {"type": "string"}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PART: Schema = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
}
_MESSAGE: Schema = {
    "type": "object",
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": {"anyOf": [_TEXT, {"type": "array", "items": _PART}]},
        "name": {"type": ["string", "null"]},
    },
    "required": ["role", "content"],
    "additionalProperties": False,
}


def completion_parameters(max_tokens: int, max_n: int) -> Sequence[Parameter]:
    """Declare what /v1/completions takes."""
    prompt = Parameter(
        name="prompt",
        meaning="The beginning of the text, or several; empty: of a new document.",
        schema={"anyOf": [_TEXT, _IDS, {"type": "array", "items": {"anyOf": [_TEXT, _IDS]},
                                        "minItems": 1, "maxItems": max_n}]},
        check=check_prompt,
        required=True,
    )  # fmt: skip
    return (
        prompt,
        *common_parameters(max_tokens, max_n),
        flag("echo", "Begin the answer with the prompt; not together with logprobs."),
        integer("logprobs", "Name this many likeliest tokens beside each.", 0, MAX_TOP),
    )


def chat_parameters(max_tokens: int, max_n: int) -> Sequence[Parameter]:
    """Declare what /v1/chat/completions takes."""
    messages = Parameter(
        name="messages",
        meaning="The conversation so far; of a long one the oldest turns are left out.",
        schema={"type": "array", "items": _MESSAGE, "minItems": 1},
        check=check_messages,
        required=True,
    )
    return (
        messages,
        *common_parameters(max_tokens, max_n),
        integer("max_completion_tokens", "Newer name of max_tokens.", 1, max_tokens),
        flag("logprobs", "Say how likely each token was."),
        integer("top_logprobs", "Name this many likeliest tokens beside each.", 0, MAX_TOP),
    )
