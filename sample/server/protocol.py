"""The API's shapes in both directions: what requests may hold, what answers do, and errors.

/openapi.json is made from these models. A null is as good as leaving a parameter out. What is not
declared is ignored; what would change the text and is not done here is declared, and refused.

Source: platform.openai.com/docs/api-reference, "Completions" and "Chat", of 2025.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from common.models.config import GenerateConfig

Json = dict[str, Any]
SHOWN_VALUE_CHARS = 40
ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}  # OpenAI's

# min_length: pydantic refuses halves of characters (lone surrogates) only where it has to count
Text = Annotated[str, Field(min_length=0)]
# fail_fast: a body with a million wrong items would otherwise be answered by a million errors
Items = Field(min_length=1, fail_fast=True)
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Items]
TopLogprobs = Annotated[int, Field(ge=0, le=20)]  # OpenAI's bound
MaxTokens = Literal[-1] | Annotated[int, Field(ge=1)]
One = Annotated[int, Field(ge=1, le=1)]  # in Literal[1] True is 1


def _nothing(value: Any) -> Any:
    if value:
        raise PydanticCustomError("not_done", "be left out, as it is not done here")
    return value


Empty = Field(max_length=0)
Nothing = Annotated[
    Literal[False, 0, ""] | Annotated[list[Any], Empty] | Annotated[Json, Empty],
    BeforeValidator(_nothing),
]


class Shape(BaseModel):
    """Strict: no string or bool stands for a number. The texts below fields are descriptions."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _of_config(name: str, most: float | None = None) -> Any:
    """Return the field that takes a setting of GenerateConfig; ``most`` is the API's own bound."""
    item = GenerateConfig.__dataclass_fields__[name]
    bound = {"lt": item.metadata["below"]} if most is None else {"le": most}
    return Field(None, description=item.metadata["help"], ge=item.metadata["at_least"], **bound)


class SamplingParameters(Shape):
    """How ids are chosen; the upper bounds are OpenAI's where it has the parameter."""

    temperature: float | None = _of_config("temperature", 2)
    top_p: float | None = _of_config("top_p", 1)
    top_k: int | None = _of_config("top_k", (1 << 31) - 1)
    min_p: float | None = _of_config("min_p")
    repetition_penalty: float | None = _of_config("repetition_penalty", 10)
    frequency_penalty: float | None = _of_config("frequency_penalty", 2)
    seed: int | None = _of_config("seed")


class TextFormat(Shape):
    """The one format of answers there is."""

    type: Literal["text"]


class StreamOptions(Shape):
    """What a stream holds beside the text."""

    include_usage: bool | None = None
    """A last event counts the tokens."""


class GenerationParameters(SamplingParameters):
    """What both kinds of completion take."""

    model: Text | None = None
    """The model's name, as /v1/models says it."""
    max_tokens: MaxTokens | None = None
    """The answer's tokens, at most; -1: as many as the server allows."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Answers to the same prompt, each with a seed of its own."""
    stop: Text | Annotated[list[Text], Field(fail_fast=True)] | None = None
    """The answer ends before these texts; an empty one is ignored."""
    stream: bool | None = None
    """Answer piece by piece, as server-sent events."""
    stream_options: StreamOptions | None = None
    sources: bool | None = None
    """Say where the answer stands word for word in the training text; not of OpenAI's API."""

    # known to clients and not done here: only what asks for nothing is accepted
    presence_penalty: Nothing | None = None
    logit_bias: Nothing | None = None
    best_of: One | None = None
    suffix: Nothing | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    # of vLLM and llama.cpp
    min_tokens: Nothing | None = None
    ignore_eos: Nothing | None = None
    stop_token_ids: Nothing | None = None
    structured_outputs: Nothing | None = None
    guided_json: Nothing | None = None
    guided_regex: Nothing | None = None
    guided_choice: Nothing | None = None
    guided_grammar: Nothing | None = None
    grammar: Nothing | None = None
    json_schema: Nothing | None = None
    mirostat: Nothing | None = None
    xtc_probability: Nothing | None = None
    dry_multiplier: Nothing | None = None
    dynatemp_range: Nothing | None = None
    typical_p: One | None = None
    repeat_penalty: One | None = None


