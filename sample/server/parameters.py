"""What a request may say: each parameter's type, range and meaning, declared once.

Requests are checked against these declarations, and /openapi.json is made from them. Those that
choose ids (temperature, top_k, ...) come from GenerateConfig, so a new setting there is a new
parameter here. A null is as good as leaving the parameter out.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

from common.inference.config import GenerateConfig
from sample.server.errors import RequestError, shown, wrong

Schema = dict[str, Any]
MAX_STOPS = 4  # OpenAI's
MAX_TOP = 20  # likeliest tokens beside each: OpenAI's
# The API's own upper bounds, OpenAI's where it has the parameter.
AT_MOST = {"temperature": 2.0, "top_p": 1.0, "min_p": 0.99, "repetition_penalty": 10.0}
# Say nothing about the text, so they may be there.
HARMLESS = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls",
})  # fmt: skip
# Known to clients and not done here; these values ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter: how it is described, and the function that checks it and returns it."""

    name: str
    meaning: str
    schema: Schema
    check: Callable[[str, Any], Any]
    required: bool = False


def number(name: str, meaning: str, at_least: float, at_most: float) -> Parameter:
    """Declare a finite number in a range, its ends included."""

    def check(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # compared before float(): an integer may be beyond every float
        if not is_number or not at_least <= value <= at_most:
            raise wrong(name, value, f"a number from {at_least:g} to {at_most:g}")
        return float(value)

    schema = {"type": ["number", "null"], "minimum": at_least, "maximum": at_most}
    return Parameter(name=name, meaning=meaning, schema=schema, check=check)


def integer(name: str, meaning: str, at_least: int, at_most: int) -> Parameter:
    """Declare an integer in a range, its ends included."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():  # JSON knows no difference
            value = int(value)
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or not at_least <= value <= at_most:
            raise wrong(name, value, f"an integer from {at_least} to {at_most}")
        return int(value)

    schema = {"type": ["integer", "null"], "minimum": at_least, "maximum": at_most}
    return Parameter(name=name, meaning=meaning, schema=schema, check=check)


def flag(name: str, meaning: str) -> Parameter:
    """Declare true or false."""

    def check(name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise wrong(name, value, "true or false")
        return value

    return Parameter(name=name, meaning=meaning, schema={"type": ["boolean", "null"]}, check=check)


def check_text(name: str, value: Any) -> str:
    """Return a text; raise RequestError where it is none, or holds half of a character."""
    if not isinstance(value, str):
        raise wrong(name, value, "a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise wrong(
            name, value[error.start], "a text of whole characters, and this is half of one"
        ) from error
    return value


def _check_stop(name: str, value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(stops):
        raise wrong(name, value, f"a text, or a list of at most {MAX_STOPS}, none of them empty")
    return tuple(check_text(name, stop) for stop in stops)


def _check_stream_options(name: str, value: Any) -> bool:
    wanted = 'an object such as {"include_usage": true}'
    if not isinstance(value, dict) or set(value) - {"include_usage", "include_obfuscation"}:
        raise wrong(name, value, wanted)
    include = value.get("include_usage", False)
    if not isinstance(include, bool):
        raise wrong(name, value, wanted)
    return include


_TEXT = {"type": "string", "minLength": 1}
_STOP = Parameter(
    name="stop",
    meaning="The answer ends before these texts.",
    schema={"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": MAX_STOPS},
                      {"type": "null"}]},
    check=_check_stop,
)  # fmt: skip
_STREAM_OPTIONS = Parameter(
    name="stream_options",
    meaning="include_usage: a last event counts the tokens.",
    schema={
        "type": ["object", "null"],
        "properties": {"include_usage": {"type": "boolean"}, "include_obfuscation": {}},
        "additionalProperties": False,
    },
    check=_check_stream_options,
)
_MODEL = Parameter(
    name="model",
    meaning="The model's name, as /v1/models says it.",
    schema={"type": ["string", "null"]},
    check=check_text,
)


def common_parameters(max_tokens: int, max_n: int) -> tuple[Parameter, ...]:
    """Declare what both kinds of completion take."""
    return (
        _MODEL,
        *generate_parameters(),
        integer("max_tokens", "The answer's tokens, at most.", 1, max_tokens),
        integer("n", "Answers to the same prompt, each with a seed of its own.", 1, max_n),
        _STOP,
        flag("stream", "Answer piece by piece, as server-sent events."),
        _STREAM_OPTIONS,
    )


def generate_parameters() -> Iterable[Parameter]:
    """Declare GenerateConfig's numbers, in the ranges that it gives them."""
    kinds = get_type_hints(GenerateConfig)
    for item in fields(GenerateConfig):
        name, meaning, metadata = item.name, item.metadata["help"], item.metadata
        if name == "max_new_tokens":  # the API's name is max_tokens
            continue
        if kinds[name] is int:
            below = int(metadata["below"] or 1 << 31)
            yield integer(name, meaning, int(metadata["at_least"]), below - 1)
        elif kinds[name] is float:
            yield number(name, meaning, metadata["at_least"], AT_MOST[name])


def check_object(body: Any, parameters: Iterable[Parameter]) -> dict[str, Any]:
    """Return the values of a request's parameters, those that were given, checked.

    Raises: RequestError that names a parameter that is unknown, missing or out of its range.
    """
    if not isinstance(body, dict):
        raise RequestError(f"The body is {shown(body)}: it must be a JSON object.")
    known = {parameter.name: parameter for parameter in parameters}
    given = {name: value for name, value in body.items() if value is not None}
    unsupported = [
        name
        for name, value in given.items()
        if name not in known and name not in HARMLESS and not _is_neutral(name, value)
    ]
    if unsupported:
        names = ", ".join(shown(name).strip("'") for name in unsupported[:10])
        raise RequestError(
            f"Not supported here: {names}. Leave it out; /openapi.json lists what there is.",
            param=names, code="unsupported_parameter",
        )  # fmt: skip
    for parameter in known.values():
        if parameter.required and parameter.name not in given:
            raise RequestError(
                f"{parameter.name} is missing: {parameter.meaning}",
                param=parameter.name, code="missing_required_parameter",
            )  # fmt: skip
    return {name: known[name].check(name, value) for name, value in given.items() if name in known}


def _is_neutral(name: str, value: Any) -> bool:
    return not isinstance(value, bool) and any(value == each for each in NEUTRAL.get(name, ()))


def generate_config(
    values: Mapping[str, Any], defaults: GenerateConfig, *, seed: int
) -> GenerateConfig:
    """Return ``defaults`` with what a request gave, and with ``seed`` unless it gave one."""
    names = {item.name for item in fields(GenerateConfig)}
    given = {name: value for name, value in values.items() if name in names}
    given["max_new_tokens"] = values.get("max_tokens", defaults.max_new_tokens)
    return replace(defaults, **({"seed": seed} | given))


def finite(text: str) -> float:
    """Return a JSON number as a float; raise ValueError beyond the largest."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(text)} is too large")
    return value