class CompletionRequest(GenerationParameters):
    """What /v1/completions takes."""

    prompt: Text | TokenIds | Annotated[list[Text | TokenIds], Items]
    """The beginning of the text, or several; empty: of a new document."""
    max_tokens: MaxTokens | Literal[0] | None = None
    """The answer's tokens, at most; -1: as many as the server allows; 0: with echo, none."""
    echo: bool | None = None
    """Begin the answer with the prompt, and its logprobs if there are any."""
    logprobs: TopLogprobs | None = None
    """Name this many likeliest tokens beside each."""


class TextPart(TextFormat):
    """A part of a message's content."""

    text: Text


class ChatMessage(Shape):
    """What one speaker said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)]
    name: Text | None = None
    tool_calls: Nothing | None = None
    function_call: Nothing | None = None


class ChatRequest(GenerationParameters):
    """What /v1/chat/completions takes."""

    messages: Annotated[list[ChatMessage], Items]
    """The conversation so far; of a long one the oldest turns are left out."""
    max_completion_tokens: MaxTokens | None = None
    """Newer name of max_tokens."""
    logprobs: bool | None = None
    """Say how likely each token was."""
    top_logprobs: TopLogprobs | None = None
    """Name this many likeliest tokens beside each."""


class TokenizeRequest(Shape):
    """What /tokenize takes."""

    prompt: Text


class DetokenizeRequest(Shape):
    """What /detokenize takes."""

    tokens: TokenIds


class Usage(Shape):
    """Tokens in and out; the end-of-text that ends an answer is not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(Shape):
    """A continuation of a conversation."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(Shape):
    """One of the answers to a request: a ``text`` for a prompt, a ``message`` in a chat."""

    index: int
    text: str | None = None
    message: AssistantMessage | None = None
    logprobs: Json | None
    """Tokens and their natural logarithms of probability, as OpenAI writes them."""
    finish_reason: Literal["stop", "length"]
    sources: Json | None = None
    """Where it stands in the training text; null where that has no index: {"n_tokens", "n_traced",
    "spans": [{"start", "end" (in characters), "n_tokens", "n_found", "passages": [{"name", "line",
    "before", "text", "after"}]}]}"""


class CompletionResponse(Shape):
    """What both kinds of completion answer."""

    id: str
    object: Literal["text_completion", "chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    notices: list[str] = []
    """What had no room in the context."""


class ErrorResponse(Shape):
    """What is answered where the status is not 200."""

    error: dict[Literal["message", "type", "param", "code"], str | None]


class APIError(HTTPException):
    """A request that cannot be answered as it is."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        """Return what the client gets."""
        content = json.dumps(self.body)
        return Response(content, self.status_code, self.headers, media_type="application/json")


def shown(value: Any) -> str:
    """Return a value as an error may show it: in ASCII, and not the whole of a long one."""
    if isinstance(value, list | dict):  # may be too deep to be written down
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    text = ascii(value)
    return text if len(text) <= SHOWN_VALUE_CHARS else text[:SHOWN_VALUE_CHARS] + "..."


def validation_error(errors: Iterable[Mapping[str, Any]]) -> APIError:
    """Return the error that names one parameter: what was found, and what pydantic expected."""
    by_path: dict[tuple[int | str, ...], list[Mapping[str, Any]]] = {}
    for error in errors:
        # "loc" begins with FastAPI's "body", and also holds a union's arms, such as list[TextPart]
        keys = [key for key in error["loc"] if isinstance(key, int) or key.isidentifier()]
        by_path.setdefault(tuple(key for key in keys if key != "body"), []).append(error)
    # of a union's arms the one that got furthest
    path = max(by_path, key=lambda keys: (len(keys), [k for k in keys if isinstance(k, int)]))
    found = by_path[path]
    name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)[1:]
    if found[0]["type"] == "missing":
        return APIError(f"{name} is missing.", param=name, code="missing_required_parameter")
    expected = " or ".join(dict.fromkeys(map(_expected, found)))
    message = f"{name} is {shown(found[0]['input'])}: it must {expected}."
    return APIError(message, param=name, code="invalid_value")


def _expected(error: Mapping[str, Any]) -> str:
    if error["type"] == "string_unicode":
        return "be a text of whole characters"
    words = re.sub(r"^\w+ should | after validation.*| or instance of.*", "", error["msg"])
    return words.replace("dictionary", "object")
